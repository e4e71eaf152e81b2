"""From score stores to weights: the join, the order of the steps, refusals, warnings, files."""

import math

import numpy as np
import pyarrow as pa
import pytest

from atlantis.disk import read_table, write_table
from atlantis.errors import StoreError, WeightError
from atlantis.records import TokenScores
from atlantis.store import ScoreStore, score_table
from atlantis.weighting.diagnosis import refuse_uneven
from atlantis.weighting.schemes import (
    PRESETS,
    Algorithm1,
    ClipAfterMeanOne,
    ClipAroundMedian,
    DropLowest,
    Influence,
    LossRatio,
    Ratio,
    Shuffled,
    Uniform,
    WeightingConfig,
)
from atlantis.weighting.stage import weigh
from atlantis.weighting.weights import read_weights

IDS = ["e", "a", "d", "b", "c"]
LARGE = [-3.0, -40.0, -0.5, -7.0, -11.0]
REFERENCE = [-1.5, -36.0, -0.25, -2.0, -8.0]
SMALL = [-2.0, -30.0, -3.0, -2.5, -9.0]
TOKENS = [1, 30, 3, 2, 7]
BYTES = [4, 111, 9, 8, 20]
SCHEMES = [
    *(kind(alpha=a) for kind in (Influence, Algorithm1, Ratio) for a in (0.0, 0.5, 1.0)),
    LossRatio(),
    Uniform(),
    Shuffled(of=Influence()),
    DropLowest(of=Influence(), fraction=0.4),
]


def fingerprint(**changes):
    scoring = {"max_length": 64, "template": "shared", "score_end_of_turn": False}
    scoring |= changes.pop("scoring", {})
    return {"model": "m", "rendered_text": "abc", "source": "def", "scoring": scoring} | changes


@pytest.fixture
def write_store(tmp_path):
    """A store of hand-made scores, rows in the given order, in three parts."""

    def write(
        name, logprobs, *, ids=IDS, tokens=TOKENS, num_bytes=BYTES, bad=None, ends=1, **changes
    ):
        store = ScoreStore(tmp_path / name)
        store.start(fingerprint(model=name, **changes))
        rows = [
            TokenScores(i, bad[i])
            if bad and i in bad
            else TokenScores(i, "ok", n, b, s, (s / n,) * n, n + ends)
            for i, s, n, b in zip(ids, logprobs, tokens, num_bytes, strict=True)
        ]
        parts = [rows[start::3] for start in range(3)]
        for index, part in enumerate(parts):
            store.write_part(index, score_table(part))
        store.finish()
        return store

    return write


@pytest.fixture
def stores(write_store):
    return {
        "large": write_store("large", LARGE),
        "reference": write_store("reference", REFERENCE),
        "small": write_store("small", SMALL),
    }


def by_id(weights):
    return dict(zip(weights.example_id, weights.weight, strict=True))


def mean_one_by_hand(weights, masses):
    mean = sum(m * w for m, w in zip(masses, weights, strict=True)) / sum(masses)
    return [w / mean for w in weights]


@pytest.mark.parametrize(
    ("scheme", "coefficients"),
    [(Influence, (0, 1, -1)), (Algorithm1, (1, 1, -1)), (Ratio, (1, 0, -1))],
)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("unit", ["token", "byte"])
@pytest.mark.parametrize("kappa", [0.5, 1.0])
def test_linear_weights_are_their_formula(stores, scheme, coefficients, alpha, unit, kappa):
    config = WeightingConfig(scheme=scheme(alpha=alpha, unit=unit), kappa=kappa)
    lengths = TOKENS if unit == "token" else BYTES
    raw = [
        math.exp(kappa * sum(c * v for c, v in zip(coefficients, row, strict=True)) / n**alpha)
        for row, n in zip(zip(LARGE, REFERENCE, SMALL, strict=True), lengths, strict=True)
    ]
    expected = mean_one_by_hand(raw, [n + 1 for n in TOKENS])
    found = by_id(weigh(**stores, config=config))
    assert found == pytest.approx(dict(zip(IDS, expected, strict=True)), rel=1e-12)


def test_loss_ratio_weights_are_quotients_of_mean_losses(stores):
    raw = [(s / n) / (r / n) for r, s, n in zip(REFERENCE, SMALL, TOKENS, strict=True)]
    expected = mean_one_by_hand(raw, [n + 1 for n in TOKENS])
    found = by_id(weigh(**stores, config=WeightingConfig(scheme=LossRatio())))
    assert found == pytest.approx(dict(zip(IDS, expected, strict=True)), rel=1e-12)


def test_uniform_weights_need_some_store_and_are_all_one(stores):
    config = WeightingConfig(scheme=Uniform())
    assert set(by_id(weigh(small=stores["small"], config=config)).values()) == {1.0}
    with pytest.raises(WeightError, match="at least one store"):
        weigh(config=config)


def test_the_preset_of_the_2025_report_is_mean_one_clip_mean_one(stores):
    masses = [n + 1 for n in TOKENS]
    columns = zip(LARGE, REFERENCE, SMALL, strict=True)
    raw = [math.exp(x + r - s) for x, r, s in columns]
    clipped = [min(max(w, 0.1), 5.0) for w in mean_one_by_hand(raw, masses)]
    expected = mean_one_by_hand(clipped, masses)
    found = weigh(**stores, config=PRESETS["report2025"])
    assert by_id(found) == pytest.approx(dict(zip(IDS, expected, strict=True)), rel=1e-12)
    assert found.diagnostics["clipped_low_fraction"] + found.diagnostics[
        "clipped_high_fraction"
    ] == pytest.approx(sum(w in (0.1, 5.0) for w in clipped) / 5)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: f"{scheme!r}"[:40])
def test_weights_do_not_depend_on_the_order_of_rows_in_the_stores(stores, write_store, scheme):
    config = WeightingConfig(scheme=scheme, clip=None)
    expected = weigh(**stores, config=config)
    permuted = {}
    for seed, (name, values) in enumerate(
        {"large": LARGE, "reference": REFERENCE, "small": SMALL}.items()
    ):
        order = np.random.default_rng(seed + 1).permutation(5)
        columns = [[column[i] for i in order] for column in (values, IDS, TOKENS, BYTES)]
        permuted[name] = write_store(
            f"{name}-permuted",
            columns[0],
            ids=columns[1],
            tokens=columns[2],
            num_bytes=columns[3],
        )
    found = weigh(**permuted, config=config)
    assert found.example_id == expected.example_id == sorted(IDS)
    assert found.weight == expected.weight


def test_the_token_mean_counts_the_end_of_turn_that_is_trained_but_not_scored(stores):
    weights = by_id(weigh(**stores, config=WeightingConfig()))
    trained = dict(zip(IDS, [n + 1 for n in TOKENS], strict=True))
    total = sum(weights[i] * trained[i] for i in IDS)
    assert total / sum(trained.values()) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("ends", [0, 1, 3])
def test_the_mean_is_over_trained_tokens_however_many_turns_end(write_store, ends):
    # 0: cut off, or scored; 3: a chat of three turns.
    setting = {"ends": ends}
    weights = by_id(
        weigh(
            reference=write_store("reference", REFERENCE, **setting),
            small=write_store("small", SMALL, **setting),
            config=WeightingConfig(),
        )
    )
    total = sum(weights[i] * (n + ends) for i, n in zip(IDS, TOKENS, strict=True))
    assert total / sum(n + ends for n in TOKENS) == pytest.approx(1.0, rel=1e-12)


def test_the_example_mean_counts_every_example_once(stores):
    found = weigh(**stores, config=WeightingConfig(), normalise_for="examples")
    assert sum(found.weight) / 5 == pytest.approx(1.0, rel=1e-12)
    assert found.diagnostics["normalise_for"] == "examples"


def test_dropping_within_labels_leaves_every_class_its_best_example(stores):
    labels = {"a": "x", "b": "x", "c": "y", "d": "y", "e": "z"}
    scheme = DropLowest(of=Influence(alpha=0.0), fraction=0.6, within="label")
    found = by_id(weigh(**stores, config=WeightingConfig(scheme=scheme), labels=labels))
    ratio = {i: r - s for i, r, s in zip(IDS, REFERENCE, SMALL, strict=True)}
    best = {max((i for i in IDS if labels[i] == label), key=ratio.get) for label in "xyz"}
    assert {i for i, weight in found.items() if weight > 0} == best


@pytest.mark.parametrize("normalise_for", ["tokens", "examples"])
def test_within_labels_every_class_keeps_its_mass(stores, normalise_for):
    labels = {"a": "x", "b": "x", "c": "y", "d": "y", "e": "z"}
    found = weigh(
        **stores,
        config=WeightingConfig(normalise_within="label"),
        normalise_for=normalise_for,
        labels=labels,
    )
    trained = dict(zip(IDS, [n + 1 for n in TOKENS], strict=True))
    masses = trained if normalise_for == "tokens" else dict.fromkeys(IDS, 1)
    weights = by_id(found)
    for label in "xyz":
        inside = [i for i in IDS if labels[i] == label]
        mass = sum(weights[i] * masses[i] for i in inside)
        assert mass / sum(masses[i] for i in inside) == pytest.approx(1.0, rel=1e-12)
    plain = by_id(weigh(**stores, config=WeightingConfig()))
    assert weights["a"] / weights["b"] == pytest.approx(plain["a"] / plain["b"], rel=1e-12)


def test_within_length_deciles_long_and_short_examples_keep_their_mass(write_store):
    rng, n = np.random.default_rng(0), 400
    ids, tokens = [f"{i:03d}" for i in range(n)], rng.integers(1, 60, n).tolist()
    reference = write_store(
        "r", rng.normal(-20, 5, n).tolist(), ids=ids, tokens=tokens, num_bytes=tokens
    )
    small = write_store(
        "s", rng.normal(-20, 5, n).tolist(), ids=ids, tokens=tokens, num_bytes=tokens
    )
    found = weigh(
        reference=reference,
        small=small,
        config=WeightingConfig(normalise_within="length_decile"),
        normalise_for="examples",
    )
    groups = found.diagnostics["mean_weight_by_group"]["length_decile"]
    assert len(groups) == 10
    assert sum(group["n"] for group in groups.values()) == n
    assert all(20 <= group["n"] <= 60 for group in groups.values())
    assert all(group["mean"] == pytest.approx(1.0) for group in groups.values())


def test_rows_that_were_not_scored_keep_their_id_and_reason_without_a_number(write_store):
    found = weigh(
        reference=write_store("reference", REFERENCE, bad={"b": "nonfinite"}),
        small=write_store("small", SMALL, bad={"e": "too_long"}),
        config=WeightingConfig(),
    )
    assert found.example_id == ["a", "b", "c", "d", "e"]
    assert found.status == ["ok", "nonfinite", "ok", "ok", "too_long"]
    for column in (found.weight, found.log_weight):
        assert [value is None for value in column] == [False, True, False, False, True]
    counts = found.diagnostics["status_counts"]
    assert counts == {"nonfinite": 1, "ok": 3, "too_long": 1}
    assert (found.diagnostics["num_examples"], found.diagnostics["num_ok"]) == (5, 3)


def test_rows_without_scores_take_no_part_in_the_mean(write_store):
    kept = [1, 2, 4]  # positions in IDS of what is ok
    found = by_id(
        weigh(
            reference=write_store("reference", REFERENCE, bad={"b": "nonfinite", "e": "empty"}),
            small=write_store("small", SMALL),
            config=WeightingConfig(),
        )
    )
    raw = [math.exp((REFERENCE[i] - SMALL[i]) / TOKENS[i]) for i in kept]
    expected = mean_one_by_hand(raw, [TOKENS[i] + 1 for i in kept])
    for i, weight in zip(kept, expected, strict=True):
        assert found[IDS[i]] == pytest.approx(weight, rel=1e-12)


def test_a_model_that_the_scheme_does_not_name_cannot_spoil_a_row(stores, write_store):
    spoiled = write_store("spoiled", LARGE, bad={"a": "nonfinite"})
    with_large = weigh(**(stores | {"large": spoiled}), config=WeightingConfig())
    assert with_large.status == ["ok"] * 5


def test_nothing_to_weigh_is_refused(write_store):
    bad = dict.fromkeys(IDS, "too_long")
    with pytest.raises(WeightError, match="no example could be scored"):
        weigh(
            reference=write_store("reference", REFERENCE, bad=bad),
            small=write_store("small", SMALL),
            config=WeightingConfig(),
        )


@pytest.mark.parametrize("scheme", [Influence(), Shuffled(of=Influence()), LossRatio()])
def test_a_missing_model_is_refused_by_name(stores, scheme):
    with pytest.raises(WeightError, match="needs scores of the reference model"):
        weigh(small=stores["small"], config=WeightingConfig(scheme=scheme))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"rendered_text": "other"}, "rendered_text"),
        ({"scoring": {"score_end_of_turn": True}}, "scoring"),
        ({"scoring": {"max_length": 32}}, "scoring"),
    ],
)
def test_scores_of_other_data_or_settings_are_refused(stores, write_store, changes, field):
    other = write_store("other", SMALL, **changes)
    with pytest.raises(WeightError, match=f"small and the large scores differ in {field}"):
        weigh(large=stores["large"], small=other, config=WeightingConfig(scheme=Ratio()))


def test_native_templates_may_read_the_same_rows_in_other_words(stores, write_store):
    native = {"scoring": {"template": "native"}}
    reference = write_store("native", REFERENCE, rendered_text="chatml", **native)
    small = write_store("plain", SMALL, rendered_text="plain", **native)
    found = weigh(reference=reference, small=small, config=WeightingConfig())
    assert found.weight == weigh(**stores, config=WeightingConfig()).weight
    other = write_store("rows", SMALL, rendered_text="plain", source="other", **native)
    with pytest.raises(WeightError, match="differ in source"):
        weigh(reference=reference, small=other, config=WeightingConfig())


def test_scores_over_other_examples_are_refused(stores, write_store):
    other = write_store("other", SMALL, ids=["e", "a", "d", "b", "x"])
    with pytest.raises(WeightError, match="small scores cover other examples"):
        weigh(reference=stores["reference"], small=other, config=WeightingConfig())


def test_an_example_twice_is_refused(stores, write_store):
    other = write_store("other", SMALL, ids=["e", "a", "d", "b", "b"])
    with pytest.raises(WeightError, match="holds an example twice"):
        weigh(reference=stores["reference"], small=other, config=WeightingConfig())


def test_another_tokenization_is_refused_per_token(stores, write_store):
    other = write_store("other", SMALL, tokens=[1, 30, 3, 2, 8])
    with pytest.raises(WeightError, match="share a tokenizer"):
        weigh(reference=stores["reference"], small=other, config=WeightingConfig())


@pytest.mark.parametrize("scheme", [Influence(unit="byte"), Influence(alpha=0.0)])
def test_per_byte_or_as_a_whole_other_tokenizers_can_be_compared(stores, write_store, scheme):
    # METHODS: n_i = B_i for cross-family weights; a sequence probability has no length at all.
    other = write_store("other", SMALL, tokens=[1, 30, 3, 2, 8])
    found = by_id(
        weigh(
            reference=stores["reference"],
            small=other,
            config=WeightingConfig(scheme=scheme),
            normalise_for="examples",
        )
    )
    lengths = BYTES if scheme.alpha else [1] * 5
    raw = [math.exp((r - s) / n) for r, s, n in zip(REFERENCE, SMALL, lengths, strict=True)]
    expected = mean_one_by_hand(raw, [1] * 5)
    assert found == pytest.approx(dict(zip(IDS, expected, strict=True)), rel=1e-12)


def test_an_incomplete_store_is_refused(stores, tmp_path):
    store = ScoreStore(tmp_path / "half")
    store.start(fingerprint())
    with pytest.raises(StoreError, match="not a complete score store"):
        weigh(reference=store, small=stores["small"], config=WeightingConfig())


@pytest.mark.parametrize(
    ("config", "labels", "message"),
    [
        ({"normalise_within": "label"}, None, "needs the examples' labels"),
        ({}, {"a": "x"}, "'b' has scores but no label"),
        (
            {"scheme": DropLowest(fraction=0.4, within="label")},
            None,
            "'drop_lowest': within 'label' needs the examples' labels",
        ),
    ],
)
def test_labels_that_are_missing_are_refused(stores, config, labels, message):
    with pytest.raises(WeightError, match=message):
        weigh(**stores, config=WeightingConfig(**config), labels=labels)


@pytest.mark.parametrize(
    ("config", "labels", "message"),
    [
        (
            {"scheme": DropLowest(of=Influence(), fraction=0.2), "normalise_within": "label"},
            {"a": "x", "b": "y", "c": "y", "d": "y", "e": "y"},
            "group .*x.* are zero",
        ),
        ({"scheme": DropLowest(of=Influence(), fraction=0.95)}, None, "zero"),
        (
            {"scheme": DropLowest(of=Influence(), fraction=0.6), "min_ess_fraction": 0.9},
            None,
            "zero",
        ),
        ({"pareto_smooth": True}, None, "tail"),
    ],
)
def test_weights_that_cannot_be_made_are_an_input_error(stores, config, labels, message):
    # Not a bare ValueError: the command line turns input errors into one line and exit code 2.
    with pytest.raises(WeightError, match=message):
        weigh(**stores, config=WeightingConfig(**config), labels=labels)


def test_a_loss_of_zero_in_the_denominator_is_refused(write_store):
    certain = [0.0, *REFERENCE[1:]]
    with pytest.raises(WeightError, match="not finite"):
        weigh(
            reference=write_store("reference", certain),
            small=write_store("small", SMALL),
            config=WeightingConfig(scheme=LossRatio()),
        )


def test_a_completion_that_both_models_are_certain_of_is_refused_without_a_warning(write_store):
    with pytest.raises(WeightError, match="not finite"):
        weigh(
            reference=write_store("reference", [0.0, *REFERENCE[1:]]),
            small=write_store("small", [0.0, *SMALL[1:]]),
            config=WeightingConfig(scheme=LossRatio()),
        )


@pytest.fixture
def uneven(write_store):
    """Five hundred rows whose weights are as uneven as asked for."""

    def make(spread):
        n = 500
        small = np.full(n, -30.0)
        reference = small + np.random.default_rng(0).normal(scale=spread, size=n)
        shape = {"ids": [f"{i:03d}" for i in range(n)], "tokens": [5] * n, "num_bytes": [20] * n}
        return {
            "reference": write_store("r", reference.tolist(), **shape),
            "small": write_store("s", small.tolist(), **shape),
        }

    return make


def test_few_effective_examples_are_warned_of(uneven):
    stores = uneven(2.0)
    scheme = Influence(alpha=0.0)
    found = weigh(**stores, config=WeightingConfig(scheme=scheme)).diagnostics
    assert found["ess_fraction"] < 0.1
    assert len(found["warnings"]) == 1
    assert "effective sample size" in found["warnings"][0]
    tempered = weigh(**stores, config=WeightingConfig(scheme=scheme, min_ess_fraction=0.3))
    assert tempered.diagnostics["ess_fraction"] == pytest.approx(0.3, abs=1e-6)
    assert 0 < tempered.diagnostics["kappa"] < 1
    assert tempered.diagnostics["warnings"] == []


def test_a_tail_that_sits_at_the_clip_bound_has_no_pareto_k(uneven):
    # The preset of the report clips at 5: more than the fitted tail can end up at the bound.
    clip = ClipAfterMeanOne(low=0.1, high=1.5)
    config = WeightingConfig(scheme=Influence(alpha=0.0), clip=clip)
    found = weigh(**uneven(1.0), config=config).diagnostics
    assert found["clipped_high_fraction"] > 0.15
    assert found["pareto_k"] is None
    assert found["before_clipping"]["pareto_k"] is not None


def test_many_clipped_weights_are_warned_of(uneven):
    config = WeightingConfig(scheme=Influence(alpha=0.0), clip=ClipAroundMedian(factor=1.5))
    found = weigh(**uneven(3.0), config=config).diagnostics
    assert found["clipped_low_fraction"] + found["clipped_high_fraction"] > 0.5
    assert any("clip bound" in warning for warning in found["warnings"])


def test_constant_weights_are_warned_of_unless_they_were_asked_for(uneven):
    stores = uneven(0.0)
    found = weigh(**stores, config=WeightingConfig()).diagnostics
    assert found["warnings"] == ["the weights are constant: training with them is plain SFT"]
    assert found["pareto_k"] is None
    asked = weigh(**stores, config=WeightingConfig(scheme=Uniform())).diagnostics
    assert asked["warnings"] == []


def test_diagnostics_before_clipping_are_those_of_the_unclipped_weights(uneven):
    stores = uneven(1.0)
    config = WeightingConfig(scheme=Influence(alpha=0.0), clip=ClipAfterMeanOne(low=0.5, high=2.0))
    clipped = weigh(**stores, config=config).diagnostics
    plain = weigh(**stores, config=WeightingConfig(scheme=Influence(alpha=0.0))).diagnostics
    for name in ("effective_sample_size", "largest_share", "top_1_percent_share", "pareto_k"):
        assert clipped["before_clipping"][name] == pytest.approx(plain[name], rel=1e-9)
    assert clipped["effective_sample_size"] > plain["effective_sample_size"]


def test_diagnostics_equal_plain_definitions(uneven):
    found = weigh(
        **uneven(1.0), config=WeightingConfig(scheme=Influence(alpha=0.0)), normalise_for="examples"
    )
    weights = found.weight
    assert found.diagnostics["effective_sample_size"] == pytest.approx(
        sum(weights) ** 2 / sum(w * w for w in weights), rel=1e-9
    )
    assert found.diagnostics["largest_share"] == pytest.approx(max(weights) / sum(weights))
    assert found.diagnostics["top_1_percent_share"] == pytest.approx(
        sum(sorted(weights)[-5:]) / sum(weights)
    )
    assert found.diagnostics["quantiles"]["0.5"] == pytest.approx(np.median(weights))
    assert found.diagnostics["spearman_length"] is None  # all lengths are equal


def test_the_mean_weight_of_every_class_is_reported(stores):
    labels = {"a": "x", "b": "x", "c": "y", "d": "y", "e": "y"}
    found = weigh(**stores, config=WeightingConfig(), labels=labels)
    weights = by_id(found)
    assert found.diagnostics["mean_weight_by_group"]["label"] == {
        "x": {"mean": pytest.approx((weights["a"] + weights["b"]) / 2), "n": 2},
        "y": {"mean": pytest.approx((weights["c"] + weights["d"] + weights["e"]) / 3), "n": 3},
    }


def test_weights_of_almost_no_examples_are_refused(uneven):
    found = weigh(**uneven(60.0), config=WeightingConfig(scheme=Influence(alpha=0.0)))
    with pytest.raises(WeightError, match=r"arm x: effective sample size is 0\.\d+% .*--force"):
        refuse_uneven(found.diagnostics, where="arm x")


def test_weights_that_are_only_warned_of_are_not_refused(uneven):
    found = weigh(**uneven(2.0), config=WeightingConfig(scheme=Influence(alpha=0.0)))
    refuse_uneven(found.diagnostics, where="arm x")


def test_weights_come_back_from_their_file(stores, write_store, tmp_path):
    found = weigh(
        reference=stores["reference"],
        small=write_store("short", SMALL, bad={"c": "too_long"}),
        config=WeightingConfig(),
    )
    path = tmp_path / "weights.parquet"
    found.save(path)
    assert read_weights(path) == found


def test_the_same_weights_give_the_same_bytes(stores, tmp_path):
    for name in ("first", "second"):
        weigh(**stores, config=WeightingConfig()).save(tmp_path / name / "weights.parquet")
    for suffix in (".parquet", ".json"):
        files = [tmp_path / name / f"weights{suffix}" for name in ("first", "second")]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.fixture
def write_weights(tmp_path):
    def write(**changes):
        columns = {
            "example_id": ["a", "b", "c"],
            "status": ["ok", "ok", "too_long"],
            "log_weight": [0.0, 0.0, None],
            "weight": [1.0, 1.0, None],
        } | changes
        path = tmp_path / "weights.parquet"
        write_table(path, pa.table({k: v for k, v in columns.items() if v is not None}))
        return path

    return write


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": [1.0, -0.5, None]}, "weight -0.5 of example 'b'; .* at least 0"),
        ({"weight": [1.0, math.nan, None]}, "weight nan of example 'b'; .* at least 0"),
        ({"weight": [1.0, math.inf, None]}, "weight inf of example 'b'; .* at least 0"),
        ({"weight": [1.0, None, None]}, "weight None of example 'b'; .* at least 0"),
        ({"weight": [0.0, 0.0, None]}, "sum to zero"),
        ({"weight": None}, "no column 'weight'"),
        ({"status": None}, "no column 'status'"),
        ({"weight": ["heavy", "light", None]}, "another type"),
        ({"example_id": ["a", "c", "c"]}, "'c' stands there 2 times"),
        ({"weight": [-2.0, -1.0, -3.0]}, "weight -2.0 of example 'a'"),
        ({"status": ["empty", "empty", "too_long"]}, "sum to zero"),
    ],
)
def test_a_weights_file_that_cannot_be_trained_with_is_refused(write_weights, changes, message):
    with pytest.raises(WeightError, match=message):
        read_weights(write_weights(**changes))


def test_a_weights_file_that_is_missing_or_damaged_is_refused(write_weights, tmp_path):
    with pytest.raises(StoreError, match="no such file"):
        read_weights(tmp_path / "none.parquet")
    path = write_weights()
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(StoreError, match="not a readable Parquet file"):
        read_weights(path)


def test_saved_weights_have_a_column_of_nulls_where_nothing_was_scored(write_store, tmp_path):
    found = weigh(
        reference=write_store("reference", REFERENCE, bad={"a": "empty"}),
        small=write_store("small", SMALL),
        config=WeightingConfig(),
    )
    found.save(tmp_path / "w.parquet")
    rows = read_table(tmp_path / "w.parquet").to_pylist()
    assert rows[0] == {"example_id": "a", "status": "empty", "log_weight": None, "weight": None}
