"""Runs a recipe about maths problems: rewrite, train every arm, test, compare."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import trl
from rich.table import Table

from atlantis.config.maths import BASE, MathsRunConfig
from atlantis.data.demonstrations import (
    ANSWER,
    Demonstration,
    read_demonstrations,
    solved_problems,
)
from atlantis.data.maths import MathsProblem, read_maths
from atlantis.data.rendering import digest_rows
from atlantis.data.sources import open_source
from atlantis.disk import digest_json, exclusive, read_json, write_bytes, write_json
from atlantis.evaluation import maths_comparison, maths_stage
from atlantis.evaluation.maths_comparison import compare_maths
from atlantis.evaluation.maths_stage import MathsEvaluation, verifier_names
from atlantis.generation.backends import GenerationBackend, TransformersGeneration
from atlantis.generation.vllm_backend import VllmGeneration
from atlantis.models.loading import fingerprint_model
from atlantis.pipeline.inputs import versions
from atlantis.records import Row
from atlantis.report import maths_report
from atlantis.rewriting import stage as rewriting
from atlantis.rewriting.stage import RewritingJob
from atlantis.stages import Stage, plan
from atlantis.training import stage as training
from atlantis.training.config import TrainingConfig
from atlantis.verification.config import open_verifier

_ROWS = "rows.jsonl"
_REPORT_FILES = ("report.html", "report.json")


class MathsPipeline:
    """The stages of one recipe. Building it reads the data and finds the model.

    Raises:
        InputError: The data or the model of the recipe are not usable.
    """

    def __init__(self, config: MathsRunConfig, out: Path) -> None:
        self.config = config
        self.out = out
        self.notes = config.notes
        self._root = out / "stages"
        self._fingerprint = fingerprint_model(config.model, config.loading)
        self._rows = tuple(self._read_rows())
        self._benchmarks, dropped = self._read_benchmarks()
        self.data_notes = tuple(f"left out: {place}" for place in dropped)

    def terminal_table(self, comparison: Mapping[str, Any]) -> Table:
        """The comparison that `run` returns, for the command line."""
        return maths_report.terminal_table(comparison)

    def run(self, announce: Callable[[Stage], None]) -> dict[str, Any]:
        """Do whatever is not there yet, and return the comparison of the arms.

        Raises:
            ResumableError: Another process works in the same folder.
        """
        with exclusive(self.out):
            for stage, then in self._targets():
                stage.make(announce)
                then()
        return read_json(self.comparison.folder / "comparison.json")

    def plan(self) -> list[tuple[Stage, str]]:
        """Every stage in the order of the work, and its state; see `atlantis.stages.plan`."""
        return plan([stage for stage, _ in self._targets()])

    def _targets(self) -> Iterator[tuple[Stage, Callable[[], None]]]:
        """What a run is for, in the order of the work, and what to do once it is there."""
        for seed in self.config.seeds:
            for arm in (BASE, *self.config.arms):
                yield self.evaluated(arm, seed), partial(self._discard, arm, seed)
        yield self.report, self._publish

    def rewritten(self, seed: int) -> Stage:
        """The expert's solutions in the model's own words."""
        config = self.config.rewriting.model_copy(update={"seed": seed})
        backend = self._backend(self.config.model)
        settings = {
            "rewriting": config.settings,
            "verifier": open_verifier(config.verifier).name,
            "rows": self._digest_of_demonstrations,
            "backend": self._backend_fingerprint,
            "code": rewriting.VERSION,
        }

        def work(folder: Path) -> None:
            RewritingJob(self._rows, backend, self.config.model, config).run(folder / _ROWS)

        return Stage(self._root, f"rewrite-seed{seed}", settings, (), work, resumable=True)

    def trained(self, arm: str, seed: int) -> Stage:
        """The model fine-tuned as the arm says."""
        config, source = self._training(arm), self._source(arm, seed)
        # Every arm takes the steps that the expert's rows need.
        num_steps = config.num_steps(len(self._rows))
        settings = {
            "model": self._fingerprint,
            "training": config.settings,
            "loading": self.config.loading.model_dump(),
            "max_length": self.config.max_length,
            "seed": seed,
            "steps": num_steps,
            "rows": digest_rows(self._expert_rows).source if source is None else None,
            "versions": versions(training.VERSION) | {"trl": trl.__version__},
        }

        def work(folder: Path) -> None:
            rows = self._expert_rows if source is None else _rows_of(source.folder / _ROWS)
            training.run(
                rows,
                None,
                self.config.model,
                folder,
                config=config,
                loading=self.config.loading,
                max_length=self.config.max_length,
                truncation="keep_prefix",
                seed=seed,
                num_steps=num_steps,
            )

        inputs = () if source is None else (source,)
        return Stage(self._root, f"train-{arm}-seed{seed}", settings, inputs, work, resumable=True)

    def evaluated(self, arm: str, seed: int) -> Stage:
        """Samples and metrics of one checkpoint, or of the model as it is, on the benchmarks."""
        trained = None if arm == BASE else self.trained(arm, seed)
        config = self.config.evaluation.model_copy(update={"seed": seed})
        settings = {
            "evaluation": config.model_dump(mode="json"),
            "verifiers": verifier_names(config),
            "backend": self._backend_fingerprint,  # a checkpoint's differs in its weights only
            "problems": digest_json(
                {name: [asdict(p) for p in rows] for name, rows in self._benchmarks.items()}
            ),
            "versions": versions(maths_stage.VERSION),
        }

        def work(folder: Path) -> None:
            model = self.config.model if trained is None else str(trained.folder)
            MathsEvaluation(self._benchmarks, self._backend(model), config).run(folder)
            shutil.rmtree(folder / "samples")
            if trained is not None:  # the checkpoint may be discarded
                shutil.copyfile(trained.folder / "run.json", folder / "run.json")

        inputs = () if trained is None else (trained,)
        return Stage(
            self._root, f"evaluate-{arm}-seed{seed}", settings, inputs, work, resumable=True
        )

    @cached_property
    def comparison(self) -> Stage:
        """All arms side by side, with intervals and paired differences."""
        evaluated = {
            arm: {seed: self.evaluated(arm, seed) for seed in self.config.seeds}
            for arm in (BASE, *self.config.arms)
        }
        evaluation = self.config.evaluation
        settings = {
            "baseline": self.config.baseline,
            "num_bootstrap": evaluation.num_bootstrap,
            "code": maths_comparison.VERSION,
        }

        def work(folder: Path) -> None:
            found = {
                grader: compare_maths(
                    {
                        arm: {seed: s.folder / "problems.parquet" for seed, s in by_seed.items()}
                        for arm, by_seed in evaluated.items()
                    },
                    baseline=self.config.baseline,
                    grader=grader,
                    num_replicates=evaluation.num_bootstrap,
                )
                for grader in evaluation.graders
            }
            write_json(folder / "comparison.json", {"headline": evaluation.graders[0]} | found)

        inputs = tuple(stage for by_seed in evaluated.values() for stage in by_seed.values())
        return Stage(self._root, "compare", settings, inputs, work)

    @cached_property
    def report(self) -> Stage:
        """The page and its figures as JSON."""
        config = self.config
        seeds = config.seeds if config.needs_rewriting else ()
        rewrites = {seed: self.rewritten(seed) for seed in seeds}
        settings = {"recipe": config.model_dump(mode="json"), "code": maths_report.VERSION}

        def work(folder: Path) -> None:
            document = maths_report.build(
                name=config.name,
                recipe=config.model_dump(mode="json"),
                headline_arm=config.headline,
                comparison=read_json(self.comparison.folder / "comparison.json"),
                rewriting={
                    seed: read_json(stage.folder / f"{_ROWS}.report.json")
                    for seed, stage in rewrites.items()
                },
                notes=self.data_notes,
            )
            write_json(folder / "report.json", document)
            write_bytes(folder / "report.html", maths_report.render(document).encode())

        return Stage(self._root, "report", settings, (self.comparison, *rewrites.values()), work)

    def _source(self, arm: str, seed: int) -> Stage | None:
        return self.rewritten(seed) if self.config.arms[arm].rows == "rewritten" else None

    def _training(self, arm: str) -> TrainingConfig:
        """Hyperparameters with the arm's own loss."""
        config, loss = self.config.training, self.config.arms[arm].loss
        return config if loss is None else config.model_copy(update={"loss": loss})

    def _backend(self, model: str) -> GenerationBackend:
        loading, generation = self.config.loading, self.config.generation
        if generation.backend == "vllm":
            return VllmGeneration(model, loading)
        return TransformersGeneration(model, loading, batch_size=generation.batch_size)

    @cached_property
    def _backend_fingerprint(self) -> dict[str, Any]:
        return self._backend(self.config.model).fingerprint()

    def _discard(self, arm: str, seed: int) -> None:
        """Delete a checkpoint that the recipe does not keep, once its samples are graded."""
        keep = self.config.keep_models
        if arm == BASE or keep == "all" or (keep == "headline" and arm == self.config.headline):
            return
        self.trained(arm, seed).discard()

    def _publish(self) -> None:
        """Put the report where the user looks for it."""
        for name in _REPORT_FILES:
            write_bytes(self.out / name, (self.report.folder / name).read_bytes())

    @cached_property
    def _expert_rows(self) -> tuple[Row, ...]:
        return tuple(row.completed(row.expert) for row in self._rows)

    @cached_property
    def _digest_of_demonstrations(self) -> str:
        answers = [row.answer for row in self._rows]
        return digest_json([digest_rows(self._expert_rows).source, answers])

    def _read_rows(self) -> Iterator[Demonstration]:
        data = self.config.data
        path = data.root / data.train
        if data.prompt is not None:
            return solved_problems(path, prompt=data.prompt, as_chat=data.chat)
        return read_demonstrations(open_source(str(path), also=[ANSWER]))

    def _read_benchmarks(self) -> tuple[dict[str, tuple[MathsProblem, ...]], list[str]]:
        found: dict[str, tuple[MathsProblem, ...]] = {}
        data, dropped = self.config.data, list[str]()
        if data.prompt is not None:
            dropped += read_maths(data.root / data.train).dropped
        for name, path in data.benchmarks.items():
            read = read_maths(data.root / path)
            found[name] = read.rows
            dropped += read.dropped
        return found, dropped


def _rows_of(path: Path) -> list[Row]:
    return list(open_source(str(path)))
