"""Stages from the training rows to their weights: reference, scores, weights, and the check."""

from pathlib import Path
from typing import Any

from atlantis.config.labels import ArmSelection
from atlantis.disk import read_json, write_json, write_table
from atlantis.evaluation import stage as evaluation
from atlantis.pipeline.check import check_weights
from atlantis.pipeline.inputs import Inputs, digest_rows, versions
from atlantis.pipeline.scored import scoring_job
from atlantis.pipeline.tuning import Tuning
from atlantis.scoring import stage as scoring
from atlantis.selection import stage as selection
from atlantis.selection.stage import SelectionConfig
from atlantis.stages import Stage
from atlantis.store import ScoreStore
from atlantis.weighting import stage as weighting
from atlantis.weighting.schemes import Shuffled, WeightingConfig
from atlantis.weighting.weights import read_weights

_ROLES = ("large", "small", "reference")


class WeighingStages:
    """Everything that the large model is not trained for. ``root`` holds the stages' folders."""

    def __init__(self, inputs: Inputs, root: Path) -> None:
        self._inputs = inputs
        self._config = inputs.config
        self._families = inputs.families
        self._root = root

    def reference(self, seed: int, *, family: str | None = None) -> Stage | None:
        """The tuned small model of a family and seed; None where the recipe names one."""
        config, splits, families = self._config.reference, self._inputs.splits, self._families
        small = families.model("small", family)
        if small is None or families.model("reference", family) is not None:
            return None
        rows = splits.trusted if config.train_on == "trusted" else splits.train
        tuning = Tuning(self._inputs, small, rows, config.training, seed)

        def work(folder: Path) -> None:
            tuning.run(None, folder)

        name = f"reference{_suffix(family)}-seed{seed}"
        return Stage(self._root, name, tuning.settings, (), work, resumable=True)

    def scores(
        self, role: str, seed: int, *, alone: bool = False, family: str | None = None
    ) -> Stage:
        """Scores of the training rows under one model; only a reference made here has seeds.

        Args:
            role: ``large``, ``small``, ``reference``, or ``proxy`` for all three as one.
            seed: Seed of the reference.
            alone: Whether completions are scored without their prompts.
            family: Whose small model and reference; None for the large model's own.
        """
        needed = ("large", "small", "reference") if role == "proxy" else (role,)
        made_here = self.reference(seed, family=family) if "reference" in needed else None
        models = {name: self._model(name, made_here, family) for name in needed}
        config = self._config.scoring
        if alone:
            config = config.model_copy(update={"condition": "none"})
        loading, rows = self._config.models.loading, self._inputs.splits.train
        prints = {
            n: self._inputs.fingerprints[m]
            for n, m in models.items()
            if m in self._inputs.fingerprints
        }
        settings: dict[str, Any] = {
            "scoring": config.meaning,
            "loading": loading.model_dump(),
            "versions": versions(scoring.VERSION),
            "models": prints,
            "rows": digest_rows(rows),
        }

        def work(folder: Path) -> None:
            scoring_job(rows, role, models, config=config, loading=loading).run(folder)

        name = f"score-{role}" + ("" if role == "large" else _suffix(family))
        name += "-alone" if alone else ""
        name += f"-seed{seed}" if made_here else ""
        inputs = () if made_here is None else (made_here,)
        return Stage(self._root, name, settings, inputs, work, resumable=True)

    def weights(self, arm: str, seed: int) -> Stage | None:
        """The weights of an arm's rows, zero for those not selected; None where all are one."""
        weighed = self._weighed(arm, seed)
        chosen = self._config.arms[arm].select
        return weighed if chosen is None else self._selected(arm, seed, chosen, weighed)

    def _selected(self, arm: str, seed: int, chosen: ArmSelection, weighed: Stage | None) -> Stage:
        config = SelectionConfig.model_validate(chosen.model_dump(exclude={"judge"}))
        keep = weighed is not None and config.method != "weight"
        config = config.model_copy(update={"keep_weights": keep, "seed": config.seed + seed})
        given, alone = (self.scores(chosen.judge, seed, alone=a) for a in (False, True))
        settings = {"selection": config.model_dump(mode="json"), "code": selection.VERSION}

        def work(folder: Path) -> None:
            found = selection.select(
                config,
                given=ScoreStore(given.folder),
                alone=ScoreStore(alone.folder),
                weights=weighed and read_weights(weighed.folder / "weights.parquet"),
            )
            found.weights.save(folder / "weights.parquet")
            write_table(folder / "ranking.parquet", found.ranking)

        inputs = (given, alone) if weighed is None else (given, alone, weighed)
        return Stage(self._root, f"select-{arm}-seed{seed}", settings, inputs, work)

    def _weighed(self, arm: str, seed: int) -> Stage | None:
        config, family = self._config.arms[arm].weights, self._config.arms[arm].cross
        if config is None:
            return None
        config = _seeded(config, seed)
        # A scheme without models still needs a store to say which examples there are.
        needed = config.scheme.models or ("small",)
        stores = {role: self.scores(role, seed, family=family) for role in needed}
        per_example = self._config.training.loss_normaliser == "example_mean"
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
                proxy=opened.get("proxy"),
                config=config,
                normalise_for="examples" if per_example else "tokens",
                labels={row.example_id: str(row.label) for row in self._inputs.splits.train},
            ).save(folder / "weights.parquet")

        name = f"weigh-{arm}-seed{seed}"
        return Stage(self._root, name, settings, tuple(stores.values()), work)

    def check(self, seed: int) -> Stage | None:
        """Whether weighting stands a chance; None without weights or held-out rows."""
        weights = self.weights(self._config.headline, seed)
        arm = self._config.arms[self._config.headline]
        config, family = arm.weights, arm.cross
        if weights is None or config is None or not self._inputs.splits.heldout:
            return None
        made_here = self.reference(seed, family=family)
        models = {role: self._model(role, made_here, family) for role in _ROLES}
        prints = self._inputs.fingerprints
        settings = {
            "token_budget": self._config.evaluation.token_budget,
            "versions": versions(evaluation.VERSION),
            "small": prints[models["small"]],
            "reference": None if made_here else prints[models["reference"]],
            "rows": [
                digest_rows(self._inputs.splits.heldout),
                digest_rows(self._inputs.splits.train),
            ],
            "completions": self._inputs.completions,
            "seed": seed,
        }

        def work(folder: Path) -> None:
            found = check_weights(
                self._inputs,
                config,
                models=models,
                diagnostics=read_json(weights.folder / "weights.json"),
                folder=folder,
                seed=seed,
            )
            write_json(folder / "check.json", found)

        inputs = (weights,) if made_here is None else (weights, made_here)
        return Stage(self._root, f"check-seed{seed}", settings, inputs, work)

    def _model(self, role: str, made_here: Stage | None, family: str | None) -> str:
        """Name of the model in a role, or its folder where it is a reference made here."""
        name = self._families.model(role, family)
        if name is not None:
            return name
        assert made_here is not None  # only a reference has no name, and then it is made here
        return str(made_here.folder)


def _suffix(family: str | None) -> str:
    return "" if family is None else f"-{family}"


def _seeded(config: WeightingConfig, seed: int) -> WeightingConfig:
    """Another permutation for every seed of the run."""
    if not isinstance(config.scheme, Shuffled):
        return config
    scheme = config.scheme.model_copy(update={"seed": config.scheme.seed + seed})
    return config.model_copy(update={"scheme": scheme})
