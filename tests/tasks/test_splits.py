"""Cells are divided by the rule that atlases use; those without a group are in no part."""

import numpy as np
import pandas as pd
import pytest
from missing_values import WITHOUT_VALUE

from scfusion_fm.config.finetune import FinetuneSplitConfig
from scfusion_fm.config.split import SplitConfig
from scfusion_fm.data.split import assign_split
from scfusion_fm.evaluation.partition import Partition
from scfusion_fm.tasks.splits import divide_cells, limit_parts, limit_training, split_cells


@pytest.mark.parametrize("missing", list(WITHOUT_VALUE))
def test_cells_without_a_donor_are_left_out_and_are_no_donor(missing):
    donors = pd.concat([WITHOUT_VALUE[missing]] * 20, ignore_index=True).astype(object)
    donors[donors == donors[0]] = [f"donor {i}" for i in range(20)]
    obs = pd.DataFrame({"donor": donors.to_numpy()}, index=[f"cell{i}" for i in range(60)])
    rule = SplitConfig(val_fraction=0.3, test_fraction=0.3, seed=1, group_key="donor")
    with pytest.warns(UserWarning, match="20 of 60 cells have no 'donor' and are left out of all parts"):
        partition = split_cells(obs, rule)
    assert sorted(partition.rows.tolist()) == np.flatnonzero(np.arange(60) % 3 != 1).tolist()


def divide(obs, batch_key=None, **rule):
    return divide_cells(obs, obs.index.to_numpy(object), FinetuneSplitConfig(**rule), batch_key)


def test_whole_batches_are_held_out_where_there_are_enough_and_else_single_cells():
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {"donor": rng.choice([f"d{i}" for i in range(10)], 1000), "lane": rng.choice(["a", "b", "c"], 1000)},
        index=[f"c{i}" for i in range(1000)],
    )
    obs["skewed"] = np.where(np.arange(1000) < 5, obs["donor"], "most")
    partition, told = divide(obs, "donor")
    assert told == "groups of 'donor'"
    assert pd.Series(partition.roles(1000)).groupby(obs["donor"].to_numpy()).nunique().max() == 1
    assert 150 < len(partition.test) < 300
    assert 75 < len(partition.val) < 150
    for key, rule in ((None, {}), ("lane", {}), ("skewed", {}), ("donor", {"group_key": None})):
        single, told = divide(obs, key, **rule)
        assert "single cells" in told
        assert single.roles(1000).tolist() == assign_split(obs.index, SplitConfig()).tolist()
    assert len(divide(obs, "donor", test_fraction=0.0)[0].test) == 0
    with pytest.warns(UserWarning, match="100 of 1,000 cells have no 'donor' and are left out"):
        some = divide(obs.assign(donor=np.where(np.arange(1000) < 100, None, obs["donor"])), "donor")[0]
    assert some.rows.min() == 100


def test_a_column_may_say_which_cells_are_held_out():
    words = ["train", "Validation", "test", None] * 25
    obs = pd.DataFrame({"part": words, "two": ["train", "test"] * 50, "bad": ["train", "maybe"] * 50})
    obs.index = [f"c{i}" for i in range(100)]
    assert divide(obs, column="part")[0].counts == {"train": 25, "val": 25, "test": 25}
    two = divide(obs, column="two", val_fraction=0.3)[0]
    assert two.test.tolist() == list(range(1, 100, 2))
    assert 5 < len(two.val) < 25
    with pytest.raises(ValueError, match=r"`split.column` must say train, val or test .* got \['maybe'\]"):
        divide(obs, column="bad")
    with pytest.raises(ValueError, match=r"`split.column` must be a column of obs, got 'none'"):
        divide(obs, column="none")


def test_parts_that_are_very_large_lose_cells(monkeypatch):
    monkeypatch.setattr("scfusion_fm.tasks.splits.MOST_TEST_CELLS", 10)
    monkeypatch.setattr("scfusion_fm.tasks.splits.MOST_BASELINE_CELLS", 20)
    whole = Partition(np.arange(50), np.arange(50, 70), np.arange(70, 100))
    limited = limit_parts(whole, 0)
    assert limited.counts == {"train": 50, "val": 20, "test": 10}
    assert set(limited.test) < set(whole.test)
    assert limit_training(limited, 0).counts == {"train": 20, "val": 20, "test": 10}
