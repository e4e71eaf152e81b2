r"""One spelling for answers that differ in spelling only, and the number that an answer is.

Pure text and exact fractions; no symbolic algebra.
"""

import re
from fractions import Fraction
from functools import lru_cache

_LONGEST_NUMBER = 400
_LARGEST_EXPONENT = 400

_DELIMITER = re.compile(r"(?<!\\)\$|(?<!\\)\\[()\[\]]")
_E_NOTATION = re.compile(
    r"(?<![A-Za-z0-9_.\\])(\d++(?:\.\d*+)?|\.\d++)[eE]([-+]?\d{1,4})(?![A-Za-z0-9_])(?!\.\d)"
)
_MIXED_NUMBER = re.compile(r"(?<![\w.}])(\d+)\s+(\d+)/(\d+)(?![\w.])")
# Two backslashes break the row of a matrix, whatever follows.
_SPACING = re.compile(r"(?<!\\)\\[,;: ]|\\q?quad\b|~|\s+|\\(?:left|right|displaystyle)(?![A-Za-z])")
_FRACTION_NAME = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_SHORT_TOP = re.compile(r"\\frac([A-Za-z\d])")
_SHORT_BOTTOM = re.compile(r"(\\frac\{[^{}]*\})([A-Za-z\d])")
_SHORT_ARGUMENT = re.compile(r"(\\sqrt|[_^])([A-Za-z\d])(?!\d)")
_SYNONYM = re.compile(r"\\(leq|geq|neq|varnothing)(?![A-Za-z])")
_SYNONYMS = {"leq": r"\le", "geq": r"\ge", "neq": r"\ne", "varnothing": r"\emptyset"}
_COMMAND = re.compile(r"\\[A-Za-z]+")
_UNIT = re.compile(
    r"(?:(?<=[\d})])|(?<=\\pi))(?:\\[ ,;:!]|~|\s)*\\(?:text|mathrm|mbox)\{"
    r"(?P<unit>\s*[A-Za-z][A-Za-z ./^²³-]*)\}(?:\^\{?-?\d\}?)?[\s.]*$"
)
_NO_UNIT = re.compile(
    r"\b(?:and|or|to|if|for|when|where|is|are|not|no|more|less|fewer|at|out|of|times|plus|minus|"
    r"over|squared|cubed|mod|odd|even|thousand|million|billion|trillion|hundred|dozen|half|"
    r"[ap]\.?m)\b",
    re.IGNORECASE,
)
_CHOICE = re.compile(
    r"^(?:\\(?:text|mathrm|mbox)(?:bf|it)?\{|\\(?:mathbf|mathit)\{)?\(([A-Z])\)[}\s:~]*"
    r"(?:\\[ ,;:]\s*|\\q?quad\s*)*"
    r"(?=[-+]?\d|\\(?:text|mathrm|mbox|[dt]?frac|sqrt|pi)(?![A-Z])|\\?\$)"
    r"(?!.*(?:\([A-Z]\)|\b(?:and|or)\b))"
)
_WORDS = re.compile(r"\\(?:text|mathrm|textbf|mathbf|mbox|textit|operatorname)\{([^{}]*)\}")
_DEGREES = re.compile(r"\^\{?\\circ\}?|\\degree|°")
_NO_SPACE = re.compile(r"\\!\s*")
_THOUSANDS = re.compile(r"(?<![\d.,(\[{])\d{1,3}(?:(?:,|\{,\})\d{3})+(?![\d,)\]}]|\\(?!%))")
_BRACKETED = re.compile(r"^\(([A-Za-z]|\d+)\)$")
_ASSIGNED = re.compile(r"^([A-Za-z](?:_\{?\w+\}?)?)=")

_DECIMAL = r"(?:\d+\.?\d*|\.\d+)"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)(?:\\frac\{{(?P<top>-?{_DECIMAL})\}}\{{(?P<bottom>-?{_DECIMAL})\}}"
    r"|(?P<whole>\d+)\\frac\{(?P<part>\d+)\}\{(?P<parts>\d+)\}"
    rf"|(?P<over>{_DECIMAL})/(?P<under>{_DECIMAL})"
    rf"|(?P<plain>{_DECIMAL})"
    rf"|(?:(?P<mantissa>{_DECIMAL})(?:\\times|\\cdot|\*|×))?10\^\{{?(?P<exponent>[-+]?\d{{1,4}})\}}?)"
)


def bare_latex(answer: str) -> str:
    r"""The answer without ``$``, ``\(`` and the like around or in it, on one line.

    An escaped ``\$`` is a currency and stays. e-notation becomes what LaTeX reads as a number:
    ``4.5e33`` is ``4.5 \times 10^{33}``, not 4.5 times Euler's number times 33. So ``2e-1`` is
    0.2; one who means Euler's number leaves a space, as in ``2e - 1``. A mixed number ``1 1/2``
    becomes ``1\frac{1}{2}``.
    """
    on_one_line = " ".join(_DELIMITER.sub(" ", answer).replace("−", "-").split())
    on_one_line = _MIXED_NUMBER.sub(r"\1\\frac{\2}{\3}", on_one_line)
    return _E_NOTATION.sub(_power_of_ten, on_one_line)


def _power_of_ten(number: re.Match[str]) -> str:
    return rf"{number.group(1)} \times 10^{{{int(number.group(2))}}}"


def canonical(answer: str) -> str:
    r"""The answer in one spelling: two answers to a question with the same one are the same.

    Delimiters, spaces, ``\left`` and ``\right``, degree and currency signs, the full stop at the
    end, ``x=`` before the only value, a unit in ``\text`` behind a number, and round brackets
    around one letter or integer go. ``\text{C}`` is ``C``; ``\dfrac12`` is ``\frac{1}{2}``;
    ``1,234`` is ``1234``; ``\leq`` is ``\le``. A number becomes its exact fraction in lowest terms,
    so that ``0.5``, ``\frac{2}{4}`` and ``50e-2`` agree; its percent sign goes.
    """
    text = _variable_and_value(answer)[1]
    value = _number(text)
    return text if value is None else str(value)


def same_answer(gold: str, answer: str) -> bool:
    r"""Whether an answer is the gold answer by its spelling.

    It is where `canonical` gives the same, unless both name a variable, and not the same one:
    ``x=5`` is ``5``, but not ``y=5``. A gold letter is met by ``\textbf{(B)}\ 12`` too.
    """
    if variables_differ(gold, answer):
        return False
    wanted = canonical(gold)
    if wanted == canonical(answer):
        return True
    choice = _CHOICE.match(bare_latex(answer))
    return choice is not None and choice.group(1) == wanted


def variables_differ(gold: str, answer: str) -> bool:
    """Whether both answers give a value to a variable, and not to the same one."""
    variables = {_variable_and_value(gold)[0], _variable_and_value(answer)[0]}
    return len(variables - {None}) > 1


def numeric_value(answer: str) -> Fraction | None:
    r"""The number that an answer is, exactly; None if it is no plain number.

    Decimals, ``a/b``, ``\frac{a}{b}``, powers of ten, and all of these in percent, where the sign
    makes no difference.
    """
    return _number(_variable_and_value(answer)[1])


def says_nothing(answer: str) -> bool:
    """Whether there is only ASCII punctuation in an answer: no letter, digit or symbol like ∅."""
    return not any(character.isalnum() or ord(character) > 127 for character in answer)


@lru_cache(maxsize=1024)
def _variable_and_value(answer: str) -> tuple[str | None, str]:
    """An answer at the equals sign after its only variable; ``x=1,y=2`` stays whole."""
    text = _spelling(answer)
    assigned = _ASSIGNED.match(text) if text.count("=") == 1 else None
    return (assigned.group(1), text[assigned.end() :]) if assigned else (None, text)


def _spelling(answer: str) -> str:
    text = _NO_SPACE.sub("", _FRACTION_NAME.sub(r"\\frac", bare_latex(answer)))
    text = _without_unit(text)
    text = _THOUSANDS.sub(lambda n: n.group().replace("{,}", "").replace(",", ""), text)
    text = _WORDS.sub(r"\1", text).replace(r"\$", "")
    text = _SPACING.sub("", _DEGREES.sub("", text))
    text = _SYNONYM.sub(lambda name: _SYNONYMS[name.group(1)], text)
    text = _SHORT_TOP.sub(r"\\frac{\1}", _SHORT_ARGUMENT.sub(r"\1{\2}", text))
    return _BRACKETED.sub(r"\1", _SHORT_BOTTOM.sub(r"\1{\2}", text).rstrip("."))


def _without_unit(text: str) -> str:
    """The text before a unit, if that is a number in figures: `x^2 is odd` stays as it is."""
    found = _UNIT.search(text)
    if found is None or _NO_UNIT.search(found.group("unit")):
        return text
    value = text[: found.start()]
    has_letters = any(map(str.isalpha, _COMMAND.sub("", value)))
    return text if has_letters or not re.search(r"\d|\\pi", value) else value


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
    if part["whole"] is not None:
        above, below = int(part["part"]), int(part["parts"])
        return sign * (int(part["whole"]) + Fraction(above, below)) if below else None
    above = Fraction(part["top"] or part["over"] or part["plain"])
    below = Fraction(part["bottom"] or part["under"] or 1)
    return sign * above / below if below else None
