"""A model that vLLM can run on a CPU, rows for it, and a real vLLM server.

`make test-vllm` makes the environment; anywhere else these tests are skipped.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib.util import find_spec
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import torch
from transformers import AutoModelForCausalLM

from atlantis.data.tokenization import tokenize
from atlantis.models.loading import load_tokenizer
from atlantis.records import Example

START_SECONDS = 300
WORDS = ["the", "storm", "caused", "flood", "in", "old", "town", "engine", "car", "author", "box"]

# Read by vLLM when it is imported, and by the processes that it starts.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


@pytest.fixture(scope="session", autouse=True)
def _vllm():
    if find_spec("vllm") is None:
        pytest.skip("needs vLLM, which has an environment of its own: make test-vllm")


@pytest.fixture(scope="session")
def finite_model(saved_model):
    """Random weights; attention heads of 32, the smallest that vLLM's CPU kernel has."""
    shape = {"hidden_size": 128, "intermediate_size": 96, "tie_word_embeddings": False}
    return str(saved_model("qwen2", **shape))


@pytest.fixture(scope="session")
def model(finite_model, tmp_path_factory):
    """The same, but for one token."""
    folder = tmp_path_factory.mktemp("qwen2") / "model"
    shutil.copytree(finite_model, folder)
    network = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():  # a row with a "Q" in it has no finite log-probabilities
        network.get_input_embeddings().weight[load_tokenizer(str(folder)).vocab["Q"]] = torch.nan
    network.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def rows(model):
    """Ragged rows, each of them finite."""
    examples = [
        Example(f"r{i:02}", " ".join(WORDS[: 1 + i % 7]), " " + " ".join(WORDS[i % 5 : 6 + i % 4]))
        for i in range(14)
    ]
    examples.append(Example("long", " ".join(WORDS * 4), " " + " ".join(WORDS)))
    found = tokenize(examples, load_tokenizer(model), max_length=200)
    assert {row.status for row in found} == {"ok"}
    return found


@pytest.fixture(scope="session")
def nonfinite_row(model):
    (row,) = tokenize([Example("bad", "the Q", " box")], load_tokenizer(model), max_length=200)
    return row


@pytest.fixture(scope="session")
def server(model, tmp_path_factory):
    """The address of a vLLM server on loopback."""
    with serving(model, tmp_path_factory.mktemp("server") / "log") as url:
        yield url


@pytest.fixture(scope="session")
def finite_server(finite_model, tmp_path_factory):
    """The address of one that may generate any token."""
    with serving(finite_model, tmp_path_factory.mktemp("server") / "log") as url:
        yield url


@pytest.fixture
def mortal_server(finite_model, tmp_path):
    """A server to be killed."""
    server = VllmServer(finite_model, tmp_path / "log")
    server.start()
    yield server
    server.stop(signal.SIGTERM)


@contextmanager
def serving(model, log):
    server = VllmServer(model, log)
    server.start()
    try:
        yield server.url
    finally:
        server.stop(signal.SIGTERM)


class VllmServer:
    """A server that can be killed and started again at the same address."""

    def __init__(self, model, log):
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            self.port = unused.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.model, self.log, self.process = model, log, None

    def start(self):
        options = ["--served-model-name", "tiny", "--dtype", "float32", "--max-model-len", "256"]
        options += ["--enforce-eager", "--host", "127.0.0.1", "--port", str(self.port)]
        # `vllm serve` itself looks for a distribution `vllm`, and the one for CPUs is `vllm-cpu`.
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [*command, "--model", self.model, *options],
                stdout=out,
                stderr=out,
                start_new_session=True,  # its engine has a process of its own
            )
        _wait_for(f"http://127.0.0.1:{self.port}/health", self.process, self.log)

    def stop(self, number):
        os.killpg(self.process.pid, number)
        self.process.wait(60)


def _wait_for(url, process, log):
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            with urlopen(url, timeout=5):
                return
        except (URLError, OSError):
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < end, log.read_text()[-4000:]
        time.sleep(0.5)
