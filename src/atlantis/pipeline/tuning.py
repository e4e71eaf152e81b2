"""Fine-tuning as a stage does it: the reference, and the large model of every arm."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import trl

from atlantis.pipeline.inputs import Inputs, digest_rows, versions
from atlantis.records import Example
from atlantis.stages import Stage
from atlantis.store import ScoreStore
from atlantis.training import stage as training
from atlantis.training.config import TrainingConfig


class Tuning(NamedTuple):
    """One fine-tuning, before its weights are there."""

    inputs: Inputs
    model: str
    rows: tuple[Example, ...]
    config: TrainingConfig
    seed: int
    num_steps: int | None = None
    """Optimizer steps; by default those of ``config`` on the rows."""
    scores: Mapping[str, Stage] = {}
    """Scores of the rows by the column that the loss reads them as."""

    @property
    def settings(self) -> dict[str, Any]:
        """What the checkpoint depends on, besides the weights and the number of steps."""
        recipe = self.inputs.config
        return {
            "model": self.inputs.fingerprints[self.model],
            "training": self.config.settings,
            "loading": recipe.models.loading.model_dump(),
            "max_length": recipe.scoring.max_length,
            "truncation": recipe.scoring.truncation,
            "seed": self.seed,
            "rows": digest_rows(self.rows),
            "versions": versions(training.VERSION) | {"trl": trl.__version__},
        }

    def run(
        self,
        weights: Mapping[str, float] | None,
        folder: Path,
        *,
        weighing: Mapping[str, Any] | None = None,
    ) -> None:
        """Train into ``folder`` on the rows that have a weight; without weights, on all."""
        rows = self.rows
        if weights is not None:
            rows = [row for row in rows if row.example_id in weights]
        training.run(
            rows,
            weights,
            self.model,
            folder,
            config=self.config,
            loading=self.inputs.config.models.loading,
            max_length=self.inputs.config.scoring.max_length,
            truncation=self.inputs.config.scoring.truncation,
            seed=self.seed,
            num_steps=self.num_steps,
            scores={column: ScoreStore(stage.folder) for column, stage in self.scores.items()},
            weighing=weighing,
        )
