"""Stages of the arms: the large model trained one way, and tested."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atlantis.disk import read_json, write_bytes
from atlantis.evaluation import stage as evaluation
from atlantis.pipeline.inputs import Inputs, digest_rows, versions
from atlantis.pipeline.tuning import Tuning
from atlantis.pipeline.weighing import WeighingStages
from atlantis.stages import Stage
from atlantis.training.config import TrainingConfig
from atlantis.training.losses import BASE, REFERENCE
from atlantis.training.model_card import model_card
from atlantis.weighting.diagnosis import refuse_uneven
from atlantis.weighting.weights import read_weights

_SCORED = {BASE: "large", REFERENCE: "reference"}
"""The model behind each column of log-probabilities that a loss may read."""


class ArmStages:
    """Training and testing of every arm and seed.

    Args:
        inputs: Data and models of the recipe.
        root: Holds the stages' folders.
        weighing: Where the arms' weights come from.
        force: Train with weights that leave almost no data, too.
    """

    def __init__(
        self, inputs: Inputs, root: Path, weighing: WeighingStages, *, force: bool
    ) -> None:
        self._inputs = inputs
        self._config = inputs.config
        self._root = root
        self._weighing = weighing
        self._force = force

    def trained(self, arm: str, seed: int) -> Stage:
        """The large model fine-tuned as the arm says."""
        weights = self._weighing.weights(arm, seed)
        config, large = self._training(arm), self._config.models.large
        rows = self._inputs.rows(self._config.arms[arm].rows)
        # Every arm takes the steps that the noisy rows need; a selection those of its own rows.
        is_selection = self._config.arms[arm].select is not None
        steps = None if is_selection else config.num_steps(len(self._inputs.splits.train))
        scores = {
            column: self._weighing.scores(_SCORED[column], seed) for column in config.loss.columns
        }
        tuning = Tuning(self._inputs, large, rows, config, seed, steps, scores)

        def work(folder: Path) -> None:
            if weights is None:
                tuning.run(None, folder)
            else:
                made = read_json(weights.folder / "weights.json")
                tuning.run(self._usable_weights(weights), folder, weighing=made)

        inputs = (*(() if weights is None else (weights,)), *scores.values())
        name = f"train-{arm}-seed{seed}"
        settings = tuning.settings | {"steps": steps}
        return Stage(self._root, name, settings, inputs, work, resumable=True)

    def evaluated(self, arm: str, seed: int) -> Stage:
        """Predictions and metrics of one checkpoint on the test rows."""
        trained, splits = self.trained(arm, seed), self._inputs.splits
        settings = {
            "evaluation": self._config.evaluation.model_dump(exclude={"num_bootstrap"}),
            "versions": versions(evaluation.VERSION),
            "rows": digest_rows(splits.test),
            "completions": self._inputs.completions,
        }

        def work(folder: Path) -> None:
            evaluation.run(
                splits.test,
                splits.labels,
                self._inputs.completions,
                str(trained.folder),
                folder,
                config=self._config.evaluation,
                loading=self._config.models.loading,
                max_length=self._config.scoring.max_length,
            )
            # The checkpoint may be discarded; what was trained on stays.
            shutil.copyfile(trained.folder / "run.json", folder / "run.json")

        return Stage(self._root, f"evaluate-{arm}-seed{seed}", settings, (trained,), work)

    def describe(self, arm: str, seed: int, comparison: Mapping[str, Any]) -> None:
        """Write what the tests gave into the model card of a checkpoint that was kept."""
        trained, weights = self.trained(arm, seed), self._weighing.weights(arm, seed)
        if not trained.is_done:
            return
        place = list(comparison["seeds"]).index(seed)
        results = {
            f"{name}, {metric['n']} test rows": f"{metric['per_seed'][place]:.4f}"
            for name, metric in comparison["arms"][arm]["metrics"].items()
        }
        made = None
        if weights is not None and weights.is_done:
            made = read_json(weights.folder / "weights.json")
        record = read_json(trained.folder / "run.json")
        base = self._config.models.large
        card = model_card(base, record, weighing=made, results=results)
        write_bytes(trained.folder / "README.md", card.encode())

    def discard(self, arm: str, seed: int) -> None:
        """Delete a checkpoint that the recipe does not keep, once its predictions are there."""
        keep = self._config.keep_models
        if keep == "all" or (keep == "headline" and arm == self._config.headline):
            return
        self.trained(arm, seed).discard()

    def _training(self, arm: str) -> TrainingConfig:
        """Hyperparameters with the arm's own loss."""
        config, loss = self._config.training, self._config.arms[arm].loss
        return config if loss is None else config.model_copy(update={"loss": loss})

    def _usable_weights(self, stage: Stage) -> dict[str, float]:
        """Weights by id of the rows that could be scored."""
        weights = read_weights(stage.folder / "weights.parquet")
        if not self._force:
            refuse_uneven(weights.diagnostics, where=stage.name)
        return {
            example_id: weight
            for example_id, weight in zip(weights.example_id, weights.weight, strict=True)
            if weight is not None
        }
