"""Batches of cells of a file, and a model run over them."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from scfusion_fm.data.schema import AlignedCells
from scfusion_fm.inference.inputs import make_inputs
from scfusion_fm.model import ScFusionTTTFeatureExtractor


class CellRows(Dataset):
    """Rows of aligned cells; the collator looks up the cells themselves."""

    def __init__(self, rows: NDArray[np.int64]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> int:
        return int(self.rows[index])


class CellCollator:
    """
    Prepare a batch of rows for the model.

    Parameters
    ----------
    aligned
        All cells of the file.
    extractor
        Normaliser and vocabulary.
    labels
        (n,) class index per cell; None when the task has no labels of its own.
    modality_dropout
        Probability that a paired cell loses one of its modalities, in [0, 1].
    seed
        Seed of that choice.
    modalities
        What of the cells is shown.
    target
        Modality that a task without labels of its own learns.
    token_dropout
        Largest share of its tokens that a cell loses, in [0, 1); what is learned loses none.

    Raises
    ------
    ValueError
        If `modality_dropout` is out of range.
    """

    def __init__(
        self,
        aligned: AlignedCells,
        extractor: ScFusionTTTFeatureExtractor,
        labels: NDArray[np.int64] | None = None,
        modality_dropout: float = 0.0,
        seed: int = 0,
        modalities: tuple[str, ...] = ("rna", "adt"),
        target: str = "adt",
        token_dropout: float = 0.0,
    ):
        check_modality_dropout(modality_dropout)
        self.aligned = aligned
        self.extractor = extractor
        self.labels = labels
        self.modality_dropout = modality_dropout
        self.modalities = modalities
        self.token_dropout = token_dropout
        # What the trainer takes for labels; a task without its own learns the values of a modality.
        self.label_names = [f"{target}_values", f"{target}_observed"] if labels is None else ["labels"]
        self._random = np.random.default_rng(seed)

    def __call__(self, rows: list[int]) -> dict[str, torch.Tensor]:
        """Give the arguments of the model."""
        rows = np.asarray(rows)
        batch = make_inputs(self.aligned, self.extractor, rows)
        batch = {k: v for k, v in batch.items() if k.split("_")[0] in self.modalities}
        if self.modality_dropout > 0 and {"rna_observed", "adt_observed"} <= batch.keys():
            self._drop_modalities(batch)
        if self.token_dropout > 0:
            self._drop_tokens(batch)
        if self.labels is not None:
            batch["labels"] = torch.from_numpy(self.labels[rows])
        return batch

    def _drop_modalities(self, batch: dict[str, torch.Tensor]) -> None:
        rna, adt = batch["rna_observed"], batch["adt_observed"]
        paired = rna.flatten(1).any(1) & adt.any(1)
        draw = torch.from_numpy(self._random.random(len(paired)))
        batch["rna_observed"] = rna & ~(paired & (draw < self.modality_dropout / 2))[:, None, None]
        drop_adt = paired & (draw >= self.modality_dropout / 2) & (draw < self.modality_dropout)
        batch["adt_observed"] = adt & ~drop_adt[:, None]

    def _drop_tokens(self, batch: dict[str, torch.Tensor]) -> None:
        for name in ("rna_observed", "adt_observed"):
            if name in batch and name not in self.label_names:
                observed = batch[name]
                share = self.token_dropout * self._random.random((len(observed), 1))
                kept = torch.from_numpy(self._random.random(observed.shape[:2]) >= share)
                batch[name] = observed & kept.reshape(kept.shape + (1,) * (observed.ndim - 2))


def check_modality_dropout(probability: float) -> None:
    """Refuse what is no probability."""
    if not 0 <= probability <= 1:
        raise ValueError(f"`modality_dropout` must lie in [0, 1], got {probability}.")


def predict_rows(
    model: PreTrainedModel,
    collator: CellCollator,
    rows: NDArray[np.int64],
    field: str = "logits",
    modalities: tuple[str, ...] = ("rna", "adt"),
    batch_size: int = 64,
) -> NDArray[np.float32]:
    """Run a model over rows, shown only the given modalities; the `field` of its output, row by row."""
    model.eval()
    results = []
    for start in range(0, len(rows), batch_size):
        batch = collator(rows[start : start + batch_size])
        shown = {k: v.to(model.device) for k, v in batch.items() if k.split("_")[0] in modalities}
        with torch.inference_mode():
            results.append(model(**shown)[field].float().cpu().numpy())
    return np.concatenate(results)
