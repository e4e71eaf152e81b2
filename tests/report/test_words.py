"""Digits, signs and the sentence of the verdict."""

import pytest

from atlantis.report.verdict import verdict
from atlantis.report.words import estimate, fixed, from_to, interval_decimals, percent, significant


@pytest.mark.parametrize(
    ("low", "high", "decimals"),
    [
        (0.35, 0.46, 2),  # half-width 0.055
        (0.38, 0.42, 2),  # 0.02, up to rounding
        (0.388, 0.412, 3),  # 0.012: a leading 1 keeps two digits
        (0.2, 0.6, 1),
        (0.2, 0.5, 2),  # 0.15
        (0.4000, 0.4004, 3),  # never after the third decimal
        (100.0, 180.0, 0),
        (1.0, 1.0, 2),  # no width
    ],
)
def test_an_interval_decides_how_many_decimals_it_supports(low, high, decimals):
    assert interval_decimals(low, high) == decimals


def test_value_and_interval_share_their_last_place():
    assert estimate(0.40839, 0.35412, 0.46183) == "0.41 [0.35, 0.46]"
    assert estimate(-0.0213, -0.0711, 0.0362, signed=True) == "−0.02 [−0.07, +0.04]"


def test_an_end_that_rounds_to_zero_keeps_its_side():
    assert estimate(0.05, 0.003, 0.097, signed=True) == "+0.05 [>0, +0.10]"
    assert from_to(-0.097, -0.003) == "−0.10 to <0"


def test_zero_never_has_a_sign():
    assert fixed(-0.0004, 2) == "0.00"
    assert fixed(0.0, 1, signed=True) == "0.0"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.4931, "0.49"),
        (293.4, "293"),
        (0.00237, "0.0024"),
        (-0.12, "−0.12"),
        (0.0, "0"),
        (12.34, "12"),
        (0.996, "1.00"),
        (3.2e-7, "3.2e−07"),
    ],
)
def test_numbers_without_interval_keep_two_significant_digits(value, text):
    assert significant(value) == text


def test_shares_in_per_cent():
    assert [percent(share) for share in (0, 0.0123, 0.95, 1)] == ["0 %", "1.2 %", "95 %", "100 %"]


HELPS, NOTHING, HARMS = (0.05, 0.02, 0.08), (0.01, -0.02, 0.04), (-0.05, -0.08, -0.02)


def compare(*, arm=HELPS, control=NOTHING, against=HELPS, seeds=(0, 1, 2), better=0.1):
    """A comparison whose differences are as given; None leaves an arm or a difference out."""

    def difference(values):
        names = ("difference", "low", "high")
        return None if values is None else {"official_f1": dict(zip(names, values, strict=True))}

    def entry(mean, versus_baseline=None, versus_control=None):
        metric = {"mean": mean, "low": mean - 0.03, "high": mean + 0.03, "per_seed": [], "n": 800}
        return {
            "metrics": {"official_f1": metric},
            "unparsed": [],
            "versus_baseline": difference(versus_baseline),
            "versus_control": difference(versus_control),
        }

    arms = {"sft": entry(0.5), "atlantis": entry(0.55, arm, against), "extra": entry(better)}
    if control is not None:
        arms["shuffled"] = entry(0.49, control)
    return {
        "headline": "official_f1",
        "num_test": 800,
        "seeds": list(seeds),
        "level": 0.95,
        "baseline": "sft",
        "control": "shuffled",
        "arms": arms,
    }


BASIS = "official macro-F1 (95 % interval"


@pytest.mark.parametrize(
    ("arm", "control", "sentence"),
    [
        (
            HELPS,
            NOTHING,
            f"ATLANTIS beats plain SFT by 0.05 {BASIS} 0.02 to 0.08, 3 seeds, n = 800)"
            "; the shuffled-weights control does not.",
        ),
        (
            HELPS,
            HELPS,
            f"ATLANTIS beats plain SFT by 0.05 {BASIS} 0.02 to 0.08, 3 seeds, n = 800)"
            "; but so does the shuffled-weights control, +0.05 [+0.02, +0.08].",
        ),
        (
            HELPS,
            HARMS,
            f"ATLANTIS beats plain SFT by 0.05 {BASIS} 0.02 to 0.08, 3 seeds, n = 800)"
            "; the shuffled-weights control does worse, −0.05 [−0.08, −0.02].",
        ),
        (
            NOTHING,
            NOTHING,
            f"ATLANTIS is not shown to differ from plain SFT: +0.01 {BASIS} −0.02 to"
            " 0.04, 3 seeds, n = 800); neither is the shuffled-weights control.",
        ),
        (
            HARMS,
            NOTHING,
            f"ATLANTIS does worse than plain SFT: −0.05 {BASIS} −0.08 to −0.02, "
            "3 seeds, n = 800); the shuffled-weights control is not shown to.",
        ),
        (
            HARMS,
            HARMS,
            f"ATLANTIS does worse than plain SFT: −0.05 {BASIS} −0.08 to −0.02, "
            "3 seeds, n = 800); so does the shuffled-weights control, −0.05 [−0.08, −0.02].",
        ),
    ],
)
def test_the_verdict_says_what_the_intervals_show_and_what_the_control_does(arm, control, sentence):
    assert verdict(compare(arm=arm, control=control), "atlantis")["sentence"] == sentence


def test_an_interval_that_touches_zero_shows_no_difference():
    found = verdict(compare(arm=(0.05, 0.0, 0.1)), "atlantis")
    assert found["outcome"] == "no difference shown"


def test_no_gain_over_the_control_is_said_even_where_the_baseline_is_beaten():
    details = verdict(compare(against=NOTHING), "atlantis")["details"]
    assert details == [
        "ATLANTIS is not shown to differ from the shuffled-weights control (+0.01 [−0.02, +0.04]): "
        "nothing here shows that it matters which example gets which weight."
    ]


def test_a_missing_control_a_better_arm_and_a_single_seed_are_said():
    found = verdict(compare(control=None, against=None, seeds=[0], better=0.7), "atlantis")
    assert found["sentence"].endswith("1 seed, n = 800); no control was run.")
    assert found["control_outcome"] is None
    assert found["details"] == [
        "Higher mean score than ATLANTIS: extra 0.70 [0.67, 0.73].",
        "One seed: how much the result varies between training runs is not measured.",
    ]


def test_without_the_headline_arm_nothing_is_claimed():
    found = verdict(compare(), "some_other_arm")
    assert found["outcome"] is None
    assert found["sentence"] == (
        "Nothing was compared: plain SFT reaches 0.50 [0.47, 0.53] official macro-F1 "
        "(3 seeds, n = 800), without an arm to compare it with."
    )
