"""Leaving cell types out: nothing of them is trained on, and the baseline depends on nothing of them."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from scfusion_fm.evaluation.baselines.annotation import LOGISTIC
from scfusion_fm.evaluation.baselines.features import Features
from scfusion_fm.evaluation.calibration.unknown import SCORES, CellOutputs
from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.evaluation.protocol.open_set import OpenSetTask, choose_score, leave_types_out

TYPES = np.array(["a", "b", "c", "d"])
CENTRES = 6 * np.eye(4, 5)


def make_task(n=400, seed=0):
    rng = np.random.default_rng(seed)
    code = rng.integers(4, size=n)
    x = CENTRES[code] + rng.normal(size=(n, 5))
    split = rng.choice(["train", "val", "calibration", "test"], size=n, p=[0.4, 0.2, 0.2, 0.2])
    return OpenSetTask(Features(adt=x), TYPES[code], Partition.from_roles(split), rate=0.1), x


def fit_on(task, x, seen=None):
    def fit(known):
        if seen is not None:
            seen.append(known)
        train = task.partition.train[known[task.partition.train]]
        model = LogisticRegression(max_iter=200).fit(x[train], task.labels[train])
        return CellOutputs(model.decision_function(x), x)

    return fit


def test_types_left_out_are_told_from_known_ones_and_never_trained_on():
    task, x = make_task()
    seen = []
    table = leave_types_out(task, fit_on(task, x, seen))
    assert [sorted(set(task.labels[~known])) for known in seen] == [["a"], ["b"], ["c"], ["d"]]
    assert list(table["left_out"].unique()) == list(TYPES)
    own = table[table["method"] == "model"]
    assert set(own["score"]) == set(SCORES)
    assert (own.groupby("score")["auroc"].mean() > 0.8).all()
    assert (own[own["score"] == "mahalanobis"]["auroc"] > 0.99).all()
    assert (own[own["score"] == "mahalanobis"]["false_accept"] < 0.1).all()
    assert table["false_reject"].mean() < 0.2
    assert (table["n_unknown"] + table["n_known"] == len(task.partition.test)).all()
    baseline = table[table["method"] == LOGISTIC]
    assert len(baseline) == 4
    assert (baseline["auroc"] > 0.7).all()
    assert choose_score(table) == own.groupby("score")["auroc_val"].mean().reindex(SCORES).idxmax()


def test_test_cells_choose_nothing():
    table = pd.DataFrame({"method": "model", "score": list(SCORES), "auroc_val": [0.5, 0.9, 0.8, np.nan]})
    assert choose_score(table.assign(auroc=[1, 0, 0, 1])) == "energy"


def test_baseline_does_not_depend_on_the_cells_left_out():
    task, x = make_task()
    first = leave_types_out(task, fit_on(task, x), ["a"])
    moved = x.copy()
    seen = task.partition.known
    moved[seen[task.labels[seen] == "a"]] *= 3
    second = leave_types_out(OpenSetTask(Features(adt=moved), task.labels, task.partition, 0.1), fit_on(task, x), ["a"])
    columns = ["auroc", "false_accept", "false_reject"]
    pd.testing.assert_frame_equal(first[columns], second[columns])


def test_mistakes_are_refused():
    task, x = make_task(100)
    with pytest.raises(ValueError, match=r"`leave_out_types` must be cell types with test cells.*got \['z'\]"):
        leave_types_out(task, fit_on(task, x), ["z"])
    two = OpenSetTask(task.features, np.where(task.labels == "a", "a", "b"), task.partition)
    with pytest.raises(ValueError, match="of at least three types"):
        leave_types_out(two, fit_on(two, x))
