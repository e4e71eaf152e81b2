"""A maths evaluation that is killed at random moments and run again: the same bytes."""

import json
import random
import re
import signal
import time

import pytest

from atlantis.cli.once import make_once
from atlantis.data.maths import read_maths
from atlantis.evaluation.maths_stage import MathsEvaluation, MathsEvaluationConfig
from atlantis.generation.backends import TransformersGeneration
from atlantis.models.settings import LoadingConfig
from atlantis.store import begin

NUM_KILLS = 20


@pytest.fixture
def evaluation(saved_model, tmp_path):
    rng, benchmarks = random.Random(0), {}
    words = ["the", "storm", "caused", "flood", "in", "old", "town", "engine", "car", "author"]
    for name, size in (("easy", 20), ("hard", 12)):
        rows = [
            {"id": f"q{row}", "problem": " ".join(rng.choices(words, k=5)), "answer": str(row % 7)}
            for row in range(size)
        ]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        benchmarks[name] = read_maths(path).rows
    config = MathsEvaluationConfig(
        prompt="{problem} =",
        chat=False,
        num_samples=4,
        max_new_tokens=24,
        extraction="last_expression",
        num_bootstrap=200,
    )
    backend = TransformersGeneration(
        str(saved_model("qwen2")), LoadingConfig(device="cpu"), batch_size=8
    )
    return MathsEvaluation(benchmarks, backend, config)


def content(out):
    """The results; the journals of samples are in the order in which batches were finished."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}


@pytest.mark.timeout(300)
def test_twenty_kills_leave_the_bytes_of_an_undisturbed_run(evaluation, tmp_path, fork):
    fingerprint = evaluation.fingerprint()

    def work(folder):
        begin(folder, fingerprint)
        evaluation.run(folder)

    def start(name):
        return fork(
            lambda: make_once(tmp_path / name, fingerprint, work, resumable=True), tmp_path / "log"
        )

    begun = time.monotonic()
    assert start("whole").wait() == 0, (tmp_path / "log").read_text()
    seconds, expected = time.monotonic() - begun, content(tmp_path / "whole")
    assert {"metrics.json", "problems.parquet", "predictions.parquet"} < set(expected)
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
        assert content(tmp_path / f"killed{number}") == expected
        assert not re.search("partial|tmp", " ".join(p.name for p in tmp_path.iterdir()))
