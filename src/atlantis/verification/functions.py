"""Verification by a function of the user's own, in worker processes."""

from collections.abc import Mapping, Sequence
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
        self._pool = WorkerPool(
            Job("function", function, memory_bytes, deadline_seconds), num_workers=num_workers
        )

    @property
    def name(self) -> str:
        """The function. What it does is the user's to version."""
        return f"function {self._function}"

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
