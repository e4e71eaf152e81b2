"""Runs a recipe: which of its stages are wanted, and what follows from each."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from atlantis.config import RunConfig
from atlantis.disk import exclusive, read_json, write_bytes
from atlantis.errors import ConfigError
from atlantis.pipeline.arms import ArmStages
from atlantis.pipeline.inputs import Inputs
from atlantis.pipeline.results import ResultStages
from atlantis.pipeline.weighing import WeighingStages
from atlantis.report.tables import terminal_table
from atlantis.stages import Stage, plan

_REPORT_FILES = ("report.html", "report.json")


class _Target(NamedTuple):
    """A stage that a run is for, and what to do once it is there."""

    stage: Stage
    then: Callable[[], None]


class Pipeline:
    """The stages of one recipe. Building it validates the data and finds the models.

    Raises:
        InputError: The data or the models of the recipe are not usable.
    """

    def __init__(self, config: RunConfig, out: Path, *, force: bool = False) -> None:
        self.config = config
        self.out = out
        self._force = force
        inputs, root = Inputs(config), out / "stages"
        self.data_notes = inputs.splits.notes
        self.notes = (*config.notes, *inputs.families.notes)
        self._weighing = WeighingStages(inputs, root)
        self._arms = ArmStages(inputs, root, self._weighing, force=force)
        self._results = ResultStages(inputs, root, self._weighing, self._arms)

    @property
    def comparison(self) -> Stage:
        """All arms side by side, with intervals and paired differences."""
        return self._results.comparison

    @property
    def report(self) -> Stage:
        """The page and its figures as JSON."""
        return self._results.report

    def terminal_table(self, comparison: Mapping[str, Any]) -> Table:
        """The comparison that `run` returns, for the command line."""
        return terminal_table(comparison)

    def run(self, announce: Callable[[Stage], None]) -> dict[str, Any]:
        """Do whatever is not there yet, and return the comparison of the arms.

        Raises:
            ConfigError: The check before training says that the weights will do harm.
            ResumableError: Another process works in the same folder.
        """
        with exclusive(self.out):
            for target in self._targets():
                target.stage.make(announce)
                target.then()
            comparison = read_json(self.comparison.folder / "comparison.json")
            for arm in self.config.arms:
                for seed in self.config.seeds:
                    self._arms.describe(arm, seed, comparison)
        return comparison

    def plan(self) -> list[tuple[Stage, str]]:
        """Every stage in the order of the work, and its state; see `atlantis.stages.plan`."""
        return plan([target.stage for target in self._targets()])

    def _targets(self) -> Iterator[_Target]:
        """What a run is for, in the order of the work."""
        for seed in self.config.seeds:
            check = self._weighing.check(seed)
            if check is not None:
                yield _Target(check, partial(self._refuse_harm, check, seed))
        for seed in self.config.seeds:
            for arm in self.config.arms:
                evaluated = self._arms.evaluated(arm, seed)
                yield _Target(evaluated, partial(self._arms.discard, arm, seed))
        yield _Target(self.report, self._publish)

    def _refuse_harm(self, check: Stage, seed: int) -> None:
        found = read_json(check.folder / "check.json")
        if found["verdict"] == "harm" and not self._force:
            raise ConfigError(
                f"seed {seed}: {found['sentence']} Training with these weights is likely to do "
                "harm; use a better reference, or --force to train anyway"
            )

    def _publish(self) -> None:
        """Put the report where the user looks for it."""
        for name in _REPORT_FILES:
            write_bytes(self.out / name, (self.report.folder / name).read_bytes())
