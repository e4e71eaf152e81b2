"""Cached work: a stage is a folder named after the digest of everything it depends on.

Stages are pulled: asking for one makes what it needs, unless that is there. A stage writes into
``<folder>.partial`` and is renamed when done, so that a folder under its own name is always whole,
and a kill at any moment costs at most the stage that was running.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from atlantis.disk import digest_json, sync_folder, write_json

DONE = "stage.json"


@dataclass(frozen=True)
class Stage:
    """A piece of work with a result on disk."""

    root: Path
    """Folder of all stages of the run."""
    name: str
    """Readable name, such as ``train-atlantis-seed0``."""
    settings: Mapping[str, Any]
    """Everything besides the inputs that the result depends on, JSON."""
    inputs: "tuple[Stage, ...]"
    """Stages whose results this one reads."""
    work: Callable[[Path], None]
    """Fills the folder that it is given."""
    resumable: bool = False
    """Whether ``work`` goes on from what a killed run left in the folder."""

    @cached_property
    def digest(self) -> str:
        """Digest of the settings and of the inputs' digests."""
        return digest_json(
            {
                "name": self.name,
                "settings": self.settings,
                "inputs": [stage.digest for stage in self.inputs],
            }
        )

    @property
    def folder(self) -> Path:
        """Where the result is, once it is done."""
        return self.root / f"{self.name}-{self.digest[:12]}"

    @property
    def is_done(self) -> bool:
        """Whether the result is there and whole."""
        return (self.folder / DONE).is_file()

    def make(self, announce: "Callable[[Stage], None]") -> Path:
        """Return the folder of the result, doing the work and what it needs if necessary."""
        if self.is_done:
            return self.folder
        for stage in self.inputs:
            stage.make(announce)
        announce(self)
        partial = self._partial
        if not self.resumable and partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
        self.work(partial)
        record = {"name": self.name, "digest": self.digest, "settings": self.settings}
        write_json(partial / DONE, record)
        if self.folder.exists():  # not whole, or it would be done
            shutil.rmtree(self.folder)
        partial.rename(self.folder)
        sync_folder(self.root)
        return self.folder

    def discard(self) -> None:
        """Delete the result; a kill in the middle leaves no folder under its own name."""
        if self.folder.exists():
            shutil.rmtree(self._partial, ignore_errors=True)
            self.folder.rename(self._partial)
        if self._partial.exists():
            shutil.rmtree(self._partial)

    @property
    def _partial(self) -> Path:
        """Where the work is done, or undone."""
        return self.folder.with_name(self.folder.name + ".partial")

    def pending(self) -> "Iterator[Stage]":
        """What `make` would work on: what a finished stage once needed may be gone."""
        yield from in_order([self], skip=lambda stage: stage.is_done)


def in_order(
    targets: Iterable[Stage], *, skip: Callable[[Stage], bool] = lambda stage: False
) -> Iterator[Stage]:
    """The targets and all they depend on, inputs first, each once; a skipped one ends a branch."""
    seen: set[str] = set()

    def visit(stage: Stage) -> Iterator[Stage]:
        if stage.digest in seen or skip(stage):
            return
        seen.add(stage.digest)
        for needed in stage.inputs:
            yield from visit(needed)
        yield stage

    for target in targets:
        yield from visit(target)


def plan(targets: Sequence[Stage]) -> list[tuple[Stage, str]]:
    """Every stage in the order of the work: ``cached``, ``to do`` or ``unneeded``.

    A stage is unneeded when it is not there but nothing that is still to do reads it, such as the
    checkpoint of an arm whose predictions are there.
    """
    pending = {s.digest for s in in_order(targets, skip=lambda stage: stage.is_done)}

    def state(stage: Stage) -> str:
        if stage.is_done:
            return "cached"
        return "to do" if stage.digest in pending else "unneeded"

    return [(stage, state(stage)) for stage in in_order(targets)]
