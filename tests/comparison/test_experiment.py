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
