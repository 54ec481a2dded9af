"""Cells of a step without an update are saved, of all ranks and forward passes."""

import numpy as np
import torch

from scfusion_fm.training import bad_steps
from scfusion_fm.training.bad_steps import CellLosses, save_bad_step


def losses(rows):
    """A forward pass over some cells, whose losses are made of their rows."""
    rows = np.array(rows)
    return CellLosses(rows, rows % 2, torch.from_numpy(rows / 2).bfloat16(), torch.from_numpy(rows / 4).bfloat16())


def test_cells_of_all_ranks_are_saved_in_their_order(tmp_path, monkeypatch):
    other = [losses([8]).to_numpy()]
    monkeypatch.setattr(bad_steps, "gather", lambda mine: [mine, other])
    monkeypatch.setattr(bad_steps, "from_rank_0", lambda action: action())
    path = save_bad_step(tmp_path, 12, [losses([4, 1]), losses([6])])
    assert path == tmp_path / "bad_steps" / "step_00000012.npz"
    with np.load(path) as saved:
        assert saved["rows"].tolist() == [4, 1, 6, 8]
        assert saved["passes"].tolist() == [0, 1, 0, 0]
        assert saved["rna_loss"].tolist() == [2, 0.5, 3, 4]
        assert saved["adt_loss"].tolist() == [1, 0.25, 1.5, 2]
