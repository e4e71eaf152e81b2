"""A policy that is a tiny untrained model, and a verifier that likes some of what it says."""

import json
import random

import pytest

VERIFIER = """
import zlib

def likes(prompt, completion, gold):
    return zlib.crc32((completion + gold).encode()) % {one_in} == 0
"""


@pytest.fixture
def verifier(tmp_path, monkeypatch):
    """``module:function`` of a verifier that accepts one completion in five."""
    (tmp_path / "liking.py").write_text(VERIFIER.format(one_in=5))
    monkeypatch.chdir(tmp_path)
    return "liking:likes"


@pytest.fixture
def demonstrations(tmp_path):
    """40 rows, each with an expert's completion that no prompt holds."""
    rng, path = random.Random(0), tmp_path / "rows.jsonl"
    words = ["the", "storm", "caused", "flood", "in", "old", "town", "engine", "car", "author"]
    with path.open("w") as lines:
        for row in range(40):
            prompt = " ".join(rng.choices(words, k=rng.randint(3, 12)))
            line = {
                "example_id": f"r{row}",
                "prompt": prompt,
                "completion": f" EXPERT{row} says " + " ".join(rng.choices(words, k=4)),
                "answer": str(row),
            }
            lines.write(json.dumps(line) + "\n")
    return path
