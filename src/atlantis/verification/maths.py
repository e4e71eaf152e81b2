"""Verification of maths answers, by symbolic equality or within a relative tolerance."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from atlantis.errors import DataError
from atlantis.verification.answers import says_nothing
from atlantis.verification.claims import CUT_OFF, Claim, Verdict, without_answer
from atlantis.verification.extraction import Extraction, extract_answer
from atlantis.verification.graders import (
    math_verify_name,
    relative_tolerance_name,
    require_math_verify,
    within_relative_tolerance,
)
from atlantis.verification.pool import Outcome, WorkerPool
from atlantis.verification.worker import Job

_VERSION = "v2"
"""Of what is ours in both graders: where answers stand, and how they are spelled."""


class _Pair(NamedTuple):
    gold: str
    answer: str


class _MathsVerifier:
    """Extracts answers and gives each pair of a gold and an answer to the grader once."""

    def __init__(self, extraction: Extraction) -> None:
        self._extraction: Extraction = extraction

    def verify(self, claims: Sequence[Claim]) -> list[Verdict]:
        answers = [self._answer(claim) for claim in claims]
        pairs = {
            _Pair(claim.gold, answer): None
            for claim, answer in zip(claims, answers, strict=True)
            if answer is not None
        }
        outcomes = dict(zip(pairs, self._compare(list(pairs)), strict=True))
        return [
            without_answer(claim)
            if answer is None
            else _verdict(outcomes[_Pair(claim.gold, answer)], claim, answer)
            for claim, answer in zip(claims, answers, strict=True)
        ]

    def _answer(self, claim: Claim) -> str | None:
        cut_off = claim.finish_reason == CUT_OFF
        answer = extract_answer(claim.completion, extraction=self._extraction, cut_off=cut_off)
        return None if answer is None or says_nothing(answer) else answer

    def _compare(self, pairs: Sequence[_Pair]) -> list[Outcome]:
        raise NotImplementedError


def _verdict(outcome: Outcome, claim: Claim, answer: str) -> Verdict:
    if outcome.status == "ok":
        return Verdict("correct" if outcome.value else "wrong", answer, None)
    status = "timeout" if outcome.status == "timeout" else "error"
    return Verdict(status, answer, f"example {claim.example_id!r}: {outcome.detail}")


class SymbolicVerifier(_MathsVerifier):
    """Symbolic equality by math-verify in worker processes."""

    def __init__(
        self,
        *,
        extraction: Extraction,
        deadline_seconds: float,
        memory_bytes: int | None,
        num_workers: int,
    ) -> None:
        super().__init__(extraction)
        require_math_verify()
        self._pool = WorkerPool(
            Job("math_verify", None, memory_bytes, deadline_seconds), num_workers=num_workers
        )

    @property
    def name(self) -> str:
        """The library, where answers may stand, and the versions that decide."""
        return f"{math_verify_name()}, {self._extraction} answers, {_VERSION}"

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
        """Refuse golds that parse to nothing, or that take too long to parse."""
        _check_text(golds)
        tasks = [("can_read", gold) for gold in golds.values()]
        for (example_id, gold), outcome in zip(golds.items(), self._pool.run(tasks), strict=True):
            if not outcome.value:
                raise _unreadable(example_id, gold, outcome.detail or "it parses to nothing")

    def _compare(self, pairs: Sequence[_Pair]) -> list[Outcome]:
        return self._pool.run([("equal", *pair) for pair in pairs])


class ToleranceVerifier(_MathsVerifier):
    """Numbers within a relative tolerance, else equal spelling; no processes, no library."""

    @property
    def name(self) -> str:
        """The definition, where answers may stand, and the version of both."""
        return f"{relative_tolerance_name()}, {self._extraction} answers, {_VERSION}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """There is nothing to close."""

    def check_golds(self, golds: Mapping[str, str]) -> None:
        """Refuse golds without a letter or digit."""
        _check_text(golds)

    def _compare(self, pairs: Sequence[_Pair]) -> list[Outcome]:
        return [Outcome("ok", within_relative_tolerance(*pair), None) for pair in pairs]


def _check_text(golds: Mapping[str, str]) -> None:
    for example_id, gold in golds.items():
        # JSON may have given a number in spite of the annotation; graders read it as nothing.
        if not isinstance(gold, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise _unreadable(example_id, gold, "it is no text")
        if says_nothing(gold):
            raise _unreadable(example_id, gold, "there is nothing in it")


def _unreadable(example_id: str, gold: str, reason: str) -> DataError:
    shown = repr(gold) if len(repr(gold)) <= 80 else repr(gold)[:77] + "..."
    return DataError(
        f"example {example_id!r}: gold answer {shown} cannot be graded ({reason}); correct it or "
        "remove the row"
    )
