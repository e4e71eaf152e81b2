"""Stages over all arms: the data as files, the comparison and the report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from atlantis.disk import write_json, write_table
from atlantis.evaluation.arms import compare_arms
from atlantis.pipeline.arms import ArmStages
from atlantis.pipeline.inputs import Inputs, digest_rows
from atlantis.pipeline.weighing import WeighingStages
from atlantis.records import Example
from atlantis.report import stage as reporting
from atlantis.stages import Stage

_BySeed = Mapping[int, Stage]


class ResultStages:
    """What is made of all arms together. ``root`` holds the stages' folders."""

    def __init__(
        self, inputs: Inputs, root: Path, weighing: WeighingStages, arms: ArmStages
    ) -> None:
        self._inputs = inputs
        self._config = inputs.config
        self._root = root
        self._weighing = weighing
        self._arms = arms

    @cached_property
    def data(self) -> Stage:
        """Rows of all splits, as Parquet, and what was left out of them."""
        splits = self._inputs.splits
        parts = {name: getattr(splits, name) for name in ("train", "trusted", "heldout", "test")}
        rows = {name: digest_rows(part) for name, part in parts.items()}
        labels = asdict(splits.labels)

        def work(folder: Path) -> None:
            for name, part in parts.items():
                write_table(folder / f"{name}.parquet", _example_table(part))
            write_json(folder / "data.json", {"labels": labels, "notes": list(splits.notes)})

        return Stage(self._root, "data", {"rows": rows, "labels": labels}, (), work)

    @cached_property
    def comparison(self) -> Stage:
        """All arms side by side, with intervals and paired differences."""
        splits, evaluated = self._inputs.splits, self._evaluated
        settings = {
            "baseline": self._config.baseline,
            "control": self._config.control,
            "num_bootstrap": self._config.evaluation.num_bootstrap,
        }

        def work(folder: Path) -> None:
            comparison = compare_arms(
                {arm: {seed: s.folder for seed, s in by.items()} for arm, by in evaluated.items()},
                train=splits.train,
                test=splits.test,
                labels=splits.labels,
                baseline=self._config.baseline,
                control=self._config.control,
                num_replicates=self._config.evaluation.num_bootstrap,
            )
            write_json(folder / "comparison.json", comparison)

        return Stage(self._root, "compare", settings, _flat(evaluated), work)

    @cached_property
    def report(self) -> Stage:
        """The page and its figures as JSON."""
        weights = {
            arm: self._by_seed(lambda seed, arm=arm: self._weighing.weights(arm, seed))
            for arm in self._config.arms
        }
        checks = self._by_seed(self._weighing.check)
        # The report compares with the large model's own opinion where right labels are known.
        known = any(row.gold_label is not None for row in self._inputs.splits.train)
        scores = {
            role: self._by_seed(lambda seed, role=role: self._weighing.scores(role, seed))
            for role in (("large", "small", "reference") if known else ())
        }
        settings = {
            "recipe": self._config.model_dump(mode="json"),
            "notes": list(self._inputs.splits.notes),
            "code": reporting.VERSION,
        }

        def work(folder: Path) -> None:
            reporting.run(self._report_inputs(weights, checks, scores), folder)

        own = (self.data, self.comparison)
        inputs = (*own, *_flat(weights), *checks.values(), *_flat(scores))
        return Stage(self._root, "report", settings, inputs, work)

    @cached_property
    def _evaluated(self) -> Mapping[str, _BySeed]:
        return {
            arm: {seed: self._arms.evaluated(arm, seed) for seed in self._config.seeds}
            for arm in self._config.arms
        }

    def _by_seed(self, make: Callable[[int], Stage | None]) -> _BySeed:
        """The stages of all seeds that there are."""
        made = {seed: make(seed) for seed in self._config.seeds}
        return {seed: stage for seed, stage in made.items() if stage is not None}

    def _report_inputs(
        self, weights: Mapping[str, _BySeed], checks: _BySeed, scores: Mapping[str, _BySeed]
    ) -> reporting.ReportInputs:
        def files(stages: _BySeed, name: str) -> dict[int, Path]:
            return {seed: stage.folder / name for seed, stage in stages.items()}

        return reporting.ReportInputs(
            name=self._config.name,
            recipe=self._config.model_dump(mode="json"),
            comparison=self.comparison.folder / "comparison.json",
            checks=files(checks, "check.json"),
            train=self.data.folder / "train.parquet",
            weights={arm: files(by, "weights.parquet") for arm, by in weights.items() if by},
            scores={
                role: {seed: s.folder for seed, s in by.items()} for role, by in scores.items()
            },
            runs={arm: files(by, "run.json") for arm, by in self._evaluated.items()},
            notes=self._inputs.splits.notes,
            headline_arm=self._config.headline,
        )


def _flat(stages: Mapping[str, _BySeed]) -> tuple[Stage, ...]:
    return tuple(stage for by_seed in stages.values() for stage in by_seed.values())


def _example_table(rows: Sequence[Example]) -> pa.Table:
    names = list(Example.__dataclass_fields__)
    schema = pa.schema([(name, pa.string()) for name in names])
    return pa.table({name: [getattr(row, name) for row in rows] for name in names}, schema=schema)
