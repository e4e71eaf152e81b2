"""`kill -9` at random moments of ``atlantis generate``, then a rerun: the same bytes as without."""

import json
import random
import signal
import sys
import time

import pytest

from atlantis.cli import main

NUM_KILLS = 20
WORDS = ["the", "storm", "caused", "flood", "in", "old", "town", "engine", "car", "author", "box"]


@pytest.fixture
def prompts(tmp_path):
    rng = random.Random(0)
    path = tmp_path / "prompts.jsonl"
    rows = [
        {"example_id": f"p{i}", "prompt": " ".join(rng.choices(WORDS, k=1 + i % 9))}
        for i in range(36)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.timeout(300)
@pytest.mark.parametrize("sampling", [(), ("--temperature", "1.2", "--num-return-sequences", "2")])
def test_twenty_kills_leave_the_file_of_an_undisturbed_run(
    sampling, prompts, saved_model, tmp_path, fork
):
    model = str(saved_model("gpt2", seed=4))
    asked = ["--model", model, "--data", str(prompts), "--max-new-tokens", "24", *sampling]

    def start(out):
        def work():
            sys.argv = ["atlantis", "generate", *asked, "--batch-size", "4", "--out", str(out)]
            main()

        return fork(work, tmp_path / "log")

    begin = time.monotonic()
    assert start(tmp_path / "undisturbed.jsonl").wait() == 0
    seconds = time.monotonic() - begin
    expected = (tmp_path / "undisturbed.jsonl").read_bytes()
    rng, kills, number, went_on = random.Random(1), 0, 0, 0
    while kills < NUM_KILLS // 2:
        number += 1  # a file that is whole already cannot be killed any more
        out = tmp_path / f"killed{number}.jsonl"
        journal = tmp_path / f"{out.name}.partial" / "alpha-0" / "journal"
        for _ in range(3):
            child = start(out)
            time.sleep(rng.uniform(0, 0.9) * seconds)
            child.kill()
            kills += child.wait() == -signal.SIGKILL
            went_on += journal.exists() and journal.stat().st_size > 0
        assert start(out).wait() == 0, (tmp_path / "log").read_text()[-4000:]
        assert out.read_bytes() == expected
        assert not journal.parent.parent.exists()
    assert went_on > 0  # not every kill came before the first batch
