"""A finished experiment made up from random numbers: 19 classes, noisy labels, seven arms."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from atlantis.report.stage import ReportInputs

RELATIONS = (
    "Cause-Effect",
    "Component-Whole",
    "Content-Container",
    "Entity-Destination",
    "Entity-Origin",
    "Instrument-Agency",
    "Member-Collection",
    "Message-Topic",
    "Product-Producer",
)
LABELS = sorted([f"{r}({d})" for r in RELATIONS for d in ("e1,e2", "e2,e1")] + ["Other"])
ARMS = {
    "sft": 0.49,
    "atlantis": 0.88,
    "atlantis_within_label": 0.87,
    "shuffled": 0.47,
    "drop_lowest": 0.79,
    "sft_trusted": 0.66,
    "oracle": 0.93,
}
WEIGHTED = ("atlantis", "atlantis_within_label", "shuffled", "drop_lowest")
NOUNS = ("engine", "storm", "harvest", "committee", "violin", "archive", "bakery", "lantern")


def write_json(path: Path, document: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def comparison(arms: dict[str, float], seeds: list[int]) -> dict:
    rng = np.random.default_rng(5)
    entries = {}
    for arm, level in arms.items():
        metrics = {}
        for metric, shift in (("official_f1", 0.0), ("macro19", -0.03), ("accuracy", 0.02)):
            per_seed = [float(level + shift + rng.normal(0, 0.012)) for _ in seeds]
            mean = float(np.mean(per_seed))
            metrics[metric] = {
                "mean": mean,
                "low": mean - 0.031,
                "high": mean + 0.029,
                "per_seed": per_seed,
                "n": 800,
            }
        entries[arm] = {"metrics": metrics, "unparsed": [float(rng.random() / 50) for _ in seeds]}
    for arm, entry in entries.items():
        for versus, other in (("versus_baseline", "sft"), ("versus_control", "shuffled")):
            entry[versus] = None
            if other in entries and other != arm:
                pairs = [
                    (m, v["mean"] - entries[other]["metrics"][m]["mean"])
                    for m, v in entry["metrics"].items()
                ]
                entry[versus] = {
                    m: {"difference": d, "low": d - 0.052, "high": d + 0.055} for m, d in pairs
                }
    return {
        "headline": "official_f1",
        "num_test": 800,
        "seeds": seeds,
        "num_replicates": 2000,
        "level": 0.95,
        "labels": LABELS,
        "negative": "Other",
        "baseline": "sft",
        "control": "shuffled",
        "arms": entries,
        "interval": "Intervals resample seeds and test examples (paired bootstrap).",
    }


def diagnostics(weights: np.ndarray, status: list[str]) -> dict:
    ok = weights[~np.isnan(weights)]
    ess = float(ok.sum() ** 2 / (ok**2).sum())
    shared = {
        "kappa": 1.0,
        "effective_sample_size": ess,
        "ess_fraction": ess / ok.size,
        "largest_share": float(ok.max() / ok.sum()),
        "top_1_percent_share": 0.041,
        "pareto_k": 0.38,
        "spearman_length": -0.12,
        "clipped_low_fraction": 0.0,
        "clipped_high_fraction": 0.012,
    }
    return {
        **shared,
        "num_examples": len(status),
        "num_ok": ok.size,
        "status_counts": {s: status.count(s) for s in sorted(set(status))},
        "quantiles": {"0.5": float(np.median(ok))},
        "before_clipping": {**shared, "pareto_k": None},
        "mean_weight_by_group": {},
        "scheme": {"name": "influence", "alpha": 1.0, "clip": None},
        "warnings": [],
    }


class Experiment:
    """Writes the artifacts of a run with the given seeds and arms."""

    def __init__(self, root: Path, *, num_rows: int = 600) -> None:
        self.root, self.num_rows = root, num_rows
        self.rng = np.random.default_rng(0)
        self.gold = [LABELS[i] for i in self.rng.integers(0, 19, num_rows)]
        wrong = self.rng.random(num_rows) < 0.3
        flips = [LABELS[i] for i in self.rng.integers(0, 19, num_rows)]
        self.labels = [f if w else g for w, f, g in zip(wrong, flips, self.gold, strict=True)]
        self.wrong = np.array([a != b for a, b in zip(self.labels, self.gold, strict=True)])
        self.ids = [f"train-{i:04d}" for i in range(num_rows)]
        self.num_tokens = np.array([len(label) // 4 for label in self.labels])

    def train(self, *, gold: bool = True, text: str | None = None) -> Path:
        nouns = self.rng.choice(NOUNS, (self.num_rows, 2))
        texts = [
            f"The <e1>{a}</e1> near the old harbour was, in the end, traced back to a "
            f"<e2>{b}</e2> that nobody had looked at for years."
            for a, b in nouns
        ]
        columns = {
            "example_id": self.ids,
            "prompt": [f"Relation? {t}" for t in texts],
            "completion": self.labels,
            "label": self.labels,
            "gold_label": self.gold if gold else [None] * self.num_rows,
            "text": texts if text is None else [text] * self.num_rows,
        }
        table = pa.table(columns)
        if not gold:
            table = table.set_column(4, "gold_label", pa.nulls(self.num_rows, pa.string()))
        path = self.root / "train.parquet"
        pq.write_table(table, path)
        return path

    def weights(self, arm: str, seed: int) -> Path:
        rng = np.random.default_rng(100 * seed + 7)
        log_weights = rng.normal(0.3, 0.8, self.num_rows) - 2.2 * self.wrong
        if arm == "shuffled":
            log_weights = rng.permutation(log_weights)
        if arm == "drop_lowest":
            log_weights = np.where(log_weights < np.quantile(log_weights, 0.3), -np.inf, 0.0)
        status = ["ok"] * self.num_rows
        status[3] = "too_long"
        ok = np.array([s == "ok" for s in status])
        weights = np.where(ok, np.exp(log_weights), np.nan)
        weights = weights / np.nanmean(weights)
        path = self.root / arm / f"weights-{seed}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(
            pa.table(
                {
                    "example_id": self.ids,
                    "status": status,
                    "log_weight": pa.array(
                        np.log(weights, where=weights > 0, out=np.full_like(weights, -np.inf)),
                        mask=~ok,
                    ),
                    "weight": pa.array(weights, mask=~ok),
                }
            ),
            path,
        )
        write_json(path.with_suffix(".json"), diagnostics(weights, status))
        return path

    def scores(self, role: str, seed: int) -> Path:
        rng = np.random.default_rng(len(role) + 31 * seed)
        quality = {"large": 1.0, "small": 0.3, "reference": 2.5}[role]
        sums = -rng.gamma(2.0, 1.0, self.num_rows) - quality * self.wrong - 0.2 * self.num_tokens
        folder = self.root / "scores" / f"{role}-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        half = self.num_rows // 2
        for part, rows in enumerate((slice(0, half), slice(half, None))):
            tokens = self.num_tokens[rows]
            pq.write_table(
                pa.table(
                    {
                        "example_id": self.ids[rows],
                        "status": ["ok"] * len(tokens),
                        "num_tokens": pa.array(tokens, pa.int32()),
                        "num_bytes": pa.array(4 * tokens, pa.int32()),
                        "sequence_logprob": sums[rows],
                        "token_logprobs": [
                            [s / t] * t for s, t in zip(sums[rows], tokens, strict=True)
                        ],
                    }
                ),
                folder / f"part-{part:05d}.parquet",
            )
        return folder

    def run_json(self, arm: str, seed: int) -> Path:
        rng = np.random.default_rng(seed)
        floor = 0.9 - ARMS.get(arm, 0.5) / 2
        steps = range(5, 305, 5)
        loss = [[s, float(floor + 1.6 * np.exp(-s / 60) + rng.normal(0, 0.03))] for s in steps]
        return write_json(
            self.root / arm / f"run-{seed}.json",
            {"num_rows": self.num_rows, "num_steps": 300, "loss": loss},
        )

    def check(self, seed: int) -> Path:
        accuracy = {"mean": 0.74, "low": 0.69, "high": 0.79, "n": 300}
        return write_json(
            self.root / f"check-{seed}.json",
            {
                "verdict": "help",
                "sentence": "The reference is right more often than the labels.",
                "reference_accuracy": accuracy,
                "small_accuracy": {**accuracy, "mean": 0.72},
                "label_accuracy_estimate": 0.7,
                "largest_class_weight": 1.31,
            },
        )

    def inputs(
        self,
        *,
        arms: dict[str, float] = ARMS,
        seeds: tuple[int, ...] = (0, 1, 2),
        gold: bool = True,
        text: str | None = None,
    ) -> ReportInputs:
        weighted = [arm for arm in WEIGHTED if arm in arms]
        recipe = {
            "name": "quickstart",
            "models": {
                "large": "made-here/large",
                "small": "made-here/small",
                "reference": "small, tuned on 300 trusted rows",
            },
            "data": {"source": "generated corpus", "noise": {"kind": "uniform", "rate": 0.3}},
            "weighting": {"scheme": "influence", "alpha": 1.0},
            "training": {"normaliser": "token_mean", "learning_rate": 3e-4},
            "seeds": list(seeds),
        }
        return ReportInputs(
            name="Quickstart: generated relations, 30 % wrong labels",
            recipe=recipe,
            comparison=write_json(self.root / "comparison.json", comparison(arms, list(seeds))),
            checks={seed: self.check(seed) for seed in seeds} if weighted else {},
            train=self.train(gold=gold, text=text),
            weights={arm: {seed: self.weights(arm, seed) for seed in seeds} for arm in weighted},
            scores={
                role: {seed: self.scores(role, seed) for seed in seeds}
                for role in ("large", "small", "reference")
            }
            if weighted
            else {},
            runs={arm: {seed: self.run_json(arm, seed) for seed in seeds} for arm in arms},
            notes=("12 sentences that also stand in the test set were dropped.",),
        )


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return Experiment(tmp_path)


@pytest.fixture
def changed_comparison() -> Callable[..., ReportInputs]:
    """Inputs whose comparison.json went through a function."""

    def change(inputs: ReportInputs, edit: Callable[[dict], None]) -> ReportInputs:
        document = json.loads(inputs.comparison.read_text())
        edit(document)
        path = inputs.comparison.with_name("changed.json")
        return replace(inputs, comparison=write_json(path, document))

    return change
