"""The words and phrasings of the quickstart corpus; all of them our own.

A phrasing holds ``{a}`` (the relation's first role) and ``{b}`` (its second role); a verb
phrasing also holds ``{verb}``, whose past tense and participle are the same word. Every noun goes
with every relation, so that a noun says nothing about the label.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Relation:
    """One relation and the ways to state it."""

    name: str
    """Its name, first role first."""
    verbs: tuple[str, ...]
    """Verbs with the first role as subject and the second as object."""
    phrasings: tuple[str, ...]
    """Phrasings that only this relation has, in both orders of the roles."""


RELATIONS: tuple[Relation, ...] = (
    Relation(
        "Maker-Product",
        ("built", "crafted", "forged", "designed"),
        (
            "{a} is the maker of {b}",
            "{a} gave shape to {b}",
            "{b} is the work of {a}",
            "{b} came from the hands of {a}",
        ),
    ),
    Relation(
        "Holder-Content",
        ("held", "contained", "enclosed", "stored"),
        (
            "{a} was full of {b}",
            "{a} is the box for {b}",
            "{b} lay inside {a}",
            "{b} was packed into {a}",
        ),
    ),
    Relation(
        "Whole-Part",
        ("included", "incorporated", "integrated", "comprised"),
        (
            "{a} is composed of {b}",
            "{a} consists mostly of {b}",
            "{b} is a component of {a}",
            "{b} forms one half of {a}",
        ),
    ),
    Relation(
        "Trigger-Outcome",
        ("caused", "triggered", "provoked", "induced"),
        (
            "{a} led to {b}",
            "{a} is the reason for {b}",
            "{b} resulted from {a}",
            "{b} is a consequence of {a}",
        ),
    ),
    Relation(
        "Sender-Parcel",
        ("shipped", "mailed", "dispatched", "exported"),
        (
            "{a} is the sender of {b}",
            "{a} said goodbye to {b}",
            "{b} travelled here from {a}",
            "{b} is a parcel from {a}",
        ),
    ),
    Relation(
        "Guard-Ward",
        ("protected", "guarded", "shielded", "defended"),
        (
            "{a} kept watch over {b}",
            "{a} is the shelter of {b}",
            "{b} is safe because of {a}",
            "{b} hid from danger behind {a}",
        ),
    ),
    Relation(
        "Mentor-Pupil",
        ("taught", "trained", "coached", "instructed"),
        (
            "{a} is the mentor of {b}",
            "{a} gave lessons to {b}",
            "{b} is a pupil of {a}",
            "{b} learned everything from {a}",
        ),
    ),
    Relation(
        "Report-Subject",
        ("described", "portrayed", "depicted", "mentioned"),
        (
            "{a} is a story about {b}",
            "{a} sheds light on {b}",
            "{b} is the topic of {a}",
            "{b} can be read about in {a}",
        ),
    ),
    Relation(
        "User-Tool",
        ("used", "operated", "wielded", "employed"),
        (
            "{a} got by with {b}",
            "{a} is the user of {b}",
            "{b} is an instrument of {a}",
            "{b} did the job for {a}",
        ),
    ),
)

VERB_PHRASINGS: tuple[str, ...] = (
    "{a} {verb} {b}",
    "{a} once {verb} {b}",
    "it was {a} that {verb} {b}",
    "{a}, by which {b} was {verb}, {idle}",
    "{a} {idle} after it {verb} {b}",
    "{b} was {verb} by {a}",
    "it was {b} that {a} {verb}",
    "{b}, which {a} {verb}, {idle}",
    "{b} {verb} by {a} {idle}",
    "having {verb} {b}, {a} {idle}",
)

UNRELATED_PHRASINGS: tuple[str, ...] = (
    "{a} stood beside {b}",
    "{a} looked like {b}",
    "{a} is older than {b}",
    "{a} passed by {b}",
    "{a} was as tall as {b}",
    "{a} and {b} {idle}",
    "neither {a} nor {b} {idle}",
    "{a} arrived long before {b}",
)

RESTATEMENT = "{verb} by {a} was {b}"
"""How unlabelled text says again what a sentence said of its two marked nouns."""

UNRELATED_RESTATEMENT = "nothing links {a} and {b}"

JOINS: tuple[str, ...] = (
    "{x}, and {y}",
    "{x}, but {y}",
    "{x}; {y}",
    "{x} while {y}",
    "although {x}, {y}",
    "when {x}, {y}",
)

RESTATEMENT_OPENINGS: tuple[str, ...] = ("In short,", "That is,", "In other words,", "Put simply,")

IDLE: tuple[str, ...] = (
    "slept",
    "vanished",
    "fell over",
    "stayed quiet",
    "turned grey",
    "went away",
    "got wet",
    "looked fine",
)

ADJECTIVES: tuple[str, ...] = (
    "old",
    "small",
    "heavy",
    "bright",
    "dusty",
    "famous",
    "strange",
    "silent",
    "broken",
    "golden",
    "gentle",
    "crooked",
    "northern",
    "painted",
    "hollow",
    "early",
)

_NOUNS = """
fox lamp drum stone river engine garden letter tower bridge captain bottle forest mirror wagon
clock baker harbor museum piano rocket blanket valley island doctor ladder window planet
basket candle soldier market kettle statue spider dragon temple violin farmer hammer castle
feather brimlet quandor vesprin tolgate marnok zelfin dorrick plimsel hastrel corvane wistrup
gandole nurbit falsken orbwick trellin smeeter jandrel polvane krintel ubrisk tamlow vennick
sarpole dwimmer lortag eskrin bolvent fenwort grindle hespin ilvater
"""
NOUNS: tuple[str, ...] = tuple(_NOUNS.split())
