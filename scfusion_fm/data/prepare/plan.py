"""What is to be done for an atlas, fixed before any of it is: the plan of unfinished work."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from scfusion_fm.config.prepare import PrepareConfig, SourceConfig
from scfusion_fm.data.locations import state_of
from scfusion_fm.data.prepare.soma import is_fixed
from scfusion_fm.data.prepare.sources import Origin
from scfusion_fm.data.vocabulary.vocabulary import Vocabulary

FORMAT = "scfusion-atlas-work 2"  # of the plan, and of the sources that are pickled beside it
_SHARED = ("genes", "proteins", "obs_columns", "split", "seed", "codec")  # settings of all sources of an atlas


@dataclass(frozen=True)
class PlannedSource:
    """A source, in how many pieces it is written, and what the manifest says of its file."""

    name: str
    num_pieces: int
    origin: Origin


@dataclass(frozen=True)
class AtlasPlan:
    """
    Hold what a working directory is for.

    Attributes
    ----------
    identity
        What the work depends on, as JSON gives it back; see `identify_work`.
    vocabulary
        Genes and proteins of the atlas.
    sources
        What is added to it, in this order.
    """

    identity: dict[str, Any]
    vocabulary: Vocabulary
    sources: list[PlannedSource]

    def save(self, path: Path) -> None:
        """Write the plan as JSON."""
        path.write_text(json.dumps({"format": FORMAT, **dataclasses.asdict(self)}))

    @classmethod
    def load(cls, path: Path) -> Self:
        """
        Read a plan.

        Raises
        ------
        ValueError
            If another version of the package wrote it.
        """
        found = json.loads(path.read_text())
        if found.get("format") != FORMAT:
            raise ValueError(
                f"`work_dir` must hold unfinished work of this version, got that of another one in "
                f"{str(path.parent)!r}. Finish it with that version, or remove the directory."
            )
        sources = [PlannedSource(s["name"], s["num_pieces"], Origin(**s["origin"])) for s in found["sources"]]
        return cls(found["identity"], Vocabulary(**found["vocabulary"]), sources)


def shared_settings(config: PrepareConfig) -> dict[str, Any]:
    """Give the settings that all sources of an atlas share, as its manifest holds them."""
    settings = dataclasses.asdict(config)
    return {name: settings[name] for name in _SHARED} | {"obs_columns": list(config.obs_columns)}


def identify_work(config: PrepareConfig, sources: Sequence[SourceConfig], base: dict | None) -> dict[str, Any]:
    """
    Collect what unfinished work depends on, as JSON gives it back.

    Parameters
    ----------
    config, sources
        Settings, and the sources that are added.
    base
        Manifest of the atlas to which they are added; None for a new one.
    """
    facts = {
        "rule": shared_settings(config),
        "sources": [
            dataclasses.asdict(source) | {"state": None if is_fixed(source) else state_of(source.path)}
            for source in sources
        ],
        "base": base["fingerprint"] if base else None,
    }
    return json.loads(json.dumps(facts))
