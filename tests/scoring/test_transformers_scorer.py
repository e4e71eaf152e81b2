"""Sequence scores against AutoModel logits and a float64 log-softmax, row by row."""

import random

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from atlantis.data.config import DataConfig
from atlantis.data.splits import load_splits
from atlantis.data.tokenization import tokenize
from atlantis.records import Example
from atlantis.scoring.batching import make_batches, score_what_fits
from atlantis.scoring.transformers_scorer import TransformersScorer, pad_right

ARCHITECTURES = ["qwen2", "llama", "gemma2", "gpt2"]
WITHIN = 1e-4
"""Nats per sequence: float32 forward passes over other batch shapes; the bound of the issue."""


def ragged_examples():
    """Prompts and completions from one word to a whole paragraph."""
    rng = random.Random(0)
    words = [
        "the",
        "storm",
        "caused",
        "flood",
        "in",
        "old",
        "town",
        "engine",
        "car",
        "author",
        "box",
    ]

    def text(low, high):
        return " ".join(rng.choices(words, k=rng.randint(low, high)))

    rows = [(text(1, 25), " " + text(1, 20)) for _ in range(12)]
    rows += [("Q", " a"), (text(40, 40), " Other"), ("A", " " + text(40, 40))]
    return [Example(f"row{i}", prompt, completion) for i, (prompt, completion) in enumerate(rows)]


def naive_scores(model, rows, *, end_of_turn):
    """Token log-probabilities of each row alone: plain logits, float64 log-softmax."""
    result = {}
    for row in rows:
        ids = torch.tensor([row.input_ids])
        with torch.no_grad():
            logprobs = model(input_ids=ids).logits[0].double().log_softmax(-1)
        last = len(row.input_ids) if end_of_turn else len(row.input_ids) - 1
        result[row.example_id] = [
            logprobs[t - 1, row.input_ids[t]].item() for t in range(row.num_prompt_tokens, last)
        ]
    return result


def score_all(scorer, rows, *, token_budget):
    batches = make_batches([len(row.input_ids) for row in rows], token_budget=token_budget)
    return [row for batch in batches for row in score_what_fits(scorer, [rows[i] for i in batch])]


def check(found, expected):
    assert {row.example_id for row in found} == set(expected)
    assert len(found) == len(expected)
    for row in found:
        values = expected[row.example_id]
        assert row.status == "ok"
        assert row.num_tokens == len(values) == len(row.token_logprobs)
        assert row.sequence_logprob == pytest.approx(sum(values), abs=WITHIN)
        assert row.token_logprobs == pytest.approx(values, abs=WITHIN)
        assert row.sequence_logprob == pytest.approx(sum(row.token_logprobs), abs=1e-9)


@pytest.fixture(scope="module")
def tokenized(bpe_tokenizer):
    return tokenize(ragged_examples(), bpe_tokenizer, max_length=256)


@pytest.mark.parametrize("end_of_turn", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_equal_plain_logits_for_every_batch_size_and_order(
    tiny_model, tokenized, architecture, end_of_turn
):
    model = tiny_model(architecture)
    expected = naive_scores(model, tokenized, end_of_turn=end_of_turn)
    assert np.std([sum(values) for values in expected.values()]) > 50
    rng = random.Random(1)
    for token_budget in (1, 40, 300, 100_000):
        rows = rng.sample(tokenized, len(tokenized))
        scorer = TransformersScorer(model, score_end_of_turn=end_of_turn)
        check(score_all(scorer, rows, token_budget=token_budget), expected)


@pytest.mark.parametrize("architecture", ["qwen2", "gemma2", "gpt2"])
def test_rows_laid_end_to_end_have_the_scores_that_they_have_alone(
    tiny_model, tokenized, architecture
):
    model = tiny_model(architecture)
    expected = naive_scores(model, tokenized, end_of_turn=False)
    scorer = TransformersScorer(model, padding_free=True)
    assert scorer.is_padding_free
    for token_budget in (40, 300, 100_000):
        check(score_all(scorer, tokenized, token_budget=token_budget), expected)


def test_rows_are_padded_where_anything_but_attention_mixes_tokens(tiny_model, monkeypatch):
    model = tiny_model("qwen2")
    attend = model.model.layers[0].self_attn.forward

    def leaking(hidden_states, **options):
        out, *rest = attend(hidden_states, **options)
        return out + hidden_states.cumsum(1), *rest

    monkeypatch.setattr(model.model.layers[0].self_attn, "forward", leaking)
    assert not TransformersScorer(model, padding_free=True).is_padding_free


@pytest.mark.parametrize("padding", [3, 40])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_long_neighbour_changes_nothing(tiny_model, tokenized, architecture, padding):
    model = tiny_model(architecture)
    short = min(tokenized, key=lambda row: len(row.input_ids))
    long = max(tokenized, key=lambda row: len(row.input_ids))
    scorer = TransformersScorer(model)
    (alone,) = scorer.score([short])
    together, *_ = scorer.score([short] + [long] * padding)
    assert together.sequence_logprob == pytest.approx(alone.sequence_logprob, abs=WITHIN)


def test_windows_shorter_than_the_row_stay_in_force(tiny_model, tokenized):
    model = tiny_model("gemma2", sliding_window=8)
    expected = naive_scores(model, tokenized, end_of_turn=False)
    for token_budget in (1, 100_000):
        scorer = TransformersScorer(model)
        check(score_all(scorer, tokenized, token_budget=token_budget), expected)


def test_real_rows_under_a_real_model_equal_automodel(shared_models, shared_data):
    folder = shared_models / "tiny-a" / "large"
    split = {"format": "wrench", "labels": "majority"}
    data = DataConfig.model_validate(
        {
            "root": shared_data / "wrench_semeval",
            "train": split | {"path": "train.json", "sample": 60},
            "test": {"format": "wrench", "path": "test.json"},
            "prompt": "{text}\nRelation between {head} and {tail}:",
        }
    )
    examples = load_splits(data).train
    rows = tokenize(examples, AutoTokenizer.from_pretrained(folder), max_length=512)
    assert len(rows) == 60
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for end_of_turn in (False, True):
        expected = naive_scores(model, rows, end_of_turn=end_of_turn)
        scorer = TransformersScorer(model, score_end_of_turn=end_of_turn)
        check(score_all(scorer, rows, token_budget=2000), expected)


class FullAbove:
    """A scorer whose memory ends at so many rows."""

    def __init__(self, scorer, most, error):
        self.scorer, self.most, self.error = scorer, most, error
        self.tried = []

    def score(self, batch):
        self.tried.append(len(batch))
        if len(batch) > self.most:
            raise self.error
        return self.scorer.score(batch)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["cuda", "cpu", "python"])
def test_a_batch_that_does_not_fit_is_halved_until_it_does(tiny_model, tokenized, error):
    scorer = TransformersScorer(tiny_model("qwen2"))
    expected = {row.example_id: row.sequence_logprob for row in scorer.score(tokenized)}
    full = FullAbove(scorer, 4, error)
    found = score_what_fits(full, tokenized)
    assert full.tried == [15, 7, 3, 4, 8, 4, 4]
    assert [row.example_id for row in found] == [row.example_id for row in tokenized]
    for row in found:
        assert row.sequence_logprob == pytest.approx(expected[row.example_id], abs=WITHIN)


def test_a_row_that_does_not_fit_alone_is_marked_and_the_rest_scored(tiny_model, tokenized):
    scorer = TransformersScorer(tiny_model("qwen2"))
    longest = max(len(row.input_ids) for row in tokenized)

    class NoLongRows:
        def score(self, batch):
            if any(len(row.input_ids) == longest for row in batch):
                raise MemoryError
            return scorer.score(batch)

    found = score_what_fits(NoLongRows(), tokenized)
    status = [row.status for row in found]
    assert status.count("oom") == sum(len(row.input_ids) == longest for row in tokenized)
    assert status.count("ok") == len(tokenized) - status.count("oom")


def test_other_errors_are_not_taken_for_a_lack_of_memory(tokenized):
    with pytest.raises(RuntimeError, match="mismatch"):
        score_what_fits(FullAbove(None, 0, RuntimeError("shape mismatch")), tokenized)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_cannot_be_computed_is_nonfinite_and_its_neighbours_are_not(
    tiny_model, tokenized, bpe_tokenizer, value
):
    model = tiny_model("qwen2", tie_word_embeddings=False)
    token = bpe_tokenizer("Q")["input_ids"][0]  # one row has it in its prompt
    assert sum(token in row.input_ids for row in tokenized) == 1
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = value
    scorer = TransformersScorer(model)
    found = score_all(scorer, tokenized, token_budget=100_000)
    status = {row.example_id: row.status for row in found}
    (spoiled,) = [row.example_id for row in tokenized if token in row.input_ids]
    assert {i for i, s in status.items() if s != "ok"} == {spoiled}
    assert status[spoiled] == "nonfinite"
    (row,) = [row for row in found if row.example_id == spoiled]
    assert row.sequence_logprob is row.token_logprobs is row.num_tokens is None


@pytest.mark.parametrize("token_budget", [1, 50, 51, 120, 10_000])
def test_batches_hold_every_row_once_within_the_budget(token_budget):
    lengths = np.random.default_rng(0).integers(1, 60, size=100).tolist()
    batches = make_batches(lengths, token_budget=token_budget)
    assert sorted(row for batch in batches for row in batch) == list(range(100))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= token_budget
    in_order = [lengths[row] for batch in batches for row in batch]
    assert in_order == sorted(lengths, reverse=True)
    assert batches == make_batches(lengths, token_budget=token_budget)


def test_rows_of_one_length_keep_their_order():
    assert make_batches([5, 7, 5, 5], token_budget=15) == [[1, 0], [2, 3]]


def test_no_rows_make_no_batches():
    assert make_batches([], token_budget=10) == []


def test_padding_is_on_the_right_and_masked():
    ids, mask = pad_right([[5, 6, 7], [8]])
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
