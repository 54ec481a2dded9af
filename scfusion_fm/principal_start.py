"""Start the embeddings of values from principal components of the atlas, instead of from random weights.

Letters: n cells, F features (genes or proteins), K components.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from threadpoolctl import threadpool_limits

from scfusion_fm.data.atlas import Atlas
from scfusion_fm.model import ScFusionTTTFeatureExtractor, ScFusionTTTModel

READ_ROWS = 512
ITERATIONS = 5
OVERSAMPLING = 20


@dataclass
class Panels:
    """
    Values of cells of which different features were measured.

    Attributes
    ----------
    values
        (n, F) normalised values; 0 where not measured.
    measured
        (panels, F) 1 where a panel has a feature.
    panel
        (n,) panel of each cell.
    """

    values: sparse.csr_matrix
    measured: NDArray[np.float64]
    panel: NDArray[np.int64]

    def means(self) -> NDArray[np.float64]:
        """Give the mean of each feature over the cells in which it was measured, (F,)."""
        cells = np.bincount(self.panel, minlength=len(self.measured)) @ self.measured
        return np.asarray(self.values.sum(0)).ravel() / np.maximum(cells, 1)

    def components(self, number: int, seed: int) -> NDArray[np.float64]:
        """
        Find the directions of largest variance around the means, (F, K).

        What was not measured counts as the mean. K is at most the number, the cells and the features.

        Notes
        -----
        Randomised subspace iteration (Halko, Martinsson and Tropp 2011), on one thread, so that the result does not
        depend on how many there are.
        """
        means, members = self.means(), sparse.csr_matrix(np.eye(len(self.measured))[self.panel])

        def times(x: NDArray) -> NDArray:  # (F, k) -> (n, k)
            return self.values @ x - (self.measured @ (means[:, None] * x))[self.panel]

        def transposed_times(y: NDArray) -> NDArray:  # (n, k) -> (F, k)
            return self.values.T @ y - means[:, None] * (self.measured.T @ (members.T @ y))

        number = min(number, *self.values.shape)
        width = min(number + OVERSAMPLING, *self.values.shape)
        basis = np.random.default_rng(seed).normal(size=(self.values.shape[1], width))
        with threadpool_limits(1):
            for _ in range(ITERATIONS):
                basis = np.linalg.qr(transposed_times(np.linalg.qr(times(basis))[0]))[0]
            rotation = np.linalg.svd(times(basis), full_matrices=False)[2]
            return (basis @ rotation.T)[:, :number]


def start_from_components(
    model: ScFusionTTTModel,
    extractor: ScFusionTTTFeatureExtractor,
    atlas: Atlas,
    rows: NDArray[np.int64],
    seed: int,
) -> None:
    """
    Let the mean over the tokens of each modality start as the principal components of a cell, in place.

    Parameters
    ----------
    model
        Model with random weights.
    extractor
        Normaliser and patches.
    atlas
        Where the cells are.
    rows
        Training cells to find the components of.
    seed
        Of the search for the components.

    Notes
    -----
    Random weights that embed 20,000 genes, most of them hardly ever expressed, need far more steps than a small atlas
    gives; docs/experiments.md has the comparison. Guarded by tests/test_principal_start.py.
    """
    rna, adt = read_panels(extractor, atlas, rows)
    sample = extractor(**atlas.read(rows[:: max(1, len(rows) // READ_ROWS)]).as_counts())
    hidden_size = model.config.hidden_size
    patches = extractor.patch_genes()
    for panels, embedding, places, name in (
        (rna, model.rna_embeddings, patches, "rna"),
        (adt, model.adt_embeddings, np.arange(extractor.num_proteins)[:, None], "adt"),
    ):
        observed = sample[f"{name}_observed"].reshape(len(sample[f"{name}_observed"]), *places.shape)
        if not panels.measured.any() or not observed.any():
            continue
        # A place of a patch that holds no gene comes last, and has no direction.
        directions = np.pad(panels.components(hidden_size, seed), ((0, 1), (0, 0)))[places]
        means = np.pad(panels.means(), (0, 1))[places]
        embedding.start_from(
            torch.from_numpy(directions).float(),
            torch.from_numpy(means).float(),
            sample[f"{name}_values"].reshape(observed.shape),
            observed,
        )


def read_panels(extractor: ScFusionTTTFeatureExtractor, atlas: Atlas, rows: NDArray[np.int64]) -> tuple[Panels, Panels]:
    """Read normalised RNA and protein of cells."""
    parts: dict[str, list] = {"rna": [], "adt": []}
    panels: dict[str, dict[bytes, int]] = {"rna": {}, "adt": {}}
    numbers: dict[str, list[int]] = {"rna": [], "adt": []}
    for start in range(0, len(rows), READ_ROWS):
        read = atlas.read(rows[start : start + READ_ROWS])
        values = {
            "rna": extractor.normalise_rna(read.rna, read.rna_total_counts),
            "adt": extractor.normalise_adt(read.adt, read.adt_observed),
        }
        for name, observed in (("rna", read.rna_observed), ("adt", read.adt_observed)):
            parts[name].append(sparse.csr_matrix(np.where(observed, values[name], 0.0).astype(np.float64)))
            for row in np.packbits(observed, axis=1):
                numbers[name].append(panels[name].setdefault(row.tobytes(), len(panels[name])))
    built = []
    for name in ("rna", "adt"):
        features = parts[name][0].shape[1]
        measured = np.array([np.unpackbits(np.frombuffer(p, np.uint8), count=features) for p in panels[name]])
        built.append(Panels(sparse.vstack(parts[name]).tocsr(), measured.astype(np.float64), np.array(numbers[name])))
    return built[0], built[1]
