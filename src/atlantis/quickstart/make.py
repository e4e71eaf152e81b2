"""Make the data and models of a demonstration in a folder, once."""

import json
import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from atlantis.quickstart.corpus import LABELS, CorpusSizes, write_corpus
from atlantis.quickstart.family import FamilyConfig, write_family
from atlantis.quickstart.made_folder import make_once
from atlantis.quickstart.solver import SolverConfig, write_solver
from atlantis.quickstart.word_problems import Mix, distinct_problems


@dataclass(frozen=True, slots=True)
class QuickstartConfig:
    """What the quickstart is made of."""

    sizes: CorpusSizes = field(default_factory=CorpusSizes)
    family: FamilyConfig = field(default_factory=FamilyConfig)


@dataclass(frozen=True, slots=True)
class WordProblemsConfig:
    """What the word problems and their solver are made of."""

    train: int = 800
    """Problems with the expert's solutions."""
    test: int = 200
    solver: SolverConfig = field(default_factory=SolverConfig)


def make_quickstart(folder: Path, *, seed: int = 0, config: QuickstartConfig | None = None) -> None:
    """Write the corpus, ``large/``, ``small/`` and, last, ``made.json`` to `folder`.

    Does nothing where all of it stands already, made with the same settings; replaces it where it
    was made with others. A kill at any moment leaves `folder` absent or complete. The same seed
    and number of torch threads give the same bytes.

    Raises:
        StoreError: If `folder` holds something that this function did not make.
    """
    chosen = config or QuickstartConfig()

    def write(partial: Path) -> None:
        write_corpus(partial, seed=seed, sizes=chosen.sizes)
        sentences = (partial / "sentences.txt").read_text("utf-8").splitlines()
        write_family(partial, sentences=sentences, labels=LABELS, config=chosen.family, seed=seed)

    make_once(folder, write, seed=seed, config=asdict(chosen))


def make_word_problems(
    folder: Path, *, seed: int = 0, config: WordProblemsConfig | None = None
) -> None:
    """Write ``train.jsonl``, ``test.jsonl``, ``model/`` and, last, ``made.json`` to `folder`.

    The training rows are an expert's demonstrations; the model solves some of the problems by
    itself and more with these in view, in a wording of its own. No problem stands twice, in what
    the model has read neither. Made once as `make_quickstart` does.

    Raises:
        StoreError: If `folder` holds something that this function did not make.
    """
    chosen = config or WordProblemsConfig()

    def write(partial: Path) -> None:
        seen: set[str] = set()
        _write_rows(partial, seed=seed, config=chosen, seen=seen)
        write_solver(partial / "model", config=chosen.solver, seed=seed, seen=seen)

    make_once(folder, write, seed=seed, config=asdict(chosen))


def _write_rows(folder: Path, *, seed: int, config: WordProblemsConfig, seen: set[str]) -> None:
    """Every kind of problem as often as any other, in both files."""
    rng = random.Random(seed)
    train = distinct_problems(rng, size=config.train, mix=Mix(), seen=seen)
    _write_lines(
        folder / "train.jsonl",
        (
            {
                "example_id": f"train-{number}",
                "prompt": made.prompt,
                "completion": made.expert,
                "answer": made.answer,
                "kind": made.kind,
            }
            for number, made in enumerate(train, 1)
        ),
    )
    test = distinct_problems(rng, size=config.test, mix=Mix(), seen=seen)
    _write_lines(
        folder / "test.jsonl",
        (
            {
                "example_id": f"test-{number}",
                "problem": made.problem,
                "answer": made.answer,
                "kind": made.kind,
            }
            for number, made in enumerate(test, 1)
        ),
    )


def _write_lines(path: Path, rows: Iterable[dict[str, str]]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
