"""Sub-commands about the command itself: what it runs on, and completion for shells."""

import argparse
import json

from scfusion_fm.cli.completion import SHELLS, write_completion


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add `env` and `completion`."""
    for add in (_add_env, _add_completion):
        add(commands)


def _add_env(commands: argparse._SubParsersAction) -> None:
    env = commands.add_parser("env", help="say which versions, devices and settings a command runs with")
    env.add_argument("--json", action="store_true", help="print JSON")
    env.set_defaults(run=_env)


def _env(args: argparse.Namespace) -> None:
    from scfusion_fm.cli.environment import describe_environment, render_environment

    found = describe_environment()
    print(json.dumps(found, indent=1) if args.json else render_environment(found))


def _add_completion(commands: argparse._SubParsersAction) -> None:
    completion = commands.add_parser("completion", help="print what makes a shell complete commands and options")
    completion.add_argument("shell", choices=SHELLS)
    completion.set_defaults(run=_completion)


def _completion(args: argparse.Namespace) -> None:
    from scfusion_fm.cli.main import build_parser

    print(write_completion(build_parser(), args.shell), end="")
