"""A rewriting that is killed at random moments and run again: the same bytes."""

import json
import random
import signal
import time

import pytest

from atlantis.data.demonstrations import read_demonstrations
from atlantis.data.sources import open_source
from atlantis.generation.backends import TransformersGeneration
from atlantis.models.settings import LoadingConfig
from atlantis.rewriting import stage
from atlantis.rewriting.config import RewritingConfig
from atlantis.rewriting.stage import RewritingJob
from atlantis.rewriting.window import Rewriter

NUM_KILLS = 20
VERIFIER = """
import zlib

def likes(prompt, completion, gold):
    return zlib.crc32(completion.encode()) % 5 == 0
"""


class Rows:
    def __init__(self, path):
        self.path = path

    def __iter__(self):
        return read_demonstrations(open_source(str(self.path), also=["answer"]))


@pytest.fixture
def job(saved_model, tmp_path, monkeypatch):
    rng, path = random.Random(0), tmp_path / "rows.jsonl"
    words = ["the", "storm", "caused", "flood", "in", "old", "town", "engine", "car", "author"]
    rows = [
        {
            "example_id": f"r{row}",
            "prompt": " ".join(rng.choices(words, k=rng.randint(3, 12))),
            "completion": " so " + " ".join(rng.choices(words, k=4)),
            "answer": str(row),
        }
        for row in range(60)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "liking.py").write_text(VERIFIER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage, "ROWS_PER_WINDOW", 16)
    # An untrained model hardly ever stops by itself: what is cut off counts here.
    monkeypatch.setattr(Rewriter, "_refusal", lambda *_, **__: None)
    config = RewritingConfig.model_validate(
        {
            "verifier": {"kind": "function", "function": "liking:likes", "num_workers": 1},
            "self_attempts": 2,
            "guided_attempts": 2,
            "select": "most_likely",
            "max_new_tokens": 24,
            "guided_prompt": "Notes: {solution}\n{prompt}",
        }
    )
    backend = TransformersGeneration(
        str(saved_model("qwen2")), LoadingConfig(device="cpu"), batch_size=8
    )
    return RewritingJob(Rows(path), backend, "tiny", config)


def content(out):
    return {
        path.name.removeprefix(out.name): path.read_bytes()
        for path in out.parent.iterdir()
        if path.is_file()
    }


@pytest.mark.timeout(900)
def test_twenty_kills_leave_the_rows_of_an_undisturbed_run(job, tmp_path, fork):
    def start(name):
        (tmp_path / name).mkdir(exist_ok=True)
        return fork(lambda: job.run(tmp_path / name / "out.jsonl"), tmp_path / "log")

    begin = time.monotonic()
    assert start("whole").wait() == 0, (tmp_path / "log").read_text()
    seconds, expected = time.monotonic() - begin, content(tmp_path / "whole" / "out.jsonl")
    sources = json.loads(expected[".report.json"])["sources"]
    assert min(sources.values()) > 0
    rng, kills, number = random.Random(1), 0, 0
    while kills < NUM_KILLS:
        number += 1
        while True:
            child = start(f"killed{number}")
            if kills < NUM_KILLS:
                time.sleep(rng.uniform(0, 0.7 * seconds))
                child.kill()
            code = child.wait()
            if code == 0:
                break
            assert code == -signal.SIGKILL, (tmp_path / "log").read_text()
            kills += 1
        assert content(tmp_path / f"killed{number}" / "out.jsonl") == expected
        assert {path.name for path in (tmp_path / f"killed{number}").iterdir()} == {
            path.name for path in (tmp_path / "whole").iterdir()
        }
