"""An embedding that mixes batches, fine-tuned from a pretrained model.

Letters: B cells of a step, D hidden_size, N tokens of a modality.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from transformers import PreTrainedModel

from scfusion_fm.data.hashing import uniform
from scfusion_fm.evaluation.metrics.integration import integration_scores, overall_score
from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.inference.batches import CellCollator, predict_rows
from scfusion_fm.inference.impute import complete_batch
from scfusion_fm.model import ScFusionTTTFeatureExtractor, ScFusionTTTForPreTraining, ScFusionTTTModel
from scfusion_fm.tasks.epochs import Objective
from scfusion_fm.tasks.integration.cells import BatchedCells, cluster
from scfusion_fm.tasks.integration.loss import PairLoss
from scfusion_fm.tasks.integration.pairs import Pairs, find_pairs
from scfusion_fm.tasks.settings import FitSettings
from scfusion_fm.tasks.trainer import train_best
from scfusion_fm.tasks.weights import Weights

SELF = 0.2  # probability that a cell with partners is compared with itself, under another mask
NUM_CLUSTERS = 12
_PARTNER, _SELF, _MASK = range(31, 34)  # streams of random numbers


@dataclass(frozen=True)
class IntegrationSettings(FitSettings):
    """
    How an embedding is fine-tuned to mix batches.

    Attributes
    ----------
    num_neighbours
        Nearest cells of another batch among which a partner must be, and the other way round.
    temperature
        By which similarities are divided; the smaller, the more the nearest cells count.
    pair_weight
        Weight of the comparison of cells beside the masked objective of pretraining.
    mask_ratio
        Share of the tokens of a training cell that is hidden, in (0, 1).
    """

    num_neighbours: int = 10
    temperature: float = 0.1
    pair_weight: float = 3.0
    mask_ratio: float = 0.3


class BatchCollator(CellCollator):
    """Prepare cells for `ScFusionTTTForPreTraining`, with nothing hidden."""

    def __call__(self, rows: ArrayLike) -> dict[str, Tensor]:
        """Give all arguments of the model."""
        return complete_batch(super().__call__(rows), len(np.asarray(rows)), self.extractor)


@dataclass(frozen=True)
class PairDropout:
    """
    Put a partner beside each training cell, and hide some of the tokens of both.

    Parameters
    ----------
    data
        All cells.
    collate
        Prepares cells, whole.
    pairs
        Partners of the training cells.
    settings
        How to train.
    """

    data: BatchedCells
    collate: BatchCollator
    pairs: Pairs
    settings: IntegrationSettings

    def hide(self, batch: dict[str, Tensor], rows: NDArray[np.int64], epoch: int) -> dict[str, Tensor]:
        """Give the arguments of the model for cells and partners, and as labels (2 B, 3) batch, type and row."""
        seed, ratio = self.settings.seed, self.settings.mask_ratio
        partners = self.pairs.draw(rows, uniform(seed, _PARTNER, epoch, rows))
        partners = np.where(uniform(seed, _SELF, epoch, rows) < SELF, rows, partners)
        others = self.collate(partners)
        batch = {name: torch.cat([values, others[name]]) for name, values in batch.items()}
        both, side = np.concatenate([rows, partners]), np.repeat([0, 1], len(rows))
        for number, name in enumerate(("rna", "adt")):
            seen = batch[f"{name}_observed"].flatten(2).any(2) if name == "rna" else batch["adt_observed"]
            draw = uniform(seed, _MASK, epoch, both[:, None], side[:, None], number, np.arange(seen.shape[1]))
            batch[f"{name}_bool_masked_pos"] = seen & torch.from_numpy(draw < ratio)
        labels = np.stack([self.data.codes[both], self.data.types[both], both], 1)
        return batch | {"labels": torch.from_numpy(labels)}


@dataclass(frozen=True)
class FittedIntegration:
    """A fine-tuned embedding, with the number of trained parameters."""

    model: PreTrainedModel
    data: BatchedCells
    num_trained: int

    @property
    def extractor(self) -> ScFusionTTTFeatureExtractor:
        """Vocabulary and normaliser."""
        return self.data.extractor

    def embed(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Embed some cells, (len(rows), D)."""
        return embed_rows(self.model.model, self.data, rows)


def embed_rows(model: ScFusionTTTModel, data: BatchedCells, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Embed some cells as `embed` does, (len(rows), D)."""
    collator = CellCollator(data.aligned, data.extractor)
    return predict_rows(model, collator, rows, "pooler_output", data.modalities)


def fit_integration(
    weights: Weights, data: BatchedCells, partition: Partition, settings: IntegrationSettings
) -> FittedIntegration:
    """
    Fine-tune an embedding to mix batches; what mixes and keeps types best on the validation cells is kept.

    Without labels, clusters stand for the types there: of the principal components around the mean of each batch.

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
    """
    val = partition.val
    coordinates = data.find_coordinates(partition.train, np.sort(np.concatenate([partition.train, val])), settings.seed)
    pairs = find_pairs(coordinates, data.codes, partition.train, data.types, settings.num_neighbours)
    if not len(pairs.partners):
        raise ValueError(
            "`batch_key` must tell batches apart that share kinds of cells, got none that do; give others."
        )
    types = (
        cluster(coordinates[val], NUM_CLUSTERS, settings.seed) if data.labels is None else data.types[val].astype(str)
    )
    settings.use_threads()
    model = weights.build(ScFusionTTTForPreTraining, settings.seed)
    collator = BatchCollator(data.aligned, data.extractor, modalities=data.modalities)
    codes = data.codes[val].astype(str)

    def score(embedding: NDArray[np.float32]) -> dict[str, float]:
        found = integration_scores(embedding, codes, types, settings.seed)
        return {"score": overall_score(found), **found}

    loss = PairLoss(settings.temperature, settings.pair_weight)
    dropout = PairDropout(data, collator, pairs, settings)
    objective = Objective(score, loss, dropout, "pooler_output")
    plain = FitSettings(settings.optim, settings.seed, settings.directory, settings.speaks)
    trained = train_best(model, partition, collator, objective, weights.suit(plain))
    return FittedIntegration(model, data, trained.parameters)
