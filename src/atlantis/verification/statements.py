r"""The answer that a text states in words: after ``####``, "the answer is" or "answer:".

A number or formula is taken out of a statement only if nothing else there belongs to it. Of "12
and 15" or "3\sqrt{2}", whose beginnings would be other answers, the whole sentence is taken.
"""

import re

NUMBER = (
    r"[-+−]?\\?\$?(?:\d+(?=[ \t]+\d+/\d)[ \t]+\d+|\d+(?:,\d+)*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
    r"(?:[ \t]*/[ \t]*\d+)?(?:[ \t]*\\?%)?"
)
FORMULA = (
    r"\$\$(?P<display>[^$]{1,2000})\$\$|(?<!\\)\$(?P<inline>[^$\n]{1,2000}?)(?<!\\)\$(?!\d)"
    r"|\\\((?P<round>.{1,2000}?)\\\)|\\\[(?P<square>.{1,2000}?)\\\]"
)

_STATEMENT = re.compile(
    r"^[ \t]*####(?!\#)|\banswer[ \t]*\**[ \t]+(?:is|equals)\b"
    r"|\banswer[ \t]*\**[ \t]*(?P<colon>[:=])",
    re.IGNORECASE | re.MULTILINE,
)
_TO_CHECK = re.compile(
    r"\b(?:check|verify|test|confirm)\w*\W+(?:(?:the|our|my|this|that)\W+)?(?:final\W+)?$",
    re.IGNORECASE,
)
_OPENING = re.compile(
    r"[\s*`\"“'‘:,]*(?:(?:therefore|thus|hence|then|simply|just|clearly|exactly|indeed|approximately"
    r"|about|roughly|equal[ \t]+to)\b[\s*`\"“'‘:,]*)?[≈~€£]?",
    re.IGNORECASE,
)
_AT_START = re.compile(rf"{FORMULA}|(?P<number>{NUMBER})", re.DOTALL)

_CLOSING = r"[*`\"'”’]{0,4}"
_OPERAND = r"(?:[-+−]?\\?[\d$.(\\]|[B-HJ-Zb-z]\b(?!['’])|pi\b|half\b)"
_NO_UNIT = (
    r"(?:(?:and|or|to|by|in|of|times|over|through|vs)\s+(?:an?\s+|the\s+)?"
    rf"(?:{_OPERAND}|third\b|quarter\b)|to\s+the\b|(?:out|plus|minus|divided|raised|more|less|fewer"
    r"|squared|cubed|factorial|choose|mod|modulo|hundred|thousand|million|billion|trillion|dozen"
    r"|half|halves|thirds?|fourths?|quarters?|fifths?|sixths?|eighths?|tenths?|hundredths?"
    r"|pi|sqrt|sin|cos|tan|log|ln)\b)"
)
_WORD = rf"(?!{_NO_UNIT})(?:[A-Za-z][A-Za-z][\w./^²³%'’-]*|[amghsLJNVW](?!\w)(?!\s*[-+*/^=(]))"
_UNIT_SIGN = r"(?:°|(?:[cmk]m|[mk]?g|m[lL]|in|ft|lbs?|hrs?|mins?|mph|am|pm)(?!\w))"
_ALONE = re.compile(
    rf"{_CLOSING}(?:[ \t]*\\?%)?{_UNIT_SIGN}?(?:[ \t]+{_WORD})*{_CLOSING}(?:"
    rf"[ \t]*(?:$|\n)"
    rf"|[.?]{_CLOSING}(?=\s|$)"
    rf"|!{_CLOSING}(?=\s*$|\s+[A-Za-z])"
    rf"|,(?=\s)(?!\s+(?:(?:and|or|but)\s+)?{_OPERAND})"
    rf"|[;:—–](?=\s*$|\s+[A-Za-z]{{2}})"
    rf"|[ \t]+\((?=[A-Za-z]{{2,}}[ ,])(?!\(?{_NO_UNIT})"
    r"|[ \t]+(?:because|since|as|which|where)\b)"
)
_SENTENCE_END = re.compile(
    rf"\n|[.?]{_CLOSING}(?=\s|$)|!{_CLOSING}(?=\s*$|\s+[A-Za-z])|;(?=\s*$|\s+[A-Za-z]{{2}})"
    r"|(?:,|(?<![ \t,]))[ \t]+(?:because|since|as|which|where)\b"
)
_EQUALS = re.compile(r"(?<![<>!:=\\])=(?!=)")
_COMMAND = re.compile(r"\\[A-Za-z]+")


def stated_answer(text: str) -> str | None:
    """The answer that the last statement of a text gives, or None if there is no statement."""
    ends = [found.end() for found in _STATEMENT.finditer(text) if not _is_to_check(found)]
    return _first(text[ends[-1] :]) if ends else None


def _is_to_check(statement: re.Match[str]) -> bool:
    """Whether it is "check the answer:", which is followed by a check and not by an answer."""
    start = statement.start()
    if statement.group("colon") is None:
        return False
    return _TO_CHECK.search(statement.string, max(0, start - 40), start) is not None


def _first(statement: str) -> str:
    """The formula or number that a statement consists of, else its first sentence."""
    opening = _OPENING.match(statement)
    start = opening.end() if opening else 0
    found = _AT_START.match(statement, start)
    if found and _ALONE.match(statement, found.end()):
        return _value(content(found))
    is_formula = found is not None and found.group("number") is None
    end = _SENTENCE_END.search(statement, found.end() if found and is_formula else start)
    sentence = statement[start : end.start() if end else None]
    return _value(sentence.strip(' \t*`"“”,'))


def _value(answer: str) -> str:
    """What stands behind the last equals sign, if a calculation stands before it: 5 + 3 = 8."""
    signs = list(_EQUALS.finditer(answer))
    if not signs:
        return answer
    calculation = _COMMAND.sub("", answer[: signs[-1].start()])
    if any(map(str.isalpha, calculation)) or not any(map(str.isdigit, calculation)):
        return answer
    return _first(answer[signs[-1].end() :])


def content(found: re.Match[str]) -> str:
    """What one of the groups of a match matched: a formula without its delimiters, or a number."""
    return next(part for part in found.groupdict().values() if part is not None)
