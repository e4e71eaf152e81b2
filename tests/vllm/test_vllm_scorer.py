"""Scores of real vLLM, in this process and behind a real server, against transformers' logits."""

import contextlib
import dataclasses
import gc
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from atlantis.data.tokenization import Turn, tokenize
from atlantis.errors import ConfigError, ModelError, ResumableError
from atlantis.models.loading import LoadingConfig, load_model, load_tokenizer
from atlantis.records import Example
from atlantis.scoring import server_scorer
from atlantis.scoring.parity import TOLERANCES, check_parity, parity_sample
from atlantis.scoring.server_scorer import Echoed, KeyedByToken, ServerScorer
from atlantis.scoring.transformers_scorer import TransformersScorer
from atlantis.scoring.vllm_scorer import AllTokens, VllmScorer

pytestmark = pytest.mark.timeout(900)
CPU = LoadingConfig(device="cpu")
WITHIN = 1e-4
"""Nats per token: float32 kernels that sum in another order."""


@pytest.fixture(scope="module")
def network(model):
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def scorer(model):
    return VllmScorer(model, loading=CPU, max_length=200)


def with_two_turns(row):
    """The row as a chat: its first and its last part are learnt, and what is between is not."""
    end = len(row.input_ids)
    turns = (Turn(2, 4, 5), Turn(end - 4, end - 1, end))
    return dataclasses.replace(row, example_id="chat", turns=turns)


def check(found, rows, network, *, end_of_turn=False):
    """Every number against float32 logits of the row alone."""
    assert len(found) == len(rows)
    for score, row in zip(found, rows, strict=True):
        with torch.no_grad():
            logits = network(torch.tensor([row.input_ids])).logits[0]
        expected = [
            logits[t - 1].log_softmax(-1)[row.input_ids[t]].item()
            for t in row.scored_positions(end_of_turn=end_of_turn)
        ]
        assert (score.example_id, score.status) == (row.example_id, "ok")
        assert score.token_logprobs == pytest.approx(expected, abs=WITHIN)
        assert score.sequence_logprob == pytest.approx(sum(expected), abs=1e-3)


def test_vllm_equals_log_softmax(scorer, rows, network):
    every = [*rows, with_two_turns(rows[-1])]
    check(scorer.score(every), every, network)
    assert isinstance(scorer.path, AllTokens)  # on a CPU; a GPU has the other one


def test_vllm_is_in_parity(scorer, rows, network):
    trusted = TransformersScorer(network)
    sample = parity_sample(rows, 8)
    found = check_parity(scorer, trusted, sample, tolerance=TOLERANCES["float32"])
    assert found.max_difference < WITHIN


def test_end_of_turn_counts_when_asked_for_and_the_longest_row_fits(model, scorer, rows, network):
    long = max(rows, key=lambda row: len(row.input_ids))
    with_end = VllmScorer(
        model, loading=CPU, score_end_of_turn=True, max_length=len(long.input_ids)
    )
    every = [*rows, with_two_turns(long)]
    check(with_end.score(every), every, network, end_of_turn=True)


def test_a_row_that_is_nonfinite_leaves_its_neighbours_alone(scorer, rows, nonfinite_row, network):
    longer = dataclasses.replace(
        nonfinite_row, input_ids=(*nonfinite_row.input_ids[:-2], *rows[-1].input_ids)
    )
    before, bad, after = scorer.score([rows[0], longer, rows[1]])
    assert bad.status == "nonfinite"
    assert bad.token_logprobs is bad.sequence_logprob is None
    check([before, after], rows[:2], network)
    # Enough rows to have every block of memory in turn, the spoilt one too.
    many = rows[:2] * 3000
    check(scorer.score(many), many, network)


def test_rows_that_do_not_fit_the_model_are_refused_and_leave_it_running(scorer, rows, network):
    outside = dataclasses.replace(rows[0], input_ids=(*rows[0].input_ids[:-2], 320, 0))
    with pytest.raises(ModelError, match="token id 320 is not in the model's vocabulary of 320"):
        scorer.score([outside])
    end = 300
    long = dataclasses.replace(rows[0], input_ids=(5,) * end, turns=(Turn(end - 2, end - 1, end),))
    with pytest.raises(ModelError, match=r"vLLM refuses a row: .* 201 tokens"):
        scorer.score([long])
    check(scorer.score(rows), rows, network)


def test_encoder_decoder_rows_are_refused(scorer, rows):
    with pytest.raises(ModelError, match="decoder-only"):
        scorer.score([dataclasses.replace(rows[0], encoder_ids=(3, 4))])


@pytest.mark.parametrize(
    ("loading", "message"),
    [
        ({"attention": "sdpa"}, "attention sdpa: vLLM chooses its own"),
        ({"device": "cuda:1"}, "device cuda:1: this vLLM runs on cpu"),
    ],
)
def test_an_option_that_vllm_would_ignore_is_refused(model, loading, message):
    with pytest.raises(ConfigError, match=message):
        VllmScorer(model, loading=LoadingConfig.model_validate(loading), max_length=200)


def test_a_model_that_cannot_be_loaded_is_refused(tmp_path):
    with pytest.raises(ModelError, match="vLLM cannot load it"):
        VllmScorer(str(tmp_path), loading=CPU, max_length=200)


def test_a_context_that_is_too_short_is_refused_before_anything_is_scored(model):
    with pytest.raises(ModelError, match="max_model_len"):
        VllmScorer(model, loading=CPU, max_length=256)


def test_real_rows_under_a_real_model(shared_models, shared_data):
    folder = str(shared_models / "tiny-a" / "small")
    sentences = json.loads((shared_data / "wrench_semeval" / "test.json").read_text())
    texts = [sentence["data"]["text"] for sentence in list(sentences.values())[:40]]
    examples = [Example(f"r{i}", text[:25], text[25:]) for i, text in enumerate(texts)]
    real = tokenize(examples, load_tokenizer(folder), max_length=255)
    assert {row.status for row in real} == {"ok"}
    for dtype in ("float32", "bfloat16"):
        loading = LoadingConfig.model_validate({"dtype": dtype, "device": "cpu"})
        trusted = TransformersScorer(load_model(folder, loading))
        on_trial = VllmScorer(folder, loading=loading, max_length=255)
        found = check_parity(on_trial, trusted, real, tolerance=TOLERANCES[dtype])
        print(dtype, found)  # noqa: T201 - measured values, shown with -s
        del on_trial


def test_an_engine_that_dies_can_be_run_again(model, rows):
    before = set(engines())
    mortal = VllmScorer(model, loading=CPU, max_length=200)
    started = set(engines()) - before
    assert started
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    with pytest.raises(ResumableError, match=r"engine (process was killed|stopped)"):
        mortal.score(rows)


def test_a_scorer_that_is_dropped_takes_its_processes_along(model, rows):
    before = set(engines())
    dropped = VllmScorer(model, loading=CPU, max_length=200)
    dropped.score(rows)
    assert set(engines()) - before
    del dropped
    gc.collect()
    assert not set(engines()) - before


def engines():
    """Ids of this process's children and theirs."""
    parents = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(folder.name)] = int(parent)
    for process in parents:
        ancestor = process
        while ancestor in parents and ancestor != os.getpid():
            ancestor = parents[ancestor]
        if ancestor == os.getpid() and process != os.getpid():
            yield process


def test_a_vllm_server_equals_log_softmax(server, rows, network):
    every = [*rows, with_two_turns(rows[-1])]
    scorer = ServerScorer(server, "tiny")
    assert scorer.form == KeyedByToken()
    check(scorer.score(every), every, network)
    with_end = ServerScorer(server, "tiny", score_end_of_turn=True)
    check(with_end.score(every), every, network, end_of_turn=True)


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_a_vllm_server_echoes_the_same(server, rows, network, monkeypatch, max_tokens):
    monkeypatch.setattr(server_scorer, "_FORMS", (Echoed(max_tokens),))
    check(ServerScorer(server, "tiny").score(rows), rows, network)


def test_a_vllm_server_refuses_what_it_cannot_score(server, rows):
    scorer = ServerScorer(server, "tiny")
    long = dataclasses.replace(rows[0], input_ids=rows[0].input_ids[:-1] * 60)
    end = len(long.input_ids)
    long = dataclasses.replace(long, turns=(Turn(end - 3, end - 1, end),))
    with pytest.raises(ModelError, match=r"row r00: HTTP 400: .*256"):
        scorer.score([long])
    with pytest.raises(ModelError, match="`other` does not exist"):
        ServerScorer(server, "other")


def test_a_row_that_is_nonfinite_on_a_server_does_not_stop_the_run(server, rows, nonfinite_row):
    # The last test on this server: NaNs stay in its memory and spoil shorter rows.
    scorer = ServerScorer(server, "tiny", concurrency=1)
    before, bad = scorer.score([rows[0], nonfinite_row])
    assert (before.status, bad.status) == ("ok", "nonfinite")
    assert bad.token_logprobs is bad.sequence_logprob is None
