"""Which steps are left out."""

import math

import pytest

from scfusion_fm.config.pretrain import GuardConfig
from scfusion_fm.training.guard import StepGuard


def build_guard(**settings):
    return StepGuard(GuardConfig(**settings))


def feed(guard, losses):
    verdicts = []
    for loss in losses:
        accepted = guard.accepts(loss)
        guard.note(loss, accepted)
        verdicts.append(accepted)
    return verdicts


def test_only_what_is_not_finite_is_bad_by_default():
    guard = build_guard()
    assert feed(guard, [1.0, 1e9, math.nan, math.inf, 1.0]) == [True, True, False, False, True]
    assert guard.skipped == 2
    guard.check_goes_on("step 5")


def test_jump_is_measured_against_the_median_of_good_losses():
    guard = build_guard(loss_factor=3.0, window=3)
    # the first 50 comes before the window is full; then the median is 2.9, and stays so since bad losses do not count
    losses = [1.0, 50.0, 1.0, 2.9, 8.8, 50.0, 8.6]
    assert feed(guard, losses) == [True, True, True, True, False, False, True]


@pytest.mark.parametrize(("action", "bad"), [("stop", 1), ("skip", 3)])
def test_guard_gives_up_after_its_number_of_bad_steps_in_a_row(action, bad):
    guard = build_guard(action=action, max_skips=3)
    feed(guard, [1.0, *[math.nan] * (bad - 1)])
    guard.check_goes_on("step 7")
    feed(guard, [math.nan])
    with pytest.raises(ValueError, match=r"^the guard ended the run at step 8\. Look at them; then go on from"):
        guard.check_goes_on("step 8")


def test_resumed_guard_judges_as_the_old_one():
    losses = [1.0, 1.1, 0.9, 9.0, 1.0, 3.5, 2.0, 9.0]
    whole = build_guard(loss_factor=3.0, window=3)
    expected = feed(whole, losses)
    for cut in range(len(losses)):
        first, second = (build_guard(loss_factor=3.0, window=3) for _ in range(2))
        verdicts = feed(first, losses[:cut])
        second.load_state_dict(first.state_dict())
        assert verdicts + feed(second, losses[cut:]) == expected
        assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"action": "ignore"}, r"`guard.action` must be one of .*, got 'ignore'"),
        ({"loss_factor": 0.5}, "`guard.loss_factor` must be 0 .off. or lie in .1, 1e6., got 0.5"),
        ({"loss_factor": math.nan}, "`guard.loss_factor` must be 0 .off. or lie in .1, 1e6., got nan"),
        ({"window": 0}, r"`guard\.window` must lie in \[1, 1000000\], got 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        GuardConfig(**settings)
