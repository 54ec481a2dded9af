"""Hidden RNA filled in by baselines and pretrained models.

Letters: n cells, N RNA tokens, G genes.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from scfusion_fm.comparison.experiment import Experiment
from scfusion_fm.comparison.scores import Scores
from scfusion_fm.evaluation.baselines.imputation import ImputationTask, fit_imputation_baselines, imputation_scores
from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.inference.batches import CellCollator, choose_device, predict_rows
from scfusion_fm.inference.model_directory import load_pretrained
from scfusion_fm.model import ScFusionTTTForPreTraining
from scfusion_fm.tasks.cross_modal.cells import choose_genes
from scfusion_fm.tasks.weights import Weights


def run_imputation(experiment: Experiment, partition: Partition, seed: int, scores: Scores) -> None:
    """
    Fill in hidden RNA tokens from the other RNA of a cell, with baselines and pretrained models.

    Notes
    -----
    Values are normalised by the library size of the whole cell, for all methods alike: it tells them a little of what
    was hidden.
    """
    aligned, extractor, config = experiment.aligned, experiment.extractor, experiment.config
    used, places = partition.join()
    genes = np.flatnonzero(aligned.rna_observed)
    tokens = np.random.default_rng(seed).random((len(used), extractor.num_rna_tokens)) < config.hidden_fraction
    hidden = extractor.merge_patches(np.repeat(tokens[:, :, None], extractor.patch_size, axis=2))
    hidden = (hidden & aligned.rna_observed_in(used))[:, genes]  # (n, G)
    values = extractor.normalise_rna(aligned.rna[used][:, genes].toarray(), aligned.rna_total_counts[used])
    test, train = places.test, places.train
    scored = np.isin(genes, choose_genes(aligned, extractor, partition.train, config.scored_genes))
    imputed = {}
    if experiment.baselines:
        found = fit_imputation_baselines(ImputationTask(values, hidden, places, seed))
        imputed = {("baseline", name): found[name] for name in experiment.baselines}
    for name, weights in experiment.weights().items():
        imputed["model", name] = impute(experiment, weights, partition.test, tokens[test], seed)[:, genes]
    for (kind, method), guess in imputed.items():
        found = imputation_scores(
            values[test][:, scored], guess[:, scored], hidden[test][:, scored], values[train][:, scored].mean(0)
        )
        scores.add(kind, method, "rna", found)


def impute(
    experiment: Experiment, weights: Weights, rows: NDArray[np.int64], tokens: NDArray[np.bool_], seed: int
) -> NDArray[np.float32]:
    """Predict the RNA of some cells, of which the given tokens (n, N) are hidden and no protein is shown, (n, G)."""
    if weights.from_scratch:
        model = weights.build(ScFusionTTTForPreTraining, seed)
    else:
        model, _ = load_pretrained(Path(weights.path), ScFusionTTTForPreTraining)
    collator = CellCollator(experiment.aligned, experiment.extractor, modalities=("rna",))

    def hide(places: NDArray[np.int64]) -> dict[str, torch.Tensor]:
        batch = collator(rows[places])
        nothing = torch.zeros(len(places), experiment.extractor.num_proteins)
        batch |= {"adt_values": nothing, "adt_observed": nothing.bool(), "adt_bool_masked_pos": nothing.bool()}
        return batch | {"rna_bool_masked_pos": torch.from_numpy(tokens[places])}

    found = predict_rows(model.to(choose_device()), hide, np.arange(len(rows)), "rna_reconstruction")
    return experiment.extractor.merge_patches(found)
