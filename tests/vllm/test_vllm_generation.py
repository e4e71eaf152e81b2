"""Completions of real vLLM, in this process and behind a real server, against transformers."""

import contextlib
import os
import signal
from multiprocessing import active_children

import pytest

from atlantis.data.prompts import Prompt, user_says
from atlantis.errors import ConfigError, DataError, ResumableError
from atlantis.generation.backends import ServerGeneration, TransformersGeneration
from atlantis.generation.completed_file import complete_file
from atlantis.generation.lazy import LazyGenerator
from atlantis.generation.requests import Request, requests_for
from atlantis.generation.sampling import SamplingConfig
from atlantis.generation.vllm_backend import VllmGeneration
from atlantis.models.settings import LoadingConfig

pytestmark = pytest.mark.timeout(900)
CPU = LoadingConfig(device="cpu")
WORDS = ["the", "storm", "caused", "flood", "in", "old", "town", "engine", "car", "author", "box"]
PROMPTS = [Prompt(f"p{i}", " ".join(WORDS[i % 7 : 2 + i % 7 + i % 4])) for i in range(14)]
CHAT = user_says("the old town", example_id="chat")
GREEDY = SamplingConfig(max_new_tokens=12)
SAMPLED = SamplingConfig(max_new_tokens=12, temperature=1.3, top_p=0.95, num_return_sequences=3)


def completed(generator, requests, config):
    generator.check(requests, config)
    units = list(generator.complete(requests, config))
    return units, [said for _, said in sorted(pair for unit in units for pair in unit)]


@pytest.fixture(scope="module")
def trusted(finite_model):
    """Greedy completions of transformers."""
    with TransformersGeneration(finite_model, CPU).open() as generator:
        requests = requests_for([*PROMPTS, CHAT], GREEDY)
        return completed(generator, requests, GREEDY)[1]


@pytest.fixture(scope="module")
def generator(finite_model):
    with VllmGeneration(finite_model, CPU, chunk_size=4).open() as opened:
        yield opened


def test_greedy_completions_are_those_of_transformers(generator, trusted):
    requests = requests_for([*PROMPTS, CHAT], GREEDY)
    units, found = completed(generator, requests, GREEDY)
    assert found == trusted
    assert [len(unit) for unit in units] == [4, 4, 4, 3]
    assert len({said.text for (said,) in found}) > 5


def test_a_sample_is_the_same_alone_and_beside_others(generator):
    requests = requests_for(PROMPTS[:4], SAMPLED)
    _, together = completed(generator, requests, SAMPLED)
    alone = [completed(generator, [request], SAMPLED)[1][0] for request in requests]
    assert together == alone
    assert len({said.text for (said,) in together[:3]}) == 3
    other = SAMPLED.model_copy(update={"seed": 1})
    assert completed(generator, requests, other)[1] != together


def test_what_vllm_cannot_do_is_refused_before_anything_is_generated(generator, finite_model):
    with pytest.raises(ConfigError, match="no beam search"):
        generator.check([], SamplingConfig(num_beams=2))
    with pytest.raises(DataError, match="more than the model's 256"):
        generator.check([Request(PROMPTS[0])], SamplingConfig(max_new_tokens=255))
    with pytest.raises(ConfigError, match="quantization 4bit: not with vLLM"):
        VllmGeneration(finite_model, LoadingConfig(quantization="4bit")).fingerprint()


def test_a_server_gives_the_greedy_completions_of_transformers(finite_server, trusted):
    requests = requests_for(PROMPTS, GREEDY)
    with ServerGeneration(finite_server, "tiny").open() as served:
        found = completed(served, requests, GREEDY)[1]
    for (there,), (own,) in zip(found, trusted[: len(PROMPTS)], strict=True):
        # Its decoder waits at the end for the rest of a character that does not come.
        assert there == own._replace(text=own.text.rstrip("\N{REPLACEMENT CHARACTER}"))


def test_a_server_samples_by_seed_whatever_is_beside(finite_server):
    requests = requests_for(PROMPTS[:4], SAMPLED)
    with ServerGeneration(finite_server, "tiny").open() as served:
        together = completed(served, requests, SAMPLED)[1]
        alone = [completed(served, [request], SAMPLED)[1][0] for request in requests]
    assert together == alone
    assert len({said.text for (said,) in together[:3]}) == 3


def test_an_engine_that_dies_loses_a_chunk_at_most(finite_model, trusted, tmp_path):
    backend = VllmGeneration(finite_model, CPU, chunk_size=4)
    done = []

    def run():
        with LazyGenerator(backend) as lazy:
            inner = lazy.generator.complete

            def mortal(requests, config):
                for unit in inner(requests, config):
                    yield unit
                    done.append(len(unit))
                    if len(done) == 2:
                        for process in set(active_children()) - before:
                            with contextlib.suppress(ProcessLookupError):
                                os.kill(process.pid, signal.SIGKILL)

            lazy.generator.complete = mortal
            fingerprint = backend.fingerprint()
            return complete_file(out, PROMPTS, GREEDY, {None: lazy}, fingerprint=fingerprint)

    out, before = tmp_path / "out.jsonl", set(active_children())
    with pytest.raises(ResumableError, match=r"engine (process was killed|stopped)"):
        run()
    assert done == [4, 4]
    run()
    assert done == [4, 4, 4, 2]
    with TransformersGeneration(finite_model, CPU).open() as here:
        expected = tmp_path / "here.jsonl"
        complete_file(expected, PROMPTS, GREEDY, {None: here}, fingerprint={})
    assert out.read_bytes() == expected.read_bytes()
