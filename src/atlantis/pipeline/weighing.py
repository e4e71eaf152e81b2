"""Stages from the training rows to their weights: reference, scores, weights, and the check."""

from pathlib import Path
from typing import Any

from atlantis.disk import read_json, write_json
from atlantis.evaluation import stage as evaluation
from atlantis.pipeline.check import check_weights
from atlantis.pipeline.inputs import Inputs, digest_rows, versions
from atlantis.pipeline.tuning import Tuning
from atlantis.scoring import stage as scoring
from atlantis.stages import Stage
from atlantis.store import ScoreStore
from atlantis.weighting import stage as weighting
from atlantis.weighting.schemes import Shuffled, WeightingConfig

_ROLES = ("large", "small", "reference")


class WeighingStages:
    """Everything that the large model is not trained for. ``root`` holds the stages' folders."""

    def __init__(self, inputs: Inputs, root: Path) -> None:
        self._inputs = inputs
        self._config = inputs.config
        self._root = root

    def reference(self, seed: int) -> Stage | None:
        """The tuned small model of one seed; None where the recipe names one."""
        config, splits = self._config.reference, self._inputs.splits
        if config.model is not None:
            return None
        rows = splits.trusted if config.train_on == "trusted" else splits.train
        tuning = Tuning(self._inputs, self._config.models.small, rows, config.training, seed)

        def work(folder: Path) -> None:
            tuning.run(None, folder)

        name = f"reference-seed{seed}"
        return Stage(self._root, name, tuning.settings, (), work, resumable=True)

    def scores(self, role: str, seed: int) -> Stage:
        """Scores of the training rows under one model; only a reference made here has seeds."""
        made_here = self.reference(seed) if role == "reference" else None
        model = self._model(role, made_here)
        settings: dict[str, Any] = {
            "scoring": self._config.scoring.meaning,
            "loading": self._config.models.loading.model_dump(),
            "versions": versions(scoring.VERSION),
            "model": None if made_here else self._inputs.fingerprints[model],
            "rows": digest_rows(self._inputs.splits.train),
        }

        def work(folder: Path) -> None:
            scoring.run(
                self._inputs.splits.train,
                model,
                folder,
                config=self._config.scoring,
                loading=self._config.models.loading,
            )

        name = f"score-{role}-seed{seed}" if made_here else f"score-{role}"
        inputs = () if made_here is None else (made_here,)
        return Stage(self._root, name, settings, inputs, work, resumable=True)

    def weights(self, arm: str, seed: int) -> Stage | None:
        """The weights of an arm's rows; None where all are one."""
        config = self._config.arms[arm].weights
        if config is None:
            return None
        config = _seeded(config, seed)
        # A scheme without models still needs a store to say which examples there are.
        stores = {role: self.scores(role, seed) for role in config.scheme.models or ("small",)}
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
                config=config,
                normalise_for="examples" if per_example else "tokens",
                labels={row.example_id: str(row.label) for row in self._inputs.splits.train},
            ).save(folder / "weights.parquet")

        name = f"weigh-{arm}-seed{seed}"
        return Stage(self._root, name, settings, tuple(stores.values()), work)

    def check(self, seed: int) -> Stage | None:
        """Whether weighting stands a chance; None without weights or held-out rows."""
        weights = self.weights(self._config.headline, seed)
        config = self._config.arms[self._config.headline].weights
        if weights is None or config is None or not self._inputs.splits.heldout:
            return None
        made_here = self.reference(seed)
        models = {role: self._model(role, made_here) for role in _ROLES}
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

    def _model(self, role: str, made_here: Stage | None) -> str:
        """Name of the model in a role, or its folder where it is a reference made here."""
        if role != "reference":
            return self._config.models.large if role == "large" else self._config.models.small
        if made_here is not None:
            return str(made_here.folder)
        assert self._config.reference.model is not None  # else it is made here
        return self._config.reference.model


def _seeded(config: WeightingConfig, seed: int) -> WeightingConfig:
    """Another permutation for every seed of the run."""
    if not isinstance(config.scheme, Shuffled):
        return config
    scheme = config.scheme.model_copy(update={"seed": config.scheme.seed + seed})
    return config.model_copy(update={"scheme": scheme})
