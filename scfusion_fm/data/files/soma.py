"""
Cells of a SOMA experiment, such as one of a CELLxGENE Census: opened without reading them, and read by rows.

A Census is a collection of experiments (`census_data`), one for each species, with a table of the data sets that its
cells are from and a matrix of the genes that each of them measured.

Letters: B cells, G genes of the experiment.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from scfusion_fm.data.files.counts import CellsFile, StoredModality
from scfusion_fm.data.files.obs import check_obs_names

SPECIES = "homo_sapiens"
NUMBER = "soma_joinid"  # of a cell or gene, by which SOMA finds it
CELL_NAMES = ("observation_joinid", "obs_id")  # columns that name cells; where there is none, their numbers do
GENE_NAMES = ("feature_id", "var_id")
PRESENCE = "feature_dataset_presence_matrix"
LAYERS = ("raw", "counts", "data")  # of X, the first that there is
IS_PRIMARY = "is_primary_data"  # false for copies of cells that another data set of the Census has
BUFFER_BYTES = 2**26  # for each column that is read; tiledbsoma's own default is 1 GiB


class NoCellsError(ValueError):
    """A data set has no cell that is read."""


@dataclass(frozen=True)
class SomaPlace:
    """
    Say where an experiment is.

    Parameters
    ----------
    uri
        A Census (`.../soma`) or one experiment: a path or a URL.
    options
        Settings of TileDB, such as (("vfs.s3.region", "us-west-2"),).
    """

    uri: str
    options: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class SomaMatrix:
    """
    Hold some rows of the matrix of an experiment, whose counts stay there.

    Parameters
    ----------
    place
        The experiment.
    layer
        Name of the matrix in `X`.
    cells
        (n,) numbers of the cells in the experiment, rising.
    shape
        (n, G).
    """

    place: SomaPlace
    layer: str
    cells: NDArray[np.int64]
    shape: tuple[int, int]

    def rows(self, start: int, stop: int) -> sp.csr_matrix:
        """Read neighbouring rows."""
        wanted = self.cells[start:stop]
        matrix = _open(self.place)[0].ms["RNA"].X[self.layer]
        found = matrix.read((wanted, slice(None))).tables().concat()
        row, column, counts = (found[name].to_numpy() for name in ("soma_dim_0", "soma_dim_1", "soma_data"))
        return sp.csr_matrix((counts, (np.searchsorted(wanted, row), column)), shape=(stop - start, self.shape[1]))


@dataclass(frozen=True)
class SomaCells:
    """
    Hold the cells of one data set of an experiment.

    Attributes
    ----------
    file
        Annotation in memory, counts where they are.
    measured
        (G,) which genes of the experiment the data set measured.
    mean_values
        Stored counts per cell, about.
    reference
        What the Census says of the data set.
    """

    file: CellsFile
    measured: NDArray[np.bool_]
    mean_values: float
    reference: str


def list_datasets(place: SomaPlace) -> list[str]:
    """
    List the data sets of a Census; none of an experiment that stands alone.

    Raises
    ------
    ValueError
        If it cannot be opened.
    """
    table = _open(place)[1]
    return [] if table is None else sorted(table["dataset_id"].astype(str))


def open_soma_cells(
    place: SomaPlace, dataset: str | None, obs_filter: str | None, obs_columns: Sequence[str]
) -> SomaCells:
    """
    Find the cells of a data set; their counts are not looked at.

    Parameters
    ----------
    place
        The experiment.
    dataset
        Its `dataset_id`; None for all cells.
    obs_filter
        Which cells, as TileDB writes it: `is_primary_data == True and tissue_general == 'blood'`; those with
        `is_primary_data` where there is such a column when None.
    obs_columns
        Columns of obs that are read where they are there.

    Raises
    ------
    ValueError
        If there is no such data set, matrix or cell, or the filter is refused.
    """
    experiment, table = _open(place)
    name = f"{place.uri}, {dataset}" if dataset else place.uri
    known = None if table is None or dataset is None else table[table["dataset_id"].astype(str) == dataset]
    if known is not None and known.empty:
        raise ValueError(f"`datasets` must hold values of dataset_id, got {dataset!r}, which {place.uri} lacks.")
    obs = _read_obs(experiment, name, _conditions(experiment, dataset, obs_filter), obs_columns)
    check_obs_names(obs.index, name)
    var = _read_var(experiment, place.uri)
    layer = _first(LAYERS, list(experiment.ms["RNA"].X), "")
    if not layer:
        raise ValueError(f"`{place.uri}` must have raw counts in X[{LAYERS[0]!r}], got {list(experiment.ms['RNA'].X)}.")
    matrix = SomaMatrix(place, layer, obs.pop(NUMBER).to_numpy(np.int64), (len(obs), len(var)))
    stored = experiment.ms["RNA"].X[layer]
    mean = float(obs.pop("nnz").mean()) if "nnz" in obs else stored.nnz / stored.shape[0]
    slot = f'X["{layer}"]'
    rna = StoredModality(matrix, var, obs.index, f"{name}, {slot}", slot, largest=0.0)  # not looked at yet
    reference = "" if known is None else _describe(known.iloc[0])
    return SomaCells(CellsFile(name, obs, rna, None), _read_presence(experiment, known, len(var)), mean, reference)


def _import_soma() -> Any:
    try:
        import tiledbsoma
    except ImportError as error:
        raise ValueError(
            "`soma` must be read by the package tiledbsoma, got none of that name. Install it: "
            "`pip install 'scfusion-fm[census]'`."
        ) from error
    return tiledbsoma


@lru_cache(maxsize=4)
def _open(place: SomaPlace) -> tuple[Any, pd.DataFrame | None]:
    """Open the human experiment and the table of data sets, once per process."""
    soma = _import_soma()
    options = {"soma.init_buffer_bytes": str(BUFFER_BYTES)} | dict(place.options)
    try:
        root = soma.open(place.uri, context=soma.SOMATileDBContext(tiledb_config=options))
    except Exception as error:  # the library raises errors of its own, of TileDB and of the system
        raise ValueError(
            f"`soma.uri` must be a SOMA experiment or a CELLxGENE Census that can be opened, got {place.uri!r}: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error
    if isinstance(root, soma.Experiment):
        return root, None
    if not isinstance(root, soma.Collection) or "census_data" not in root or SPECIES not in root["census_data"]:
        raise ValueError(
            f"`soma.uri` must be a SOMA experiment or a CELLxGENE Census with {SPECIES}, got {place.uri!r} with "
            f"{list(root)[:10] if isinstance(root, soma.Collection) else type(root).__name__}."
        )
    return root["census_data"][SPECIES], root["census_info"]["datasets"].read().concat().to_pandas()


def _conditions(experiment: Any, dataset: str | None, obs_filter: str | None) -> list[str]:
    """Say which cells are read."""
    found = []
    if dataset is not None:
        if "'" in dataset or "\\" in dataset:
            raise ValueError(f"`datasets` must hold values of dataset_id, got {dataset!r}, which is none.")
        found.append(f"dataset_id == '{dataset}'")
    if obs_filter:
        found.append(f"({obs_filter})")
    elif IS_PRIMARY in experiment.obs.keys():  # noqa: SIM118, since an experiment's table is no dictionary
        found.append(f"{IS_PRIMARY} == True")
    return found


def _read_obs(experiment: Any, name: str, conditions: list[str], wanted: Sequence[str]) -> pd.DataFrame:
    """Read the annotation of some cells: their numbers, what names them, and the columns that are wanted."""
    keys = list(experiment.obs.keys())
    named_by = _first(CELL_NAMES, keys, NUMBER)
    columns = [c for c in dict.fromkeys((NUMBER, named_by, "nnz", *wanted)) if c in keys]
    condition = " and ".join(conditions)
    try:
        obs = experiment.obs.read(column_names=columns, value_filter=condition or None).concat().to_pandas()[columns]
    except Exception as error:  # a filter is compiled by the library, which raises errors of many kinds
        raise ValueError(
            f"`soma.obs_filter` must be a condition on columns of obs, got {condition!r} for {name}: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error
    if obs.empty:
        raise NoCellsError(f"`{name}` must have cells that are read, got none where {condition!r}. Leave it out.")
    obs = obs.sort_values(NUMBER)
    obs.index = pd.Index(obs[named_by].astype(str), name=None)
    return obs if named_by in (NUMBER, *wanted) else obs.drop(columns=named_by)


def _read_var(experiment: Any, uri: str) -> pd.DataFrame:
    var = experiment.ms["RNA"].var.read().concat().to_pandas().sort_values(NUMBER)
    if not np.array_equal(var[NUMBER], np.arange(len(var))):
        raise ValueError(f"`{uri}` must number its genes from 0 on, got gaps. Write the experiment anew.")
    named_by = _first(GENE_NAMES, list(var.columns), NUMBER)
    return var.set_index(pd.Index(var[named_by].astype(str), name=None)).drop(columns=NUMBER)


def _read_presence(experiment: Any, known: pd.DataFrame | None, num_genes: int) -> NDArray[np.bool_]:
    """Tell which genes a data set measured; all of an experiment that does not say it."""
    rna = experiment.ms["RNA"]
    if known is None or PRESENCE not in rna:
        return np.ones(num_genes, dtype=bool)
    row = known[NUMBER].to_numpy(np.int64)
    found = rna[PRESENCE].read((row, slice(None))).tables().concat()
    measured = np.zeros(num_genes, dtype=bool)
    measured[found["soma_dim_1"].to_numpy()[found["soma_data"].to_numpy().astype(bool)]] = True
    return measured


def _describe(row: Mapping[str, Any]) -> str:
    """Name the publication of a data set, as far as the Census knows it."""
    known = [str(row[key]) for key in ("citation", "collection_doi", "dataset_title") if row.get(key)]
    return known[0] if known else ""


def _first(names: Sequence[str], there: Sequence[str], otherwise: str) -> str:
    return next((name for name in names if name in there), otherwise)
