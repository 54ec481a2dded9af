"""What the baselines see of the cells, fitted on the training cells only.

Shapes: n cells, G genes, P proteins, F features.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.decomposition import PCA

N_COMPONENTS = 50


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

    rna: NDArray | sparse.csr_matrix | sparse.csr_array | None = None
    adt: NDArray | None = None

    @property
    def given(self) -> dict[str, NDArray | sparse.csr_matrix | sparse.csr_array]:
        """The modalities that are there, by name."""
        return {name: values for name, values in (("rna", self.rna), ("adt", self.adt)) if values is not None}


def build_inputs(features: Features, train: NDArray[np.int64], seed: int = 0) -> dict[str, NDArray[np.float64]]:
    """Turn the modalities into the matrices that the annotation baselines read.

    Parameters
    ----------
    features
        The modalities of all n cells.
    train
        Rows to fit on.
    seed
        Seed of the principal components' solver.

    Returns
    -------
    By input name, (n, F): "rna" principal components, "adt" standardised proteins, "rna+adt" both, each
    block divided by the root of its variance so that neither drowns the other.

    Raises
    ------
    ValueError
        If no modality is given or a value is not finite.
    """
    blocks = {}
    if features.rna is not None:
        blocks["rna"] = scale_block(project_rna(features.rna, train, seed), train)
    if features.adt is not None:
        blocks["adt"] = scale_block(standardise_proteins(features.adt, train), train)
    if not blocks:
        raise ValueError("`features` must hold at least one modality, got neither `rna` nor `adt`; pass one.")
    if len(blocks) == 2:
        blocks["rna+adt"] = np.hstack([blocks["rna"], blocks["adt"]])
    return blocks


def project_rna(rna: NDArray | sparse.csr_matrix, train: NDArray[np.int64], seed: int = 0) -> NDArray[np.float64]:
    """Project all cells on the principal components of the training cells.

    Parameters
    ----------
    rna
        (n, G), normalised expression; dense or CSR.
    train
        Rows to fit on.
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
    check_finite(rna)
    n_components = min(N_COMPONENTS, len(train) - 1, rna.shape[1] - 1)
    if n_components < 1:
        raise ValueError(
            f"`rna` must have at least two training cells and two genes, got {len(train)} and "
            f"{rna.shape[1]}; pass more."
        )
    pca = PCA(n_components=int(n_components), svd_solver="arpack", random_state=seed)
    return pca.fit(rna[train]).transform(rna)


def check_finite(rna: NDArray | sparse.csr_matrix) -> None:
    """Raise unless all values of normalised expression are finite.

    Parameters
    ----------
    rna
        (n, G), dense or sparse.

    Raises
    ------
    ValueError
        If a value is not finite.
    """
    if not np.isfinite(rna.data if sparse.issparse(rna) else rna).all():
        raise ValueError("`rna` must be finite, got NaN or infinity; fill or drop such genes first.")


def standardise_proteins(adt: NDArray, train: NDArray[np.int64]) -> NDArray[np.float64]:
    """Centre and scale every protein by its training cells; a missing value becomes the mean.

    Parameters
    ----------
    adt
        (n, P), normalised abundance; NaN where not measured.
    train
        Rows to fit on.

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


def scale_block(block: NDArray, train: NDArray[np.int64]) -> NDArray[np.float64]:
    """Divide a block of features by the root of its total variance over the training cells.

    Parameters
    ----------
    block
        (n, F), features of one modality.
    train
        Rows to fit on.
    """
    total = np.sqrt(block[train].var(axis=0).sum())
    return block / total if total > 0 else block


def check_methods(methods: Sequence[str], known: Iterable[str]) -> None:
    """Raise unless all methods are known.

    Parameters
    ----------
    methods
        Names asked for.
    known
        Names there are.

    Raises
    ------
    ValueError
        If a name is unknown.
    """
    unknown = sorted(set(methods) - set(known))
    if unknown:
        raise ValueError(f"`methods` must be among {sorted(known)}, got {unknown}; correct the names.")
