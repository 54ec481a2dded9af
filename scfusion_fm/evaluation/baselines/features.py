"""What the baselines see of the cells, fitted on the training cells only.

Shapes: n cells, G genes, P proteins, F features.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from sklearn.decomposition import PCA

N_COMPONENTS = 50
SPLITS = ("train", "val", "test")


@dataclass
class Features:
    """What the baselines see of the cells; a modality that is absent is `None`.

    Attributes
    ----------
    rna
        (n, G), normalised expression, e.g. log1p of counts per 10,000; dense or CSR.
    adt
        (n, P), normalised abundance, e.g. CLR; NaN where a protein was not measured.
    """

    rna: np.ndarray | sparse.csr_matrix | sparse.csr_array | None = None
    adt: np.ndarray | None = None


def build_inputs(features: Features, split: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    """Turn the modalities into the matrices that the annotation baselines read.

    Parameters
    ----------
    features
        The modalities of all n cells.
    split
        (n,), "train", "val" or "test".
    seed
        Seed of the principal components' solver.

    Returns
    -------
    By input name, (n, F): "rna" principal components, "adt" standardised proteins, "rna+adt" both, each
    block divided by the root of its variance so that neither drowns the other.

    Raises
    ------
    ValueError
        If no modality is given, lengths differ or a value is not finite.
    """
    train = np.asarray(split) == "train"
    blocks = {}
    if features.rna is not None:
        check_length("features.rna", features.rna, len(train))
        blocks["rna"] = scale_block(project_rna(features.rna, train, seed), train)
    if features.adt is not None:
        check_length("features.adt", features.adt, len(train))
        blocks["adt"] = scale_block(standardise_proteins(features.adt, train), train)
    if not blocks:
        raise ValueError("`features` must hold at least one modality, got neither `rna` nor `adt`; pass one.")
    if len(blocks) == 2:
        blocks["rna+adt"] = np.hstack([blocks["rna"], blocks["adt"]])
    return blocks


def project_rna(rna: np.ndarray | sparse.csr_matrix, train: np.ndarray, seed: int = 0) -> np.ndarray:
    """Project all cells on the principal components of the training cells.

    Parameters
    ----------
    rna
        (n, G), normalised expression; dense or CSR.
    train
        (n,), bool: the cells to fit on.
    seed
        Seed of the solver.

    Returns
    -------
    (n, F), at most 50 components, not whitened.

    Raises
    ------
    ValueError
        If a value is not finite.
    """
    values = rna.data if sparse.issparse(rna) else rna
    if not np.isfinite(values).all():
        raise ValueError("`rna` must be finite, got NaN or infinity; fill or drop such genes first.")
    n_components = min(N_COMPONENTS, train.sum() - 1, rna.shape[1] - 1)
    if n_components < 1:
        raise ValueError(
            f"`rna` must have at least two training cells and two genes, got {train.sum()} and "
            f"{rna.shape[1]}; pass more."
        )
    pca = PCA(n_components=int(n_components), svd_solver="arpack", random_state=seed)
    return pca.fit(rna[train]).transform(rna)


def standardise_proteins(adt: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Centre and scale every protein by its training cells; a missing value becomes the mean.

    Parameters
    ----------
    adt
        (n, P), normalised abundance; NaN where not measured.
    train
        (n,), bool: the cells to fit on.

    Returns
    -------
    (n, P), without NaN; a protein that is constant or absent in the training cells is 0 throughout.

    Raises
    ------
    ValueError
        If a value is infinite.
    """
    adt = np.asarray(adt, dtype=np.float64)
    if np.isinf(adt).any():
        raise ValueError("`adt` must hold no infinity, got one; use NaN for what was not measured.")
    masked = np.ma.masked_invalid(adt)
    mean, std = masked[train].mean(axis=0).filled(0.0), masked[train].std(axis=0).filled(0.0)
    usable = std > 1e-8
    return np.where(usable, (masked - mean).filled(0.0) / np.where(usable, std, 1.0), 0.0)


def scale_block(block: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Divide a block of features by the root of its total variance over the training cells.

    Parameters
    ----------
    block
        (n, F), features of one modality.
    train
        (n,), bool: the cells to fit on.
    """
    total = np.sqrt(block[train].var(axis=0).sum())
    return block / total if total > 0 else block


def check_split(split: np.ndarray, n_cells: int) -> None:
    """Raise unless every cell has a known split and none of the three is empty.

    Parameters
    ----------
    split
        (n,), "train", "val" or "test".
    n_cells
        Number of cells it must cover.

    Raises
    ------
    ValueError
        If the length differs, a name is unknown or a split has no cells.
    """
    check_length("split", split, n_cells)
    names = np.unique(np.asarray(split).astype(str))
    if set(names) != set(SPLITS):
        raise ValueError(
            f"`split` must hold 'train', 'val' and 'test' and nothing else, got {names.tolist()}; "
            "leave other cells out and give every split some cells."
        )


def check_length(name: str, values: np.ndarray | sparse.csr_matrix, n_cells: int) -> None:
    """Raise unless there is one row per cell.

    Parameters
    ----------
    name
        What the message calls `values`.
    values
        (n, ...), any array.
    n_cells
        Number of cells it must cover.

    Raises
    ------
    ValueError
        If the length differs.
    """
    if np.shape(values)[0] != n_cells:
        raise ValueError(
            f"`{name}` must have one row per cell ({n_cells}), got {np.shape(values)[0]}; select the same cells."
        )
