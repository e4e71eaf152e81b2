"""Completions that are right but must not be learnt: those that lean on the expert's solution."""

import re
from collections.abc import Iterable

_SOLUTION = r"(?:solution|answer|method|explanation|reasoning|work)"
_LEAKS = (
    r"\b(?:the|these|those|your|given|provided|above|reference) notes\b",
    rf"\b(?:the|this|your) (?:\w+ )?(?:teacher|expert)(?:'s|’s) {_SOLUTION}\b",
    r"\b(?:reference|expert|provided|given|sample|model|worked|above|official) solution\b",
    r"\b(?:reference|expert|provided) answer\b",
    r"\bsolution (?:above|(?:that )?(?:was )?(?:given|provided|shown))\b",
    r"\b(?:per|following|according to) the (?:notes|(?:\w+ )?solution)\b",
    r"\bas (?:\w+ )?in the (?:notes|(?:\w+ )?(?:solution|answer))\b",
    r"\bas the (?:teacher|expert|notes) (?:\w+ )?(?:shows?|says?|does|do|explains?|writes?)\b",
)
"""Ways to speak of a solution that the trained model will not see."""

_FORMULA = re.compile(
    r"\$\$.*?\$\$|\$.*?\$|\\\[.*?\\\]|\\\(.*?\\\)|\\begin\{.*?\\end\{\w+\*?\}|\\[A-Za-z]+",
    re.DOTALL,
)
_WORD = re.compile(r"[^\W\d_]+")


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
    """Share of a completion's runs of ``size`` words that stand in the solution, too.

    Case, numbers and formulas do not count: there is but one way to write down a sum. A completion
    with fewer words than one run is copied if it is the whole solution: a short answer stands in
    every right one.
    """
    said, shown = _words(completion), _words(solution)
    if len(said) < size:
        return float(bool(said) and completion.split() == solution.split())
    known = _runs(shown, size)
    runs = [tuple(said[start : start + size]) for start in range(len(said) - size + 1)]
    return sum(run in known for run in runs) / len(runs)


def _words(text: str) -> list[str]:
    return _WORD.findall(_FORMULA.sub(" ", text).casefold())


def _runs(words: list[str], size: int) -> set[tuple[str, ...]]:
    return {tuple(words[start : start + size]) for start in range(len(words) - size + 1)}
