"""Cells are divided by the rule that atlases use; those without a group are in no part."""

import numpy as np
import pandas as pd
import pytest
from missing_values import WITHOUT_VALUE

from scfusion_fm.config.split import SplitConfig
from scfusion_fm.tasks.splits import split_cells


@pytest.mark.parametrize("missing", list(WITHOUT_VALUE))
def test_cells_without_a_donor_are_left_out_and_are_no_donor(missing):
    donors = pd.concat([WITHOUT_VALUE[missing]] * 20, ignore_index=True).astype(object)
    donors[donors == donors[0]] = [f"donor {i}" for i in range(20)]
    obs = pd.DataFrame({"donor": donors.to_numpy()}, index=[f"cell{i}" for i in range(60)])
    rule = SplitConfig(val_fraction=0.3, test_fraction=0.3, seed=1, group_key="donor")
    with pytest.warns(UserWarning, match="20 of 60 cells have no 'donor' and are left out of all parts"):
        partition = split_cells(obs, rule)
    assert sorted(partition.rows.tolist()) == np.flatnonzero(np.arange(60) % 3 != 1).tolist()
