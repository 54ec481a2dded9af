"""The `scfusion` command."""

import argparse

from scfusion_fm.cli import data, model, report
from scfusion_fm.cli.limits import run_limited
from scfusion_fm.config.command import run_command


def main() -> None:
    """Run the `scfusion` command."""
    run_command(_run)


def build_parser() -> argparse.ArgumentParser:
    """Describe all sub-commands; `run` of the parsed arguments is the handler."""
    parser = argparse.ArgumentParser(prog="scfusion", description="Foundation model for CITE-seq.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for group in (data, model, report):
        group.add_commands(commands)
    return parser


def _run() -> None:
    args = build_parser().parse_args()
    if not run_limited(args):
        args.run(args)
