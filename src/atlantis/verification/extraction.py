r"""Which part of a completion is its answer.

The last balanced ``\boxed{...}`` after the thinking part, and only that one: several boxes are
never merged. Everything here takes time linear in the text.
"""

import re
from collections import deque
from typing import Literal

from atlantis.verification.statements import FORMULA, NUMBER, content, stated_answer

Extraction = Literal["boxed", "stated", "last_expression"]
r"""Where an answer may stand, besides in a box: nowhere else (``boxed``); after ``####`` or "the
answer is" (``stated``); or anywhere, the last formula or number (``last_expression``)."""

_THINKING = re.compile(r"<(/?)think(?:ing)?>")
_BOX_PART = re.compile(r"\\(?:boxed|framebox|fbox)\s*\{|\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"\\boxed[ \t]+([^\s{}$\\.,;]+)")
_BLANK = re.compile(r"\s*+")
_ANYWHERE = re.compile(rf"{FORMULA}|(?<![\w.])(?P<number>{NUMBER})", re.DOTALL)


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
        answer = stated_answer(text)
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

    An escaped brace is no brace. A blank box counts only where all are blank. ``\fbox`` and
    ``\framebox`` are boxes too, and so is ``\boxed 5`` where no box has braces.
    """
    open_braces: list[int | None] = []  # where a box's content begins, or None
    last: tuple[bool, int, int] | None = None  # whether it is filled, its begin and its end
    for part in _BOX_PART.finditer(text):
        token = part.group()
        if token.endswith("{") and token != "\\{":
            open_braces.append(part.end() if len(token) > 1 else None)
        elif token == "}" and open_braces:
            begin = open_braces.pop()
            if begin is not None:
                is_filled = _BLANK.fullmatch(text, begin, part.start()) is None
                if last is None or (is_filled, begin) > last[:2]:
                    last = is_filled, begin, part.start()
    if last is not None:
        return text[slice(*last[1:])]
    bare = _BARE_BOX.findall(text)
    return bare[-1] if bare else None


def _last_expression(text: str) -> str | None:
    found = deque(_ANYWHERE.finditer(text), maxlen=1)
    return content(found[0]) if found else None
