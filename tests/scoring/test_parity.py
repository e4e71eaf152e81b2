"""Parity between back ends: what passes, what is found out, and which rows are compared."""

import dataclasses
import random

import pytest
import torch

from atlantis.data.tokenization import tokenize
from atlantis.errors import ModelError
from atlantis.records import Example
from atlantis.scoring.parity import TOLERANCES, Tolerance, check_parity, parity_sample
from atlantis.scoring.transformers_scorer import TransformersScorer

FLOAT32 = TOLERANCES["float32"]


class Changed:
    """A back end that changes the token log-probabilities of another one."""

    def __init__(self, inner, change):
        self.inner, self.change = inner, change

    def score(self, batch):
        return [self.change(score) for score in self.inner.score(batch)]


def with_logprobs(score, values):
    return dataclasses.replace(score, token_logprobs=tuple(values), num_tokens=len(values))


@pytest.fixture(scope="module")
def rows(bpe_tokenizer):
    rng = random.Random(0)
    words = ["the", "storm", "caused", "flood", "old", "town", "engine", "car", "author", "box"]

    def text(most):
        return " ".join(rng.choices(words, k=rng.randint(1, most)))

    examples = [Example(f"r{i:02}", text(1 + i), " " + text(6)) for i in range(40)]
    return tokenize(examples, bpe_tokenizer, max_length=256)


@pytest.fixture(scope="module")
def trusted(tiny_model):
    return TransformersScorer(tiny_model("llama"))


def test_batching_alone_is_within_the_tolerance(trusted, rows):
    parity = check_parity(trusted, trusted, rows, tolerance=FLOAT32)
    assert 0 <= parity.mean_difference <= parity.max_difference < 1e-4
    assert parity.num_tokens == sum(row.num_completion_tokens for row in rows)


def test_the_differences_are_per_token_and_absolute(trusted, rows):
    def change(score):
        values = list(score.token_logprobs)
        if score.example_id == "r07":
            values[0] += 0.5
        if score.example_id == "r09":
            values[-1] -= 0.25
        return with_logprobs(score, values)

    found = check_parity(
        Changed(trusted, change), trusted, rows, tolerance=Tolerance(maximum=1.0, mean=1.0)
    )
    # Float32 forward passes in one batch and one by one.
    assert found.max_difference == pytest.approx(0.5, abs=1e-4)
    assert found.mean_difference == pytest.approx(0.75 / found.num_tokens, abs=1e-5)
    assert found.worst_example_id == "r07"


def test_one_token_that_is_off_is_found_and_its_row_named(trusted, rows):
    def change(score):
        first, *others = score.token_logprobs
        off = 0.01 if score.example_id == "r23" else 0.0
        return with_logprobs(score, [first + off, *others])

    with pytest.raises(ModelError, match=r"0\.01 nats per token \(row r23\)"):
        check_parity(Changed(trusted, change), trusted, rows, tolerance=FLOAT32)


def test_many_small_differences_are_found_by_their_mean(trusted, rows):
    def change(score):
        return with_logprobs(score, [value + 0.03 for value in score.token_logprobs])

    tolerance = TOLERANCES["bfloat16"]
    assert tolerance.maximum > 0.03
    with pytest.raises(ModelError, match=r"0\.03 on average"):
        check_parity(Changed(trusted, change), trusted, rows, tolerance=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_another_model_or_a_shift_by_one_is_beyond_every_tolerance(
    tiny_model, trusted, rows, dtype
):
    def shift(score):
        first, *others = score.token_logprobs
        return with_logprobs(score, [*others, first])

    other = TransformersScorer(tiny_model("llama", seed=1))
    for scorer in (other, Changed(trusted, shift)):
        with pytest.raises(ModelError, match="differs from transformers"):
            check_parity(scorer, trusted, rows, tolerance=TOLERANCES[dtype])


def test_bfloat16_against_float32_is_within_the_tolerance_of_bfloat16(tiny_model, trusted, rows):
    half = TransformersScorer(tiny_model("llama", initializer_range=0.02).to(torch.bfloat16))
    full = TransformersScorer(tiny_model("llama", initializer_range=0.02))
    check_parity(half, full, rows, tolerance=TOLERANCES["bfloat16"])
    with pytest.raises(ModelError, match="differs from transformers"):
        check_parity(half, full, rows, tolerance=FLOAT32)


def test_a_row_that_only_one_can_score_is_refused(trusted, rows):
    def change(score):
        if score.example_id != "r05":
            return score
        return dataclasses.replace(score, status="nonfinite", token_logprobs=None)

    for scorer, other in [(Changed(trusted, change), trusted), (trusted, Changed(trusted, change))]:
        with pytest.raises(ModelError, match="row r05: the scoring back end says"):
            check_parity(scorer, other, rows, tolerance=FLOAT32)


def test_a_row_that_neither_can_score_is_left_out(trusted, rows):
    def change(score):
        if score.example_id != "r05":
            return score
        return dataclasses.replace(score, status="nonfinite", token_logprobs=None)

    scorer = Changed(trusted, change)
    parity = check_parity(scorer, scorer, rows, tolerance=FLOAT32)
    kept = [row for row in rows if row.example_id != "r05"]
    assert parity.num_tokens == sum(row.num_completion_tokens for row in kept)
    with pytest.raises(ModelError, match="nothing to compare"):
        check_parity(scorer, scorer, [rows[5]], tolerance=FLOAT32)


def test_a_missing_token_is_refused(trusted, rows):
    def change(score):
        return with_logprobs(score, score.token_logprobs[:-1])

    with pytest.raises(ModelError, match=r"row r00: .* scored \d+ tokens, transformers \d+"):
        check_parity(Changed(trusted, change), trusted, rows, tolerance=FLOAT32)


def test_the_sample_spans_all_lengths_whatever_the_order(rows):
    sample = parity_sample(rows, 5)
    lengths = [len(row.input_ids) for row in sample]
    every = sorted(len(row.input_ids) for row in rows)
    assert lengths == sorted(lengths)
    assert (lengths[0], lengths[-1]) == (every[0], every[-1])
    assert lengths[2] in every[17:23]
    assert parity_sample(random.Random(1).sample(rows, len(rows)), 5) == sample


def test_a_sample_has_no_row_twice_and_none_that_cannot_be_scored(rows):
    bad = [dataclasses.replace(rows[0], example_id="bad", status="too_long")]
    sample = parity_sample([*bad, *rows], 100)
    assert len(sample) == len({row.example_id for row in sample}) == len(rows)
    assert parity_sample(bad, 3) == []
    assert len(parity_sample(rows, 1)) == 1
