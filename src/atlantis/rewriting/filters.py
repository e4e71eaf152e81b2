"""Completions that are right but must not be learnt: those that lean on the expert's solution."""

import re
from collections.abc import Iterable

_LEAKS = (
    r"\b(?:the|these|those|your|given|provided|above|reference) notes\b",
    r"\b(?:the|this|your) (?:\w+ )?teacher(?:'s|’s) (?:solution|answer|explanation|reasoning|work)",
    r"\b(?:reference|expert|provided|given|sample|model|worked|above|official) solution\b",
    r"\bsolution (?:above|(?:that )?(?:was )?(?:given|provided|shown))\b",
    r"\b(?:in|from|per|following|according to) the (?:notes|(?:given |provided )?solution)\b",
)
"""Ways to speak of a solution that the trained model will not see."""


class LeakFilter:
    """Finds words that speak of the expert's solution.

    Args:
        more: Regular expressions besides our own; case does not matter.
    """

    def __init__(self, more: Iterable[str] = ()) -> None:
        self._patterns = [re.compile(pattern, re.IGNORECASE) for pattern in (*_LEAKS, *more)]

    def leak(self, completion: str, prompt: str) -> str | None:
        """The first such words that the plain prompt does not have itself, if there are any."""
        task = prompt.casefold()
        for pattern in self._patterns:
            for match in pattern.finditer(completion):
                if match.group().casefold() not in task:
                    return match.group()
        return None


def copied_share(completion: str, solution: str, *, size: int) -> float:
    """Share of a completion's runs of ``size`` words and signs that stand in the solution, too.

    Case does not count. A completion shorter than one run is copied if it is the whole solution: a
    short answer stands in every right one.
    """
    said, shown = _words(completion), _words(solution)
    if len(said) < size:
        return float(bool(said) and said == shown)
    known = _runs(shown, size)
    runs = [tuple(said[start : start + size]) for start in range(len(said) - size + 1)]
    return sum(run in known for run in runs) / len(runs)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.casefold())


def _runs(words: list[str], size: int) -> set[tuple[str, ...]]:
    return {tuple(words[start : start + size]) for start in range(len(words) - size + 1)}
