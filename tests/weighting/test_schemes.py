"""Schemes on hand-made scores against their formulas, and what their configurations refuse."""

import math

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from atlantis.weighting.schemes import (
    PRESETS,
    Algorithm1,
    ClipAfterMeanOne,
    Custom,
    DropLowest,
    Influence,
    LossRatio,
    ModelScores,
    Ratio,
    Shuffled,
    Uniform,
    Weighting,
    WeightingConfig,
)

LARGE = [-3.0, -40.0, -0.5, -7.0, -11.0]
REFERENCE = [-1.5, -90.0, -0.25, -2.0, -8.0]
SMALL = [-2.0, -30.0, -8.0, -2.5, -9.0]
TOKENS = [1, 30, 3, 2, 7]
BYTES = [4, 111, 9, 8, 20]
SCORES = ModelScores(
    large=np.array(LARGE),
    reference=np.array(REFERENCE),
    small=np.array(SMALL),
    num_tokens=np.array(TOKENS),
    num_bytes=np.array(BYTES),
)
COEFFICIENTS = {
    Influence: (0, 1, -1),
    Algorithm1: (1, 1, -1),
    Ratio: (1, 0, -1),
}


@pytest.mark.parametrize("unit", ["token", "byte"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", list(COEFFICIENTS))
def test_linear_schemes_are_their_formula(kind, alpha, unit):
    c_large, c_reference, c_small = COEFFICIENTS[kind]
    lengths = TOKENS if unit == "token" else BYTES
    expected = [
        (c_large * x + c_reference * r + c_small * s) / n**alpha
        for x, r, s, n in zip(LARGE, REFERENCE, SMALL, lengths, strict=True)
    ]
    found = kind(alpha=alpha, unit=unit).log_weights(SCORES)
    np.testing.assert_allclose(found, expected, rtol=1e-14)  # one power and one division


def test_custom_coefficients_contain_the_named_schemes():
    for kind, (large, reference, small) in COEFFICIENTS.items():
        custom = Custom(alpha=0.5, large=large, reference=reference, small=small)
        np.testing.assert_array_equal(
            custom.log_weights(SCORES), kind(alpha=0.5).log_weights(SCORES)
        )
        assert custom.models == kind().models


def test_alpha_one_is_the_geometric_mean_of_the_ratios_per_token():
    found = np.exp(Influence(alpha=1.0).log_weights(SCORES))
    ratios = np.exp(np.array(REFERENCE) - np.array(SMALL))
    np.testing.assert_allclose(found, ratios ** (1 / np.array(TOKENS)), rtol=1e-12)


def test_loss_ratio_divides_the_mean_losses():
    expected = [(-s / n) / (-r / n) for r, s, n in zip(REFERENCE, SMALL, TOKENS, strict=True)]
    np.testing.assert_allclose(np.exp(LossRatio().log_weights(SCORES)), expected, rtol=1e-14)


def test_a_completion_that_the_small_model_is_certain_of_has_loss_ratio_zero():
    scores = SCORES._replace(small=np.array([0.0, *SMALL[1:]]))
    assert LossRatio().log_weights(scores)[0] == -math.inf


def test_loss_ratio_without_a_reference_is_refused():
    with pytest.raises(ValueError, match="needs the reference"):
        LossRatio().log_weights(SCORES._replace(reference=None))


@pytest.mark.parametrize(
    ("scheme", "models"),
    [
        (Influence(), ("reference", "small")),
        (Algorithm1(), ("large", "reference", "small")),
        (Ratio(), ("large", "small")),
        (Custom(large=0.5), ("large",)),
        (LossRatio(), ("reference", "small")),
        (Uniform(), ()),
        (Shuffled(), ("reference", "small")),
        (DropLowest(of="ratio", fraction=0.5), ("large", "small")),
    ],
)
def test_schemes_name_the_models_they_need_and_work_with_those_alone(scheme, models):
    assert scheme.models == models
    others = {name: None for name in ("large", "reference", "small") if name not in models}
    alone = scheme.log_weights(SCORES._replace(**others))
    np.testing.assert_array_equal(alone, scheme.log_weights(SCORES))


def test_uniform_weights_are_one():
    np.testing.assert_array_equal(Uniform().log_weights(SCORES), 0.0)


def test_shuffled_weights_are_the_same_weights_on_other_examples():
    original = Influence().log_weights(SCORES)
    seen = set()
    for seed in range(20):
        found = Shuffled(of="influence", seed=seed).log_weights(SCORES)
        assert sorted(found) == sorted(original)
        np.testing.assert_array_equal(found, Shuffled(seed=seed).log_weights(SCORES))
        seen.add(tuple(found))
    assert len(seen) > 15


@pytest.mark.parametrize(("fraction", "dropped"), [(0.2, 1), (0.4, 2), (0.5, 2), (0.8, 4)])
def test_drop_lowest_gives_zero_to_the_lowest_and_one_to_the_rest(fraction, dropped):
    found = DropLowest(of="influence", fraction=fraction).log_weights(SCORES)
    by_weight = np.argsort(Influence().log_weights(SCORES))
    assert np.isneginf(found[by_weight[:dropped]]).all()
    assert (found[by_weight[dropped:]] == 0.0).all()


def test_drop_lowest_drops_tied_examples_in_order_of_id():
    tied = SCORES._replace(reference=np.array(SMALL))
    found = DropLowest(of="influence", fraction=0.4).log_weights(tied)
    np.testing.assert_array_equal(found, [-np.inf, -np.inf, 0.0, 0.0, 0.0])


def dropped_within_labels(weights, labels, fraction):
    """The definition, one label at a time."""
    dropped = set()
    for label in set(labels):
        rows = [i for i, other in enumerate(labels) if other == label]
        ranked = sorted(rows, key=lambda i: (weights[i], i))
        dropped |= set(ranked[: min(round(fraction * len(rows)), len(rows) - 1)])
    return dropped


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(5))
def test_drop_lowest_within_labels_ranks_every_label_on_its_own(fraction, seed):
    rng = np.random.default_rng(seed)
    n = 200
    labels = rng.choice(6, n, p=[0.5, 0.3, 0.1, 0.07, 0.02, 0.01])
    # Each label has a level of its own, and many weights are tied.
    values = np.round(rng.normal(size=n), 1) + 10.0 * labels
    scores = ModelScores(None, values, np.zeros(n), np.ones(n, int), np.ones(n, int), labels)
    scheme = DropLowest(of=Influence(alpha=0.0), fraction=fraction, within="label")
    found = scheme.log_weights(scores)
    expected = dropped_within_labels(values.tolist(), labels.tolist(), fraction)
    assert set(np.flatnonzero(np.isneginf(found))) == expected
    assert set(found[~np.isneginf(found)]) == {0.0}
    assert set(labels[found == 0.0]) == set(labels)  # no label is gone


def test_plain_drop_lowest_can_drop_a_whole_class():
    labels = np.array([0, 0, 1, 1, 1])
    scores = SCORES._replace(reference=np.array(SMALL) + labels, labels=labels)
    plain = DropLowest(of=Influence(alpha=0.0), fraction=0.4).log_weights(scores)
    assert set(labels[plain == 0.0]) == {1}
    within = DropLowest(of=Influence(alpha=0.0), fraction=0.4, within="label").log_weights(scores)
    np.testing.assert_array_equal(within, [-np.inf, 0.0, -np.inf, 0.0, 0.0])


def test_drop_lowest_within_labels_without_labels_is_refused():
    with pytest.raises(ValueError, match="needs the examples' labels"):
        DropLowest(fraction=0.2, within="label").log_weights(SCORES)


def test_weights_made_before_drop_lowest_could_rank_within_labels_stay_valid():
    # The settings go into the digest of the weights' stage: a new key would train every arm again.
    of = {"alpha": 1.0, "unit": "token", "kind": "influence"}
    plain = WeightingConfig(scheme=DropLowest(fraction=0.2)).model_dump(mode="json")
    assert plain["scheme"] == {"of": of, "kind": "drop_lowest", "fraction": 0.2}
    config = WeightingConfig(scheme=DropLowest(fraction=0.2, within="label"))
    assert config.model_dump(mode="json")["scheme"] == plain["scheme"] | {"within": "label"}
    assert WeightingConfig.model_validate(config.model_dump()) == config


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, False),
        ({"normalise_within": "length_decile"}, False),
        ({"normalise_within": "label"}, True),
        ({"scheme": {"kind": "drop_lowest", "fraction": 0.2}}, False),
        ({"scheme": {"kind": "drop_lowest", "fraction": 0.2, "within": "label"}}, True),
    ],
)
def test_a_weighting_says_whether_it_compares_within_labels(settings, expected):
    assert WeightingConfig.model_validate(settings).compares_within_label is expected


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_a_share_of_nothing_or_everything_is_refused(fraction):
    with pytest.raises(ValidationError, match="fraction"):
        DropLowest(fraction=fraction)


def test_the_preset_of_the_2025_report_is_what_the_report_says():
    preset = PRESETS["report2025"]
    assert preset.scheme == Algorithm1(alpha=0.0, unit="token")
    assert preset.clip == ClipAfterMeanOne(low=0.1, high=5.0)
    assert (preset.kappa, preset.min_ess_fraction, preset.pareto_smooth) == (1.0, None, False)
    assert preset.normalise_within == "none"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("influence", WeightingConfig(scheme=Influence())),
        ("algorithm1", WeightingConfig(scheme=Algorithm1())),
        ("report2025", PRESETS["report2025"]),
        ({"scheme": "ratio", "kappa": 0.5}, WeightingConfig(scheme=Ratio(), kappa=0.5)),
        (
            {"scheme": {"kind": "shuffled", "of": "loss_ratio"}},
            WeightingConfig(scheme=Shuffled(of=LossRatio())),
        ),
    ],
)
def test_a_bare_name_stands_for_a_scheme_or_a_preset(written, meant):
    assert TypeAdapter(Weighting).validate_python(written) == meant


@pytest.mark.parametrize("name", ["influense", "shuffled2", ""])
def test_an_unknown_scheme_is_refused(name):
    with pytest.raises(ValidationError, match="'influence', 'algorithm1', 'proxy', 'ratio'"):
        TypeAdapter(Weighting).validate_python(name)


@pytest.mark.parametrize("of", ["shuffled", "drop_lowest"])
def test_derived_schemes_are_not_stacked(of):
    with pytest.raises(ValidationError, match="does not match any of the expected tags"):
        Shuffled(of=of)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"scheme": {"kind": "influence", "alpha": -1}}, "alpha"),
        ({"scheme": {"kind": "influence", "unit": "word"}}, "unit"),
        ({"kappa": 0}, "kappa"),
        ({"min_ess_fraction": 0}, "min_ess_fraction"),
        ({"min_ess_fraction": 1.1}, "min_ess_fraction"),
        ({"clip": {"kind": "around_median", "factor": 1.0}}, "factor"),
        ({"clip": {"kind": "after_mean_one", "low": -0.1, "high": 5}}, "low"),
        ({"normalise_within": "language"}, "normalise_within"),
        ({"temperature": 1}, "temperature"),
    ],
)
def test_settings_outside_their_range_are_refused(settings, field):
    with pytest.raises(ValidationError, match=field):
        WeightingConfig.model_validate(settings)


def test_clip_bounds_in_the_wrong_order_are_refused():
    # np.clip with low > high would silently make every weight the upper bound.
    with pytest.raises(ValidationError, match="low"):
        ClipAfterMeanOne(low=5.0, high=0.1)


def test_smoothing_and_clipping_together_are_refused():
    # The field says: "instead of clipping them".
    with pytest.raises(ValidationError, match="clip"):
        WeightingConfig.model_validate(
            {"pareto_smooth": True, "clip": {"kind": "around_median", "factor": 5.0}}
        )


def test_custom_coefficients_that_are_all_zero_are_refused_before_anything_is_scored():
    with pytest.raises(ValidationError, match="coefficient"):
        Custom()
