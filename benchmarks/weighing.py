"""Time and memory of ``atlantis weigh`` on many scored rows.

Makes three score stores with per-token log-probabilities in a temporary folder, in parts as the
scoring stage writes them, then weighs them in a process of its own and in this one reads the file
back. CPU; run it on an idle machine: ``python benchmarks/weighing.py --rows 1000000``.
"""

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from atlantis.records import TokenScores
from atlantis.store import ScoreStore, score_table
from atlantis.weighting.weights import read_weights

TOKENS = 60
"""Mean number of scored tokens of a row."""
ROWS_PER_PART = 8192
"""As the scoring stage writes them."""
UNSCORED_FRACTION = 0.001
ROLES = ("large", "reference", "small")
_COMMAND = "from atlantis.cli import main; main()"
_RSS_UNIT = {"linux": 1024, "darwin": 1}
"""Bytes of one unit of ``ru_maxrss``."""


def make_stores(folder: Path, num_rows: int) -> None:
    """Three stores over the same rows, in an order that is not that of the ids."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(TOKENS // 2, TOKENS + TOKENS // 2 + 1, num_rows)
    ids = [f"{number:016x}" for number in rng.permutation(num_rows)]
    bad = rng.random(num_rows) < UNSCORED_FRACTION
    scoring = {"max_length": 1024, "token_budget": 4096, "score_end_of_turn": False}
    for role in ROLES:
        store = ScoreStore(folder / role)
        store.start(
            {"model": role, "source": "rows", "rendered_text": "made up", "scoring": scoring}
        )
        starts = range(0, num_rows, ROWS_PER_PART)
        for index, start in enumerate(starts):
            part = slice(start, start + ROWS_PER_PART)
            rows = list(score_rows(ids[part], lengths[part], bad[part], rng))
            store.write_part(index, score_table(rows))
        store.finish()


def score_rows(
    ids: list[str], lengths: np.ndarray, bad: np.ndarray, rng: np.random.Generator
) -> Iterator[TokenScores]:
    """Random log-probabilities of some rows."""
    for example_id, length, is_bad in zip(ids, lengths.tolist(), bad, strict=True):
        if is_bad:
            yield TokenScores(example_id, "too_long")
            continue
        logprobs = -rng.exponential(2.0, length).astype(np.float32)
        total = float(logprobs.sum(dtype=np.float64))
        logprobs_of = tuple(logprobs.tolist())
        yield TokenScores(example_id, "ok", length, 4 * length, total, logprobs_of, length + 1)


def weigh(folder: Path, out: Path) -> tuple[float, float]:
    """Seconds and peak MiB of the command in a process of its own."""
    options = [word for role in ROLES for word in (f"--{role}", str(folder / role))]
    command = [sys.executable, "-c", _COMMAND, "weigh", *options, "--out", str(out)]
    begin = time.perf_counter()
    process = subprocess.Popen([*command, "--scheme", "algorithm1"], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    if status:
        raise SystemExit(f"atlantis weigh ended with status {status}")
    return seconds, usage.ru_maxrss * _RSS_UNIT[sys.platform] / 2**20


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    num_rows: int = parser.parse_args().rows
    table = Table("what", "seconds", "peak MiB", title=f"{num_rows:,} rows, three models")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In a process of its own: a child's peak counts what its parent held when it was started.
        maker = multiprocessing.get_context("spawn").Process(
            target=make_stores, args=(folder, num_rows)
        )
        maker.start()
        maker.join()
        seconds, peak = weigh(folder, folder / "weights.parquet")
        table.add_row("atlantis weigh", f"{seconds:.1f}", f"{peak:.0f}")
        begin = time.perf_counter()
        weights = read_weights(folder / "weights.parquet")
        table.add_row("read_weights", f"{time.perf_counter() - begin:.1f}", "")
        begin = time.perf_counter()
        weights.save(folder / "again.parquet")
        table.add_row("Weights.save", f"{time.perf_counter() - begin:.1f}", "")
    Console(width=80).print(table)


if __name__ == "__main__":
    main()
