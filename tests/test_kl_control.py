"""The KL coefficient against numbers worked out by hand."""

import json
import math

import pytest

from trl_ziegler.kl_control import AdaptiveKLController, FixedKLController


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (12.0, 0.151536),  # error 1, clipped to 0.2: 0.15 * (1 + 0.2 * 0.0512)
        (0.0, 0.148464),  # error -1, clipped to -0.2
        (-3.0, 0.148464),  # an estimate may be negative
        (6.6, 0.150768),  # error 0.1, within the clip: 0.15 * (1 + 0.1 * 0.0512)
        (5.4, 0.149232),
        (6.0, 0.15),
    ],
)
def test_adaptive_coefficient_moves_in_proportion_to_the_clipped_error(kl, expected):
    controller = AdaptiveKLController(0.15, 6.0)
    controller.update(kl, 512)
    assert controller.value == pytest.approx(expected, rel=1e-12)


def test_hundred_updates_on_target_leave_the_coefficient_unchanged():
    controller = AdaptiveKLController(0.15, 6.0, horizon=10_000)
    for _ in range(100):
        controller.update(6.0, 512)
    assert controller.value == 0.15


def test_updates_compound_and_scale_with_the_horizon():
    controller = AdaptiveKLController(1.0, 6.0, horizon=1000)
    controller.update(12.0, 500)
    controller.update(12.0, 500)
    assert controller.value == pytest.approx(1.1**2, rel=1e-12)


def test_fixed_coefficient_never_moves():
    controller = FixedKLController(0.03)
    controller.update(100.0, 512)
    assert controller.value == 0.03


@pytest.mark.parametrize("make", [lambda: FixedKLController(0.2), lambda: AdaptiveKLController(0.2, 6.0)])
def test_saved_state_continues_through_json(make):
    original, resumed = make(), make()
    original.update(9.0, 512)
    resumed.load_state_dict(json.loads(json.dumps(original.state_dict())))
    original.update(3.0, 512)
    resumed.update(3.0, 512)
    assert resumed.value == original.value
    assert resumed.state_dict() == {"value": original.value}


def test_loading_keeps_the_target_and_refuses_a_bad_value():
    controller = AdaptiveKLController(0.2, 6.0, horizon=500)
    controller.load_state_dict({"value": 0.5})
    assert (controller.value, controller.target, controller.horizon) == (0.5, 6.0, 500)
    with pytest.raises(ValueError, match="`kl_coef` must be a finite number >= 0, got nan"):
        controller.load_state_dict({"value": math.nan})


@pytest.mark.parametrize("kl_coef", [-0.1, math.nan, math.inf])
def test_bad_coefficient_is_refused(kl_coef):
    with pytest.raises(ValueError, match="`kl_coef` must be a finite number >= 0"):
        FixedKLController(kl_coef)
    with pytest.raises(ValueError, match="`kl_coef` must be a finite number >= 0"):
        AdaptiveKLController(kl_coef, 6.0)


def test_coefficient_zero_is_allowed():
    assert repr(FixedKLController(0).value) == "0.0"  # a float whatever came in, as JSON and logs expect


@pytest.mark.parametrize("number", [0, -1.0, math.nan, math.inf])
def test_bad_target_or_horizon_is_refused_by_name(number):
    with pytest.raises(ValueError, match="`target` must be a finite number > 0"):
        AdaptiveKLController(0.1, number)
    with pytest.raises(ValueError, match="`horizon` must be a finite number > 0"):
        AdaptiveKLController(0.1, 6.0, horizon=number)


@pytest.mark.parametrize("controller", [FixedKLController(0.1), AdaptiveKLController(0.1, 6.0)])
def test_bad_measurement_is_refused_and_changes_nothing(controller):
    for kl in (math.nan, math.inf):
        with pytest.raises(ValueError, match="`kl` must be finite"):
            controller.update(kl, 512)
    with pytest.raises(ValueError, match="`n_episodes` must be at least 1, got 0"):
        controller.update(6.0, 0)
    assert controller.value == 0.1


def test_one_episode_is_enough():
    controller = AdaptiveKLController(1.0, 6.0, horizon=10)
    controller.update(6.6, 1)
    assert controller.value == pytest.approx(1.01, rel=1e-12)


def test_horizon_so_short_that_the_coefficient_could_change_sign_is_refused():
    controller = AdaptiveKLController(0.1, 6.0, horizon=100)
    controller.update(0.0, 499)
    assert controller.value > 0
    with pytest.raises(ValueError, match="`horizon` must be above 100 for 500 episodes"):
        controller.update(0.0, 500)
