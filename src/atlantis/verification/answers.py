r"""One spelling for answers that differ in spelling only, and the number that an answer is.

Pure text and exact fractions; no symbolic algebra.
"""

import re
from fractions import Fraction

_LONGEST_NUMBER = 400
_LARGEST_EXPONENT = 400

_DELIMITER = re.compile(r"(?<!\\)\$|(?<!\\)\\[()\[\]]")
_E_NOTATION = re.compile(
    r"(?<![A-Za-z0-9_.\\])((?:\d+\.?\d*|\.\d+))[eE]([-+]?\d{1,4})(?![A-Za-z0-9_])(?!\.\d)"
)
_SPACING = re.compile(r"\\[,;: ]|\\q?quad\b|~|\s+|\\(?:left|right|displaystyle)(?![A-Za-z])")
_FRACTION_NAME = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_SHORT_FRACTION = re.compile(r"\\frac(\d)(\d)")
_WORDS = re.compile(r"\\(?:text|mathrm|textbf|mathbf|mbox|textit|operatorname)\{([^{}]*)\}")
_DEGREES = re.compile(r"\^\{?\\circ\}?|\\degree|°")
_NO_SPACE = re.compile(r"\\!\s*")
_THOUSANDS = re.compile(r"(?<![\d.,(\[{])\d{1,3}(?:(?:,|\{,\})\d{3})+(?![\d,)\]}\\])")
_BRACKETED = re.compile(r"^\(([A-Za-z]|\d+)\)$")
_ASSIGNED = re.compile(r"^[A-Za-z](?:_\{?\w+\}?)?=")

_DECIMAL = r"(?:\d+\.?\d*|\.\d+)"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)(?:\\frac\{{(?P<top>-?{_DECIMAL})\}}\{{(?P<bottom>-?{_DECIMAL})\}}"
    rf"|(?P<over>{_DECIMAL})/(?P<under>{_DECIMAL})"
    rf"|(?P<plain>{_DECIMAL})"
    rf"|(?:(?P<mantissa>{_DECIMAL})(?:\\times|\\cdot|\*|×))?10\^\{{?(?P<exponent>[-+]?\d{{1,4}})\}}?)"
)


def bare_latex(answer: str) -> str:
    r"""The answer without ``$``, ``\(`` and the like around or in it, on one line.

    An escaped ``\$`` is a currency and stays. e-notation becomes what LaTeX reads as a number:
    ``4.5e33`` is ``4.5 \times 10^{33}``, not 4.5 times Euler's number times 33. So ``2e-1`` is
    0.2; one who means Euler's number leaves a space, as in ``2e - 1``.
    """
    on_one_line = " ".join(_DELIMITER.sub(" ", answer).split())
    return _E_NOTATION.sub(_power_of_ten, on_one_line)


def _power_of_ten(number: re.Match[str]) -> str:
    return rf"{number.group(1)} \times 10^{{{int(number.group(2))}}}"


def canonical(answer: str) -> str:
    r"""The answer in one spelling: two answers with the same one are the same answer.

    Delimiters, spaces, ``\left`` and ``\right``, degree and currency signs, the full stop at the
    end, ``x=`` before the only value, and round brackets around one letter or integer go.
    ``\text{C}`` is ``C``; ``\dfrac12`` is ``\frac{1}{2}``; ``1,234`` is ``1234``. A number becomes
    its exact fraction in lowest terms, so that ``0.5``, ``\frac{2}{4}`` and ``50e-2`` agree; its
    percent sign goes.
    """
    text = _spelling(answer)
    value = _number(text)
    return text if value is None else str(value)


def numeric_value(answer: str) -> Fraction | None:
    r"""The number that an answer is, exactly; None if it is no plain number.

    Decimals, ``a/b``, ``\frac{a}{b}``, powers of ten, and all of these in percent, where the sign
    makes no difference.
    """
    return _number(_spelling(answer))


def says_nothing(answer: str) -> bool:
    """Whether there is only ASCII punctuation in an answer: no letter, digit or symbol like ∅."""
    return not any(character.isalnum() or ord(character) > 127 for character in answer)


def _spelling(answer: str) -> str:
    text = _NO_SPACE.sub("", _FRACTION_NAME.sub(r"\\frac", bare_latex(answer)))
    text = _THOUSANDS.sub(lambda n: n.group().replace("{,}", "").replace(",", ""), text)
    text = _WORDS.sub(r"\1", text).replace(r"\$", "")
    text = _SPACING.sub("", _DEGREES.sub("", text))
    text = _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text).rstrip(".")
    text = _BRACKETED.sub(r"\1", text)
    # Of one variable only: `x=1,y=2` keeps its names.
    return _ASSIGNED.sub("", text) if text.count("=") == 1 else text


def _number(text: str) -> Fraction | None:
    text = text.removesuffix("%").removesuffix("\\")
    if len(text) > _LONGEST_NUMBER:
        return None
    found = _NUMBER.fullmatch(text)
    if found is None:
        return None
    part = found.groupdict()
    sign = -1 if part["sign"] == "-" else 1
    if part["exponent"] is not None:
        exponent = int(part["exponent"])
        if abs(exponent) > _LARGEST_EXPONENT:
            return None
        return sign * Fraction(part["mantissa"] or 1) * Fraction(10) ** exponent
    above = Fraction(part["top"] or part["over"] or part["plain"])
    below = Fraction(part["bottom"] or part["under"] or 1)
    return sign * above / below if below else None
