"""`kill -9` at random moments of a run, each followed by a rerun: the same bytes as without."""

import random
import signal
import time
from pathlib import Path

import pytest

from atlantis.config import RunConfig
from atlantis.pipeline import Pipeline

NUM_KILLS = 20
RELATIONS = ("Maker-Thing(e1,e2)", "Maker-Thing(e2,e1)", "Owner-Pet(e1,e2)", "Other")


def semeval_file(path: Path, num_rows: int, *, first_id: int, rng: random.Random) -> None:
    nouns = [f"noun{i}" for i in range(20)]
    blocks = []
    for row in range(num_rows):
        head, tail = rng.sample(nouns, 2)
        verb = rng.randrange(len(RELATIONS))
        sentence = f"the <e1>{head}</e1> verb{verb} {rng.choice(nouns)} <e2>{tail}</e2> row{row}"
        blocks.append(f'{first_id + row}\t"{sentence}"\n{RELATIONS[verb]}\nComment:\n')
    path.write_text("\n".join(blocks) + "\n", encoding="utf-8")


@pytest.fixture
def recipe(tmp_path, saved_model) -> RunConfig:
    rng, family = random.Random(0), str(saved_model())
    for first_id, (name, num_rows) in enumerate(
        [("train", 120), ("trusted", 40), ("test", 40)], start=1
    ):
        semeval_file(tmp_path / f"{name}.txt", num_rows, first_id=1000 * first_id, rng=rng)
    training = {"learning_rate": 1e-3, "epochs": 2, "batch_size": 8, "checkpoint_steps": 5}
    return RunConfig.model_validate(
        {
            "name": "killed",
            "seeds": [0],
            "models": {"large": family, "small": family},
            "data": {
                "root": tmp_path,
                "train": {
                    "format": "semeval",
                    "path": "train.txt",
                    "noise": {"kind": "uniform", "rate": 0.3},
                },
                "trusted": {"format": "semeval", "path": "trusted.txt"},
                "test": {"format": "semeval", "path": "test.txt"},
                "prompt": "{text} relation :",
                "negative_label": "Other",
            },
            "scoring": {"max_length": 256, "token_budget": 512},
            "reference": {"training": training},
            "training": training,
            "evaluation": {"num_bootstrap": 100},
            "arms": {
                "sft": {},
                "atlantis": {"weights": "influence"},
                "shuffled": {"weights": {"scheme": {"kind": "shuffled"}}},
            },
        }
    )


def results(out: Path) -> dict[str, bytes]:
    """Every weights file, metrics file, comparison and report, by path."""
    names = ("weights.parquet", "metrics.json", "comparison.json", "report.html", "manifest.json")
    return {
        str(path.relative_to(out)): path.read_bytes() for name in names for path in out.rglob(name)
    }


@pytest.mark.timeout(900)
def test_twenty_kills_leave_the_results_of_an_undisturbed_run(recipe, tmp_path, fork):
    def start(out):
        return fork(
            lambda: Pipeline(recipe, out, force=True).run(lambda stage: None), tmp_path / "log"
        )

    begin = time.monotonic()
    assert start(tmp_path / "undisturbed").wait() == 0
    seconds = time.monotonic() - begin
    expected = results(tmp_path / "undisturbed")
    assert {Path(name).name for name in expected} >= {"weights.parquet", "metrics.json"}
    rng, kills, round_number = random.Random(1), 0, 0
    while kills < NUM_KILLS:
        out = tmp_path / f"killed{round_number}"
        round_number += 1
        while True:
            child = start(out)
            # The last kill is followed by a run that is left alone.
            if kills < NUM_KILLS:
                time.sleep(rng.uniform(0, 0.6 * seconds))
                child.kill()
            code = child.wait()
            kills += code == -signal.SIGKILL
            if code == 0:
                break
            assert code == -signal.SIGKILL
        assert results(out) == expected
