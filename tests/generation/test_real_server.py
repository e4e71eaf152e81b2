"""`transformers serve` on loopback: its greedy texts, its death in mid-run, and what it ignores."""

import json
import sys
import threading
import time

import pytest

from atlantis.cli import main
from atlantis.data.prompts import Prompt, user_says
from atlantis.errors import ModelError
from atlantis.generation.backends import ServerGeneration, TransformersGeneration
from atlantis.generation.completed_file import complete_file
from atlantis.generation.lazy import LazyGenerator
from atlantis.generation.requests import requests_for
from atlantis.generation.sampling import SamplingConfig

pytestmark = pytest.mark.timeout(300)
WORDS = ["the", "storm", "caused", "flood", "in", "old", "town", "engine", "car", "author", "box"]
PROMPTS = [
    Prompt(f"p{i}", " ".join(WORDS[i % 7 : 2 + i % 7 + i % 4]) + " " * (i // 28)) for i in range(40)
]
CHATS = [user_says(prompt.content, example_id=prompt.example_id) for prompt in PROMPTS[:6]]
GREEDY = SamplingConfig(max_new_tokens=12)


def completed(backend, prompts, config):
    requests = requests_for(prompts, config)
    with backend.open() as generator:
        generator.check(requests, config)
        found = [pair for unit in generator.complete(requests, config) for pair in unit]
    return [said for _, said in sorted(found)]


def run(backend, out):
    with LazyGenerator(backend) as generator:
        complete_file(out, PROMPTS, GREEDY, {None: generator}, fingerprint=backend.fingerprint())


def test_served_completions_are_those_of_this_process(transformers_server, served_folder):
    served = ServerGeneration(transformers_server.url, served_folder)
    here = TransformersGeneration(served_folder)
    prompts = [*PROMPTS[:10], *CHATS]
    found = completed(served, prompts, GREEDY)
    for there, own in zip(found, completed(here, prompts, GREEDY), strict=True):
        # Its decoder of chats strips the text; at the very limit it does not see the end token.
        assert there[0].text.strip() == own[0].text.strip()
        assert there[0].num_tokens == own[0].num_tokens
        if own[0].num_tokens < GREEDY.max_new_tokens:
            assert there[0].finish_reason == own[0].finish_reason
    assert len({said.text for (said,) in found}) > 5


def test_a_server_that_dies_in_mid_run_and_comes_back_costs_nothing(
    transformers_server, served_folder, tmp_path
):
    backend = ServerGeneration(
        transformers_server.url, served_folder, concurrency=3, patience_seconds=120
    )
    run(backend, tmp_path / "undisturbed.jsonl")
    journal = tmp_path / "out.jsonl.partial" / "alpha-0" / "journal"
    seen = []

    def disturb():
        while not (journal.exists() and journal.stat().st_size > 5000):
            time.sleep(0.005)
        transformers_server.kill()
        seen.append((tmp_path / "out.jsonl").exists())
        transformers_server.start()

    thread = threading.Thread(target=disturb)
    thread.start()
    run(backend, tmp_path / "out.jsonl")
    thread.join()
    assert seen == [False]
    expected = (tmp_path / "undisturbed.jsonl").read_bytes()
    assert (tmp_path / "out.jsonl").read_bytes() == expected
    ids = [json.loads(line)["example_id"] for line in expected.splitlines()]
    assert ids == [prompt.example_id for prompt in PROMPTS]


def test_a_server_that_does_not_sample_is_refused(transformers_server, served_folder):
    sampled = SamplingConfig(max_new_tokens=8, temperature=1.0)
    backend = ServerGeneration(transformers_server.url, served_folder)
    with pytest.raises(ModelError, match=r'"do_sample": true into .* generation_config.json'):
        completed(backend, PROMPTS[:2], sampled)


def test_a_server_that_samples_gives_each_attempt_its_own_text(
    transformers_server, sampling_folder
):
    sampled = SamplingConfig(max_new_tokens=8, temperature=1.5, num_return_sequences=4)
    backend = ServerGeneration(transformers_server.url, sampling_folder)
    found = completed(backend, PROMPTS[:3], sampled)
    assert len(found) == 12
    assert len({said.text for (said,) in found[:4]}) == 4
    # It has one stream for all: only one request at a time follows its seed.
    alone = ServerGeneration(transformers_server.url, sampling_folder, concurrency=1)
    first, again = (completed(alone, PROMPTS[:3], sampled) for _ in range(2))
    assert first == again


def test_the_command_completes_with_a_server(
    transformers_server, served_folder, tmp_path, monkeypatch, capfd
):
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(f'{{"prompt": "{p.content}"}}\n' for p in PROMPTS[:5]))

    def generate(*options):
        asked = ["atlantis", "generate", "--model", served_folder, "--max-new-tokens", "8"]
        monkeypatch.setattr(sys, "argv", [*asked, *map(str, options)])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
        return capfd.readouterr().out

    server = ("--backend", "server", "--base-url", transformers_server.url)
    for name, backend in (("there", server), ("here", ())):
        generate("--data", data, "--out", tmp_path / f"{name}.jsonl", *backend)
    there, here = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("there", "here")
    )
    for row, own in zip(there, here, strict=True):
        assert row | {"finish_reason": ""} == own | {"finish_reason": ""}
    shown = generate("--prompt", PROMPTS[0].content, "--json", *server)
    assert json.loads(shown)["completions"][0]["text"] == there[0]["completion"]
