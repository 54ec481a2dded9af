"""What the pages tell to type can be typed: commands, options, settings, files and public names are there.

Commands are read by the parsers of today, and not run (those of the README are: `test_house.py`).
"""

import argparse
import ast
import functools
import importlib
import inspect
import pkgutil
import re
import shlex
import tomllib

import pytest
from launch import ROOT

from scfusion_fm.cli.main import build_parser
from scfusion_fm.cli.training import TASKS
from scfusion_fm.config.comparison import EvaluateConfig
from scfusion_fm.config.flags import list_settings, name_flags, parse_flags
from scfusion_fm.config.loading import load_config
from scfusion_fm.config.prepare import PrepareConfig
from scfusion_fm.config.pretrain import PretrainConfig

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SCHEMAS = {name: pkgutil.resolve_name(f"scfusion_fm.{':'.join(task.schema)}") for name, task in TASKS.items()}
FINETUNE = {f"finetune/{task.script}.py": SCHEMAS[name] for name, task in TASKS.items()}
# With the file that stands for one that the reader has.
CONFIGS = {
    "prepare": (PrepareConfig, "configs/data/demo.yaml"),
    "evaluate": (EvaluateConfig, "configs/evaluate/demo.yaml"),
    "plan": (PretrainConfig, "configs/pretrain/demo.yaml"),
    "pretrain": (PretrainConfig, "configs/pretrain/demo.yaml"),
    "pretrain/run.py": (PretrainConfig, "configs/pretrain/demo.yaml"),
}
LAUNCHERS = ("python", "deepspeed", "torchrun", "accelerate", "srun", "sbatch")
PROGRAMS = ("scfusion", "pip", "make", *LAUNCHERS)
FOLDERS = "benchmarks|configs|docs|finetune|pretrain|scfusion_fm|scripts|tests"
OTHERS = {"--signal", "--multi_gpu", "--gpus-per-node", "--no_ssh_check", "--master_addr"}  # options of launchers
FILES = (".json", ".py", ".yaml")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def read_blocks(page):
    """Give fenced blocks, (language, code), and the lines of indented ones as one more."""
    text = page.read_text()
    rest = re.sub(r"^( *)```.*?^ *```", "", text, flags=re.M | re.S)
    indented = "\n".join(re.findall(r"^ {4,}(\S.*)$", rest, re.M))
    return [*re.findall(r"^ *```(\w*)\n(.*?)^ *```", text, re.M | re.S), ("", indented)]


def find_inline(page):
    """Give what stands between backticks in the text; where a line ends in it is no matter."""
    text = re.sub(r"^( *)```.*?^ *```", "", page.read_text(), flags=re.M | re.S)
    return [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", text)]


def find_commands(page):
    lines = [
        line
        for language, code in read_blocks(page)
        if language != "python"
        for line in code.replace("\\\n", "").splitlines()
    ]
    texts = [re.sub(r"^\$ |\s#.*| [|>&].*", "", text) for text in [*lines, *find_inline(page)]]
    texts = [re.sub(r"^([A-Z_]+=\S* )+", "", text) for text in texts]
    return [shlex.split(text) for text in texts if text.partition(" ")[0] in PROGRAMS]


def options_of(words):
    return {word.partition("=")[0] for word in words if word.startswith("--")}


def is_part(words):
    """Tell whether something of a command is left out: a command that is only named, `...`, or [...]."""
    return len(words) < 2 or any("..." in word or word.startswith("[") for word in words)


@functools.cache
def commands():
    """Give the parser of each sub-command."""
    (found,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return found.choices


@functools.cache
def known_options():
    found = {option for parser in commands().values() for option in parser._option_string_actions}
    for schema in FINETUNE.values():
        found |= {f"--{flag}" for flags in name_flags([*list_settings(schema)]).values() for flag in flags}
    scripts = [
        path.read_text() for name in ("benchmarks", "scripts", "pretrain") for path in (ROOT / name).glob("*.py")
    ]
    return found | set(re.findall(r'"(--[\w-]+)"', "".join(scripts))) | OTHERS


@functools.cache
def known_settings():
    schemas = [*FINETUNE.values(), PrepareConfig, PretrainConfig, EvaluateConfig]
    found = {setting.name for schema in schemas for setting in list_settings(schema)}
    return found | {"split.test_groups"}  # of an experiment, whose settings are read one by one


def check_scfusion(words):
    if not words:  # the package's name
        return
    assert words[0] in commands()
    if words[0] in ("finetune", "pretrain"):  # their options are those of their settings
        check_training(words)
        return
    assert options_of(words) <= set(commands()[words[0]]._option_string_actions)
    if not is_part(words):
        check_config(words[0], build_parser().parse_args(words))


def check_training(words):
    assert options_of(words) <= known_options() | {"--config"}
    if words[0] == "finetune" and len(words) > 1:
        schema = SCHEMAS[words[1]]
        if not is_part(words[1:]):
            parse_flags(schema, "", words[2:])
    if words[0] == "pretrain" and not is_part(words):
        check_config("pretrain", argparse.Namespace(config=words[2], overrides=words[3:]))


def check_config(name, args):
    """Read the settings of a command with what replaces them; of its example where the file is the reader's."""
    if name in CONFIGS:
        schema, example = CONFIGS[name]
        load_config(schema, args.config if (ROOT / args.config).exists() else example, args.overrides)


def check_script(words):
    """Check a script and its arguments; those in front of it are the launcher's."""
    at = next((i for i, word in enumerate(words) if word.endswith((".py", ".sbatch"))), None)
    if at is None:  # a launcher that is only named
        return
    script, own = words[at], words[at + 1 :]
    assert (ROOT / script).is_file()
    assert options_of(own) <= known_options() | {"--config"}
    if script in FINETUNE and not is_part([script, *own]):
        parse_flags(FINETUNE[script], "", own)
    if script in CONFIGS and not is_part([script, *own]):
        check_config(script, argparse.Namespace(config=own[own.index("--config") + 1], overrides=own[2:]))


def check_command(words):
    if words[0] == "scfusion":
        check_scfusion(words[1:])
    elif words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert {word for word in words[1:] if "=" not in word} <= set(targets)
    elif words[0] == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert {
            extra
            for word in words
            for found in re.findall(r"(?:\.|fm)\[([\w,]+)\]", word)
            for extra in found.split(",")
        } <= set(extras)
    else:
        check_script(words)


@each_page
def test_commands_can_be_typed(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in find_commands(page):
        try:
            check_command(words)
        except (SystemExit, Exception) as error:
            pytest.fail(f"{shlex.join(words)}: {error}")


@each_page
def test_options_settings_and_files_are_there(page):
    sections = {name.partition(".")[0] for name in known_settings() if "." in name}
    for text in find_inline(page):
        assert not text.startswith("--") or options_of(text.split()) <= known_options(), text
        setting = re.fullmatch(r"([a-z]+)\.\w+(?=[:=].*|$)", text)
        if setting and setting[1] in sections and not text.endswith(FILES):
            assert setting[0].partition("=")[0] in known_settings(), text
    named = set(re.findall(rf"(?<![\w/.-])((?:{FOLDERS})/[\w/.*-]*\w)", page.read_text()))
    assert {name for name in named if not [*ROOT.glob(name)]} == set()


@each_page
def test_public_names_are_there(page):
    for text in find_inline(page):
        found = re.match(r"(?:sf|scfusion_fm)((?:\.[a-z_]\w*)+)", text)
        if found:
            pkgutil.resolve_name("scfusion_fm" + found[1].removesuffix(".py"))


@each_page
def test_snippets_import_and_call_what_is_there(page):
    for code in [code for language, code in read_blocks(page) if language == "python"]:
        tree, names = ast.parse(code), {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                names |= {a.asname or a.name: getattr(importlib.import_module(node.module), a.name) for a in node.names}
            elif isinstance(node, ast.Import):
                names |= {a.asname or a.name: importlib.import_module(a.name) for a in node.names}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and (called := follow(node.func, names)):
                inspect.signature(called).bind_partial(**{keyword.arg: None for keyword in node.keywords})


def follow(node, names):
    """Give what a name with dots leads to; None where it does not begin with something that was imported."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    outer = follow(node.value, names) if isinstance(node, ast.Attribute) else None
    return None if outer is None else getattr(outer, node.attr)
