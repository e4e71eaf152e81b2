r"""Which part of a completion is its answer.

The last balanced ``\boxed{...}`` after the thinking part, and only that one: several boxes are
never merged. Everything here takes time linear in the text.
"""

import re
from collections import deque
from typing import Literal

Extraction = Literal["boxed", "stated", "last_expression"]
r"""Where an answer may stand, besides in a box: nowhere else (``boxed``); after ``####`` or "the
answer is" (``stated``); or anywhere, the last formula or number (``last_expression``)."""

_THINKING = re.compile(r"<(/?)think(?:ing)?>")
_BOX_PART = re.compile(r"\\(?:boxed|framebox|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"\\boxed[ \t]+([^\s{}$\\.,;]+)")
_HASHES = re.compile(r"^[ \t]*####[ \t]*(.*)$", re.MULTILINE)
_STATEMENT = re.compile(
    r"\banswer(?:[ \t]+(?:is|equals)\b|[ \t]*\**[ \t]*[:=])[ \t]*:?[ \t]*", re.IGNORECASE
)
_NUMBER = (
    r"[-+]?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?:[ \t]*/[ \t]*\d+)?(?:[ \t]*\\?%)?"
)
_FORMULA = (
    r"\$\$(?P<display>[^$]{1,2000})\$\$|(?<!\\)\$(?P<inline>[^$\n]{1,2000}?)(?<!\\)\$"
    r"|\\\((?P<round>.{1,2000}?)\\\)|\\\[(?P<square>.{1,2000}?)\\\]"
)
_AT_START = re.compile(rf"\W{{0,3}}?(?:{_FORMULA}|(?P<number>{_NUMBER}))", re.DOTALL)
_ANYWHERE = re.compile(rf"{_FORMULA}|(?<![\w.])(?P<number>{_NUMBER})", re.DOTALL)
_SENTENCE_END = re.compile(r"[.;!?](?:\s|$)")


def extract_answer(
    completion: str, *, extraction: Extraction = "stated", cut_off: bool = False
) -> str | None:
    """The answer that a completion gives, as it stands there.

    Args:
        completion: The text; a thinking part is left out.
        extraction: Where an answer may stand besides in a box, which always comes first.
        cut_off: Whether the completion reached its largest length: then only a box counts, since
            the last formula of half a derivation is no answer.

    Returns:
        The answer, or None if there is none, or an empty box.
    """
    text = without_thinking(completion)
    answer = last_boxed(text)
    if answer is None and not cut_off and extraction != "boxed":
        answer = _stated(text)
        if answer is None and extraction == "last_expression":
            answer = _last_expression(text)
    return (answer or "").strip() or None


def without_thinking(completion: str) -> str:
    """What follows the thinking part; nothing, if that never ends.

    The part may have begun in the prompt, so that only its end stands in the completion.
    """
    tags = list(_THINKING.finditer(completion))
    start = max((tag.end() for tag in tags if tag.group(1)), default=0)
    end = min((tag.start() for tag in tags if tag.start() >= start), default=len(completion))
    return completion[start:end]


def last_boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{...}`` whose braces are balanced.

    An escaped brace is no brace. ``\fbox`` and ``\framebox`` are boxes too, and so is
    ``\boxed 5`` where no box has braces.
    """
    open_braces: list[int | None] = []  # where a box's content begins, or None
    last: tuple[int, int] | None = None
    for part in _BOX_PART.finditer(text):
        token = part.group()
        if token.endswith("{") and token != "\\{":
            open_braces.append(part.end() if len(token) > 1 else None)
        elif token == "}" and open_braces:
            begin = open_braces.pop()
            if begin is not None and (last is None or begin > last[0]):
                last = begin, part.start()
    if last is not None:
        return text[slice(*last)]
    bare = _BARE_BOX.findall(text)
    return bare[-1] if bare else None


def _stated(text: str) -> str | None:
    after_hashes = _HASHES.findall(text)
    if after_hashes:
        return after_hashes[-1]
    statements = deque(_STATEMENT.finditer(text), maxlen=1)
    return _beginning(text[statements[0].end() :].partition("\n")[0]) if statements else None


def _beginning(statement: str) -> str:
    """The formula or number that a statement begins with, else its first sentence."""
    found = _AT_START.match(statement)
    if found:
        return _content(found)
    return _SENTENCE_END.split(statement.strip(" \t*"), maxsplit=1)[0]


def _last_expression(text: str) -> str | None:
    found = deque(_ANYWHERE.finditer(text), maxlen=1)
    return _content(found[0]) if found else None


def _content(found: re.Match[str]) -> str:
    return next(content for content in found.groupdict().values() if content is not None)
