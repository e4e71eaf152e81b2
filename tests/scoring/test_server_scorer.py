"""The server scorer against a real HTTP server that answers from a real (tiny) model."""

import json
import re
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from atlantis import api, endpoint
from atlantis.data.tokenization import tokenize
from atlantis.errors import ConfigError, ModelError, ResumableError
from atlantis.records import Example
from atlantis.scoring.server_scorer import Echoed, KeyedByToken, ServerScorer
from atlantis.scoring.transformers_scorer import TransformersScorer

WITHIN = 1e-4
"""Nats per token: float32 forward passes over other batch shapes."""


class Server(ThreadingHTTPServer):
    """Knows three dialects; ``faults`` are used up first, one for each request."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, model, dialect):
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.dialect = model, dialect
        self.faults, self.requests, self.headers = [], [], []
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    @torch.inference_mode()
    def logprobs(self, ids):
        """Of each token given those before it, and of the most likely next one."""
        table = self.model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
        values = [table[t - 1, ids[t]].item() for t in range(1, len(ids))]
        return [None, *values], table[-1].max().item()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(body)
            self.server.headers.append(dict(self.headers))
            fault = self.server.faults.pop(0) if self.server.faults else None
        if self.path != "/v1/completions" or body["model"] != "tiny":
            self.answer(404, {"error": {"message": f"The model {body['model']} does not exist"}})
        elif isinstance(fault, int):
            self.answer(fault, {"error": "no luck"})
        elif fault == "hang up":
            self.close_connection = True
        elif fault == "half":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [')
            self.close_connection = True
        elif isinstance(fault, bytes):
            self.answer(200, fault)
        else:
            status, answer = self.server.dialect(self.server, body)
            if isinstance(fault, tuple):
                status, fault = fault
            if fault is not None:
                fault(answer)
            self.answer(status, answer)

    def answer(self, status, content):
        encoded = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", "7")
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    def log_message(self, *_):
        pass


def completion(ids, **choice):
    return 200, {"choices": [{"text": "", **choice}], "usage": {"prompt_tokens": len(ids)}}


def vllm(server, body):
    ids = body["prompt"]
    if body["max_tokens"] < 1:
        return 400, {"error": "max_tokens must be at least 1"}
    values, _ = server.logprobs(ids)
    keyed = [None] + [
        {str(token): {"logprob": value, "rank": 3}}
        for token, value in zip(ids[1:], values[1:], strict=True)
    ]
    return completion(ids, logprobs=None, prompt_logprobs=keyed)


def echo(server, body):
    """Ignores what it does not know, as SGLang does; generates as many tokens as asked."""
    ids = body["prompt"]
    if not body.get("echo"):
        return completion(ids, logprobs=None)
    values, following = server.logprobs(ids)
    values += [following] * body["max_tokens"]
    tokens = ["text"] * len(values)
    return completion(ids, logprobs={"tokens": tokens, "token_logprobs": values})


def echo_one(server, body):
    """Refuses an answer without a token, and a field that it does not know."""
    if body["max_tokens"] < 1 or "prompt_logprobs" in body:
        return 422, {"error": "extra inputs are not permitted"}
    return echo(server, body)


def deaf(server, body):
    """Ignores ``echo`` and ``logprobs``, as ``transformers serve`` does."""
    return completion(body["prompt"])


DIALECTS = {vllm: KeyedByToken(), echo: Echoed(0), echo_one: Echoed(1)}
WORDS = ["the", "storm", "caused", "flood", "in", "old", "town", "engine", "car", "author", "box"]


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("qwen2")


@pytest.fixture(scope="module")
def rows(bpe_tokenizer):
    examples = [
        Example(f"r{i}", " ".join(WORDS[: 1 + i % 7]), " " + " ".join(WORDS[i % 5 : 6 + i % 4]))
        for i in range(12)
    ]
    return tokenize(examples, bpe_tokenizer, max_length=256)


@pytest.fixture
def serve(model):
    @contextmanager
    def start(dialect=vllm):
        with Server(model, dialect) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            try:
                yield server
            finally:
                server.shutdown()
                thread.join()

    return start


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """The seconds that the scorer would have waited, without the part that is left to chance."""
    found = []
    monkeypatch.setattr(endpoint.Endpoint, "_pause", lambda _, seconds: found.append(seconds))
    monkeypatch.setattr(endpoint.random, "uniform", lambda low, high: high)
    return found


def check(found, rows, model, *, end_of_turn):
    trusted = TransformersScorer(model, score_end_of_turn=end_of_turn)
    for score, row in zip(found, rows, strict=True):
        (expected,) = trusted.score([row])
        assert (score.example_id, score.status) == (row.example_id, "ok")
        assert score.token_logprobs == pytest.approx(expected.token_logprobs, abs=WITHIN)
        assert score.sequence_logprob == pytest.approx(expected.sequence_logprob, abs=WITHIN)
        assert score.num_bytes == row.num_bytes


@pytest.mark.parametrize("end_of_turn", [False, True])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_scores_equal_transformers_in_every_dialect(serve, rows, model, dialect, end_of_turn):
    with serve(dialect) as server:
        scorer = ServerScorer(server.url, "tiny", score_end_of_turn=end_of_turn)
        assert scorer.form == DIALECTS[dialect]
        check(scorer.score(rows), rows, model, end_of_turn=end_of_turn)


def test_results_are_in_the_order_of_the_rows_for_any_concurrency(serve, rows):
    with serve() as server:
        one_by_one = ServerScorer(server.url + "/", "tiny", concurrency=1).score(rows)
        assert ServerScorer(server.url, "tiny", concurrency=32).score(rows) == one_by_one


def test_ids_are_sent_as_they_are_up_to_the_last_scored_one(serve, rows):
    with serve() as server:
        ServerScorer(server.url, "tiny", concurrency=1, api_key="secret").score(rows)
    sent = server.requests[1:]
    assert [tuple(body["prompt"]) for body in sent] == [row.input_ids[:-1] for row in rows]
    assert {body["temperature"] for body in sent} == {0}
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer secret"}


@pytest.mark.parametrize("fault", [500, 503, 429, "hang up", "half"])
def test_a_passing_failure_is_tried_again(serve, rows, model, fault):
    with serve() as server:
        scorer = ServerScorer(server.url, "tiny", concurrency=3)
        server.faults = [fault] * 5
        check(scorer.score(rows), rows, model, end_of_turn=False)


def test_pauses_grow_and_a_server_may_ask_for_longer_ones(serve, rows, pauses):
    with serve() as server:
        scorer = ServerScorer(server.url, "tiny", concurrency=1)
        server.faults = [500, 502, 503, 504]
        scorer.score(rows[:1])
        assert pauses == [0.5, 1, 2, 4]
        server.faults = [429, 500]
        scorer.score(rows[:1])
        assert pauses[4:] == [7, 1]


def test_a_failure_that_does_not_pass_stops_the_run_and_names_the_row(serve, rows):
    with serve() as server:
        scorer = ServerScorer(server.url, "tiny", concurrency=1)
        server.faults = [500] * 100
        with pytest.raises(
            ResumableError, match=r"row r0: .* failed 7 times in 32 s, last with HTTP 500"
        ):
            scorer.score(rows)


def test_a_server_that_is_not_there_can_be_tried_again_later(pauses):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        with pytest.raises(ResumableError, match=r"failed 7 times in .*refused"):
            ServerScorer(url, "tiny")
    assert sum(pauses) < 60


def test_a_silent_server_is_not_waited_for_forever(pauses):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        with pytest.raises(ResumableError, match="timed out"):
            ServerScorer(url, "tiny", timeout_seconds=0.05)


@pytest.mark.parametrize("value", [float("nan"), -float("inf"), -9999.0, None])
def test_a_row_without_a_finite_number_is_nonfinite_and_the_others_are_not(serve, rows, value):
    def spoil(answer):
        *_, last = answer["choices"][0]["prompt_logprobs"]
        next(iter(last.values()))["logprob"] = value

    with serve() as server:
        scorer = ServerScorer(server.url, "tiny", concurrency=1)
        server.faults = [None, spoil]
        first, second, third = scorer.score(rows[:3])
    assert (first.status, second.status, third.status) == ("ok", "nonfinite", "ok")
    assert second.token_logprobs is second.sequence_logprob is second.num_tokens is None


def test_a_row_that_the_server_cannot_write_down_is_nonfinite(serve, rows):
    def refuse(answer):
        answer.clear()
        answer["error"] = {"message": "Out of range float values are not JSON compliant"}

    with serve() as server:
        scorer = ServerScorer(server.url, "tiny", concurrency=1)
        server.faults = [None, (400, refuse)]
        assert [s.status for s in scorer.score(rows[:3])] == ["ok", "nonfinite", "ok"]


def drop_one(answer):
    answer["choices"][0]["prompt_logprobs"].pop()


def shift_by_one(answer):
    found = answer["choices"][0]["prompt_logprobs"]
    found[1:] = [*found[2:], found[1]]


def add_bos(answer):
    answer["usage"]["prompt_tokens"] += 1


def drop_all(answer):
    del answer["choices"][0]["prompt_logprobs"]


def drop_choices(answer):
    answer["choices"] = []


def spell_it_out(answer):
    next(iter(answer["choices"][0]["prompt_logprobs"][-1].values()))["logprob"] = "-1.5"


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (drop_one, r"prompt_logprobs for \d+ tokens, not for \d+"),
        (shift_by_one, r"no log-probability of token \d+ where that was sent"),
        (add_bos, r"the server read \d+ tokens where \d+ were sent"),
        (drop_all, "the answer has no prompt_logprobs"),
        (drop_choices, "not that of a completions endpoint"),
        (spell_it_out, "'-1.5' in place of a log-probability"),
        (b"<html>welcome</html>", "not that of a completions endpoint"),
        (b'{"choices": ["a"]}', "not that of a completions endpoint"),
        (b"[]", "not that of a completions endpoint"),
        (400, "HTTP 400: .*no luck"),
    ],
)
def test_an_answer_that_does_not_fit_the_ids_is_refused(serve, rows, fault, message):
    with serve() as server:
        scorer = ServerScorer(server.url, "tiny", concurrency=1)
        server.faults = [None, fault]
        with pytest.raises(ModelError, match=rf"row r1: .*{message}"):
            scorer.score(rows)


@pytest.mark.parametrize("change", [1, -1])
def test_a_wrong_number_of_echoed_tokens_is_refused(serve, rows, change):
    def resize(answer):
        logprobs = answer["choices"][0]["logprobs"]
        values = logprobs["token_logprobs"]
        logprobs["token_logprobs"] = [*values, -1.0] if change > 0 else values[:-1]

    with serve(echo) as server:
        scorer = ServerScorer(server.url, "tiny")
        server.faults = [resize] * 100
        with pytest.raises(ModelError, match=r"token_logprobs for \d+ tokens, not for \d+"):
            scorer.score(rows)


def test_a_server_that_ignores_echo_is_refused_before_anything_is_scored(serve):
    with serve(deaf) as server, pytest.raises(ModelError) as refused:
        ServerScorer(server.url, "tiny")
    assert len(server.requests) == 3
    assert "gives no log-probabilities of a prompt" in str(refused.value)
    assert "the answer has no prompt_logprobs" in str(refused.value)
    assert str(refused.value).count("the answer has no logprobs") == 2


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_that_no_other_form_cures_is_final(serve, status):
    with serve() as server:
        server.faults = [status]
        with pytest.raises(ModelError, match=f"HTTP {status}: .* check the address"):
            ServerScorer(server.url, "tiny")
    assert len(server.requests) == 1


def test_a_wrong_name_of_a_model_is_refused_with_the_servers_words(serve):
    with serve() as server, pytest.raises(ModelError, match="model other does not exist"):
        ServerScorer(server.url, "other")


def test_an_address_without_a_protocol_is_refused():
    with pytest.raises(ConfigError, match=re.escape("http://127.0.0.1:8000/v1")):
        ServerScorer("file:///etc/passwd", "tiny")


def test_encoder_decoder_rows_are_refused(serve, rows):
    import dataclasses

    row = dataclasses.replace(rows[0], encoder_ids=(3, 4))
    with serve() as server:
        scorer = ServerScorer(server.url, "tiny")
        with pytest.raises(ModelError, match="decoder-only"):
            scorer.score([row])


def through_the_api(server, folder, out):
    examples = [
        Example(f"r{i}", " ".join(WORDS[: 1 + i % 7]), " " + " ".join(WORDS[i % 5 : 6 + i % 4]))
        for i in range(12)
    ]
    asked = {"backend": "server", "base_url": server.url, "served_model": "tiny"}
    return api.score(examples, model=str(folder), out=out, device="cpu", **asked)


def test_the_whole_way_through_a_server_gives_the_store_of_transformers(
    serve, saved_model, rows, model, tmp_path
):
    with serve() as server:
        store = through_the_api(server, saved_model("qwen2"), tmp_path / "s")
        asked = len(server.requests)
        check_rows = store.read().to_pylist()
        # The address may change: the same model elsewhere completes and reads the same store.
        again = through_the_api(server, saved_model("qwen2"), tmp_path / "s")
    assert asked == 1 + 12 + 12  # which form, the parity check, the rows
    assert len(server.requests) == asked
    assert again.read().to_pylist() == check_rows
    expected = TransformersScorer(model).score(rows)
    for row, score in zip(check_rows, expected, strict=True):
        assert row["sequence_logprob"] == pytest.approx(score.sequence_logprob, abs=WITHIN)


def test_a_server_of_another_model_is_refused_before_anything_is_stored(
    serve, saved_model, tmp_path
):
    with serve() as server, pytest.raises(ModelError, match="differs from transformers by up to"):
        through_the_api(server, saved_model("qwen2", seed=3), tmp_path / "s")
    assert not list((tmp_path / "s").glob("part-*"))
