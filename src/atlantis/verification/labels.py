"""Verification of labels: the completion has to spell the gold label."""

import re
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Literal, Self

from atlantis.errors import DataError
from atlantis.verification.claims import CUT_OFF, Claim, Verdict, without_answer

Place = Literal["whole", "end"]
_BOUNDARIES = ":\"'“”‘«([*`"
_CLOSING = ".!\"'”’»)]*` \t\r\n"
_NEGATION = re.compile(r"(?:\b(?:not|no|never|cannot)|n['’]t)[\s\"'“”‘«(\[*`]*$", re.IGNORECASE)


class LabelVerifier:
    """A completion is right if it is the gold label, or ends with it.

    Spaces around either do not count, nor does a full stop at the end. A label at the end stands by
    itself: after a space, a colon, or a sign that opens. Signs that close may follow it, as in
    ``"Other".`` and ``**Other**``. It does not count directly after a negation, as in "not Other".

    Args:
        place: ``whole`` or ``end``.
    """

    def __init__(self, place: Place = "whole") -> None:
        self._place: Place = place

    @property
    def name(self) -> str:
        """The definition."""
        return "label" if self._place == "whole" else "label at the end v2"

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
        if self._place == "end" and gold and _ends_with(said, gold):
            return Verdict("correct", gold, None)
        return Verdict("wrong", said.splitlines()[-1].strip(), None)


def _ends_with(said: str, label: str) -> bool:
    before, found, after = said.rpartition(label)
    if not found or after.strip(_CLOSING) or _NEGATION.search(before[-20:]):
        return False
    return not before or before[-1] in _BOUNDARIES or before[-1].isspace()
