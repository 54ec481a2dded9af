"""What ranks do together: an error of one is an error of all."""

import errno

import pytest

from scfusion_fm.training import collectives
from scfusion_fm.training.collectives import check_same, together


@pytest.fixture
def told(monkeypatch):
    """Play two other ranks, which give these answers."""
    answers = []
    monkeypatch.setattr(collectives, "gather", lambda mine: [mine, *answers])
    return answers


def fail(error):
    raise error


def test_results_of_all_ranks_are_given(told):
    told += [("b", None, ""), ("c", None, "")]
    assert together(lambda: "a") == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("kind", "expected"), [(errno.ENOSPC, OSError), ("ValueError", ValueError), ("KeyError", RuntimeError)]
)
def test_error_of_another_rank_is_raised_here(told, kind, expected):
    told += [("b", None, ""), (None, kind, "went wrong")]
    with pytest.raises(expected, match=r"went wrong \(rank 2\)"):
        together(lambda: "a")


def test_own_error_is_raised_after_the_others_have_heard_of_it(told):
    with pytest.raises(KeyError, match="x"):
        together(lambda: fail(KeyError("x")))
    with pytest.raises(OSError, match=r"No space left on device \(rank 0\)") as caught:
        together(lambda: fail(OSError(errno.ENOSPC, "No space left on device")))
    assert caught.value.errno == errno.ENOSPC


def test_ranks_with_other_settings_are_refused(told):
    told.append({"optim": {"lr": 1.0}, "seed": 3})
    check_same({"optim": {"lr": 1.0}, "seed": 3})
    with pytest.raises(ValueError, match=r"got others on rank 1 than on rank 0: optim\.lr: 2\.0 -> 1\.0"):
        check_same({"optim": {"lr": 2.0}, "seed": 3})
