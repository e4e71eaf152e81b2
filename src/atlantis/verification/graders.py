r"""Whether an answer equals the gold answer, by either of two definitions.

Both take it as equal where the spellings agree (`atlantis.verification.answers.same_answer`).
"""

import logging
from fractions import Fraction
from functools import lru_cache
from importlib import metadata, util
from typing import Any

from atlantis.errors import ConfigError
from atlantis.verification.answers import (
    bare_latex,
    canonical,
    numeric_value,
    same_answer,
    says_nothing,
    variables_differ,
)

RELATIVE_TOLERANCE = Fraction(1, 10_000)
_TOLERANCE = float(RELATIVE_TOLERANCE)
_SMALL = 0.01
_BRACKETS = {"(": ")", "[": "]", "{": "}"}


def relative_tolerance_name() -> str:
    """The name of `within_relative_tolerance`."""
    return "relative_tolerance 1e-4"


def within_relative_tolerance(gold: str, answer: str) -> bool:
    r"""Equality of numbers within 1e-4 of the larger one, else of spellings.

    1. Two plain numbers are equal if :math:`|a - g| \le 10^{-4} \max(|a|, |g|)` for g the gold, a
       hundredth of it, or a hundred times it (percent or share).
    2. Two lists in the same brackets, or in none, are equal if they are as long and their parts
       are equal in order by rule 1 or 3. Lists are split at commas outside of brackets.
    3. Everything else is equal if `same_answer` says so. Two values of variables that are not the
       same are never equal.
    """
    if variables_differ(gold, answer):
        return False
    if _same(gold, answer):
        return True
    golds, answers = _parts(canonical(gold)), _parts(canonical(answer))
    if len(golds) < 2 or len(golds) != len(answers) or golds[0] != answers[0]:
        return False
    return all(_same(g, a) for g, a in zip(golds[1:], answers[1:], strict=True))


def _same(gold: str, answer: str) -> bool:
    g, a = numeric_value(gold), numeric_value(answer)
    if g is None or a is None:
        return same_answer(gold, answer)
    return any(
        abs(a - scaled) <= RELATIVE_TOLERANCE * max(abs(a), abs(scaled))
        for scaled in (g, g / 100, g * 100)
    )


def _parts(text: str) -> list[str]:
    """The opening bracket around a list, or nothing, and then its parts."""
    opening = text[:1] if _BRACKETS.get(text[:1]) == text[-1:] else ""
    inner = _split(text[1:-1]) if opening else None
    # `(1,2),(3,4)`: the first bracket does not enclose the whole.
    return ["", *(_split(text) or [text])] if inner is None else [opening, *inner]


def _split(text: str) -> list[str] | None:
    """The text at its commas outside of brackets; None if brackets close that never opened."""
    depth, parts = 0, [""]
    for character in text:
        depth += (character in _BRACKETS) - (character in _BRACKETS.values())
        if depth < 0:
            return None
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def require_math_verify() -> None:
    """Refuse to go on where the library is not installed.

    Raises:
        ConfigError: It is not; the message says how to get it.
    """
    if util.find_spec("math_verify") is None:
        raise ConfigError(
            "the grader math_verify needs the library of that name: pip install "
            "'atlantis-sft[math]', or choose the grader relative_tolerance"
        )


def math_verify_name() -> str:
    """The name and versions of `SymbolicGrader`; sympy decides as much as the library itself."""
    return f"math_verify {metadata.version('math-verify')} (sympy {metadata.version('sympy')})"


class SymbolicGrader:
    """Symbolic equality by math-verify, without its own time limits.

    For worker processes only: it takes as long and as much memory as the answer wants. The
    library's limits are signals, which fail in threads (every pair then counts as unequal),
    cancel the caller's alarms, and turn into "wrong" what was not decided.
    """

    def __init__(self) -> None:
        logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it logs whole predictions
        logging.getLogger("latex2sympy2_extended").setLevel(logging.CRITICAL)
        from math_verify import LatexExtractionConfig, parse, verify

        config = [LatexExtractionConfig(boxed_match_priority=0)]

        @lru_cache(maxsize=256)
        def read(latex: str) -> tuple[Any, ...]:
            return tuple(parse(latex, config, parsing_timeout=0, raise_on_error=True))

        self._read = read
        self._verify = verify

    def can_read(self, gold: str) -> bool:
        """Whether a gold answer parses to something."""
        return not says_nothing(gold) and bool(self._read(_formula(gold)))

    def equal(self, gold: str, answer: str) -> bool:
        """Whether an answer equals the gold; the two are not interchangeable."""
        return same_answer(gold, answer) or self.equal_symbolically(gold, answer)

    def equal_symbolically(self, gold: str, answer: str) -> bool:
        """The same without the comparison of spellings."""
        try:
            golds, answers = self._read(_formula(gold)), self._read(_formula(answer))
            return self._are_equal(golds, answers) and not _small_and_apart(golds, answers)
        except (MemoryError, OSError):
            raise
        except Exception:
            return False  # what sympy refuses to compare is not equal

    def _are_equal(self, golds: tuple[Any, ...], answers: tuple[Any, ...]) -> bool:
        return bool(
            self._verify(list(golds), list(answers), timeout_seconds=None, raise_on_error=True)
        )


def _small_and_apart(golds: tuple[Any, ...], answers: tuple[Any, ...]) -> bool:
    """Whether two numbers near 0 are equal only because the library rounds to 6 decimals.

    To it, 2.88e-19 and 1.325e-27 are both 0. From 0.01 on, rounding is finer than the tolerance.
    This looks at single numbers only: sets, tuples and matrices of tiny numbers stay unguarded, so
    that {1e-9, 2e-9} equals {3e-9, 4e-9}.
    """
    gold, answer = golds[0], answers[0]
    if not (getattr(gold, "is_number", False) and getattr(answer, "is_number", False)):
        return False
    # A percent sign is a hundredth that is left unevaluated, and that the library may ignore.
    g, a = complex(gold.doit()), complex(answer.doit())
    if max(abs(g), abs(a)) >= _SMALL:
        return False
    return not any(
        abs(a - scaled) <= _TOLERANCE * max(abs(a), abs(scaled)) for scaled in (g, g / 100, g * 100)
    )


def _formula(answer: str) -> str:
    r"""The answer as the library reads formulas: ``$...$``, a percent sign behind it.

    Bare LaTeX would parse to nothing.
    """
    latex = bare_latex(answer)
    number = latex.removesuffix("%").removesuffix("\\").rstrip()
    return f"${latex}$" if number == latex else f"${number}$%"
