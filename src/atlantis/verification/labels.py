"""Verification of labels: the completion has to spell the gold label."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Literal, Self

from atlantis.errors import DataError
from atlantis.verification.claims import CUT_OFF, Claim, Verdict, without_answer

Place = Literal["whole", "end"]
_BOUNDARIES = ":\"'“”(["


class LabelVerifier:
    """A completion is right if it is the gold label, or ends with it.

    Spaces around either do not count, nor does a full stop at the end. A label at the end stands by
    itself: after a space, a colon or a quotation mark.

    Args:
        place: ``whole`` or ``end``.
    """

    def __init__(self, place: Place = "whole") -> None:
        self._place: Place = place

    @property
    def name(self) -> str:
        """The definition."""
        return "label" if self._place == "whole" else "label at the end"

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
        """Refuse blank labels."""
        for example_id, gold in golds.items():
            if not gold.strip():
                raise DataError(
                    f"example {example_id!r}: gold label {gold!r} is blank; fill it in or remove "
                    "the row"
                )

    def verify(self, claims: Sequence[Claim]) -> list[Verdict]:
        return [self._verdict(claim) for claim in claims]

    def _verdict(self, claim: Claim) -> Verdict:
        said, gold = claim.completion.strip().removesuffix("."), claim.gold.strip()
        if self._place == "whole" and gold and gold in (said, claim.completion.strip()):
            return Verdict("correct", gold, None)
        if not said or claim.finish_reason == CUT_OFF:
            return without_answer(claim)
        before = said.removesuffix(gold) if self._place == "end" else said
        if before != said and (not before or before[-1] in _BOUNDARIES or before[-1].isspace()):
            return Verdict("correct", gold, None)
        return Verdict("wrong", said.splitlines()[-1].strip(), None)
