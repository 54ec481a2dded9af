"""Baselines that impute the same hidden proteins of the same cells, from the same RNA and visible proteins."""

import numpy as np
from numpy.typing import NDArray

from scfusion_fm.evaluation.baselines.panels import PANEL_METHODS, PanelTask, fit_panel_baselines
from scfusion_fm.evaluation.baselines.studies import StudyComponents, normalise_sparse
from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.tasks.imputation.cells import Hidden, PanelCells
from scfusion_fm.tasks.splits import limit_training

NUM_COMPONENTS = 50


def impute_by_baselines(
    data: PanelCells,
    partition: Partition,
    turns: list[NDArray[np.bool_]],
    known: NDArray[np.bool_],
    seed: int,
    methods: tuple[str, ...] = PANEL_METHODS,
) -> dict[str, Hidden]:
    """Fit baselines, and impute the scored cells by each, turn by turn; `known` (P,) are the proteins that count."""
    scored = partition.scored
    used, places = limit_training(Partition(partition.train, partition.val, scored), seed).join()
    aligned = data.aligned
    values = normalise_sparse(aligned.rna[used], aligned.rna_total_counts[used], data.extractor.target_sum)
    observed = aligned.rna_observed_in(used)
    _, study = np.unique(data.studies[used], return_inverse=True)
    train = places.train
    _, own = np.unique(study[train], return_inverse=True)
    components = StudyComponents.fit(values[train], observed[train], own, NUM_COMPONENTS, seed)
    coordinates = components.read(values, observed, study)
    task = PanelTask(coordinates, data.logs[used], data.observed[used], study, places, seed)
    found = {method: Hidden(data.studies[scored]) for method in methods}
    for hidden in turns:
        measured = data.centre(scored, hidden[scored])
        counted = (hidden & data.observed)[scored] & known
        for method, predicted in fit_panel_baselines(task, hidden[used], methods).items():
            found[method].add(measured, predicted, counted)
    return found
