"""Real servers on loopback, and models for them."""

import json
import socket
import subprocess
import sys
import time
from urllib.error import URLError
from urllib.request import urlopen

import pytest

START_SECONDS = 180
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture(scope="session")
def served_folder(saved_model):
    """A model with a chat template, that `transformers serve` answers for greedily."""
    folder = saved_model("gpt2", seed=4)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return str(folder)


@pytest.fixture(scope="session")
def sampling_folder(saved_model):
    """One whose generation defaults let `transformers serve` sample."""
    folder = saved_model("gpt2", seed=5)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"do_sample": True}))
    return str(folder)


class Serve:
    """A process of `transformers serve` that can be killed and started again."""

    def __init__(self, log):
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            self.port = unused.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._log = log

    def start(self):
        command = [sys.executable, "-m", "transformers.cli.transformers", "serve"]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--device", "cpu"]
        with self._log.open("ab") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out)
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                with urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5):
                    return
            except (URLError, OSError):
                assert self._process.poll() is None, self._log.read_text()[-4000:]
                assert time.monotonic() < end, self._log.read_text()[-4000:]
            time.sleep(0.2)

    def kill(self):
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="session")
def transformers_server(tmp_path_factory):
    """A real server for any model folder, named by its path."""
    pytest.importorskip("fastapi", reason="needs transformers[serving]")
    server = Serve(tmp_path_factory.mktemp("serve") / "log")
    server.start()
    yield server
    server.kill()
