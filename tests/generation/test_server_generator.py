"""Completions over HTTP, by servers with faults that a real one does not show on demand."""

import json
import logging
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from atlantis import endpoint
from atlantis.data.prompts import Prompt, user_says
from atlantis.errors import ConfigError, DataError, ModelError, ResumableError
from atlantis.generation.backends import ServerGeneration
from atlantis.generation.cache import CompletionCache, complete_all
from atlantis.generation.lazy import LazyGenerator
from atlantis.generation.requests import PromptRefusedError, Request, requests_for
from atlantis.generation.sampling import SamplingConfig

PROMPTS = [Prompt(f"p{i}", f"number {i}") for i in range(12)]
GREEDY = SamplingConfig(max_new_tokens=16)
SAMPLED = SamplingConfig(max_new_tokens=16, temperature=0.7, top_p=0.9, num_return_sequences=3)
SETUP = 1
"""Requests with which a generator finds out what the server takes."""


class Server(ThreadingHTTPServer):
    """Says the prompt again, and the seed where it is asked to sample."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults, self.requests, self.headers = [], [], []
        self.lock = threading.Lock()
        self.knows = {"top_k", "min_p", "repetition_penalty"}
        self.busy = self.busiest = 0
        self.barrier = None
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.requests.append((self.path, body))
            server.headers.append(self.headers)
            fault = server.faults.pop(0) if server.faults else None
            server.busy += 1
            server.busiest = max(server.busiest, server.busy)
        if server.barrier is not None:
            server.barrier.wait(10)
        status, answer, headers = 200, said(self.path, body), {}
        if isinstance(fault, int):
            status, answer = fault, {"error": "no luck"}
        elif isinstance(fault, tuple):
            status, answer, headers = fault
        elif callable(fault):
            fault(answer)
        elif (extra := {"top_k", "min_p", "repetition_penalty"} & set(body)) - server.knows:
            status, answer = 422, {"detail": f"Unexpected fields: {extra}"}
        with server.lock:
            server.busy -= 1
        self.answer(status, answer, headers, cut=fault == "cut")

    def answer(self, status, content, headers, *, cut):
        encoded = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded[:20] if cut else encoded)
        self.close_connection = True

    def log_message(self, *_):
        pass


def said(path, body):
    seed = f" seed {body['seed']}" if body["temperature"] else ""
    if path == "/v1/chat/completions":
        turns = [message["content"] for message in body["messages"]]
        choice = {"message": {"role": "assistant", "content": " | ".join(turns) + seed}}
    else:
        choice = {"text": body["prompt"] + seed}
    return {
        "model": body["model"],
        "choices": [choice | {"index": 0, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": min(5, body["max_tokens"])},
    }


@pytest.fixture
def server():
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield running
        finally:
            running.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """The seconds that would have been waited, without the part that is left to chance."""
    found = []
    monkeypatch.setattr(endpoint.Endpoint, "_pause", lambda _, seconds: found.append(seconds))
    monkeypatch.setattr(endpoint.random, "uniform", lambda low, high: high)
    return found


@contextmanager
def generator_of(server, **options):
    options = {"concurrency": 1, **options}
    with ServerGeneration(server.url, "tiny", **options).open() as generator:
        yield generator


def completed(generator, requests, config):
    generator.check(requests, config)
    found = [pair for unit in generator.complete(requests, config) for pair in unit]
    return [said for _, said in sorted(found)]


def test_texts_and_chats_go_where_they_belong(server):
    user = user_says("hello", example_id="c")
    requests = [Request(PROMPTS[0]), Request(user)]
    with generator_of(server) as generator:
        texts = [said.text for (said,) in completed(generator, requests, GREEDY)]
    assert texts == ["number 0", "hello"]
    sent = server.requests[SETUP:]
    assert [path for path, _ in sent] == ["/v1/completions", "/v1/chat/completions"]
    assert sent[1][1]["messages"] == [{"role": "user", "content": "hello"}]
    assert {body["max_tokens"] for _, body in sent} == {16}
    assert not any("seed" in body or "n" in body for _, body in sent)


def test_each_attempt_is_a_request_with_a_seed_of_its_own(server):
    requests = requests_for(PROMPTS[:2], SAMPLED)
    with generator_of(server) as generator:
        found = completed(generator, requests, SAMPLED)
        again = completed(generator, requests[4:], SAMPLED)
    assert len({said.text for (said,) in found}) == 6
    assert again == found[4:]
    sent = [body for _, body in server.requests if body["max_tokens"] == 16]
    assert {(body["temperature"], body["top_p"]) for body in sent} == {(0.7, 0.9)}


def test_requests_are_under_way_together_up_to_the_limit(server):
    with generator_of(server, concurrency=4) as generator:
        generator.check([Request(PROMPTS[0])], GREEDY)
        server.barrier, server.busiest = threading.Barrier(4), 0
        found = completed(generator, [Request(prompt) for prompt in PROMPTS], GREEDY)
    assert [said.text for (said,) in found] == [prompt.content for prompt in PROMPTS]
    assert server.busiest == 4


def test_defaults_of_the_checkpoint_are_switched_off_where_the_server_can(server, caplog):
    with generator_of(server) as generator:
        completed(generator, [Request(PROMPTS[0])], GREEDY)
    assert server.requests[-1][1]["repetition_penalty"] == 1.0
    server.knows = set()
    with generator_of(server) as generator, caplog.at_level(logging.WARNING):
        completed(generator, [Request(PROMPTS[0])], GREEDY)
    assert "repetition_penalty" not in server.requests[-1][1]
    assert "generation_config.json" in caplog.text


PASSING = [429, 500, 503, 408, "cut"]


@pytest.mark.parametrize("fault", PASSING)
def test_a_failure_that_passes_is_not_seen(server, fault):
    with generator_of(server) as generator:
        server.faults = [None, fault, fault]
        (said,) = completed(generator, [Request(PROMPTS[3])], GREEDY)
    assert said[0].text == "number 3"


def test_pauses_grow_and_the_server_may_name_longer_ones(server, pauses, caplog):
    with generator_of(server) as generator:
        late = (429, {}, {"Retry-After": "17"})
        date = (503, {}, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})  # it is over
        odd = (429, {}, {"Retry-After": "soon"})
        server.faults = [None, 500, late, date, odd]
        completed(generator, [Request(PROMPTS[0])], GREEDY)
    assert pauses == [0.5, 17, 2, 4]
    assert caplog.text.count("trying again for 300 s") == 1


def test_patience_ends_and_the_run_can_go_on_later(server, pauses, tmp_path):
    requests = [Request(prompt) for prompt in PROMPTS]
    backend = ServerGeneration(server.url, "tiny", concurrency=1, patience_seconds=20)
    server.faults = [None] * (SETUP + 5) + [500] * 6
    with LazyGenerator(backend) as generator:
        with pytest.raises(ResumableError, match=r"'p5': .* failed 6 times in 16 s, .*no luck"):
            complete_all(generator, requests, GREEDY, CompletionCache(tmp_path))
        asked = len(server.requests)
        found = complete_all(generator, requests, GREEDY, CompletionCache(tmp_path))
    assert [said.text for (said,) in found] == [prompt.content for prompt in PROMPTS]
    assert len(server.requests) - asked == 7


def test_a_pause_beyond_our_patience_is_not_begun(server, pauses):
    server.faults = [(429, {}, {"Retry-After": "3600"})]
    with generator_of(server) as generator, pytest.raises(ResumableError, match="failed 1 times"):
        completed(generator, [Request(PROMPTS[0])], GREEDY)
    assert not pauses


def choice(**changes):
    return lambda answer: answer["choices"][0].update(changes)


def whole(**changes):
    return lambda answer: answer.update(changes)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (whole(model="other"), "comes from the model 'other', not 'tiny'"),
        (whole(model=None), "comes from the model None"),
        (whole(choices=[]), "does not have one choice"),
        (whole(choices=None), "does not have one choice"),
        (lambda answer: answer["choices"].append({}), "does not have one choice"),
        (whole(choices=["text"]), "not that of a completions endpoint"),
        (whole(usage=None), "no usage.completion_tokens"),
        (whole(usage={"completion_tokens": 17}), "17 tokens where at most 16"),
        (choice(text=None), "None, no text"),
        (choice(finish_reason="tool_calls"), "finish_reason is 'tool_calls'"),
        (choice(finish_reason="content_filter"), "finish_reason is 'content_filter'"),
        ((200, b"<html>", {}), "not JSON"),
        ((200, [], {}), "not that of a completions endpoint"),
        ((401, {"error": "wrong key sk-secret"}, {}), r"wrong key \*\*\*.*check the address"),
        ((404, {"error": "tiny does not exist"}, {}), "tiny does not exist.*check the address"),
    ],
)
def test_an_answer_to_something_else_is_refused(server, fault, reason):
    with generator_of(server, api_key="sk-secret") as generator:
        server.faults = [None, None, fault]
        with pytest.raises(ModelError, match=reason) as refused:
            completed(generator, [Request(PROMPTS[0]), Request(PROMPTS[1])], GREEDY)
    assert "secret" not in str(refused.value)
    if not isinstance(fault, tuple) or fault[0] == 200:
        assert "'p1'" in str(refused.value)


TOO_LONG = (400, {"error": "9000 tokens are too many"}, {})


def test_one_refused_prompt_does_not_stop_the_others(server, tmp_path):
    requests = [Request(prompt) for prompt in PROMPTS[:4]]
    with generator_of(server) as generator:
        server.faults = [None, None, TOO_LONG]
        said = completed(generator, requests, GREEDY)
        assert [len(said[place]) for place in (0, 2, 3)] == [1, 1, 1]
        assert isinstance(said[1], PromptRefusedError)
        assert "'p1': the server refuses it: HTTP 400: " in str(said[1])
        assert server.url not in str(said[1])  # rows that hold this do not depend on the address
    with generator_of(server) as generator:
        server.faults, refused, steps = [None, None, TOO_LONG], {}, []
        cache = CompletionCache(tmp_path)
        found = complete_all(
            generator, requests, GREEDY, cache, advance=steps.append, refused=refused
        )
        assert [len(completions) for completions in found] == [1, 0, 1, 1]
        assert refused.keys() == {1}
        assert sum(steps) == 4
        again = complete_all(generator, requests, GREEDY, cache, refused={})  # it is asked again
        assert [len(completions) for completions in again] == [1] * 4


def test_a_refused_prompt_is_an_error_with_its_id_for_who_needs_all(server, tmp_path):
    requests = [Request(prompt) for prompt in PROMPTS[:4]]
    with generator_of(server) as generator:
        server.faults = [None, None, TOO_LONG]
        with pytest.raises(DataError, match=r"'p1': the server refuses it: .*9000 tokens"):
            complete_all(generator, requests, GREEDY, CompletionCache(tmp_path))


def test_a_first_prompt_that_is_refused_is_told_from_a_server_that_refuses_all(server, tmp_path):
    requests = [Request(prompt) for prompt in PROMPTS[:3]]
    with generator_of(server) as generator:
        server.faults, refused = [None, TOO_LONG], {}
        complete_all(generator, requests, GREEDY, CompletionCache(tmp_path / "a"), refused=refused)
        assert refused.keys() == {0}
        assert sum(body["prompt"] == "Hello" for _, body in server.requests) == SETUP + 1
    with generator_of(server) as generator:
        server.faults = [None, *[TOO_LONG] * 9]
        with pytest.raises(ModelError, match="'p0' and even a prompt of one word: HTTP 400"):
            complete_all(generator, requests, GREEDY, CompletionCache(tmp_path / "b"), refused={})
    with generator_of(server) as generator:
        server.faults = [None, None, (401, {"error": "no such key"}, {})]
        with pytest.raises(ModelError, match="no such key"):
            complete_all(generator, requests, GREEDY, CompletionCache(tmp_path / "c"), refused={})


def test_an_answer_that_was_broken_off_is_asked_for_again(server):
    with generator_of(server) as generator:
        server.faults = [None, choice(finish_reason="abort"), choice(finish_reason=None)]
        (said,) = completed(generator, [Request(PROMPTS[0])], GREEDY)
        assert said[0].text == "number 0"
        server.faults = [choice(finish_reason="abort")] * 9
        with pytest.raises(ResumableError, match="broke a completion off"):
            completed(generator, [Request(PROMPTS[0])], GREEDY)


def test_a_longer_name_of_the_same_model_is_accepted(server):
    with generator_of(server) as generator:
        server.faults = [whole(model="tiny@main")] * 2
        completed(generator, [Request(PROMPTS[0])], GREEDY)


def test_a_server_that_answers_greedily_is_refused_before_the_first_sample(server):
    with generator_of(server) as generator:
        server.faults = [None] * SETUP + [choice(text="the same")] * 50
        with pytest.raises(ModelError, match="takes the most likely token although") as refused:
            generator.check(requests_for(PROMPTS, SAMPLED), SAMPLED)
    assert "do_sample" in str(refused.value)
    assert len(server.requests) == SETUP + 5
    assert len({body["seed"] for _, body in server.requests[SETUP:]}) == 5


def test_the_server_is_tried_once_for_many_calls(server):
    with generator_of(server) as generator:
        for _ in range(3):
            generator.check(requests_for(PROMPTS, SAMPLED), SAMPLED)
    assert len(server.requests) == SETUP + 5


def test_what_no_server_can_do_is_refused_without_asking(server):
    beams = SamplingConfig(num_beams=2)
    with generator_of(server) as generator:
        with pytest.raises(ConfigError, match="no beam search"):
            generator.check([Request(PROMPTS[0])], beams)
        with pytest.raises(DataError, match="'e': the prompt is empty"):
            generator.check([Request(Prompt("e", " "))], GREEDY)
        generator.check([], GREEDY)
    assert not server.requests


def test_the_key_is_sent_and_shown_nowhere(server, caplog):
    backend = ServerGeneration(server.url, "tiny", api_key="sk-secret")
    assert "secret" not in repr(backend)
    assert "secret" not in json.dumps(backend.fingerprint())
    with backend.open() as generator, caplog.at_level(logging.DEBUG):
        server.faults = [(500, {"error": "sk-secret"}, {})]
        completed(generator, [Request(PROMPTS[0])], GREEDY)
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer sk-secret"}
    assert "secret" not in caplog.text


def test_an_address_without_a_protocol_is_refused():
    with (
        pytest.raises(ConfigError, match="give an address like"),
        ServerGeneration("localhost:8000", "tiny").open(),
    ):
        pass
