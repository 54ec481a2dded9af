"""A model that imputes proteins, fine-tuned on cells whose panels differ.

Letters: B cells, N RNA tokens, P proteins.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from transformers import PreTrainedModel

from scfusion_fm.data.hashing import uniform
from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.inference.batches import CellCollator, predict_rows
from scfusion_fm.inference.impute import complete_batch
from scfusion_fm.inference.panel_regression import PanelRegression
from scfusion_fm.model import ScFusionTTTFeatureExtractor, ScFusionTTTForPreTraining
from scfusion_fm.tasks.epochs import Objective
from scfusion_fm.tasks.imputation.cells import Hidden, PanelCells
from scfusion_fm.tasks.imputation.regression import choose_penalty, fit_regression
from scfusion_fm.tasks.settings import FitSettings
from scfusion_fm.tasks.trainer import train_best
from scfusion_fm.tasks.weights import Weights

SHARES = np.linspace(0.0, 1.0, 11)
ALL_HIDDEN = 0.1  # probability that a training cell loses all of its proteins
LEAST_VARIANCE = 0.05
_COUNT, _PROTEIN, _SHARE, _TOKEN = range(21, 25)  # streams of random numbers


class PanelCollator(CellCollator):
    """
    Prepare cells of which some proteins are hidden.

    Parameters
    ----------
    data
        All cells.
    wanted
        (P,) proteins that are reconstructed where a cell does not show them.
    hidden
        (n, P), what is hidden of each cell; nothing when None.
    offsets
        (n, P), what is taken off the logarithms of each cell; nothing when None.
    """

    def __init__(
        self,
        data: PanelCells,
        wanted: NDArray[np.bool_],
        hidden: NDArray[np.bool_] | None = None,
        offsets: NDArray[np.float32] | None = None,
    ):
        super().__init__(data.aligned, data.extractor, modalities=("rna",))
        self.data, self.wanted, self.hidden, self.offsets = data, wanted, hidden, offsets

    def __call__(self, rows: ArrayLike) -> dict[str, Tensor]:
        """Give all arguments of the model."""
        rows, data = np.asarray(rows), self.data
        hidden = np.zeros_like(data.observed[rows]) if self.hidden is None else self.hidden[rows]
        offsets = None if self.offsets is None else self.offsets[rows]
        batch = complete_batch(super().__call__(rows), len(rows), self.extractor)
        observed = data.observed[rows]
        return batch | {
            "adt_values": torch.from_numpy(data.centre(rows, hidden, offsets)),
            "adt_observed": torch.from_numpy(observed),
            "adt_bool_masked_pos": torch.from_numpy(self.wanted & (hidden | ~observed)),
        }


@dataclass(frozen=True)
class PanelDropout:
    """
    Hide another part of the proteins of each training cell in every epoch, and some of its RNA.

    Parameters
    ----------
    seed
        Seed of the choices.
    token_dropout
        Largest share of its RNA tokens that a cell loses, in [0, 1); they are reconstructed, as in pretraining.
    """

    seed: int = 0
    token_dropout: float = 0.0

    def hide(self, batch: dict[str, Tensor], rows: NDArray[np.int64], epoch: int) -> dict[str, Tensor]:
        """Give the arguments of the model, and as labels (B, P, 2) values of proteins and which of them count."""
        observed = batch["adt_observed"].numpy()
        number = observed.sum(1)
        draw = uniform(self.seed, _COUNT, epoch, rows)
        share = np.clip((draw - ALL_HIDDEN) / (1 - ALL_HIDDEN), 0.0, 1.0)
        count = np.clip(np.round(share * number), 1, np.maximum(number - 1, 1)).astype(int)
        count = np.where(draw < ALL_HIDDEN, number, count)
        places = np.where(observed, uniform(self.seed, _PROTEIN, epoch, rows[:, None], np.arange(observed.shape[1])), 2)
        hidden = observed & (places.argsort(1).argsort(1) < count[:, None])
        visible = torch.from_numpy(observed & ~hidden)
        among = torch.where(visible.any(1, keepdim=True), visible, batch["adt_observed"])
        values = batch["adt_values"]
        values = values - (values * among).sum(1, keepdim=True) / among.sum(1, keepdim=True).clamp_min(1)
        values = torch.where(batch["adt_observed"], values, 0.0)
        masked = torch.from_numpy(hidden)
        tokens = batch["rna_values"].shape[1]
        most = self.token_dropout * uniform(self.seed, _SHARE, epoch, rows)[:, None]
        lost = torch.from_numpy(uniform(self.seed, _TOKEN, epoch, rows[:, None], np.arange(tokens)) < most)
        return batch | {
            "rna_bool_masked_pos": lost,
            "adt_values": values,
            "adt_bool_masked_pos": masked,
            "labels": torch.stack([values, masked.float()], 2),
        }


class PanelLoss:
    """
    The loss of pretraining, in which each protein counts by the inverse of its variance, as correlations do.

    Parameters
    ----------
    weight
        (P,) factor of the squared error of each protein.
    rna_weight
        Factor of the error of hidden RNA.
    """

    def __init__(self, weight: Tensor, rna_weight: float):
        self.weight, self.rna_weight = weight, rna_weight

    def __call__(self, outputs, labels: Tensor) -> Tensor:
        """Average over the cells of a batch."""
        values, counted = labels.unbind(2)
        error = (outputs["adt_reconstruction"].float() - values).square() * counted * self.weight.to(values)
        return (error.sum(1) / counted.sum(1).clamp_min(1) + self.rna_weight * outputs["rna_loss"].float()).mean()


@dataclass(frozen=True)
class FittedImputer:
    """A fitted imputer: network and regression, with the number of trained parameters."""

    model: PreTrainedModel
    regression: PanelRegression
    data: PanelCells
    num_trained: int

    @property
    def extractor(self) -> ScFusionTTTFeatureExtractor:
        """Vocabulary and normaliser."""
        return self.data.extractor

    def predict(self, rows: NDArray[np.int64], hidden: NDArray[np.bool_]) -> dict[str, NDArray[np.float64]]:
        """Impute the proteins of some cells that lose those that are `hidden`, (n, P): the parts and the mixture."""
        collator = PanelCollator(self.data, self.regression.known, hidden)
        network = predict_rows(self.model, collator, rows, "adt_reconstruction", batch_size=64)
        linear = self.regression.predict_cells(self.data.aligned, rows, self.extractor, hidden[rows])
        share = self.regression.share
        return {"network": network, "regression": linear, "mixture": share * linear + (1 - share) * network}

    def hide(self, rows: NDArray[np.int64], turns: list[NDArray[np.bool_]]) -> dict[str, Hidden]:
        """Hide some proteins of some cells, turn by turn, and impute them: the parts and the mixture."""
        found: dict[str, Hidden] = {}
        for hidden in turns:
            measured = self.data.centre(rows, hidden[rows])
            scored = (hidden & self.data.observed)[rows] & self.regression.known
            for name, predicted in self.predict(rows, hidden).items():
                found.setdefault(name, Hidden(self.data.studies[rows])).add(measured, predicted, scored)
        return found


def fit_imputer(
    weights: Weights, data: PanelCells, partition: Partition, settings: FitSettings, folds: int
) -> FittedImputer:
    """
    Fine-tune the pretraining pass on panels with gaps; the share of a regression that does best is mixed in.

    Parameters
    ----------
    weights
        Where the weights come from.
    data
        All cells.
    partition
        Which cells train, and which choose.
    settings
        How to train.
    folds
        Into how many sets the proteins of each panel are divided, to be hidden from the cells that choose.
    """
    train, val, optim = partition.train, partition.val, settings.optim
    turns = data.hide_in_turn(folds, settings.seed)
    settings.use_threads()
    regression = fit_regression(data, train, max(optim.num_coordinates, 1), settings.seed)
    regression = choose_penalty(regression, data, val, turns)
    names = [name for name, known in zip(data.extractor.protein_names, regression.known, strict=True) if known]
    model = weights.build(ScFusionTTTForPreTraining, settings.seed, predicted_features=names)
    # Training cells are given whole, at the level that studies share; those that choose as they are, with gaps.
    is_train = np.isin(np.arange(len(data.logs)), train)[:, None]
    chosen = _mix_turns(turns) & ~is_train
    offsets = np.where(is_train, data.find_offsets(train), np.float32(0))
    collator = PanelCollator(data, regression.known, chosen, offsets)
    measured = data.centre(val, chosen[val])
    scored = chosen[val] & data.observed[val] & regression.known

    def score(found: NDArray[np.float32]) -> dict[str, float]:
        summary = Hidden(data.studies[val], [measured], [found], [scored]).score()[1]
        return {"score": summary["pearson_per_protein"], **summary}

    loss = PanelLoss(_weigh_proteins(data, train, offsets), model.config.rna_loss_weight)
    dropout = PanelDropout(settings.seed, optim.token_dropout)
    objective = Objective(score, loss, dropout, "adt_reconstruction")
    trained = train_best(model, partition, collator, objective, weights.suit(settings))
    fitted = FittedImputer(model, regression, data, trained.parameters)
    return dataclasses.replace(fitted, regression=_choose_share(fitted, val, turns))


def _mix_turns(turns: list[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """Let every cell have its turn in one of the sets, so that one pass scores all proteins."""
    turn = np.arange(len(turns[0])) % len(turns)
    return np.stack(turns)[turn, np.arange(len(turn))]


def _choose_share(fitted: FittedImputer, rows: NDArray[np.int64], turns: list[NDArray[np.bool_]]) -> PanelRegression:
    """Give the regression the share that scores best on some cells; the smallest of equals."""
    parts = fitted.hide(rows, turns)
    scores = []
    for share in SHARES:
        ends = zip(parts["regression"].predicted, parts["network"].predicted, strict=True)
        mixed = dataclasses.replace(parts["network"], predicted=[share * a + (1 - share) * b for a, b in ends])
        scores.append(np.nan_to_num(mixed.score()[1]["pearson_per_protein"], nan=-1.0))
    return dataclasses.replace(fitted.regression, share=float(SHARES[int(np.argmax(scores))]))


def _weigh_proteins(data: PanelCells, rows: NDArray[np.int64], offsets: NDArray[np.float32]) -> Tensor:
    """Weigh each protein by the inverse of its variance over some cells, with a mean weight of 1."""
    seen = data.observed[rows]
    values = np.ma.MaskedArray(data.centre(rows, np.zeros_like(seen), offsets[rows]), mask=~seen)
    variance = values.var(0).filled(np.nan)
    usual = np.nanmedian(variance)
    inverse = 1 / np.maximum(np.nan_to_num(variance, nan=usual), max(LEAST_VARIANCE * usual, 1e-12))
    return torch.from_numpy(inverse / inverse[seen.any(0)].mean()).float()
