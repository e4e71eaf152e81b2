"""A seeded corpus of sentences with two marked entities and the relation between them.

The noise of the quickstart is not made here: the files hold the true labels, and the pipeline flips
them as it would flip anyone's.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from atlantis.quickstart import grammar
from atlantis.quickstart.grammar import RELATIONS, Relation

OTHER = "Other"
LABELS: tuple[str, ...] = (
    *(f"{relation.name}({order})" for relation in RELATIONS for order in ("e1,e2", "e2,e1")),
    OTHER,
)
"""The 19 labels: nine relations in both directions, and ``Other``."""

_OTHER_SHARE = 2
"""``Other`` is this many times as frequent as each directed relation."""
_OWN_PHRASING = 0.4
"""How often a clause uses a phrasing that only its relation has, rather than a verb."""
_SIDE_CLAUSE = 0.35
"""How often a second clause speaks of two other nouns, mostly with another relation's words."""
_NEUTRAL_SIDE_CLAUSE = 0.25
_ADJECTIVE = 0.3
_RESTATED = 0.9
_MOST_RESTATEMENTS = 3


@dataclass(frozen=True, slots=True)
class CorpusSizes:
    """How many sentences each file holds."""

    train: int = 1000
    trusted: int = 500
    test: int = 600
    sentences: int = 8000


@dataclass(frozen=True, slots=True)
class _Fact:
    """What a clause states between the two nouns that it names, in this order."""

    relation: Relation | None
    """None: a neutral phrasing, by which the two are not related."""
    forward: bool
    """Whether the noun named first has the relation's first role."""

    @property
    def label(self) -> str:
        """The label of a sentence whose marked entities are these two nouns."""
        if self.relation is None:
            return OTHER
        return f"{self.relation.name}({'e1,e2' if self.forward else 'e2,e1'})"


@dataclass(frozen=True, slots=True)
class _Sentence:
    """A marked sentence, what it says of the two marked nouns, and these nouns."""

    text: str
    fact: _Fact
    entities: tuple[str, str]


def write_corpus(folder: Path, *, seed: int, sizes: CorpusSizes) -> None:
    """Write ``train.txt``, ``trusted.txt``, ``test.txt`` and ``sentences.txt``.

    The first three are SemEval-2010 Task 8 text with true labels and ids that run over all files;
    each has every label equally often, ``Other`` twice as often as the rest, as evenly as its
    size permits. The last is unlabelled text, one line each, in which most sentences are followed
    by up to three that say the same of the marked entities in other words: what a model must have
    read to be a quick learner. No sentence stands twice in the whole corpus.
    """
    rng = random.Random(seed)
    seen: set[str] = set()
    next_id = 1
    for name, size in (("train", sizes.train), ("trusted", sizes.trusted), ("test", sizes.test)):
        rows = list(_distinct_sentences(rng, size=size, seen=seen))
        (folder / f"{name}.txt").write_text(_semeval_text(rows, first_id=next_id), "utf-8")
        next_id += size
    unlabelled = _distinct_sentences(rng, size=sizes.sentences, seen=seen)
    lines = [f"{_maybe_restated(rng, sentence)}\n" for sentence in unlabelled]
    (folder / "sentences.txt").write_text("".join(lines), "utf-8")


def _semeval_text(rows: list[_Sentence], *, first_id: int) -> str:
    return "".join(
        f'{row_id}\t"{row.text}"\n{row.fact.label}\nComment:\n\n'
        for row_id, row in enumerate(rows, first_id)
    )


def _distinct_sentences(rng: random.Random, *, size: int, seen: set[str]) -> Iterator[_Sentence]:
    """Yield `size` sentences that are not in `seen`, and add them to it."""
    facts = [_Fact(relation, forward) for relation in RELATIONS for forward in (True, False)]
    deck = [*facts, *[_Fact(None, forward=True)] * _OTHER_SHARE]
    drawn = [deck[i % len(deck)] for i in range(size)]
    rng.shuffle(drawn)
    for fact in drawn:
        sentence = _sentence(rng, fact)
        while sentence.text in seen:
            sentence = _sentence(rng, fact)
        seen.add(sentence.text)
        yield sentence


def _sentence(rng: random.Random, fact: _Fact) -> _Sentence:
    """Mark two nouns of a sentence in which `fact` holds between them."""
    e1, e2, *others = rng.sample(grammar.NOUNS, 4)
    one, two = f"<e1>{e1}</e1>", f"<e2>{e2}</e2>"
    if fact.relation is None and rng.random() < 0.5:
        text = _apart(rng, one, two, others=others)
    else:
        text = _clause(rng, fact, nouns=(one, two))
        if rng.random() < _SIDE_CLAUSE:
            side = _clause(rng, _side_fact(rng, fact), nouns=(others[0], others[1]))
            text = _joined(rng, *rng.sample((text, side), 2))
    return _Sentence(f"{text[0].upper()}{text[1:]}.", fact, (e1, e2))


def _apart(rng: random.Random, one: str, two: str, *, others: list[str]) -> str:
    """Two clauses, each relating one of the marked nouns to some other noun."""
    clauses: list[str] = []
    for marked, other in zip((one, two), others, strict=True):
        first, second = rng.sample((marked, other), 2)
        fact = _Fact(rng.choice(RELATIONS), rng.random() < 0.5)
        clauses.append(_clause(rng, fact, nouns=(first, second)))
    return _joined(rng, *clauses)


def _side_fact(rng: random.Random, main: _Fact) -> _Fact:
    """Another relation than the main one, or now and then none at all, in a random direction."""
    neutral = main.relation is not None and rng.random() < _NEUTRAL_SIDE_CLAUSE
    rest = [relation for relation in RELATIONS if relation is not main.relation]
    return _Fact(None if neutral else rng.choice(rest), rng.random() < 0.5)


def _clause(rng: random.Random, fact: _Fact, *, nouns: tuple[str, str]) -> str:
    """State `fact` between two nouns, naming the first before the second."""
    first, second = (_noun_phrase(rng, noun) for noun in nouns)
    a, b = (first, second) if fact.forward else (second, first)
    idle = rng.choice(grammar.IDLE)
    if fact.relation is None:
        return rng.choice(grammar.UNRELATED_PHRASINGS).format(a=first, b=second, idle=idle)
    own = rng.random() < _OWN_PHRASING
    phrasings = fact.relation.phrasings if own else grammar.VERB_PHRASINGS
    fitting = [
        text for text in phrasings if (text.index("{a}") < text.index("{b}")) == fact.forward
    ]
    verb = rng.choice(fact.relation.verbs)
    return rng.choice(fitting).format(a=a, b=b, verb=verb, idle=idle)


def _noun_phrase(rng: random.Random, noun: str) -> str:
    """The noun with its article and, by chance, an adjective."""
    adjective = f"{rng.choice(grammar.ADJECTIVES)} " if rng.random() < _ADJECTIVE else ""
    return f"the {adjective}{noun}"


def _joined(rng: random.Random, x: str, y: str) -> str:
    return rng.choice(grammar.JOINS).format(x=x, y=y)


def _maybe_restated(rng: random.Random, sentence: _Sentence) -> str:
    """The sentence, followed by chance by others that say the same of its marked nouns."""
    if rng.random() >= _RESTATED:
        return sentence.text
    count = rng.randint(1, _MOST_RESTATEMENTS)
    return " ".join([sentence.text, *(_restatement(rng, sentence) for _ in range(count))])


def _restatement(rng: random.Random, sentence: _Sentence) -> str:
    e1, e2 = (f"the <e{i}>{noun}</e{i}>" for i, noun in enumerate(sentence.entities, 1))
    opening = rng.choice(grammar.RESTATEMENT_OPENINGS)
    relation = sentence.fact.relation
    if relation is None:
        a, b = rng.sample((e1, e2), 2)
        return f"{opening} {grammar.UNRELATED_RESTATEMENT.format(a=a, b=b)}."
    a, b = (e1, e2) if sentence.fact.forward else (e2, e1)
    verb = rng.choice(relation.verbs)
    return f"{opening} {grammar.RESTATEMENT.format(verb=verb, a=a, b=b)}."
