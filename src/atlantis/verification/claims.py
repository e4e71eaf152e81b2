"""What is verified, and what is found: claims, verdicts, and what every verifier can do."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

Status = Literal["correct", "wrong", "no_answer", "truncated", "timeout", "error"]
"""``no_answer``: complete, but nothing to grade. ``truncated``: cut off before an answer.
``timeout``: could not be graded in time. ``error``: could not be graded; ``detail`` says why."""

CUT_OFF = "length"
"""The finish reason of a completion that reached its largest length."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One completion that says it answers its prompt."""

    example_id: str
    prompt: str
    gold: str
    """The right answer; several that belong together stand in one text, as in ``3, 4``."""
    completion: str
    finish_reason: str = "stop"


class Verdict(NamedTuple):
    """What became of a claim."""

    status: Status
    answer: str | None
    """What the completion answers, as it stands there; None where nothing was extracted."""
    detail: str | None
    """What went wrong, in one line, where something did."""


class Verifier(AbstractContextManager["Verifier"], Protocol):
    """Grades completions. Enter it before use: it may own processes."""

    @property
    def name(self) -> str:
        """How it grades, with versions; belongs into every result."""
        ...

    def check_golds(self, golds: Mapping[str, str]) -> None:
        """Refuse golds, given by example id, that no completion could ever meet.

        Raises:
            DataError: Such a gold; the message names the example and the gold.
        """
        ...

    def verify(self, claims: Sequence[Claim]) -> list[Verdict]:
        """One verdict for each claim, in their order."""
        ...


def without_answer(claim: Claim) -> Verdict:
    """The verdict on a completion that answers nothing."""
    cut_off = claim.finish_reason == CUT_OFF
    return Verdict("truncated" if cut_off else "no_answer", None, None)
