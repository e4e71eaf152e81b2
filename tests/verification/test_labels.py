"""Labels: the completion is the label, or it is not."""

import pytest

from atlantis.errors import DataError
from atlantis.verification.claims import Claim
from atlantis.verification.config import LabelConfig, open_verifier
from atlantis.verification.labels import LabelVerifier


@pytest.mark.parametrize(
    ("completion", "finish_reason", "status"),
    [
        ("Cause-Effect(e1,e2)", "stop", "correct"),
        (" Cause-Effect(e1,e2)\n", "stop", "correct"),
        ("Cause-Effect(e1,e2)", "length", "correct"),
        ("Cause-Effect(e2,e1)", "stop", "wrong"),
        ("cause-effect(e1,e2)", "stop", "wrong"),
        ("Cause-Eff", "length", "truncated"),
        ("", "length", "truncated"),
        (" \n", "stop", "no_answer"),
    ],
)
def test_a_completion_has_to_spell_the_label(claim, completion, finish_reason, status):
    with open_verifier(LabelConfig()) as verifier:
        assert verifier.name == "label"
        wanted = claim("Cause-Effect(e1,e2)", completion, finish_reason=finish_reason)
        assert verifier.verify([wanted])[0].status == status


def test_a_blank_label_is_refused():
    with (
        open_verifier(LabelConfig()) as verifier,
        pytest.raises(DataError, match="example 'b': gold label ' ' is blank"),
    ):
        verifier.check_golds({"a": "Other", "b": " "})


@pytest.mark.parametrize(
    ("completion", "status"),
    [
        ("The storm made it happen: Cause-Effect(e1,e2)", "correct"),
        ("The storm made it happen.\nCause-Effect(e1,e2).", "correct"),
        ("Cause-Effect(e1,e2)", "correct"),
        ("It is 'Cause-Effect(e1,e2)", "correct"),
        ("NotCause-Effect(e1,e2)", "wrong"),
        ("Cause-Effect(e1,e2) is not it: Other", "wrong"),
        ("  ", "no_answer"),
    ],
)
def test_a_label_may_stand_at_the_end(completion, status):
    verifier = LabelVerifier("end")
    (verdict,) = verifier.verify([Claim("a", "?", "Cause-Effect(e1,e2)", completion)])
    assert verdict.status == status


@pytest.mark.parametrize(
    ("completion", "status"),
    [
        ('It is "Other".', "correct"),
        ("It is (Other).", "correct"),
        ("It is “Other”.", "correct"),
        ("It is **Other**", "correct"),
        ("**Other.**", "correct"),
        ("Other!", "correct"),
        ("No, Other", "correct"),
        ("Cause? No: Other", "correct"),
        ("It knots Other", "correct"),
        ("It is not Other", "wrong"),
        ("It is not **Other**.", "wrong"),
        ("It isn't 'Other'", "wrong"),
        ("It isn’t Other", "wrong"),
        ("never Other", "wrong"),
        ("There is no Other.", "wrong"),
        ("Other?", "wrong"),
        ("Others", "wrong"),
        ("An-Other", "wrong"),
    ],
)
def test_closing_signs_do_not_count_and_negations_do(completion, status):
    (verdict,) = LabelVerifier("end").verify([Claim("a", "?", "Other", completion)])
    assert verdict.status == status


def test_a_label_may_begin_with_a_negation():
    gold = Claim("a", "?", "not entailment", "So it is not entailment.")
    (verdict,) = LabelVerifier("end").verify([gold])
    assert verdict.status == "correct"


def test_what_is_cut_off_does_not_end_with_a_label():
    (verdict,) = LabelVerifier("end").verify([Claim("a", "?", "Other", "It is Other", "length")])
    assert verdict.status == "truncated"
