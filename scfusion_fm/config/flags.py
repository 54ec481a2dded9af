"""Flags of a script: names for its settings, so that no YAML file is needed, and a help text that tells all of them."""

import argparse
import ast
import dataclasses
import inspect
import itertools
import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, cast, get_args, get_origin

from omegaconf import MISSING

T = TypeVar("T")
OTHER_NAMES = {"output_dir": "output"}
FORMER_NAMES = ("label_key",)  # refused, with their new name, by whoever reads the settings
NULL = "null"


@dataclass(frozen=True)
class Setting:
    """
    A setting as a flag.

    Attributes
    ----------
    name
        With dots, such as `optim.lr`.
    kind
        Its type.
    default
        Its value where nothing is given.
    text
        What it means.
    """

    name: str
    kind: Any
    default: Any
    text: str

    @property
    def is_list(self) -> bool:
        """Whether it takes several values."""
        return list in (get_origin(self.kind), *map(get_origin, get_args(self.kind)))

    @property
    def may_be_null(self) -> bool:
        """Whether it may have no value."""
        return NoneType in get_args(self.kind)

    def read(self, given: Any) -> Any:
        """Give the value that stands for what was given; numbers stay text, which the settings read."""
        return None if self.may_be_null and given in (NULL, [NULL]) else given


def parse_flags(
    schema: type[T], description: str, arguments: Sequence[str] | None = None, program: str | None = None
) -> T:
    """
    Read settings from the command line: `--config FILE`, flags that replace what it says, and `key=value` likewise.

    Parameters
    ----------
    schema
        A dataclass of settings; what it says below its fields is the help text.
    description
        What the command does.
    arguments
        Of the command line; those of the process by default.
    program
        What help and errors call the command; the name of the script by default.

    Raises
    ------
    ValueError
        If a setting is missing, unknown or wrong.
    """
    settings = {setting.name: setting for setting in list_settings(schema)}
    parser = build_parser(schema, description, program)
    given = vars(parser.parse_intermixed_args(arguments))
    path, overrides = given.pop("config", None), given.pop("overrides", [])
    given.pop("local_rank", None)
    for name in [name for name in given if name in settings and settings[name].is_list]:
        kept = [value for value in given[name] if not _is_override(value, schema)]
        overrides += [value for value in given[name] if value not in kept]
        given[name] = kept
    flags = {name: settings[name].read(value) if name in settings else value for name, value in given.items()}
    from scfusion_fm.config.loading import load_config

    return load_config(schema, path, overrides, flags)


def read_settings(schema: type[T], given: Mapping[str, Any]) -> T:
    """
    Read settings that are given by the names of their flags, such as `epochs` for `optim.epochs`.

    Raises
    ------
    ValueError
        If a setting is missing, unknown or wrong.
    """
    from scfusion_fm.config.loading import load_config

    flags = name_flags(list(list_settings(schema)))
    places = {flag.replace("-", "_"): name for name, found in flags.items() for flag in found}
    return load_config(schema, None, (), {places.get(name, name): value for name, value in given.items()})


def name_flags(settings: Sequence[Setting]) -> dict[str, list[str]]:
    """Give the flags of each setting, without dashes in front: by its own name, if no other has it, and in full."""
    leaves = Counter(setting.name.rpartition(".")[2] for setting in settings)
    flags = {}
    for setting in settings:
        section, _, leaf = setting.name.rpartition(".")
        found = [OTHER_NAMES[leaf]] if leaf in OTHER_NAMES else []
        found += [leaf] if leaves[leaf] == 1 or not section else []
        found += [setting.name.replace(".", "_")] if section else []
        flags[setting.name] = [name.replace("_", "-") for name in found]
    return flags


def list_settings(schema: Any, prefix: str = "") -> Iterator[Setting]:
    """Give the settings of a dataclass, and those of the dataclasses in it."""
    texts = read_field_texts(schema)
    for field in dataclasses.fields(schema):
        if dataclasses.is_dataclass(field.type):
            yield from list_settings(field.type, f"{prefix}{field.name}.")
        else:
            make = field.default_factory
            default = make() if callable(make) else field.default
            yield Setting(prefix + field.name, field.type, default, texts.get(field.name, ""))


def read_field_texts(schema: Any) -> dict[str, str]:
    """Read what a dataclass says below each of its fields."""
    texts: dict[str, str] = {}
    for owner in reversed(schema.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        (found,) = ast.parse(textwrap.dedent(inspect.getsource(cast(type, owner)))).body
        body = getattr(found, "body", [])
        for line, after in itertools.pairwise(body):
            text = getattr(after, "value", None)
            if isinstance(line, ast.AnnAssign) and isinstance(text, ast.Constant):
                texts[getattr(line.target, "id", "")] = " ".join(str(text.value).split())
    return texts


def build_parser(schema: type, description: str, program: str | None = None) -> argparse.ArgumentParser:
    """Describe the flags of all settings of a dataclass, as in `parse_flags`."""
    settings = list(list_settings(schema))
    parser = argparse.ArgumentParser(
        prog=program,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [--config FILE] [--SETTING VALUE ...] [key=value ...]",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with settings; flags and key=value replace them")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # of a launcher
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="key=value",
        help="settings by their names in the file: optim.lr=1e-3",
    )
    for name in FORMER_NAMES:
        parser.add_argument("--" + name.replace("_", "-"), dest=name, help=argparse.SUPPRESS)
    texts, flags = read_field_texts(schema), name_flags(settings)
    groups = {"": parser.add_argument_group("settings")}
    for setting in settings:
        section = setting.name.rpartition(".")[0]
        if section not in groups:
            groups[section] = parser.add_argument_group(f"settings of `{section}`", texts.get(section, ""))
        _add_flag(groups[section], setting, ["--" + name for name in flags[setting.name]])
    return parser


def _add_flag(group: argparse._ArgumentGroup, setting: Setting, names: list[str]) -> None:
    text = f"{setting.text} ({_show_default(setting.default)})".replace("%", "%%")
    if setting.kind is bool:
        group.add_argument(*names, dest=setting.name, action=argparse.BooleanOptionalAction, help=text)
        return
    several = "*" if setting.is_list else None
    group.add_argument(*names, dest=setting.name, metavar=_show_kind(setting.kind), help=text, nargs=several)


def _show_kind(kind: Any) -> str:
    kinds = {kind, *get_args(kind)}
    return "N" if int in kinds else "X" if float in kinds else "NAME"


def _show_default(default: Any) -> str:
    if default == MISSING:
        return "required"
    if isinstance(default, list):
        return "default: " + (" ".join(map(repr, default)) or "none")
    return f"default: {NULL if default is None else str(default).lower() if isinstance(default, bool) else default}"


def _is_override(value: str, schema: Any) -> bool:
    """Tell `key=value`, which stands behind a flag that takes several values, from one of these."""
    found = re.match(r"(\w+)(\.\w+)*=", value)
    if found is None or Path(value).exists():
        return False
    return found[1] in {field.name for field in dataclasses.fields(schema)}
