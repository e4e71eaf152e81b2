"""``atlantis rewrite`` with real vLLM, here and behind a server, against transformers."""

import json
import random
import signal
import sys
import threading
import time

import pytest

from atlantis.cli import main
from atlantis.rewriting.window import Rewriter

pytestmark = pytest.mark.timeout(900)
WORDS = ["the", "storm", "caused", "flood", "in", "old", "town", "engine", "car", "author", "box"]
VERIFIER = """
import zlib

def likes(prompt, completion, gold):
    return zlib.crc32((completion.rstrip("\\ufffd") + gold).encode()) % 3 == 0
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    rng = random.Random(0)
    rows = [
        {
            "example_id": f"r{row}",
            "prompt": " ".join(rng.choices(WORDS, k=rng.randint(3, 9))),
            "completion": f" EXPERT{row} says " + " ".join(rng.choices(WORDS, k=3)),
            "answer": str(row),
        }
        for row in range(16)
    ]
    rows[5]["prompt"] = "storm " * 300  # longer than the model's 256
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "liking.py").write_text(VERIFIER)
    (tmp_path / "guided.txt").write_text("Notes: {solution}\n{prompt}")
    monkeypatch.chdir(tmp_path)
    # An untrained model never stops by itself: what is cut off counts here.
    monkeypatch.setattr(Rewriter, "_refusal", lambda *_, **__: None)
    return tmp_path


@pytest.fixture
def rewritten(folder, monkeypatch):
    def run(name, *options, attempts=1, temperature=0):
        sampling = ("--temperature", temperature, "--guided-temperature", temperature)
        sampling += ("--self-attempts", attempts, "--guided-attempts", attempts)
        asked = ("--verifier", "liking:likes", "--guided-prompt", "guided.txt")
        asked += ("--max-new-tokens", 12, "--out", f"{name}.jsonl")
        command = ("atlantis", "rewrite", "rows.jsonl", *sampling, *asked, *options)
        monkeypatch.setattr(sys, "argv", [*map(str, command)])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code
        report = json.loads((folder / f"{name}.jsonl.report.json").read_text())
        lines = (folder / f"{name}.jsonl").read_text().splitlines()
        return report, [json.loads(line) for line in lines]

    return run


@pytest.fixture
def trusted(rewritten, finite_model):
    return rewritten("here", "--model", finite_model, "--device", "cpu")[1]


def check_same(rows, trusted):
    assert {row["source"] for row in trusted} == {"self", "guided", "expert"}
    for row, own in zip(rows, trusted, strict=True):
        assert row["example_id"] == own["example_id"]
        assert (row["source"], row["prompt"]) == (own["source"], own["prompt"])
        # The server's decoder waits at the end for the rest of a character that does not come.
        texts = [made["completion"].rstrip("\N{REPLACEMENT CHARACTER}") for made in (row, own)]
        assert texts[0] == texts[1]


def test_rewrite_with_vllm_in_process_gives_the_rows_of_transformers(
    rewritten, trusted, finite_model
):
    report, rows = rewritten(
        "vllm", "--model", finite_model, "--backend", "vllm", "--device", "cpu"
    )
    check_same(rows, trusted)
    assert report["policy_gap"] is None  # only transformers tells it
    assert (report["stages"]["self"]["unasked"], report["stages"]["guided"]["unasked"]) == (1, 1)
    assert "'r5'" in report["unasked"][0]


def test_rewrite_with_a_vllm_server_gives_the_rows_of_transformers(
    rewritten, trusted, finite_server
):
    server = ("--model", "tiny", "--backend", "server", "--base-url", finite_server)
    report, rows = rewritten("served", *server)
    check_same(rows, trusted)
    # The server refuses what is too long, in its own words; the others are not stopped.
    assert (report["stages"]["self"]["unasked"], report["stages"]["guided"]["unasked"]) == (1, 1)
    assert report["unasked"][0].startswith("example 'r5': the server refuses it: HTTP 400: ")
    assert "256" in report["unasked"][0]
    assert rows[5]["source"] == "expert"


def test_a_vllm_server_that_is_killed_in_mid_run_and_restarted_costs_nothing(
    rewritten, folder, mortal_server
):
    server = ("--model", "tiny", "--backend", "server", "--base-url", mortal_server.url)
    server += ("--concurrency", 1, "--patience", 240)
    rewritten("whole", *server)
    seen = []

    def disturb():
        journal = folder / "killed.jsonl.partial" / "samples-00000" / "self" / "journal"
        while not (journal.exists() and journal.stat().st_size > 2000):
            time.sleep(0.002)
        mortal_server.stop(signal.SIGKILL)
        seen.append((journal.exists(), (folder / "killed.jsonl").exists()))
        mortal_server.start()

    thread = threading.Thread(target=disturb, daemon=True)
    thread.start()
    rewritten("killed", *server)
    thread.join(300)
    assert seen == [(True, False)]  # the stage was not over
    for name in ("", ".report.json", ".manifest.json"):
        whole, killed = ((folder / f"{run}.jsonl{name}") for run in ("whole", "killed"))
        assert killed.read_bytes() == whole.read_bytes()


def test_rewrite_samples_by_seed_with_a_vllm_server(rewritten, finite_server):
    server = ("--model", "tiny", "--backend", "server", "--base-url", finite_server)
    _, wide = rewritten("wide", *server, "--concurrency", 8, attempts=3, temperature=1.3)
    _, narrow = rewritten("narrow", *server, "--concurrency", 1, attempts=3, temperature=1.3)
    assert wide == narrow
    assert len({row["attempt"] for row in wide}) > 2


def test_rewrite_is_refused_where_every_prompt_is_too_long(
    folder, monkeypatch, finite_server, capfd
):
    asked = ["atlantis", "rewrite", "rows.jsonl", "--model", "tiny", "--out", "long.jsonl"]
    asked += ["--backend", "server", "--base-url", finite_server, "--verifier", "liking:likes"]
    monkeypatch.setattr(sys, "argv", [*asked, "--max-new-tokens", "400"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "and even a prompt of one word: HTTP 400" in capfd.readouterr().err
    assert not (folder / "long.jsonl").exists()
