"""The cells that a fine-tuning is given: one or several files, objects in memory and atlases, over one vocabulary.

Letters: n cells.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scfusion_fm.config.finetune import FinetuneConfig
from scfusion_fm.data.files.readers import read_cells
from scfusion_fm.data.files.sizes import available_bytes
from scfusion_fm.data.files.stack import stack_aligned
from scfusion_fm.data.schema import DATASET, AlignedCells
from scfusion_fm.data.stream.atlas_cells import is_atlas, load_atlas_cells, open_atlas_cells
from scfusion_fm.inference.inputs import open_for, vocabulary_of
from scfusion_fm.model import ScFusionTTTFeatureExtractor
from scfusion_fm.notices import tell
from scfusion_fm.tasks.memory import fingerprint_aligned
from scfusion_fm.tasks.results import describe_provenance

SHARE_OF_MEMORY = 0.5


@dataclass
class GivenCells:
    """
    The cells that a fine-tuning is given.

    Attributes
    ----------
    aligned
        All of them, each with what was measured where it is from.
    own_names
        (n,) their names in the files that they are from.
    provenance
        Where the files are from, as far as they tell.
    fingerprint
        Checksum of all that is known of the cells, in memory or not.
    """

    aligned: AlignedCells
    own_names: NDArray[np.object_]
    provenance: str
    fingerprint: str

    @property
    def obs(self) -> pd.DataFrame:
        """Annotation of all cells."""
        return self.aligned.obs


def read_given(
    config: FinetuneConfig, extractor: ScFusionTTTFeatureExtractor, objects: Sequence[Any] | None = None
) -> GivenCells:
    """
    Read all cells that a fine-tuning is given.

    Parameters
    ----------
    config
        Names the files.
    extractor
        Vocabulary of the model.
    objects
        AnnData, MuData or paths, for each name in `config.data`; None for files of these names.

    Raises
    ------
    ValueError
        If one is refused, or a data set in an atlas is called as another file.
    """
    parts = [
        _read_part(config, name, given, extractor)
        for name, given in zip(config.data, objects or config.data, strict=True)
    ]
    if len(parts) == 1:
        return parts[0]
    short = [Path(name).name for name in config.data]
    names = [name if Counter(short)[name] == 1 else full for name, full in zip(short, config.data, strict=True)]
    kept = [None if _is_atlas(full) else name for name, full in zip(names, config.data, strict=True)]
    return GivenCells(
        aligned=stack_aligned([part.aligned for part in parts], kept),
        own_names=np.concatenate([part.own_names for part in parts]),
        provenance="; ".join(dict.fromkeys(part.provenance for part in parts if part.provenance)),
        fingerprint=", ".join(
            part.fingerprint if name is None else f"{name}: {part.fingerprint}"
            for name, part in zip(kept, parts, strict=True)
        ),
    )


def _read_part(config: FinetuneConfig, name: str, given: Any, extractor: ScFusionTTTFeatureExtractor) -> GivenCells:
    if isinstance(given, str | Path) and _is_atlas(given):
        return _read_atlas(config, given, extractor)
    # Files that stand together have the column `dataset` by that; one alone may have its own.
    batch_key = None if config.batch_key == DATASET and len(config.data) > 1 else config.batch_key
    cells = read_cells(given)
    found = open_for(cells, extractor, batch_key, config.min_coverage)
    told = "; ".join(modality.describe() for modality in found.coverage)
    tell(f"{name}: {told}" if len(config.data) > 1 else told)
    aligned, names = found.read_all(), cells.obs.index.to_numpy(object)
    return GivenCells(aligned, names, describe_provenance(cells.container), fingerprint_aligned(aligned))


def _read_atlas(config: FinetuneConfig, given: str | Path, extractor: ScFusionTTTFeatureExtractor) -> GivenCells:
    memory = SHARE_OF_MEMORY * available_bytes() if config.memory_gib is None else config.memory_gib * 2**30
    on_disk = open_atlas_cells(given, vocabulary_of(extractor))
    aligned = load_atlas_cells(on_disk, memory)
    tell(
        f"{given}: {len(aligned.obs):,} cells of {len(aligned.rna_panels):,} data sets, "
        + ("read from disk when they are used" if aligned is on_disk else "in memory")
    )
    prefixes = aligned.obs[DATASET].astype(str) + ":"  # what preparation put before the names
    names = [name.removeprefix(prefix) for name, prefix in zip(aligned.obs.index, prefixes, strict=True)]
    # What is free in memory changes from run to run, and where counts are does not matter.
    return GivenCells(aligned, np.array(names, dtype=object), "", fingerprint_aligned(on_disk))


def _is_atlas(given: Any) -> bool:
    return isinstance(given, str | Path) and is_atlas(given)
