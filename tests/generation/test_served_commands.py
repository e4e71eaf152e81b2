"""``atlantis rewrite`` and ``evaluate-maths`` with `transformers serve`, killed in mid-run."""

import json
import random
import sys
import threading
import time

import pyarrow.parquet as pq
import pytest

from atlantis.cli import main
from atlantis.rewriting.window import Rewriter

pytestmark = pytest.mark.timeout(300)
WORDS = ["the", "storm", "caused", "flood", "in", "old", "town", "engine", "car", "author", "box"]
NUM_ROWS = 40
VERIFIER = """
import zlib

def likes(prompt, completion, gold):
    return zlib.crc32((completion + gold).encode()) % 3 == 0
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the command runs: rows, a verifier that likes one in three, a short guided prompt."""
    rng = random.Random(0)
    rows = [
        {
            "example_id": f"r{row}",
            "prompt": " ".join(rng.choices(WORDS, k=rng.randint(3, 9))),
            "completion": f" EXPERT{row} says " + " ".join(rng.choices(WORDS, k=3)),
            "answer": str(row),
        }
        for row in range(NUM_ROWS)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "liking.py").write_text(VERIFIER)
    (tmp_path / "guided.txt").write_text("Notes: {solution}\n{prompt}")
    monkeypatch.chdir(tmp_path)
    # An untrained model never stops by itself: what is cut off counts here.
    monkeypatch.setattr(Rewriter, "_refusal", lambda *_, **__: None)
    return tmp_path


@pytest.fixture
def atlantis(monkeypatch, transformers_server, served_folder):
    """Runs a command with the server; returns its exit code."""

    def run(command, *options):
        server = ("--backend", "server", "--base-url", transformers_server.url, "--patience", 120)
        asked = ("atlantis", command, "--model", served_folder, *server, *options)
        monkeypatch.setattr(sys, "argv", [*map(str, asked)])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code or 0

    return run


def rewrite(atlantis, out):
    greedy = ("--temperature", 0, "--guided-temperature", 0)
    greedy += ("--self-attempts", 1, "--guided-attempts", 1, "--max-new-tokens", 12)
    asked = ("--verifier", "liking:likes", "--guided-prompt", "guided.txt", "--concurrency", 3)
    return atlantis("rewrite", *greedy, *asked, "--out", out, "rows.jsonl")


def test_a_server_that_dies_in_each_stage_of_a_rewriting_costs_nothing(
    atlantis, transformers_server, folder
):
    assert rewrite(atlantis, folder / "undisturbed.jsonl") == 0
    out = folder / "out.jsonl"
    seen = []

    def disturb():
        for stage in ("self", "guided"):
            journal = folder / "out.jsonl.partial" / "samples-00000" / stage / "journal"
            while not (journal.exists() and journal.stat().st_size > 3000):
                time.sleep(0.003)
            transformers_server.kill()
            seen.append((journal.exists(), out.exists()))
            transformers_server.start()

    thread = threading.Thread(target=disturb, daemon=True)
    thread.start()
    assert rewrite(atlantis, out) == 0
    thread.join(60)
    assert seen == [(True, False), (True, False)]  # the stage was not over
    for name in ("", ".report.json", ".manifest.json"):
        expected = (folder / f"undisturbed.jsonl{name}").read_bytes()
        assert (folder / f"out.jsonl{name}").read_bytes() == expected
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["example_id"] for row in rows] == [f"r{i}" for i in range(NUM_ROWS)]
    assert {row["source"] for row in rows} == {"self", "guided", "expert"}
    assert json.loads((folder / "out.jsonl.report.json").read_text())["unasked"] == []


def test_maths_problems_are_answered_by_a_server_as_by_this_process(
    atlantis, folder, monkeypatch, served_folder
):
    problems = [
        {"id": f"q{i}", "problem": " ".join(WORDS[i : i + 3]), "answer": str(i)} for i in range(8)
    ]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))
    asked = ("--benchmark", "sums.jsonl", "--benchmark", "again=sums.jsonl")
    asked += ("--num-samples", 1, "--temperature", 0, "--max-new-tokens", 12)
    asked += ("--prompt", "{problem}?", "--num-bootstrap", 200)
    assert atlantis("evaluate-maths", *asked, "--out", folder / "there") == 0
    monkeypatch.setattr(
        sys,
        "argv",
        ["atlantis", "evaluate-maths", "--model", served_folder, *map(str, asked), "--out", "here"],
    )
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    there, here = (
        pq.read_table(folder / name / "predictions.parquet").to_pylist()
        for name in ("there", "here")
    )
    assert len(there) == 16
    for row, own in zip(there, here, strict=True):
        # The server strips chats; at the very limit it does not see the end token.
        assert row["completion"].strip() == own["completion"].strip()
        assert row["num_tokens"] == own["num_tokens"]
        for grader in ("math_verify", "relative_tolerance"):
            if row["finish_reason"] == own["finish_reason"]:
                assert row[f"{grader}_status"] == own[f"{grader}_status"]
