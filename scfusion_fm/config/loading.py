"""Settings of every command: YAML files checked against dataclasses, with dotted overrides."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from scfusion_fm.config.shipped import find_settings
from scfusion_fm.records import seal_text

LARGEST_FILE = 1_000_000  # letters, or entries; no settings are that long
FLAGS = "the settings"
RENAMED = {"label_key": "labels_key"}
T = TypeVar("T")


def load_config(
    schema: type[T], path: str | Path | None, overrides: Sequence[str] = (), flags: Mapping[str, Any] | None = None
) -> T:
    """
    Read settings into a checked dataclass: a YAML file, and what replaces its settings.

    Parameters
    ----------
    schema
        A dataclass whose fields are dataclasses, or lists or dicts of them, or plain values.
    path
        YAML file; None for none. `configs/...` is one that comes with the package, where there is no such file.
    overrides
        Settings such as `optim.lr=3e-4` that replace those of the file and of the flags.
    flags
        Settings by name, such as `optim.lr`, that replace those of the file; numbers may be text.

    Raises
    ------
    ValueError
        If the file is missing or no YAML, a key is unknown, a value has the wrong type or is missing.
    """
    where = FLAGS if path is None else str(path)
    path = None if path is None else find_settings(path)
    if path is not None and not path.is_file():
        raise ValueError(f"`--config` must be a YAML file, got {where!r}, which does not exist.")
    bad = [o for o in overrides if "=" not in o]
    if bad:
        raise ValueError(f"Overrides must read `key=value`, got {bad[0]!r}.")
    read = OmegaConf.create() if path is None else _read_yaml(path)
    for name, value in (flags or {}).items():
        OmegaConf.update(read, name, value, force_add=True)
    return build_config(schema, _override(read, overrides), where)


def build_config(schema: type[T], given: Any, where: str) -> T:
    """
    Check settings and make the dataclass of them.

    Parameters
    ----------
    schema
        As in `load_config`.
    given
        Settings by name, as a YAML file has them.
    where
        What holds them, for errors.

    Raises
    ------
    ValueError
        If a key is unknown, a value has the wrong type or is missing.
    """
    try:
        given = OmegaConf.create(given)
        complete = getattr(schema, "complete", None)
        given = given if complete is None else complete(given)
        _check_keys(schema, given, where)
        return cast(T, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), given)))
    except MissingMandatoryValue as error:
        missing = str(error).splitlines()[0].rpartition(": ")[2]
        raise ValueError(
            f"`{missing}` must be given, as a flag or in {where if where != FLAGS else 'a file for --config'}, got "
            "nothing."
        ) from error
    except (OmegaConfBaseException, TypeError) as error:  # TypeError: a list where there is a mapping, or so
        key = getattr(error, "full_key", None)
        told = str(error).splitlines()[0] + (f" (`{key}`)" if key else "")
        raise ValueError(f"In {where}: {told}") from error


def _read_yaml(path: Path) -> DictConfig:
    try:
        text = path.read_text()
        if len(text) > LARGEST_FILE or _count_nodes(yaml.compose(text, yaml.SafeLoader), {}) > LARGEST_FILE:
            raise YAMLError(f"it has more than {LARGEST_FILE:,} letters or entries")
        read = OmegaConf.load(path)
    except (YAMLError, OSError, UnicodeDecodeError, RecursionError, OmegaConfBaseException) as error:
        raise ValueError(f"`--config` must be readable YAML, got {str(path)!r}: {_one_line(error)}.") from error
    if not OmegaConf.is_dict(read):
        raise ValueError(f"`--config` must hold settings as `key: value`, got a list in {str(path)!r}.")
    return cast(DictConfig, read)


def _override(read: DictConfig, overrides: Sequence[str]) -> DictConfig:
    try:
        given = OmegaConf.from_dotlist(list(overrides))
    except (YAMLError, OmegaConfBaseException, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"Overrides must read `key=value`, got {list(overrides)}: {_one_line(error)}.") from error
    try:
        return cast(DictConfig, OmegaConf.merge(read, given))
    except (TypeError, OmegaConfBaseException) as error:  # of a mapping into a list
        raise ValueError(
            f"Overrides must replace a list as a whole, such as `sources=[{{path: a.h5ad}}]`, got {list(overrides)}."
        ) from error


def _count_nodes(node: yaml.Node | None, sizes: dict[int, int]) -> int:
    """Count the entries of a document as they are after all anchors have been put in."""
    if node is None or isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in sizes:
        sizes[id(node)] = LARGEST_FILE + 1  # what contains itself
        inner = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
        sizes[id(node)] = 1 + sum(_count_nodes(part, sizes) for part in inner)
    return sizes[id(node)]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


def save_config(config: Any, path: Path) -> None:
    """Write a configuration as YAML, with its checksum in a comment."""
    path.write_text(seal_text(OmegaConf.to_yaml(OmegaConf.structured(config))))


def config_differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """List the settings in which two nested dicts differ, as `key: old -> new`."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return [] if old == new else [f"{prefix}: {old!r} -> {new!r}"]
    found = []
    for key in sorted({*old, *new}):
        found += config_differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
    return found


def _suggest(key: str, prefix: str, known: list[str]) -> str:
    """Say what an unknown setting may have meant."""
    if RENAMED.get(key) in known:
        return f" It is called {prefix}{RENAMED[key]} now."
    near = difflib.get_close_matches(key, known, n=1)
    return f" Did you mean {prefix}{near[0]}?" if near else f" Known: {', '.join(known)}."


def _check_keys(schema: Any, given: Any, where: str, prefix: str = "") -> None:
    """Refuse unknown keys with the nearest known one."""
    if not OmegaConf.is_dict(given):
        raise ValueError(f"`{prefix.rstrip('.')}` in {where} must hold settings as `key: value`, got {given}.")
    fields = {f.name: f for f in dataclasses.fields(schema)}
    for key in given:
        name = f"{prefix}{key}"
        if key not in fields:
            raise ValueError(f"Unknown setting `{name}` in {where}.{_suggest(str(key), prefix, list(fields))}")
        value = given._get_node(key)
        kind = fields[key].type
        inner = next(filter(dataclasses.is_dataclass, get_args(kind)), None)  # of list[X] and dict[str, X]
        if dataclasses.is_dataclass(kind) and OmegaConf.is_dict(value):
            _check_keys(kind, value, where, f"{name}.")
        elif inner and OmegaConf.is_list(value):
            for i, entry in enumerate(value):
                _check_keys(inner, entry, where, f"{name}[{i}].")
        elif inner and OmegaConf.is_dict(value):
            for entry in value:
                _check_keys(inner, value._get_node(entry), where, f"{name}.{entry}.")
