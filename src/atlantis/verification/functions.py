"""Verification by a function of the user's own, in worker processes."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

from atlantis.verification.claims import Claim, Verdict, without_answer
from atlantis.verification.pool import Outcome, WorkerPool
from atlantis.verification.worker import Job


class FunctionVerifier:
    """Calls ``function(prompt=..., completion=..., gold=...)`` for each claim.

    It returns True for correct, False for wrong, None for no answer. One that raises, returns
    something else, ends its process, hangs or runs out of memory makes a verdict that says so and
    names the example; the other claims are not affected.
    """

    def __init__(
        self,
        function: str,
        *,
        deadline_seconds: float,
        memory_bytes: int | None,
        num_workers: int,
    ) -> None:
        self._function = function
        self._digest = source_digest(function.partition(":")[0])
        self._pool = WorkerPool(
            Job("function", function, memory_bytes, deadline_seconds), num_workers=num_workers
        )

    @property
    def name(self) -> str:
        """The function, and a digest of its module's source: an edited function has another name.

        What the module imports does not belong to the digest.
        """
        return f"function {self._function} {self._digest}"

    def __enter__(self) -> Self:
        self._pool.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.close()

    def check_golds(self, golds: Mapping[str, str]) -> None:
        """Every gold is the function's to judge."""

    def verify(self, claims: Sequence[Claim]) -> list[Verdict]:
        tasks = [("judge", claim.prompt, claim.completion, claim.gold) for claim in claims]
        outcomes = self._pool.run(tasks)
        return [
            self._verdict(claim, outcome) for claim, outcome in zip(claims, outcomes, strict=True)
        ]

    def _verdict(self, claim: Claim, outcome: Outcome) -> Verdict:
        if outcome.status == "ok":
            if outcome.value is None:
                return without_answer(claim)
            return Verdict("correct" if outcome.value else "wrong", claim.completion, None)
        status = "timeout" if outcome.status == "timeout" else "error"
        return Verdict(
            status, None, f"example {claim.example_id!r}: {self._function} {outcome.detail}"
        )


def source_digest(module: str) -> str:
    """Short digest of the source file of a module, which is found but not imported.

    That of nothing, where there is no such file: in a compiled module, or where no module is.
    """
    spec = _spec(module)
    source = Path(spec.origin) if spec and spec.origin and spec.has_location else None
    content = source.read_bytes() if source and source.suffix == ".py" else b""
    return hashlib.sha256(content).hexdigest()[:12]


def _spec(module: str) -> ModuleSpec | None:
    """Where workers will find a module; `find_spec` alone would import the packages around it."""
    top, *parts = module.split(".")
    try:
        spec = find_spec(top) or PathFinder.find_spec(top, [os.getcwd()])
    except ValueError:  # `__main__` has none
        return None
    for part in parts:
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(f"{spec.name}.{part}", spec.submodule_search_locations)
    return spec
