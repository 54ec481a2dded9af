"""Proteins that a panel lacks, by linear regression on RNA and on the proteins that it has, whatever these are.

Letters: n cells, G genes, K coordinates of their RNA, P proteins of the vocabulary, V visible ones, T targets.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from scfusion_fm.data.schema import AlignedCells
from scfusion_fm.model import ScFusionTTTFeatureExtractor
from scfusion_fm.untrusted.weights_file import read_header

PANEL_REGRESSION = "panel_regression.safetensors"


@dataclass
class PanelRegression:
    """
    What is needed to regress any proteins on any others and on RNA: how all of them vary together.

    Attributes
    ----------
    rna_means
        (G,) normalised expression that counts as 0.
    directions
        (G, K) along which the RNA of a cell is read.
    levels
        (P,) logarithms of counts that count as 0.
    covariance
        (K + P, K + P) of the coordinates and of the logarithms, within studies.
    known
        (P,) proteins that some study measured.
    penalty
        Ridge penalty, as a share of the variance of a feature.
    share
        Share of this regression in what is imputed, in [0, 1]; the rest is the network's.
    """

    rna_means: NDArray[np.float32]
    directions: NDArray[np.float32]
    levels: NDArray[np.float32]
    covariance: NDArray[np.float64]
    known: NDArray[np.bool_]
    penalty: float = 1.0
    share: float = 1.0
    _solved: dict = field(default_factory=dict, repr=False)

    def __post_init__(self):
        genes, proteins = len(self.rna_means), len(self.levels)
        width = self.directions.shape[-1] + proteins
        arrays = (self.rna_means, self.directions, self.levels, self.covariance)
        fits = self.directions.shape == (genes, width - proteins) and self.covariance.shape == (width, width)
        if not fits or self.known.shape != (proteins,) or not all(np.isfinite(x).all() for x in arrays):
            raise ValueError(
                f"`{PANEL_REGRESSION}` must hold finite arrays that fit together, got {[x.shape for x in arrays]}. "
                "Copy or export the directory again."
            )
        if not (self.penalty > 0 and 0 <= self.share <= 1):
            raise ValueError(
                f"`{PANEL_REGRESSION}` must have a positive penalty and a share in [0, 1], got {self.penalty} and "
                f"{self.share}. Copy or export the directory again."
            )

    def read_rna(self, values: NDArray[np.float32], observed: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Give the coordinates (n, K) of cells from expression (n, G); a gene that was not measured is usual."""
        return (np.where(observed, values - self.rna_means, 0.0) @ self.directions).astype(np.float64)

    def predict(
        self, coordinates: NDArray[np.float64], logs: NDArray[np.floating], visible: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """
        Predict the logarithms of all proteins (n, P), less the mean of those that are visible.

        Parameters
        ----------
        coordinates
            (n, K), from `read_rna`.
        logs
            (n, P), log1p of counts; read where visible.
        visible
            (n, P), what is known of each cell. Where nothing is, the mean of all known proteins is taken off.
        """
        visible = visible & self.known
        found = np.zeros(logs.shape)
        patterns, group = np.unique(visible, axis=0, return_inverse=True)
        for number, pattern in enumerate(patterns):
            rows, places = group.reshape(-1) == number, np.flatnonzero(pattern)
            centred = logs[rows][:, places] - self.levels[places]
            centred = centred - (centred.mean(1, keepdims=True) if len(places) else 0.0)
            weights = self._solve(pattern)
            usual = self.levels - self.levels[places if len(places) else self.known].mean()
            found[rows] = usual + np.hstack([coordinates[rows], centred]) @ weights
        return found

    def predict_cells(
        self,
        cells: AlignedCells,
        rows: NDArray[np.int64],
        extractor: ScFusionTTTFeatureExtractor,
        hidden: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.float64]:
        """Predict all proteins of some cells, (len(rows), P), from those that they show: not what is `hidden`."""
        values = extractor.normalise_rna(cells.rna[rows].toarray(), cells.rna_total_counts[rows])
        coordinates = self.read_rna(values, cells.rna_observed_in(rows))
        visible = cells.adt_observed_in(rows)
        visible = visible if hidden is None else visible & ~hidden
        return self.predict(coordinates, np.log1p(np.where(visible, cells.adt[rows], 0.0)), visible)

    def blend(
        self,
        network: NDArray[np.floating],
        cells: AlignedCells,
        rows: NDArray[np.int64],
        extractor: ScFusionTTTFeatureExtractor,
    ) -> NDArray[np.float64]:
        """Mix what a network predicted for some cells, (len(rows), P), with what this regression does."""
        own = self.predict_cells(cells, rows, extractor)
        return np.where(self.known, (1 - self.share) * network + self.share * own, network)

    def check_size(self, num_genes: int, num_proteins: int) -> None:
        """
        Compare the size with that of a model.

        Raises
        ------
        ValueError
            If it differs.
        """
        found = (len(self.rna_means), len(self.levels))
        if found != (num_genes, num_proteins):
            raise ValueError(
                f"`{PANEL_REGRESSION}` must be for the {num_genes:,} genes and {num_proteins} proteins of its model, "
                f"got {found}. Copy or export the directory again."
            )

    def _solve(self, pattern: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Give the weights (K + V, P) of the coordinates and of the centred visible proteins."""
        key = pattern.tobytes()
        if key not in self._solved:
            self._solved = {**dict(list(self._solved.items())[-32:]), key: self._regress(np.flatnonzero(pattern))}
        return self._solved[key]

    def _regress(self, places: NDArray[np.int64]) -> NDArray[np.float64]:
        width, number = len(self.covariance), len(places)
        num_coordinates = width - len(self.levels)
        inputs = num_coordinates + number
        # Rows pick coordinates, visible proteins and all proteins, and take the mean of the visible ones off.
        mix = np.zeros((inputs + len(self.levels), width))
        mix[:num_coordinates, :num_coordinates] = np.eye(num_coordinates)
        mix[np.arange(num_coordinates, inputs), num_coordinates + places] = 1.0
        mix[inputs:, num_coordinates:] = np.eye(len(self.levels))
        centre = num_coordinates + (places if number else np.flatnonzero(self.known))
        mix[num_coordinates:, centre] -= 1.0 / max(len(centre), 1)
        mixed = mix @ self.covariance @ mix.T
        scale = np.sqrt(np.maximum(np.diag(mixed)[:inputs], 1e-12))
        among = mixed[:inputs, :inputs] / np.outer(scale, scale) + self.penalty * np.eye(inputs)
        return np.linalg.solve(among, mixed[:inputs, inputs:] / scale[:, None]) / scale[:, None]

    def to_bytes(self) -> bytes:
        """Give the content of its file."""
        arrays = {
            "rna_means": self.rna_means.astype(np.float32),
            "directions": np.ascontiguousarray(self.directions, np.float32),
            "levels": self.levels.astype(np.float32),
            "covariance": np.ascontiguousarray(self.covariance, np.float32),
            "known": self.known.astype(np.float32),
            "penalty_and_share": np.array([self.penalty, self.share], np.float32),
        }
        return safetensors.numpy.save(arrays)

    @classmethod
    def load(cls, path: Path) -> "PanelRegression":
        """
        Read the file of a model directory.

        Raises
        ------
        ValueError
            If it is damaged.
        """
        names = {"rna_means", "directions", "levels", "covariance", "known", "penalty_and_share"}
        found = read_header(path)  # sizes are compared with the file before anything is allocated
        dimensions = {name: len(info.shape) for name, info in found.items()}
        expected = dict.fromkeys(names, 1) | {"directions": 2, "covariance": 2}
        if dimensions != expected or found["penalty_and_share"].shape != [2]:
            raise ValueError(f"{str(path)!r} must hold {sorted(names)}, got {sorted(found)}. Export the model again.")
        arrays = safetensors.numpy.load_file(path)
        penalty, share = (float(x) for x in arrays.pop("penalty_and_share"))
        return cls(
            rna_means=arrays["rna_means"],
            directions=arrays["directions"],
            levels=arrays["levels"],
            covariance=arrays["covariance"].astype(np.float64),
            known=arrays["known"] > 0,
            penalty=penalty,
            share=share,
        )
