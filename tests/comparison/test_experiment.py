"""The data of an experiment: groups and batches by name, and cells without one in no fold."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from missing_values import WITHOUT_VALUE

from scfusion_fm.comparison.experiment import Experiment


def make_experiment(column: pd.Series, **split) -> Experiment:
    config = SimpleNamespace(
        split=SimpleNamespace(group_key="donor", **split), task="annotation", background_key="donor"
    )
    aligned = SimpleNamespace(obs=pd.DataFrame({"donor": column}))
    return Experiment(config, None, aligned, None, {}, np.arange(3), np.array(["x"] * 3), None)


@pytest.mark.parametrize("missing", list(WITHOUT_VALUE))
def test_cells_without_a_group_are_left_out_where_groups_are_held_out(missing):
    experiment = make_experiment(WITHOUT_VALUE[missing], kind="leave_group_out")
    assert experiment.batches()[1] is None
    with pytest.warns(UserWarning, match="1 of 3 cells have no 'donor' and are left out"):
        experiment.leave_out_cells_without_group()
    assert experiment.usable.tolist() == [0, 2]
    assert "" not in experiment.groups()[experiment.usable]


def test_cells_without_a_group_stay_where_groups_say_nothing():
    experiment = make_experiment(pd.Series(["a", None, "b"]), kind="k_fold")
    experiment.leave_out_cells_without_group()
    assert experiment.usable.tolist() == [0, 1, 2]


def test_cells_are_drawn_once_from_each_group_for_all_seeds():
    column = pd.Series(["a"] * 50 + ["b"] * 5 + ["c"] * 45)
    experiment = make_experiment(column, kind="leave_group_out", val_fraction=0.1, test_groups=[])
    experiment.config.cells_per_group = 20
    experiment.usable, experiment.strata = np.arange(1, 100), np.full(100, "x")
    experiment.draw_cells()
    kept = experiment.usable
    assert column[kept].value_counts().to_dict() == {"a": 20, "c": 20, "b": 5}
    assert (np.diff(kept) > 0).all()
    assert kept.min() >= 1
    tested = [[fold.partition.test.tolist() for fold in experiment.folds(seed)] for seed in (0, 1)]
    assert tested[0] == tested[1]
