"""Pieces of an atlas: some thousand cells of one source, aligned and shuffled, written by one task.

A source is cut into chunks of neighbouring cells. A piece is a random set of chunks; its cells stand in the order in
which they will stand in the atlas: by split, and at random inside a split. So a source is read once, in runs of
neighbours, with bounded memory, and the order depends on seed and names alone.

Letters: B cells, G genes, P proteins.
"""

import hashlib
import json
import os
import pickle
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from scfusion_fm.data.files.counts import CellsFile
from scfusion_fm.data.files.match import Alignment
from scfusion_fm.data.fingerprints.cells import feature_keys, fingerprint_rows
from scfusion_fm.data.hashing import hash_keys
from scfusion_fm.data.locations import state_of
from scfusion_fm.data.split import SPLITS
from scfusion_fm.data.vocabulary.vocabulary import Vocabulary

SOURCE_CHUNK_ROWS = 256  # neighbours in the source that are read together
PIECE_VALUES = 2**25  # most counts of a piece, which stay in memory
PIECE_ROWS = 2**16  # most cells of a piece
_CHUNKS, _CELLS = 21, 22  # streams of random numbers


@dataclass(frozen=True)
class CountsBlock:
    """
    Hold neighbouring cells of a source over the vocabulary.

    Attributes
    ----------
    rna
        (B, G) counts.
    rna_total_counts
        (B,) library size over all genes of the source.
    adt
        (B, P) counts.
    """

    rna: sp.csr_matrix
    rna_total_counts: NDArray[np.float64]
    adt: NDArray[np.float32]


class CountsReader(Protocol):
    """Reads cells of a source; can be sent to other processes."""

    mean_values: float
    """Stored counts per cell, about."""

    def read(self, start: int, stop: int) -> CountsBlock:
        """Read neighbouring cells."""


@dataclass(frozen=True)
class FileReader:
    """
    Read the cells of a file over a vocabulary.

    Parameters
    ----------
    file
        The open file.
    alignment
        Where its features stand in the vocabulary.
    share
        Share of the cells of the matrices that are cells of this source.
    """

    file: CellsFile
    alignment: Alignment
    share: float = 1.0

    @property
    def mean_values(self) -> float:
        """Stored counts per cell."""
        matrices = [m.matrix for m in (self.file.rna, self.file.adt) if m is not None]
        sizes = [m.data.shape[0] if hasattr(m, "data") else m.shape[0] * m.shape[1] for m in matrices]
        return sum(sizes) * self.share / len(self.file.obs)

    def read(self, start: int, stop: int) -> CountsBlock:
        """Read neighbouring cells."""
        return CountsBlock(*self.alignment.read(self.file, start, stop))


@dataclass(frozen=True)
class PieceSource:
    """
    Hold all that a task must know of a source.

    Attributes
    ----------
    name
        Name of the data set.
    reader
        Reads the cells.
    obs
        Columns that go into the atlas, with `split`; its index holds the names of the cells in the atlas.
    rna_observed, adt_observed
        (G,) and (P,), what it measures.
    vocabulary
        Genes and proteins, by which cells are fingerprinted.
    seed
        Seed of the order of cells.
    path, state
        Where the cells are from, and what was known of it when it was surveyed; None for cells from nowhere.
    chunk_rows
        Neighbours in the source that are read together; `SOURCE_CHUNK_ROWS` when None.
    """

    name: str
    reader: CountsReader
    obs: pd.DataFrame
    rna_observed: NDArray[np.bool_]
    adt_observed: NDArray[np.bool_]
    vocabulary: Vocabulary
    seed: int
    path: str | None = None
    state: list | None = None
    chunk_rows: int | None = None

    def check_unchanged(self) -> None:
        """
        Refuse to read a file that is not the one that was surveyed.

        Raises
        ------
        ValueError
            If it has changed.
        """
        if self.path is not None and state_of(self.path) != self.state:
            raise ValueError(
                f"`{self.path}` must stay as it is while it is read, got another file than was surveyed. Remove the "
                "working directory and start again."
            )

    @property
    def rows_per_chunk(self) -> int:
        """Neighbours that are read together."""
        return self.chunk_rows or SOURCE_CHUNK_ROWS

    @property
    def chunks_per_piece(self) -> int:
        """How many chunks of neighbours make a piece."""
        rows = min(PIECE_VALUES / max(self.reader.mean_values, 1.0), PIECE_ROWS)
        return max(int(rows) // self.rows_per_chunk, 1)

    @property
    def num_chunks(self) -> int:
        """Number of chunks of neighbours."""
        return -(-len(self.obs) // self.rows_per_chunk)

    @property
    def num_pieces(self) -> int:
        """Number of pieces."""
        return -(-self.num_chunks // self.chunks_per_piece)

    def chunks_of(self, piece: int) -> NDArray[np.int64]:
        """Give the chunks of a piece in the order of the source."""
        order = np.argsort(hash_keys(self.seed, self._key, _CHUNKS, np.arange(self.num_chunks)), kind="stable")
        return np.sort(order[piece * self.chunks_per_piece : (piece + 1) * self.chunks_per_piece])

    def row_order(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Order cells (their row numbers in the source) by split, and at random inside a split."""
        split = pd.Categorical(self.obs["split"].iloc[rows], categories=SPLITS).codes
        return np.lexsort((hash_keys(self.seed, self._key, _CELLS, rows), split))

    @property
    def _key(self) -> np.uint64:
        return np.uint64(int.from_bytes(hashlib.blake2b(self.name.encode(), digest_size=8).digest(), "little"))


@dataclass(frozen=True)
class PieceTask:
    """Name a piece to write: the working directory, the number of the source and of the piece in it."""

    work: Path
    source: int
    piece: int

    @property
    def path(self) -> Path:
        """Directory of the piece; it is complete when it is there."""
        return self.work / "pieces" / f"{self.source:04d}-{self.piece:06d}"


@dataclass
class PieceRecord:
    """
    Say what a piece holds.

    Attributes
    ----------
    rows, values
        Cells, and stored RNA counts.
    digest
        SHA-256 of names, splits and counts.
    largest_rna, largest_adt
        Largest count.
    cells
        Number of cells `with_rna`, `with_adt` and `empty`.
    """

    rows: int
    values: int
    digest: str
    largest_rna: int
    largest_adt: int
    cells: dict[str, int] = field(default_factory=dict)


def save_source(work: Path, number: int, source: PieceSource) -> None:
    """Write a source where tasks find it."""
    with (work / f"source-{number:04d}.pickle").open("wb") as file:
        pickle.dump(source, file)


def load_source(work: Path, number: int) -> PieceSource:
    """Read a source of a working directory."""
    path = work / f"source-{number:04d}.pickle"
    return _load_source(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _load_source(path: Path, changed_ns: int) -> PieceSource:
    """Read a source once per process; `changed_ns` tells another one at the same path."""
    with path.open("rb") as file:
        return pickle.load(file)


def write_piece(task: PieceTask) -> None:
    """Read, align, order and write the cells of a piece; it appears complete or not at all."""
    source = load_source(task.work, task.source)
    source.check_unchanged()
    rows, blocks = [], []
    for chunk in source.chunks_of(task.piece):
        start = chunk * source.rows_per_chunk
        stop = min(start + source.rows_per_chunk, len(source.obs))
        rows.append(np.arange(start, stop))
        blocks.append(_narrow(source.reader.read(start, stop)))
    rows = np.concatenate(rows)
    order = source.row_order(rows)
    rna = sp.vstack([block.rna for block in blocks], format="csr")[order]
    adt = np.concatenate([block.adt for block in blocks])[order]  # a copy, in C order
    totals = np.concatenate([block.rna_total_counts for block in blocks])[order]
    del blocks
    obs = _describe_cells(source, source.obs.iloc[rows[order]], rna, adt, totals)
    _write(task.path, obs, rna, adt)


def _narrow(block: CountsBlock) -> CountsBlock:
    """Store counts in 16 bits where they fit: a piece stays in memory as a whole."""
    rna = block.rna
    narrow = sp.csr_matrix(rna.shape, dtype=np.uint32)
    narrow.data, narrow.indices, narrow.indptr = as_unsigned(rna.data), rna.indices.astype(np.int32), rna.indptr
    return CountsBlock(narrow, block.rna_total_counts, as_unsigned(block.adt))


def as_unsigned(counts: NDArray) -> NDArray:
    """Give counts in 16 bits where they fit, else in 32."""
    return counts.astype(np.uint16 if counts.size == 0 or counts.max() <= np.iinfo(np.uint16).max else np.uint32)


def _describe_cells(
    source: PieceSource, obs: pd.DataFrame, rna: sp.csr_matrix, adt: NDArray, totals: NDArray[np.float64]
) -> pd.DataFrame:
    """Add what the counts tell of each cell to its annotation."""
    described = obs.copy()
    described["rna_present"] = np.diff(rna.indptr) > 0
    described["adt_present"] = adt.any(axis=1)
    described["rna_total_counts"] = totals
    described["rna_fingerprint"] = fingerprint_rows(rna, feature_keys(source.vocabulary.gene_ids))
    described["adt_fingerprint"] = fingerprint_rows(sp.csr_matrix(adt), feature_keys(source.vocabulary.protein_names))
    return described


def _write(path: Path, obs: pd.DataFrame, rna: sp.csr_matrix, adt: NDArray) -> None:
    path.parent.mkdir(exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".", dir=path.parent))
    try:
        lengths = np.diff(rna.indptr).astype(np.int64)
        for name, array in {"data": rna.data, "indices": rna.indices, "lengths": lengths, "adt": adt}.items():
            save_array(scratch / f"{name}.npy", array)
        obs.to_pickle(scratch / "obs.pickle")
        (scratch / "piece.json").write_text(json.dumps(asdict(_record(obs, rna, adt))))
        os.rename(scratch, path)
    except BaseException:
        shutil.rmtree(scratch)
        if not path.exists():  # another process may have been as far
            raise


def save_array(path: Path, array: NDArray) -> None:
    """Write what `np.load` reads; `np.save` does not tell that the disk is full as the system does."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.reshape(-1))


def _record(obs: pd.DataFrame, rna: sp.csr_matrix, adt: NDArray) -> PieceRecord:
    digest = hashlib.sha256("\n".join(obs.index).encode())
    digest.update("\n".join(obs["split"]).encode())
    digest.update(obs["rna_total_counts"].to_numpy("<f8"))
    for array, kind in ((rna.data, "<u4"), (rna.indices, "<u4"), (np.diff(rna.indptr), "<u4"), (adt, "<u4")):
        digest.update(np.ascontiguousarray(array, dtype=kind))
    present = obs["rna_present"] | obs["adt_present"]
    cells = {"with_rna": obs["rna_present"].sum(), "with_adt": obs["adt_present"].sum(), "empty": (~present).sum()}
    return PieceRecord(
        rows=len(obs),
        values=rna.nnz,
        digest=digest.hexdigest(),
        largest_rna=int(rna.data.max(initial=0)),
        largest_adt=int(adt.max(initial=0)),
        cells={key: int(value) for key, value in cells.items()},
    )


@dataclass(frozen=True)
class Piece:
    """A piece that is there."""

    path: Path
    record: PieceRecord

    @classmethod
    def open(cls, path: Path) -> "Piece":
        """Read what a piece says of itself."""
        return cls(path, PieceRecord(**json.loads((path / "piece.json").read_text())))

    def array(self, name: str) -> NDArray:
        """Map `data`, `indices`, `lengths` or `adt` into memory."""
        file = self.path / f"{name}.npy"
        holds_values = file.stat().st_size > 128  # more than the header; what is empty cannot be mapped
        return np.load(file, mmap_mode="r" if holds_values else None)

    def obs(self) -> pd.DataFrame:
        """Read the annotation."""
        return pd.read_pickle(self.path / "obs.pickle")
