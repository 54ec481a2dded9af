"""The `scfusion` command."""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from scfusion_fm.cli import about, data, model, report, training
from scfusion_fm.cli.examples import show_examples
from scfusion_fm.cli.limits import run_limited
from scfusion_fm.config.command import run_command
from scfusion_fm.untrusted.text import show_text


class Parser(argparse.ArgumentParser):
    """A parser that shows what it refuses without letting it steer the terminal."""

    def error(self, message: str) -> NoReturn:
        """Refuse, with exit code 2."""
        super().error(show_text(message))


class Version(argparse.Action):
    """Print versions, which are looked up only then."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        """Print, and stop."""
        from scfusion_fm.cli.environment import describe_version

        print(describe_version())
        parser.exit()


def main() -> None:
    """Run the `scfusion` command."""
    run_command(_run)


def build_parser() -> argparse.ArgumentParser:
    """Describe all sub-commands; `run` of the parsed arguments is the handler."""
    parser = Parser(
        prog="scfusion",
        description="Foundation model for CITE-seq: cell types, surface proteins and embeddings of single cells.",
        epilog="`scfusion COMMAND --help` says more of a command, with an example.",
    )
    parser.add_argument("--version", action=Version, help="print versions, and stop")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # set by a launcher; not used
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for group in (data, model, training, report, about):
        group.add_commands(commands)
    show_examples(commands)
    return parser


def _run() -> None:
    args = build_parser().parse_args()
    if not run_limited(args):
        args.run(args)
