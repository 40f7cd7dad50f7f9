"""The bootstrap of means and differences: known widths, whole groups, seeds; Holm by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from captum_clip.errors import InputError
from captum_clip.metrics import bootstrap_mean, holm, paired_difference

ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)  # over which NumPy ends the interpreter


def test_interval_has_the_width_of_the_normal_approximation():
    """For many values the interval is the mean and 1.96 standard errors to each side."""
    values = np.random.default_rng(0).normal(3, 2, size=4000)
    found = bootstrap_mean(values, resamples=4000)
    error = values.std() / np.sqrt(len(values))
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_values_of_one_image_count_once():
    """Four copies of each value in its image's group change nothing; as new images they would."""
    values = np.random.default_rng(1).random(50)
    alone = bootstrap_mean(values)
    groups = np.repeat(np.arange(50), 4)
    assert bootstrap_mean(np.repeat(values, 4), groups) == pytest.approx(alone)
    wide, narrow = alone.high - alone.low, bootstrap_mean(np.repeat(values, 4))
    assert narrow.high - narrow.low < 0.6 * wide


def test_seed_and_level_decide():
    """The same seed gives the same interval; a lower level a narrower one."""
    values = np.random.default_rng(2).random(40)
    assert bootstrap_mean(values, seed=5) == bootstrap_mean(values, seed=5)
    assert bootstrap_mean(values, seed=5) != bootstrap_mean(values, seed=6)
    half, most = (bootstrap_mean(values, level=level) for level in (0.5, 0.95))
    assert most.low < half.low < half.mean < half.high < most.high


def test_what_has_no_interval_is_refused():
    """One sentence that says what was given."""
    refused: list[tuple[Any, dict[str, Any], str]] = [
        ([], {}, "one or more finite numbers"),
        ([1.0, np.nan], {}, "finite numbers"),
        ([[1.0]], {}, r"finite numbers \(N,\), got \[\[1.0\]\]"),
        ([1.0, 2.0], {"groups": [0]}, r"groups of 2 values, got ndarray \(1,\)"),
        ([1.0, 2.0], {"groups": [0, None]}, "expected groups"),
        ([1.0], {"level": 1.0}, "a level in"),
        ([1.0], {"resamples": 0}, "resamples of 1 or more"),
        (["a"], {}, "expected finite numbers"),
        ([1.0], {"seed": -1}, "a seed of 0 or more, got -1"),
        ([1.0], {"seed": ENDLESS}, "a seed of 0 or more"),
    ]
    for values, options, message in refused:
        with pytest.raises(InputError, match=message):
            bootstrap_mean(values, **options)


def test_difference_has_the_interval_and_p_value_of_the_normal_approximation():
    """For many images: 1.96 standard errors of the differences, and twice the tail beyond 0."""
    generator = np.random.default_rng(3)
    common = 10 * generator.random(2000)
    first, second = (common + generator.normal(m, 1, 2000) for m in (0.06, 0))
    found = paired_difference(first, second, resamples=10000)
    gap = first - second
    error = gap.std() / np.sqrt(2000)
    assert found.mean == pytest.approx(gap.mean())
    assert found.low == pytest.approx(gap.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(gap.mean() + 1.96 * error, abs=0.15 * error)
    assert found.p_value == pytest.approx(
        math.erfc(abs(gap.mean()) / error / math.sqrt(2)), rel=0.25
    )
    assert str(found) == f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def test_pairs_count_not_the_spread_of_the_images():
    """Images differ much, methods little: separate intervals overlap, the pairs decide."""
    first = np.random.default_rng(4).random(60)
    second = first - 0.05 + 0.01 * np.random.default_rng(5).random(60)
    one, other = bootstrap_mean(first), bootstrap_mean(second)
    assert one.low < other.high
    found = paired_difference(first, second)
    assert found.low > 0
    assert found.p_value == pytest.approx(2 / 2001)


def test_p_values_of_no_difference_are_uniform():
    """At most as often below a level as the level says, within the test's own noise."""
    generator = np.random.default_rng(6)
    p_values = [
        paired_difference(*generator.normal(size=(2, 80)), resamples=400, seed=i).p_value
        for i in range(300)
    ]
    for level in (0.05, 0.2, 0.5):
        assert np.mean(np.array(p_values) <= level) == pytest.approx(level, abs=0.07)


def test_difference_wants_pairs():
    """The same images for both methods."""
    with pytest.raises(InputError, match="paired_difference: expected 2 values"):
        paired_difference([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(InputError, match="paired_difference: expected one or more finite"):
        paired_difference([1.0], [np.nan])


def test_holm_is_worked_by_hand():
    """0.005 x 4, 0.01 x 3, 0.03 x 2, and 0.04 x 1 which may not fall below the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == pytest.approx([1, 1])
    assert holm([0.02]) == pytest.approx([0.02])
    assert len(holm([])) == 0


def test_holm_takes_p_values_only():
    """From 0 to 1."""
    for wrong in ([1.1], [-0.1], [np.nan], [[0.5]]):
        with pytest.raises(InputError, match="p values"):
            holm(wrong)


def test_groups_may_have_names_and_different_sizes():
    """The mean is over values, not over images."""
    found = bootstrap_mean([1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"])
    assert found == (0.75, 0.0, 1.0)


def test_difference_swaps_its_sign_with_the_methods():
    """And the same values do not differ at all."""
    first, second = np.random.default_rng(7).random((2, 30))
    one, other = paired_difference(first, second), paired_difference(second, first)
    assert (one.mean, one.low, one.high) == pytest.approx((-other.mean, -other.high, -other.low))
    assert one.p_value == other.p_value
    assert paired_difference(first, first) == (0, 0, 0, 1)


def test_difference_draws_whole_images():
    """Four copies of each pair in its image's group change nothing."""
    first, second = np.random.default_rng(8).random((2, 40))
    groups = np.repeat(np.arange(40), 4)
    copied = paired_difference(np.repeat(first, 4), np.repeat(second, 4), groups)
    assert copied == pytest.approx(paired_difference(first, second))


def test_holm_keeps_the_order_and_never_lowers():
    """Between the raw values and Bonferroni's."""
    raw = np.random.default_rng(9).random(20) ** 3
    adjusted = holm(raw)
    assert (adjusted >= raw).all()
    assert (adjusted <= np.minimum(1, 20 * raw) + 1e-12).all()
    assert (np.diff(adjusted[np.argsort(raw)]) >= 0).all()
