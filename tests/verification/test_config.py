"""Settings of verifiers, told apart by their kind."""

import pytest
from pydantic import BaseModel

from atlantis.errors import ConfigError
from atlantis.validation import validated
from atlantis.verification.config import (
    FunctionConfig,
    LabelConfig,
    MathsConfig,
    VerifierConfig,
    open_verifier,
)


class Recipe(BaseModel):
    verifier: VerifierConfig


@pytest.mark.parametrize(
    ("settings", "config"),
    [
        ({"kind": "maths"}, MathsConfig()),
        ({"kind": "label"}, LabelConfig()),
        ({"kind": "function", "function": "a.b:c"}, FunctionConfig(function="a.b:c")),
    ],
)
def test_the_kind_decides(settings, config):
    assert validated(Recipe, {"verifier": settings}, where="recipe").verifier == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "math"}, "did you mean 'maths'"),
        ({"kind": "maths", "grader": "sympy"}, "grader"),
        ({"kind": "maths", "deadline": 3}, "did you mean 'deadline_seconds'"),
        ({"kind": "maths", "deadline_seconds": 0}, "greater than 0"),
        ({"kind": "label", "memory_gib": 2}, "unknown key"),
        ({"kind": "function"}, "function"),
    ],
)
def test_a_wrong_setting_is_one_line(settings, message):
    with pytest.raises(ConfigError, match=message):
        validated(Recipe, {"verifier": settings}, where="recipe")


def test_extraction_belongs_to_the_name_of_a_verifier():
    names = set()
    for extraction in ("boxed", "stated", "last_expression"):
        config = MathsConfig(grader="relative_tolerance", extraction=extraction)
        with open_verifier(config) as verifier:
            names.add(verifier.name)
    assert len(names) == 3


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (
            MathsConfig(num_workers=3, deadline_seconds=5),
            {
                "kind": "maths",
                "grader": "math_verify",
                "extraction": "stated",
                "deadline_seconds": 5.0,
                "memory_gib": 2.0,
            },
        ),
        (LabelConfig(place="end"), {"kind": "label", "place": "end"}),
        (
            FunctionConfig(function="a:b", num_workers=3, memory_gib=None),
            {"kind": "function", "function": "a:b", "deadline_seconds": 10.0, "memory_gib": None},
        ),
    ],
)
def test_the_number_of_workers_is_no_setting(config, settings):
    assert config.settings == settings
