"""The whole chain as cached stages: data, reference, scores, weights, arms, comparison, report."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import transformers
import trl
from transformers import PreTrainedTokenizerBase

from atlantis.config import RunConfig
from atlantis.data.splits import load_splits
from atlantis.data.tokenization import tokenize
from atlantis.errors import ConfigError, DataError
from atlantis.evaluation import stage as evaluation
from atlantis.evaluation.arms import compare_arms
from atlantis.evaluation.chance import ask_reference
from atlantis.evaluation.separation import probe_rows, separation
from atlantis.models.loading import check_decoder_only, fingerprint_model, load_tokenizer
from atlantis.records import Example
from atlantis.report import stage as reporting
from atlantis.scoring import stage as scoring
from atlantis.stages import Stage, in_order
from atlantis.store import (
    ScoreStore,
    digest_json,
    exclusive,
    read_json,
    write_bytes,
    write_json,
    write_table,
)
from atlantis.training import stage as training
from atlantis.weighting import stage as weighting
from atlantis.weighting.schemes import Shuffled, WeightingConfig

_CHECKED_TRAINING_ROWS = 1000
"""Training rows that the check before training asks the reference about."""
_MOST_LABELS = 200
_REPORT_FILES = ("report.html", "report.json")


class Pipeline:
    """The stages of one recipe. Building it validates the data and finds the models.

    Raises:
        InputError: The data or the models of the recipe are not usable.
    """

    def __init__(self, config: RunConfig, out: Path, *, force: bool = False) -> None:
        self.config = config
        self.out = out
        self._force = force
        self.splits = load_splits(config.data)
        self._completions = {
            label: config.data.completion.format(label=label) for label in self.splits.labels.names
        }
        if len(self.splits.labels.names) > _MOST_LABELS:
            raise ConfigError(
                f"data: {len(self.splits.labels.names)} different completions; a recipe compares "
                f"arms on a closed set of at most {_MOST_LABELS} labels"
            )
        names = [config.models.large, config.models.small, config.reference.model]
        self._fingerprints = {name: fingerprint_model(name) for name in names if name is not None}
        for name in self._fingerprints:
            check_decoder_only(name)
        self._refuse_long_test_rows()

    def run(self, announce: Callable[[Stage], None]) -> dict[str, Any]:
        """Do whatever is not there yet, and return the comparison of the arms.

        Raises:
            ConfigError: The check before training says that the weights will do harm.
            ResumableError: Another process works in the same folder.
        """
        with exclusive(self.out):
            for seed in self.config.seeds:
                check = self.check(seed)
                if check is not None:
                    self._refuse_harm(read_json(check.make(announce) / "check.json"), seed)
            for seed in self.config.seeds:
                for arm in self.config.arms:
                    self.evaluated(arm, seed).make(announce)
                    self._discard(arm, seed)
            folder = self.report.make(announce)
            for name in _REPORT_FILES:
                write_bytes(self.out / name, (folder / name).read_bytes())
        return read_json(self.comparison.folder / "comparison.json")

    def plan(self) -> list[tuple[Stage, str]]:
        """Every stage in the order of the work: ``cached``, ``to do`` or ``unneeded``.

        A stage is unneeded when it is not there but nothing that is still to do reads it, such as
        the checkpoint of an arm whose predictions are there.
        """
        arms = [(arm, seed) for seed in self.config.seeds for arm in self.config.arms]
        checks = [check for seed in self.config.seeds if (check := self.check(seed)) is not None]
        targets = [*checks, *(self.evaluated(*arm) for arm in arms), self.report]
        pending = {s.digest for s in in_order(targets, skip=lambda stage: stage.is_done)}

        def state(stage: Stage) -> str:
            if stage.is_done:
                return "cached"
            return "to do" if stage.digest in pending else "unneeded"

        return [(stage, state(stage)) for stage in in_order(targets)]

    @cached_property
    def data(self) -> Stage:
        """Rows of all splits, as Parquet, and what was left out of them."""
        parts = {
            name: getattr(self.splits, name) for name in ("train", "trusted", "heldout", "test")
        }
        rows = {name: _digest(part) for name, part in parts.items()}
        labels = asdict(self.splits.labels)

        def work(folder: Path) -> None:
            for name, part in parts.items():
                write_table(folder / f"{name}.parquet", _example_table(part))
            notes = list(self.splits.notes)
            write_json(folder / "data.json", {"labels": labels, "notes": notes})

        return self._stage("data", {"rows": rows, "labels": labels}, (), work)

    def reference(self, seed: int) -> Stage | None:
        """The tuned small model of one seed; None where the recipe names one."""
        config = self.config.reference
        if config.model is not None:
            return None
        rows = self.splits.trusted if config.train_on == "trusted" else self.splits.train
        small = self.config.models.small
        settings = self._training_settings(small, config.training, seed, rows)

        def work(folder: Path) -> None:
            self._fine_tune(rows, None, small, folder, config=config.training, seed=seed)

        return self._stage(f"reference-seed{seed}", settings, (), work)

    def scores(self, role: str, seed: int) -> Stage:
        """Scores of the training rows under one model; only a reference made here has seeds."""
        made_here = self.reference(seed) if role == "reference" else None
        settings: dict[str, Any] = {
            "scoring": self.config.scoring.model_dump(),
            "loading": self.config.models.loading.model_dump(),
            "versions": _versions(scoring.VERSION),
            "model": None if made_here else self._fingerprints[self._model(role)],
            "rows": _digest(self.splits.train),
        }

        def work(folder: Path) -> None:
            scoring.run(
                self.splits.train,
                str(made_here.folder) if made_here else self._model(role),
                folder,
                config=self.config.scoring,
                loading=self.config.models.loading,
            )

        if made_here is None:
            return self._stage(f"score-{role}", settings, (), work, resumable=True)
        name = f"score-{role}-seed{seed}"
        return self._stage(name, settings, (made_here,), work, resumable=True)

    def weights(self, arm: str, seed: int) -> Stage | None:
        """The weights of an arm's rows; None where all are one."""
        config = self.config.arms[arm].weights
        if config is None:
            return None
        config = _seeded(config, seed)
        # A scheme without models still needs a store to say which examples there are.
        stores = {role: self.scores(role, seed) for role in config.scheme.models or ("small",)}
        per_example = self.config.training.loss_normaliser == "example_mean"
        settings = {
            "weighting": config.model_dump(mode="json"),
            "per_example": per_example,
            "code": weighting.VERSION,
        }

        def work(folder: Path) -> None:
            opened = {role: ScoreStore(stage.folder) for role, stage in stores.items()}
            weighting.weigh(
                large=opened.get("large"),
                reference=opened.get("reference"),
                small=opened.get("small"),
                config=config,
                normalise_for="examples" if per_example else "tokens",
                labels={row.example_id: str(row.label) for row in self.splits.train},
            ).save(folder / "weights.parquet")

        inputs = tuple(stores.values())
        return self._stage(f"weigh-{arm}-seed{seed}", settings, inputs, work)

    def check(self, seed: int) -> Stage | None:
        """Whether weighting stands a chance; None without weights or held-out rows."""
        weights = self.weights(self.config.headline, seed)
        if weights is None or not self.splits.heldout:
            return None
        made_here = self.reference(seed)
        small = self.config.models.small
        settings = {
            "token_budget": self.config.evaluation.token_budget,
            "versions": _versions(evaluation.VERSION),
            "small": self._fingerprints[small],
            "reference": None if made_here else self._fingerprints[self._model("reference")],
            "rows": [_digest(self.splits.heldout), _digest(self.splits.train)],
            "completions": self._completions,
            "seed": seed,
        }

        def work(folder: Path) -> None:
            reference = str(made_here.folder) if made_here else self._model("reference")
            separation = self._separation(reference, folder, seed)
            diagnostics = read_json(weights.folder / "weights.json")
            found = self._chance(reference, diagnostics, separation)
            write_json(folder / "check.json", found)

        inputs = (weights,) if made_here is None else (weights, made_here)
        return self._stage(f"check-seed{seed}", settings, inputs, work)

    def trained(self, arm: str, seed: int) -> Stage:
        """The large model fine-tuned as the arm says."""
        weights = self.weights(arm, seed)
        large, config = self.config.models.large, self.config.training
        rows = self._rows(self.config.arms[arm].rows)
        # Every arm takes the steps that the noisy rows need.
        steps = config.num_steps(len(self.splits.train))
        settings = self._training_settings(large, config, seed, rows) | {"steps": steps}

        def work(folder: Path) -> None:
            by_id = None if weights is None else self._usable_weights(weights)
            self._fine_tune(rows, by_id, large, folder, config=config, seed=seed, num_steps=steps)

        inputs = () if weights is None else (weights,)
        return self._stage(f"train-{arm}-seed{seed}", settings, inputs, work)

    def evaluated(self, arm: str, seed: int) -> Stage:
        """Predictions and metrics of one checkpoint on the test rows."""
        trained = self.trained(arm, seed)
        settings = {
            "evaluation": self.config.evaluation.model_dump(exclude={"num_bootstrap"}),
            "versions": _versions(evaluation.VERSION),
            "rows": _digest(self.splits.test),
            "completions": self._completions,
        }

        def work(folder: Path) -> None:
            evaluation.run(
                self.splits.test,
                self.splits.labels,
                self._completions,
                str(trained.folder),
                folder,
                config=self.config.evaluation,
                loading=self.config.models.loading,
                max_length=self.config.scoring.max_length,
            )
            # The checkpoint may be discarded; what was trained on stays.
            shutil.copyfile(trained.folder / "run.json", folder / "run.json")

        return self._stage(f"evaluate-{arm}-seed{seed}", settings, (trained,), work)

    @cached_property
    def comparison(self) -> Stage:
        """All arms side by side, with intervals and paired differences."""
        evaluated = {
            arm: {seed: self.evaluated(arm, seed) for seed in self.config.seeds}
            for arm in self.config.arms
        }
        settings = {
            "baseline": self.config.baseline,
            "control": self.config.control,
            "num_bootstrap": self.config.evaluation.num_bootstrap,
        }

        def work(folder: Path) -> None:
            comparison = compare_arms(
                {arm: {seed: s.folder for seed, s in by.items()} for arm, by in evaluated.items()},
                train=self.splits.train,
                test=self.splits.test,
                labels=self.splits.labels,
                baseline=self.config.baseline,
                control=self.config.control,
                num_replicates=self.config.evaluation.num_bootstrap,
            )
            write_json(folder / "comparison.json", comparison)

        inputs = tuple(stage for by_seed in evaluated.values() for stage in by_seed.values())
        return self._stage("compare", settings, inputs, work)

    @cached_property
    def report(self) -> Stage:
        """The page and its figures as JSON."""
        weights = {
            arm: {
                seed: stage
                for seed in self.config.seeds
                if (stage := self.weights(arm, seed)) is not None
            }
            for arm in self.config.arms
        }
        checks = {
            seed: check for seed in self.config.seeds if (check := self.check(seed)) is not None
        }
        # The report compares with the large model's own opinion where right labels are known.
        known = any(row.gold_label is not None for row in self.splits.train)
        roles = ("large", "small", "reference") if known else ()
        scores = {
            role: {seed: self.scores(role, seed) for seed in self.config.seeds} for role in roles
        }

        def work(folder: Path) -> None:
            reporting.run(self._report_inputs(weights, checks, scores), folder)

        inputs = (
            self.data,
            self.comparison,
            *(stage for by_seed in weights.values() for stage in by_seed.values()),
            *checks.values(),
            *(stage for by_seed in scores.values() for stage in by_seed.values()),
        )
        settings = {
            "recipe": self.config.model_dump(mode="json"),
            "notes": list(self.splits.notes),
            "code": reporting.VERSION,
        }
        return self._stage("report", settings, inputs, work)

    def _report_inputs(
        self,
        weights: Mapping[str, Mapping[int, Stage]],
        checks: Mapping[int, Stage],
        scores: Mapping[str, Mapping[int, Stage]],
    ) -> reporting.ReportInputs:
        def files(stages: Mapping[int, Stage], name: str) -> dict[int, Path]:
            return {seed: stage.folder / name for seed, stage in stages.items()}

        runs = {
            arm: {seed: self.evaluated(arm, seed) for seed in self.config.seeds}
            for arm in self.config.arms
        }
        return reporting.ReportInputs(
            name=self.config.name,
            recipe=self.config.model_dump(mode="json"),
            comparison=self.comparison.folder / "comparison.json",
            checks=files(checks, "check.json"),
            train=self.data.folder / "train.parquet",
            weights={arm: files(by, "weights.parquet") for arm, by in weights.items() if by},
            scores={
                role: {seed: s.folder for seed, s in by.items()} for role, by in scores.items()
            },
            runs={arm: files(by, "run.json") for arm, by in runs.items()},
            notes=self.splits.notes,
            headline_arm=self.config.headline,
        )

    def _stage(
        self,
        name: str,
        settings: Mapping[str, Any],
        inputs: tuple[Stage, ...],
        work: Callable[[Path], None],
        *,
        resumable: bool = False,
    ) -> Stage:
        return Stage(self.out / "stages", name, settings, inputs, work, resumable)

    def _model(self, role: str) -> str:
        name = {
            "large": self.config.models.large,
            "small": self.config.models.small,
            "reference": self.config.reference.model,
        }[role]
        assert name is not None  # a reference without a name is made here
        return name

    def _training_settings(
        self, model: str, config: training.TrainingConfig, seed: int, rows: tuple[Example, ...]
    ) -> dict[str, Any]:
        return {
            "model": self._fingerprints[model],
            "training": config.model_dump(mode="json"),
            "loading": self.config.models.loading.model_dump(),
            "max_length": self.config.scoring.max_length,
            "seed": seed,
            "rows": _digest(rows),
            "versions": _versions(training.VERSION) | {"trl": trl.__version__},
        }

    def _fine_tune(
        self,
        rows: Sequence[Example],
        weights: Mapping[str, float] | None,
        model: str,
        folder: Path,
        *,
        config: training.TrainingConfig,
        seed: int,
        num_steps: int | None = None,
    ) -> None:
        if weights is not None:
            rows = [row for row in rows if row.example_id in weights]
        training.run(
            rows,
            weights,
            model,
            folder,
            config=config,
            loading=self.config.models.loading,
            max_length=self.config.scoring.max_length,
            seed=seed,
            num_steps=num_steps,
        )

    def _rows(self, which: str) -> tuple[Example, ...]:
        if which == "train+trusted":
            return (*self.splits.train, *self.splits.trusted)
        if which == "train":
            return self.splits.train
        right = tuple(row for row in self.splits.train if row.label == row.gold_label)
        if not right:
            raise ConfigError("rows: right needs true labels of the training rows; drop that arm")
        return right

    def _usable_weights(self, stage: Stage) -> dict[str, float]:
        """Weights by id of the rows that could be scored."""
        weights = weighting.read_weights(stage.folder / "weights.parquet")
        if not self._force:
            weighting.refuse_uneven(weights.diagnostics, where=stage.name)
        return {
            example_id: weight
            for example_id, weight in zip(weights.example_id, weights.weight, strict=True)
            if weight is not None
        }

    def _separation(self, reference: str, folder: Path, seed: int) -> dict[str, Any] | None:
        """How far the headline arm's weights tell right labels from wrong on held-out rows."""
        config = self.config.arms[self.config.headline].weights
        assert config is not None  # there is no check without weights
        models = {
            "large": self.config.models.large,
            "small": self.config.models.small,
            "reference": reference,
        }
        rows = probe_rows(self.splits.heldout, self.splits.train, self._completions, seed=seed)
        if not rows or not config.scheme.models:
            return None
        stores = {
            role: scoring.run(
                rows,
                models[role],
                folder / f"probe-{role}",
                config=self.config.scoring,
                loading=self.config.models.loading,
            )
            for role in config.scheme.models
        }
        plain = config.model_copy(update={"normalise_within": "none", "min_ess_fraction": None})
        weights = weighting.weigh(
            large=stores.get("large"),
            reference=stores.get("reference"),
            small=stores.get("small"),
            config=plain,
        )
        by_id = dict(zip(weights.example_id, weights.log_weight, strict=True))
        known = {i: value for i, value in by_id.items() if value is not None}
        within_label = config.normalise_within == "label"
        return separation(rows, known, within_label=within_label, seed=seed)

    def _chance(
        self,
        reference: str,
        diagnostics: Mapping[str, Any],
        separation: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        step = max(1, len(self.splits.train) // _CHECKED_TRAINING_ROWS)
        sample = self.splits.train[::step]
        too_long = set(self._too_long(sample))

        def predict(rows: Sequence[Example], model: str) -> dict[str, Any]:
            return evaluation.predict(
                rows,
                self.splits.labels,
                self._completions,
                model,
                config=self.config.evaluation.model_copy(update={"generate": False}),
                loading=self.config.models.loading,
                max_length=self.config.scoring.max_length,
            )

        return ask_reference(
            predict,
            heldout=self.splits.heldout,
            train=[row for row in sample if row.example_id not in too_long],
            labels=self.splits.labels,
            reference=reference,
            small=self.config.models.small,
            diagnostics=diagnostics,
            separation=separation,
        )

    def _refuse_long_test_rows(self) -> None:
        """Every test row has to be answered, so that one over the limit is found at once."""
        too_long = self._too_long((*self.splits.test, *self.splits.heldout))
        if too_long:
            raise DataError(
                f"test row {too_long[0]!r} and {len(too_long) - 1} more are longer than "
                f"scoring.max_length {self.config.scoring.max_length} with their longest label; "
                "raise it"
            )

    def _too_long(self, rows: Sequence[Example]) -> list[str]:
        """Ids of rows that no label fits after."""
        longest = max(
            self._completions.values(), key=lambda text: len(self._tokenizer(text).input_ids)
        )
        pairs = [Example(row.example_id, row.prompt, longest) for row in rows]
        limit = self.config.scoring.max_length
        return [
            row.example_id
            for row in tokenize(pairs, self._tokenizer, max_length=limit)
            if row.status == "too_long"
        ]

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.config.models.large)

    def _refuse_harm(self, check: Mapping[str, Any], seed: int) -> None:
        if check["verdict"] == "harm" and not self._force:
            raise ConfigError(
                f"seed {seed}: {check['sentence']} Training with these weights is likely to do "
                "harm; use a better reference, or --force to train anyway"
            )

    def _discard(self, arm: str, seed: int) -> None:
        """Delete a checkpoint that the recipe does not keep, once its predictions are there."""
        keep = self.config.keep_models
        if keep == "all" or (keep == "headline" and arm == self.config.headline):
            return
        self.trained(arm, seed).discard()


def _seeded(config: WeightingConfig, seed: int) -> WeightingConfig:
    """Another permutation for every seed of the run."""
    if not isinstance(config.scheme, Shuffled):
        return config
    scheme = config.scheme.model_copy(update={"seed": config.scheme.seed + seed})
    return config.model_copy(update={"scheme": scheme})


@lru_cache(maxsize=32)  # many stages depend on the same rows
def _digest(rows: tuple[Example, ...]) -> str:
    return digest_json([asdict(row) for row in rows])


def _versions(code: int) -> dict[str, Any]:
    return {
        "code": code,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _example_table(rows: Sequence[Example]) -> pa.Table:
    names = list(Example.__dataclass_fields__)
    schema = pa.schema([(name, pa.string()) for name in names])
    return pa.table({name: [getattr(row, name) for row in rows] for name in names}, schema=schema)
