"""Values read within studies: shifts and scales of laboratories go, what was not measured stays 0."""

import numpy as np
import pytest
from scipy import sparse

from scfusion_fm.evaluation.baselines import prediction
from scfusion_fm.evaluation.baselines.masked_networks import NetworkSettings
from scfusion_fm.evaluation.baselines.prediction import AVERAGED, PredictionTask, fit_prediction_baselines
from scfusion_fm.evaluation.baselines.regressors import KnownTargets, Targets, fit_ridges
from scfusion_fm.evaluation.baselines.studies import (
    centre_within,
    choose_anchors,
    choose_varying_genes,
    measure_genes,
    project_within,
    scale_within,
)
from scfusion_fm.evaluation.metrics.proteins import protein_scores
from scfusion_fm.evaluation.partition import Partition

STUDIES, CELLS, G, P = 4, 60, 30, 8
STUDY = np.repeat(np.arange(STUDIES), CELLS)
QUICK = NetworkSettings(hidden_sizes=(32, 16), n_members=1, batch_size=32, learning_rate=0.02, max_epochs=30)


def draw_counts(seed=0):
    return np.random.default_rng(seed).poisson(2.0, (STUDIES * CELLS, G)).astype(float)


def as_sparse(values):
    return sparse.csr_matrix(values)


def test_moments_are_those_of_each_study():
    values = draw_counts()
    means, spreads = measure_genes(as_sparse(values), STUDY)
    np.testing.assert_allclose(means[2], values[STUDY == 2].mean(0))
    np.testing.assert_allclose(spreads[2], values[STUDY == 2].std(0))


def test_scaled_genes_have_variance_one_within_each_study_and_stay_zero_where_not_measured():
    values = draw_counts()
    values[STUDY == 1, :5] = 0
    scaled = scale_within(as_sparse(values), STUDY).toarray()
    np.testing.assert_allclose(scaled[STUDY == 0].std(0), 1)
    np.testing.assert_allclose(scaled[STUDY == 1, 5:].std(0), 1)
    assert (scaled[STUDY == 1, :5] == 0).all()


def test_single_large_values_are_brought_down():
    values = np.zeros((400, 1))
    values[7] = 50.0
    scaled = scale_within(as_sparse(values), np.zeros(400, int)).toarray()
    assert scaled[7] == pytest.approx(values.mean() / values.std() + 10)


def test_coordinates_do_not_change_with_the_scale_of_a_study():
    values = draw_counts()
    fit = np.flatnonzero(STUDY < 3)
    scales = np.random.default_rng(1).uniform(0.5, 2, (STUDIES, G))
    before = project_within(as_sparse(values), STUDY, fit, 5, 0)
    after = project_within(as_sparse(values * scales[STUDY]), STUDY, fit, 5, 0)
    np.testing.assert_allclose(np.abs(after), np.abs(before), atol=1e-8)
    for code in range(STUDIES):
        np.testing.assert_allclose(before[code == STUDY].mean(0), 0, atol=1e-9)


def test_genes_that_vary_in_more_studies_come_first_and_only_those_that_a_new_study_has():
    values = np.tile([[0.0, 0.0, 0.0, 0.0], [3.0, 2.0, 1.0, 0.0]], (STUDIES * CELLS // 2, 1))
    values[STUDY > 0, 0] = 0  # varies most, in one of four studies
    assert choose_varying_genes(as_sparse(values), STUDY, np.ones(4, bool), 2).tolist() == [1, 2]
    assert choose_varying_genes(as_sparse(values), STUDY, np.ones(4, bool), 9).tolist() == [0, 1, 2]
    assert choose_varying_genes(as_sparse(values), STUDY, np.arange(4) != 1, 9).tolist() == [0, 2]


def test_anchors_are_what_all_share_then_what_most_share_then_the_whole_panel():
    known = np.array([True, True, True, False])
    panels = np.ones((4, 10), bool)
    panels[0, 5:] = panels[3, :2] = False
    anchors = choose_anchors(panels, known)
    assert anchors.sum(1).tolist() == [5, 5, 5, 3]
    panels[1, :5] = False  # now nothing is shared by all; two of three have each
    anchors = choose_anchors(panels, known)
    assert anchors[0].sum() == 5
    assert anchors[1].sum() == 5
    panels[1] = np.arange(10) > 7  # has two of them
    anchors = choose_anchors(panels, known)
    assert anchors[1].tolist() == panels[1].tolist()


def test_centring_over_anchors_undoes_that_over_panels():
    rng = np.random.default_rng(0)
    logs = rng.normal(size=(20, P))
    wide, narrow = np.ones((20, P), bool), np.tile(np.arange(P) < 4, (20, 1))
    anchors = np.tile(np.arange(P) < 3, (20, 1))
    values = [np.where(o, logs - logs[:, o[0]].mean(1, keepdims=True), np.nan) for o in (wide, narrow)]
    centred = [centre_within(v, o, anchors) for v, o in zip(values, (wide, narrow), strict=True)]
    np.testing.assert_allclose(centred[0][:, :4], centred[1][:, :4])
    assert (centred[1][:, 4:] == 0).all()


def build_laboratories(seed=0):
    """Four laboratories with one biology, other levels and scales of genes, and other panels; the last is new."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(len(STUDY), 4))
    rna = np.maximum(hidden @ rng.normal(size=(4, G)) + 0.3 * rng.normal(size=(len(STUDY), G)) + 4, 0)
    rna = rna * rng.uniform(0.2, 3, (STUDIES, G))[STUDY]
    logs = hidden @ rng.normal(size=(4, P)) + 0.3 * rng.normal(size=(len(STUDY), P))
    logs = logs * rng.uniform(0.5, 2, (STUDIES, P))[STUDY] + rng.normal(0, 3, (STUDIES, P))[STUDY]
    panels = np.ones((STUDIES, P), bool)
    panels[0, 6:] = panels[1, 4] = panels[2, 5] = panels[3, :2] = False
    observed = panels[STUDY]
    y = logs - np.where(observed, logs, 0).sum(1, keepdims=True) / observed.sum(1, keepdims=True)
    rows = np.arange(len(STUDY))
    part = Partition(rows[(STUDY < 3) & (rows % 10 > 0)], rows[(STUDY < 3) & (rows % 10 == 0)], rows[STUDY == 3])
    y = np.where(observed, y, np.nan)
    return PredictionTask(rna, y, observed, part, list(range(P)), network=QUICK, study=STUDY)


def score(task, predicted):
    test = task.partition.test
    return protein_scores(np.nan_to_num(task.y[test]), predicted, task.observed[test])[1]["pearson_per_protein"]


def test_reading_within_studies_predicts_a_new_laboratory_whose_levels_are_others():
    task = build_laboratories()
    plain = PredictionTask(**(vars(task) | {"study": None}))
    within, mixed = (fit_prediction_baselines(t, [*AVERAGED, "PCA + kNN"]).test for t in (task, plain))
    for method, predicted in within.items():
        assert score(task, predicted) > max(0.7, score(task, mixed[method]) + 0.1), method
        panel = np.where(task.observed[task.partition.test], predicted, 0)
        np.testing.assert_allclose(panel.sum(1), 0, atol=1e-6)  # in the unit of the test panel


def test_targets_of_the_new_laboratory_and_what_was_not_measured_are_never_read():
    task = build_laboratories()
    y = np.where(task.observed, task.y, 1e6)
    y[task.partition.test] = np.nan
    before = fit_prediction_baselines(task)
    after = fit_prediction_baselines(PredictionTask(**(vars(task) | {"y": y})))
    for method, predicted in before.test.items():
        np.testing.assert_array_equal(after.test[method], predicted, err_msg=method)
    assert prediction.standardise_targets(task)[0][task.partition.test].max() == 0


def test_a_penalty_for_each_target_beats_one_for_all_where_targets_differ():
    """Of eight targets some are seen almost without noise, the others in noise."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1600, 60))
    clear = x @ rng.normal(size=(60, 4))
    faint = 0.05 * x @ rng.normal(size=(60, 4)) + 3 * rng.normal(size=(1600, 4))
    y = np.hstack([clear, faint])
    train, val, test = np.arange(150), np.arange(150, 600), np.arange(600, 1600)
    targets = Targets.from_training(y[train], np.ones((150, 8), bool))
    cells = KnownTargets(x[train], targets, x[val], y[val], np.ones((450, 8), bool))
    one, each = cells.tune(fit_ridges), cells.tune_each(fit_ridges)
    errors = [(np.square(p(x[test]) - y[test]).mean(0) / y[test].var(0)).mean() for p in (one, each)]
    assert errors[1] < 0.95 * errors[0]


def test_studies_are_held_out_to_choose_what_carries_over():
    """A feature that says all within each study, with another sign in each, is not relied on."""
    rng = np.random.default_rng(0)
    study = np.repeat(np.arange(6), 50)
    truth = rng.normal(size=300)
    x = np.column_stack([truth + rng.normal(size=300), *(truth * (study == code) for code in range(6))])
    y = truth[:, None]
    train, val = np.arange(300) % 5 > 0, np.arange(300) % 5 == 0
    seen = np.ones((val.sum(), 1), bool)
    targets = Targets.from_training(y[train], np.ones((train.sum(), 1), bool))

    def fit(x, targets):
        return [(f"feature {i}", lambda query, i=i: query[:, [i]] * 0.5) for i in (0, 1)]

    def choose(**studies):
        cells = KnownTargets(x[train], targets, x[val], y[val], seen, **studies)
        return cells.tune(fit)(np.eye(7)[:2])[0, 0]

    assert choose(study=study[train], study_val=study[val]) == 0.5
