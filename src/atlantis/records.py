"""What crosses stages: frozen records without behaviour."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_DIRECTION = re.compile(r"\((e1,e2|e2,e1)\)$")


@dataclass(frozen=True, slots=True)
class Example:
    """One row of training or test data: what conditions, and what is learnt."""

    example_id: str
    prompt: str
    completion: str
    label: str | None = None
    """The class that the completion spells, where the task has classes. It may be wrong."""
    gold_label: str | None = None
    """The true class, where it is known. Never used for training, except by the oracle arm."""
    text: str | None = None
    """The sentence, entities marked, for display and for finding it again in another split."""
    entity_types: str | None = None
    """Types of the two entities, where they are known: ``Peop-Org``."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A chat of one or more turns. What the assistant says is learnt; the rest conditions it."""

    example_id: str
    messages: tuple[Mapping[str, Any], ...]
    """As chat templates take them: ``role`` and ``content``, and what a turn has besides, such as
    ``tool_calls``."""
    learnt: tuple[int, ...]
    """Positions in ``messages`` of the assistant's turns that are scored and trained on."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """JSON schemas of the functions that the assistant may call."""


Row = Example | Conversation
"""One row of training data, as text or as a chat."""


@dataclass(frozen=True, slots=True)
class RelationExample:
    """A sentence with two marked entities and the relation between them."""

    example_id: str
    text: str
    """The sentence with ``<e1>``, ``</e1>``, ``<e2>``, ``</e2>`` around the entities."""
    head: str
    """The surface text of entity 1."""
    tail: str
    """The surface text of entity 2."""
    label: str
    gold_label: str | None = None
    head_type: str | None = None
    tail_type: str | None = None


@dataclass(frozen=True, slots=True)
class LabelSet:
    """The closed set of label strings of a classification task."""

    names: tuple[str, ...]
    """All labels, sorted. A directed relation ends in ``(e1,e2)`` or ``(e2,e1)``."""
    negative: str | None = None
    """The label that stands for "none of these" (``Other``, ``NO_RELATION``), if there is one."""


def base_relation(label: str) -> str:
    """The label without its direction: ``Cause-Effect(e1,e2)`` -> ``Cause-Effect``."""
    return _DIRECTION.sub("", label)


@dataclass(frozen=True, slots=True)
class TokenScores:
    """What one model assigns to one completion. Numbers are None unless ``status`` is ``ok``."""

    example_id: str
    status: str
    num_tokens: int | None = None
    num_bytes: int | None = None
    sequence_logprob: float | None = None
    token_logprobs: tuple[float, ...] | None = None
    num_trained_tokens: int | None = None
    """Tokens that a loss is over: the completions' and the ends of their turns, scored or not."""
