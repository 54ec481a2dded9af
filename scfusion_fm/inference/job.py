"""A model used on cells: from a file or an object, block by block, to the same with the results added.

Letters: n cells, B cells of a block.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from scfusion_fm.data.files.align import AlignedFile
from scfusion_fm.data.files.arrays import close_files
from scfusion_fm.data.files.coverage import MIN_COVERAGE
from scfusion_fm.data.files.readers import Container, Given, closing, open_given, select_cells
from scfusion_fm.data.files.targets import Added, Table, Target, open_target
from scfusion_fm.data.schema import AlignedCells, Modality
from scfusion_fm.data.scratch import check_destination
from scfusion_fm.inference.batches import CellCollator, choose_batch_size, choose_device, predict_fields
from scfusion_fm.inference.inputs import open_for
from scfusion_fm.inference.loaded import LoadedModel, load
from scfusion_fm.model import (
    ScFusionTTTFeatureExtractor,
    ScFusionTTTForCrossModalPrediction,
    ScFusionTTTForPreTraining,
)
from scfusion_fm.notices import progress, tell, warn

BOTH = ("rna", "adt")
Block = TypeVar("Block")


@dataclass(frozen=True)
class Use:
    """
    How a model is used on cells: what all verbs share.

    Parameters
    ----------
    output
        New file of the same kind, with the results added; None adds them to the object.
    copy
        Whether a copy of the object is given back, with the results; without it they are added in place.
    key_added
        Name of what is added.
    modality
        What a single AnnData holds: auto, rna or adt.
    batch_size
        Cells per forward pass; does not change the result beyond float rounding.
    device
        Torch device; CUDA where there is one when None.
    batch_key
        Column of obs whose groups may have panels of their own: what has no count in a group is not measured there.
    min_coverage
        Share of the model's genes (proteins where there are none) below which a file is refused.

    Raises
    ------
    ValueError
        If `batch_size` is not positive, `key_added` is empty, or both an output and a copy are asked for.
    """

    output: str | Path | None
    copy: bool
    key_added: str
    modality: Modality = "auto"
    batch_size: int | Literal["auto"] = "auto"
    device: str | None = None
    batch_key: str | None = None
    min_coverage: float = MIN_COVERAGE

    def __post_init__(self):
        is_number = isinstance(self.batch_size, int) and not isinstance(self.batch_size, bool)
        if self.batch_size != "auto" and not (is_number and self.batch_size >= 1):
            raise ValueError(f"`batch_size` must be 'auto' or at least 1, got {self.batch_size!r}.")
        if not self.key_added.strip():
            raise ValueError(f"`key_added` must be a name, got {self.key_added!r}; leave it out for the default.")
        if self.output is not None and self.copy:
            raise ValueError(f"`copy` must be False where an `output` is written, got both, {str(self.output)!r}.")


@dataclass
class Job:
    """
    A verb on its way: model, cells, and where the results go. As a context, it lets go of files in the end.

    Attributes
    ----------
    use
        What was asked.
    loaded, model
        The model, and its network with the head of the verb, on its device.
    source
        The cells over the vocabulary of the model, read block by block.
    target
        Takes the results.
    """

    use: Use
    loaded: LoadedModel
    model: PreTrainedModel
    source: AlignedFile
    target: Target

    @classmethod
    def start(cls, given: Given, model: Any, use: Use, model_class: type[PreTrainedModel], added: Added) -> "Job":
        """
        Load model and cells, and check that the results can be added.

        Parameters
        ----------
        given
            File or object.
        model
            Directory, name on the hub, or loaded model.
        use
            How.
        model_class
            Class of the model.
        added
            Slots and names that will be added.

        Raises
        ------
        ValueError
            If a file or a setting is refused, or the results could not be written.
        """
        if use.output is not None:
            check_destination(Path(use.output))
        device = choose_device(use.device)
        loaded = load(model)
        network = loaded.network(model_class).to(device)
        try:
            file = open_given(given)
            cells = select_cells(file, use.modality)
            source = open_for(cells, loaded.extractor, use.batch_key, use.min_coverage)
            tell("; ".join(found.describe() for found in source.coverage))
            target = open_target(file, None if use.output is None else Path(use.output), added, use.copy)
        except BaseException:
            close_files()  # so that a refused file can be written anew
            raise
        return cls(use, loaded, network, source, target)

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        with closing():
            self.target.close()

    def __len__(self) -> int:
        return len(self.source)

    @property
    def extractor(self) -> ScFusionTTTFeatureExtractor:
        """Vocabulary and normaliser."""
        return self.loaded.extractor

    @property
    def has_rna(self) -> NDArray[np.bool_]:
        """(n,) which cells have counts of RNA."""
        return self.source.rna_present

    @property
    def has_counts(self) -> NDArray[np.bool_]:
        """(n,) which cells have counts of any modality."""
        return self.source.rna_present | self.source.adt_present

    @property
    def batch_size(self) -> int:
        """Cells per forward pass."""
        return choose_batch_size(self.model, self.num_tokens) if self.use.batch_size == "auto" else self.use.batch_size

    @property
    def num_tokens(self) -> int:
        """Tokens that the model reads of a cell, at most: what the file measures, and what the model fills in."""
        config, panels = self.model.config, self.source.panels
        proteins = max(int(panels.adt.any(0).sum()), len(config.projected_proteins or ()))
        if isinstance(self.model, ScFusionTTTForCrossModalPrediction | ScFusionTTTForPreTraining):
            proteins = config.num_proteins
        return proteins + config.num_rna_tokens * int(panels.rna.any())

    def forward(
        self, fields: tuple[str, ...], readable: NDArray[np.bool_], modalities: tuple[str, ...] = BOTH
    ) -> Iterator[tuple[slice, list[NDArray[np.float32]]]]:
        """
        Run the model over readable cells, and give some fields of its output block by block.

        Yields
        ------
        The place of the block, and the fields, (B, ...) each; NaN for the cells that are not readable. A block without
        any that is comes not at all.

        Raises
        ------
        ValueError
            If no cell is readable, or the model gives no finite numbers.
        """
        missing = int((~readable).sum())
        if 0 < missing < len(readable):
            warn(f"{missing:,} of {len(readable):,} cells have no usable counts; their results are NaN.")
        bad = number = 0
        for part, cells, rows in self.read(self.source, readable):
            if len(rows) == 0:
                continue
            collator = CellCollator(cells, self.extractor)
            found = predict_fields(self.model, collator, rows, fields, modalities, self.batch_size)
            broken = [(~np.isfinite(values)).reshape(len(rows), -1).any(1) for values in found]
            bad, number = bad + int(np.any(broken, axis=0).sum()), number + len(rows)
            results = [np.full((len(cells.obs), *v.shape[1:]), np.nan, dtype=np.float32) for v in found]
            for result, values in zip(results, found, strict=True):
                result[rows] = values
            yield part, results
        if bad:
            raise ValueError(
                f"`model` must give finite numbers, got others for {bad} of {number} cells: its weights or settings in "
                f"{str(self.loaded.path)!r} are none that were trained. Export it again."
            )

    def read(
        self, source: AlignedFile, readable: NDArray[np.bool_]
    ) -> Iterator[tuple[slice, AlignedCells, NDArray[np.int64]]]:
        """
        Read cells block by block, with the rows of each block that can be read, and show how far it is.

        Raises
        ------
        ValueError
            If no cell can be read.
        """
        if not readable.any():
            raise ValueError(f"`input` must hold cells that the model can read, got none in {source.cells.path}.")
        with progress(int(readable.sum())) as bar:
            for part, cells in read_ahead(source.blocks()):
                rows = np.flatnonzero(readable[part])
                yield part, cells, rows
                bar.update(len(rows))

    def add_table(self, key: str, width: int, names: list[str] | None = None) -> Table:
        """Give an array of obsm to be filled block by block, (n, width); a table where its columns have names."""
        return self.target.add_table(key, width, names)

    def add_column(self, key: str, values: Any) -> None:
        """Add a column of obs, (n,)."""
        self.target.add_column(key, values)

    def finish(self, verb: str, facts: dict[str, Any]) -> Container | None:
        """Record where the results are from, and keep them, all or nothing; the copy, or what a file holds, if any."""
        record = facts | {
            "model": str(self.loaded.path),
            "model_sha256": self.loaded.sha256,
            "input": self.source.cells.path,
            "panel_coverage": {found.noun: found.share for found in self.source.coverage},
            "scfusion_fm": version("scfusion-fm"),
        }
        return self.target.finish(verb, record)


def read_ahead(blocks: Iterator[Block]) -> Iterator[Block]:
    """Give what an iterator gives; the next of it is read by a thread, while one is worked on."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, blocks, None)
        while (block := coming.result()) is not None:
            coming = pool.submit(next, blocks, None)
            yield block
