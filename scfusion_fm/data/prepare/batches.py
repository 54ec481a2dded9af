"""Sources of which batches have panels of their own: each such batch becomes a data set of its own."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from scfusion_fm.data.files.counts import READ_ROWS, CellsFile
from scfusion_fm.data.files.match import Alignment
from scfusion_fm.data.files.panels import Groups, find_gaps, find_group_columns, read_groups, warn_of_gaps
from scfusion_fm.data.prepare.pieces import FileReader
from scfusion_fm.data.vocabulary.vocabulary import Vocabulary

MAX_BLOCKS = 64  # of neighbouring cells that are looked at for a warning


def warn_of_batches(reader: FileReader, vocabulary: Vocabulary) -> None:
    """Warn of features that batches, donors or the like lack, by some stretches of cells in a large file."""
    obs, path = reader.file.obs, reader.file.path
    starts = np.arange(0, len(obs), READ_ROWS)
    starts = starts[np.unique(np.linspace(0, len(starts) - 1, MAX_BLOCKS).astype(int))]
    rows = np.concatenate([np.arange(start, min(start + READ_ROWS, len(obs))) for start in starts])
    for key in find_group_columns(obs):
        groups = read_groups(obs.iloc[rows], key, path)
        if len(groups.names) < 2:
            continue
        gaps = find_gaps(_read_blocks(reader, starts), groups, by_key=False)
        if gaps:
            warn_of_gaps(gaps, vocabulary, path)
            return


def split_batches(reader: FileReader, batch_key: str, name: str) -> dict[str, FileReader]:
    """
    Give each batch with a panel of its own a reader; the others stay together.

    Parameters
    ----------
    reader
        Reads all cells of a source.
    batch_key
        Column of obs with the batches.
    name
        Name of the source.

    Returns
    -------
    Readers by name of the data set: `NAME/BATCH`, and `NAME` for all other cells.

    Raises
    ------
    ValueError
        If the column is missing.
    """
    obs = reader.file.obs
    groups = read_groups(obs, batch_key, reader.file.path)
    gaps = find_gaps(_read_blocks(reader, np.arange(0, len(obs), READ_ROWS)), groups, by_key=True)
    lacking = gaps.rna.any(1) | gaps.adt.any(1)
    found = {}
    rest = np.flatnonzero(~_is_in(groups, np.flatnonzero(lacking)))
    if len(rest) == len(obs):
        return {name: reader}
    if len(rest):
        found[name] = _take_rows(reader, rest, reader.alignment)
    for group in np.flatnonzero(lacking):
        alignment = _without(reader.alignment, gaps.rna[group], gaps.adt[group])
        rows = np.flatnonzero(groups.codes == group)
        found[f"{name}/{groups.names[group]}"] = _take_rows(reader, rows, alignment)
    return found


def _read_blocks(reader: FileReader, starts: NDArray[np.int64]) -> Iterator[tuple[sp.csr_matrix, NDArray[np.float32]]]:
    for start in starts:
        block = reader.read(int(start), min(int(start) + READ_ROWS, len(reader.file.obs)))
        yield block.rna, block.adt


def _is_in(groups: Groups, wanted: NDArray[np.int64]) -> NDArray[np.bool_]:
    return np.isin(groups.codes, wanted)


def _take_rows(reader: FileReader, rows: NDArray[np.int64], alignment: Alignment) -> FileReader:
    """Read some cells of a file as if it had no others."""
    parts = {
        key: None if m is None else replace(m, place=rows if m.place is None else m.place[rows])
        for key, m in (("rna", reader.file.rna), ("adt", reader.file.adt))
    }
    file = CellsFile(reader.file.path, reader.file.obs.iloc[rows], parts["rna"], parts["adt"])
    return FileReader(file, alignment, share=len(rows) / len(reader.file.obs))


def _without(alignment: Alignment, rna: NDArray[np.bool_], adt: NDArray[np.bool_]) -> Alignment:
    """Take features of the vocabulary out of what a file measures."""
    targets = {
        key: None if found is None else np.where((found >= 0) & absent[found], -1, found)
        for key, found, absent in (("rna", alignment.rna, rna), ("adt", alignment.adt, adt))
    }
    return replace(alignment, rna=targets["rna"], adt=targets["adt"])
