"""Completion for bash, zsh and fish, written from the parsers: commands, their options, choices, and shipped models."""

import argparse
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SHELLS = ("bash", "zsh", "fish")
BASH = """\
_scfusion() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}} command=${{COMP_WORDS[1]}} words=
  if [[ $COMP_CWORD -eq 1 ]]; then command=
  elif [[ $command == finetune ]]; then
    if [[ $COMP_CWORD -eq 2 ]]; then command=finetune; else command="finetune ${{COMP_WORDS[2]}}"; fi
  fi
  case "$command $previous" in
{choices}
    *)
      if [[ $current == -* ]]; then
        case "$command" in
{options}
        esac
      else
        case "$command" in
{words}
        esac
      fi
      ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
  if [[ -n $command && $current != -* ]]; then COMPREPLY+=($(compgen -f -- "$current")); fi
}}
complete -o filenames -F _scfusion scfusion
"""
ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


@dataclass(frozen=True)
class Command:
    """
    What can be typed behind a command.

    Attributes
    ----------
    name
        With its parents, such as `finetune annotation`; empty for what comes first.
    text
        What it does.
    options
        Each with its meaning.
    choices
        Options with the values that they take.
    words
        Names that may come: commands, models, values of an argument.
    """

    name: str
    text: str
    options: dict[str, str]
    choices: dict[str, list[str]]
    words: list[str]


def write_completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """
    Write the script that a shell reads to complete `scfusion`.

    Parameters
    ----------
    parser
        Of the command, with its sub-commands.
    shell
        One of `SHELLS`.

    Returns
    -------
    Text of the script.
    """
    commands = list(_list_commands(parser, "", ""))
    if shell == "fish":
        return "".join(f"{line}\n" for command in commands for line in _write_fish(command, commands))
    return (ZSH if shell == "zsh" else "") + _write_bash(commands)


def _list_commands(parser: argparse.ArgumentParser, name: str, text: str) -> Iterator[Command]:
    """Give a command and those in it."""
    from scfusion_fm.inference.model_files import list_shipped

    options: dict[str, str] = {}
    choices: dict[str, list[str]] = {}
    words: list[str] = []
    inner: dict[str, tuple[argparse.ArgumentParser, str]] = {}
    for action in _list_actions(parser, name):
        if isinstance(action, argparse._SubParsersAction):
            inner = {one: (action.choices[one], told) for one, told in _list_texts(action).items()}
            words += inner
        elif action.option_strings and action.help != argparse.SUPPRESS:
            options |= {option: (action.help or "").replace("%%", "%") for option in action.option_strings}
            if action.choices:
                choices |= {option: list(map(str, action.choices)) for option in action.option_strings}
        elif action.choices:
            words += map(str, action.choices)
        elif action.dest == "model" or name == "verify":
            words += list_shipped()
    if "--model" in options:
        choices["--model"] = list(list_shipped())
    yield Command(name, text, options, choices, words)
    for one, (own, told) in inner.items():
        yield from _list_commands(own, f"{name} {one}".strip(), told)


def _list_actions(parser: argparse.ArgumentParser, name: str) -> Sequence[argparse.Action]:
    """Give the arguments of a command; those of fine-tuning are its settings."""
    parent, _, task = name.partition(" ")
    if parent == "finetune" and task:
        from scfusion_fm.cli.training import build_task_parser

        parser = build_task_parser(task)
    return parser._actions


def _list_texts(action: argparse._SubParsersAction) -> dict[str, str]:
    return {one.dest: one.help or "" for one in action._choices_actions}


def _write_bash(commands: list[Command]) -> str:
    choices = [
        f"    {shlex.quote(f'{command.name} {option}')}) words={shlex.quote(' '.join(values))} ;;"
        for command in commands
        for option, values in command.choices.items()
    ]
    options = [f"          {shlex.quote(c.name)}) words={shlex.quote(' '.join(c.options))} ;;" for c in commands]
    words = [f"          {shlex.quote(c.name)}) words={shlex.quote(' '.join(c.words))} ;;" for c in commands if c.words]
    return BASH.format(choices="\n".join(choices), options="\n".join(options), words="\n".join(words))


def _write_fish(command: Command, commands: list[Command]) -> Iterator[str]:
    """Give a line for each word and each option of a command."""
    names = command.name.split()
    inner = [other.name.split()[-1] for other in commands if other.name.split()[:-1] == names and other.name]
    where = [f"__fish_seen_subcommand_from {name}" for name in names]
    where += [f"not __fish_seen_subcommand_from {' '.join(inner)}"] if inner else []
    start = f"complete -c scfusion -n {shlex.quote('; and '.join(where))}"
    texts = {other.name.split()[-1]: other.text for other in commands if other.name}
    for word in command.words:
        yield f"{start} -a {word}" + (f" -d {shlex.quote(texts[word])}" if word in inner else "")
    for option, text in command.options.items():
        kind = f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
        values = f" -x -a {shlex.quote(' '.join(command.choices[option]))}" if option in command.choices else ""
        yield f"{start} {kind}{values} -d {shlex.quote(text)}"
