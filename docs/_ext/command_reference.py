"""Directives that write the reference of commands from their parsers, and that of settings from their dataclasses."""

import argparse
import inspect
import re
import textwrap
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from scfusion_fm.cli.main import build_parser
from scfusion_fm.config.flags import Setting, _show_default, list_settings, name_flags


class Commands(SphinxDirective):
    """A section for each sub-command of `scfusion`."""

    def run(self) -> list[nodes.Node]:
        """Read the parsers of today."""
        return [_build_section(parser) for parser in _find_leaves(build_parser())]


class Settings(SphinxDirective):
    """A table of all settings of a dataclass: `module:Class`."""

    required_arguments = 1
    option_spec = {"flags": lambda text: True}  # noqa: RUF012

    def run(self) -> list[nodes.Node]:
        """Read the fields of today."""
        module, _, name = self.arguments[0].partition(":")
        settings = [*list_settings(getattr(import_module(f"scfusion_fm.config.{module}"), name))]
        flags = name_flags(settings) if "flags" in self.options else {}
        rows = [_describe_setting(setting, flags.get(setting.name, [])) for setting in settings]
        return [_build_table(("setting", "default", "meaning"), rows, (25, 15, 60))]


def setup(app: Sphinx) -> dict[str, bool]:
    """Add both directives."""
    app.add_directive("commands", Commands)
    app.add_directive("settings", Settings)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _find_leaves(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Give the parsers of commands that have no commands of their own."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield parser
    for group in groups:
        for inner in group.choices.values():
            yield from _find_leaves(inner)


def _build_section(parser: argparse.ArgumentParser) -> nodes.section:
    name = parser.prog
    section = nodes.section(ids=[nodes.make_id(name)], names=[nodes.fully_normalize_name(name)])
    section += nodes.title("", "", nodes.literal("", name))
    for part in (parser.description or "").replace("%(prog)s", name).split("\n\n"):
        block = textwrap.dedent(part).strip("\n")
        section += nodes.literal_block("", block, language="text") if part.startswith("    ") else _read_text(block)
    usage = re.sub(r"\n\s+", "\n    ", parser.format_usage().removeprefix("usage: ").strip())
    section += nodes.literal_block("", usage, language="text")
    actions = [action for action in parser._actions if action.help != argparse.SUPPRESS and action.dest != "help"]
    section += _build_table(("argument", "meaning"), [_describe_action(action) for action in actions], (35, 65))
    if parser.epilog:
        section += nodes.paragraph("", "Example:")
        section += nodes.literal_block("", inspect.cleandoc(parser.epilog.partition("\n")[2]), language="text")
    return section


def _describe_action(action: argparse.Action) -> tuple[nodes.Node, nodes.Node]:
    shown = str(action.metavar or (action.dest.upper() if action.option_strings else action.dest))
    if action.choices:
        shown = "{" + ",".join(map(str, action.choices)) + "}"
    names = [name if action.nargs == 0 else f"{name} {shown}" for name in action.option_strings] or [shown]
    told = (action.help or "").replace("%%", "%")
    default = action.default
    if action.option_strings and default not in (None, False, argparse.SUPPRESS) and str(default) not in told:
        told = f"{told} ({default})".strip()
    term = nodes.paragraph()
    for number, name in enumerate(names):
        term += [nodes.Text(", ")] if number else []
        term += nodes.literal("", name)
    return term, _read_text(told)


def _describe_setting(setting: Setting, flags: list[str]) -> tuple[nodes.Node, ...]:
    named = nodes.paragraph("", "", nodes.literal("", setting.name))
    for flag in flags:
        named += [nodes.Text(" "), nodes.literal("", f"--{flag}")]
    default = nodes.paragraph("", _show_default(setting.default).removeprefix("default: "))
    return named, default, _read_text(setting.text)


def _read_text(text: str) -> nodes.paragraph:
    """Give a paragraph in which what stands between backticks is code."""
    paragraph = nodes.paragraph()
    for number, part in enumerate(re.split(r"`([^`]+)`", text)):
        if part:
            paragraph += nodes.literal("", part) if number % 2 else nodes.Text(part)
    return paragraph


def _build_table(head: tuple[str, ...], rows: list[tuple[Any, ...]], widths: tuple[int, ...]) -> nodes.table:
    group = nodes.tgroup("", *[nodes.colspec(colwidth=width) for width in widths], cols=len(widths))
    top = nodes.row("", *[nodes.entry("", nodes.paragraph("", name)) for name in head])
    group += nodes.thead("", top)
    group += nodes.tbody("", *[nodes.row("", *[nodes.entry("", cell) for cell in row]) for row in rows])
    return nodes.table("", group, classes=["reference-table"])
