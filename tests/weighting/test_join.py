"""The join by id against a plain one with dictionaries, on ids of every kind of character."""

import random

import numpy as np
import pytest

from atlantis.errors import WeightError
from atlantis.records import TokenScores
from atlantis.store import ScoreStore, score_table
from atlantis.weighting.join import join

ROLES = ("large", "reference", "small")
# UTF-16 would sort U+FFFF after U+10000; UTF-8 and Python do not.
CHARACTERS = "abzAZ09-_ ~\x01éßçñ中文字ы\ue000\uffff\U00010000\U0001f600"
FINGERPRINT = {"rendered_text": "x", "source": "y", "scoring": {"score_end_of_turn": False}}


def random_rows(seed, num_rows=300):
    """Rows of three models by role: the same ids and lengths, some without scores."""
    rng = random.Random(seed)
    ids = {"".join(rng.choices(CHARACTERS, k=rng.randint(1, 6))) for _ in range(num_rows)}
    lengths = {i: (rng.randint(1, 50), rng.randint(1, 200)) for i in sorted(ids)}
    rows = {}
    for role in ROLES:
        order = sorted(ids)
        rng.shuffle(order)
        rows[role] = [
            TokenScores(i, rng.choice(["empty", "too_long"]))
            if rng.random() < 0.05
            else TokenScores(i, "ok", *lengths[i], -rng.random(), (-1.0,), lengths[i][0] + 1)
            for i in order
        ]
    return rows


@pytest.fixture
def write_stores(tmp_path):
    def write(rows, **changes):
        stores = {}
        for role, scores in rows.items():
            stores[role] = ScoreStore(tmp_path / role)
            stores[role].start(FINGERPRINT | changes)
            for index, start in enumerate(range(0, len(scores), 100)):
                stores[role].write_part(index, score_table(scores[start : start + 100]))
            stores[role].finish()
        return stores

    return write


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_join_of_dictionaries_in_the_order_of_python_text(write_stores, seed):
    rows = random_rows(seed)
    by_id = {role: {row.example_id: row for row in scores} for role, scores in rows.items()}
    found = join(write_stores(rows), same_tokens=True)
    ids = found.example_id.to_pylist()
    assert ids == sorted(by_id["large"])
    reasons = [[by_id[role][i].status for role in ROLES] for i in ids]
    assert found.status.to_pylist() == [
        next((reason for reason in row if reason != "ok"), "ok") for row in reasons
    ]
    kept = [i for i, row in zip(ids, reasons, strict=True) if set(row) == {"ok"}]
    assert 0 < len(kept) < len(ids)
    assert [i for i, ok in zip(ids, found.is_ok, strict=True) if ok] == kept
    for role in ROLES:
        expected = [by_id[role][i].sequence_logprob for i in kept]
        np.testing.assert_array_equal(getattr(found.scores, role), expected)
    large = by_id["large"]
    np.testing.assert_array_equal(found.scores.num_tokens, [large[i].num_tokens for i in kept])
    np.testing.assert_array_equal(found.scores.num_bytes, [large[i].num_bytes for i in kept])
    np.testing.assert_array_equal(found.num_trained_tokens, found.scores.num_tokens + 1)


def test_lengths_are_those_of_the_large_model_where_tokens_may_differ(write_stores):
    rows = {
        "reference": [TokenScores("a", "ok", 3, 9, -1.0, (-1.0,), 4)],
        "large": [TokenScores("a", "ok", 5, 9, -1.0, (-1.0,), 6)],
    }
    stores = write_stores(rows)
    assert join(stores, same_tokens=False).scores.num_tokens.tolist() == [5]
    with pytest.raises(WeightError, match="share a tokenizer"):
        join(stores, same_tokens=True)


def test_the_log_probabilities_of_single_tokens_are_not_read(write_stores, monkeypatch):
    stores, asked, read = write_stores(random_rows(0)), [], ScoreStore.read

    def spy(store, columns=None):
        asked.append(tuple(columns))
        return read(store, columns)

    monkeypatch.setattr(ScoreStore, "read", spy)
    join(stores, same_tokens=True)
    assert len(asked) == 3
    assert not any("token_logprobs" in columns for columns in asked)


@pytest.mark.parametrize("place", [0, 150, 299])
def test_an_example_twice_is_found_wherever_it_stands(write_stores, place):
    rows = [TokenScores(f"{i:03d}", "ok", 1, 1, -1.0, (-1.0,), 2) for i in range(300)]
    stores = write_stores({"small": [*rows, rows[place]]})
    with pytest.raises(WeightError, match="small holds an example twice"):
        join(stores, same_tokens=True)


@pytest.mark.parametrize("change", ["missing", "another", "more"])
def test_a_store_of_other_examples_is_named(write_stores, change):
    rows = [TokenScores(i, "ok", 1, 1, -1.0, (-1.0,), 2) for i in "abc"]
    others = {"missing": rows[:2], "another": [*rows[:2], TokenScores("x", "empty")]}
    others["more"] = [*rows, TokenScores("x", "empty")]
    stores = write_stores({"reference": rows, "small": others[change]})
    with pytest.raises(WeightError, match="the small scores cover other examples"):
        join(stores, same_tokens=True)
