"""The `scfusion` command."""

import argparse
from typing import NoReturn

from scfusion_fm.cli import data, model, report, training
from scfusion_fm.cli.limits import run_limited
from scfusion_fm.config.command import run_command
from scfusion_fm.untrusted.text import show_text


class Parser(argparse.ArgumentParser):
    """A parser that shows what it refuses without letting it steer the terminal."""

    def error(self, message: str) -> NoReturn:
        """Refuse, with exit code 2."""
        super().error(show_text(message))


def main() -> None:
    """Run the `scfusion` command."""
    run_command(_run)


def build_parser() -> argparse.ArgumentParser:
    """Describe all sub-commands; `run` of the parsed arguments is the handler."""
    parser = Parser(prog="scfusion", description="Foundation model for CITE-seq.")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # set by a launcher; not used
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for group in (data, model, training, report):
        group.add_commands(commands)
    return parser


def _run() -> None:
    args = build_parser().parse_args()
    if not run_limited(args):
        args.run(args)
