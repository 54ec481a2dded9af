"""What stands beside the counts of a file: tables of cells and results of models, without the counts."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from scfusion_fm.data.files.arrays import member, open_root
from scfusion_fm.data.files.readers import OpenFile
from scfusion_fm.data.files.stored import StoredAnnData


@dataclass(frozen=True)
class Results:
    """
    Hold what stands beside the counts.

    Attributes
    ----------
    obs
        Table of cells; its index holds their names.
    obsm
        Arrays and tables with a row per cell, by name.
    uns
        What else there is, by name.
    """

    obs: pd.DataFrame
    obsm: dict[str, Any]
    uns: dict[str, Any]


def read_results(file: OpenFile) -> Results:
    """Read what stands beside the counts of an open file; what is broken is left out and noted."""
    if file.container is not None:
        given = file.container
        return Results(given.obs, dict(given.obsm), dict(given.uns))
    obs = file.parts.obs if isinstance(file.parts, StoredAnnData) else file.obs
    assert obs is not None
    assert file.reader is not None
    group = open_root(file.path)
    if "obsm" not in group and "uns" not in group:  # 10x
        return Results(obs, {}, {})
    obsm, uns = (
        file.reader.read_mapping(member(group, slot, file.path), slot, shape) if slot in group else {}
        for slot, shape in (("obsm", (len(obs),)), ("uns", ()))
    )
    return Results(obs, obsm, uns)
