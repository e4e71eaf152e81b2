"""Known families, those of a file, and recipes that name only a large model."""

from pathlib import Path

import pytest

from atlantis.config import validate_recipe
from atlantis.errors import ConfigError
from atlantis.models.families import KNOWN, families, family_of

DATA = {
    "train": {"format": "prompt_completion", "path": "train.jsonl"},
    "test": {"format": "prompt_completion", "path": "test.jsonl"},
}


def recipe(models, **changes):
    settings = {"name": "x", "models": models, "data": DATA, "arms": {"sft": {}}, "control": None}
    return validate_recipe(settings | {"headline": "sft"} | changes, where="r.yaml")


def test_no_large_model_is_of_two_families_or_its_own_small_one():
    larges = [large for family in KNOWN.values() for large in family.large]
    assert len(set(larges)) == len(larges)
    for name, family in KNOWN.items():
        assert family.small not in family.large
        assert all(family_of(large, KNOWN) == name for large in family.large)


def test_a_recipe_that_names_only_a_large_model_gets_the_others_and_says_so():
    config = recipe({"large": "Qwen/Qwen2-7B"})
    assert config.models.small == "Qwen/Qwen2-0.5B"
    assert config.reference.model == "Qwen/Qwen2-0.5B-Instruct"
    (note,) = config.notes
    assert "family qwen2: small Qwen/Qwen2-0.5B, reference Qwen/Qwen2-0.5B-Instruct" in note


def test_a_reference_that_the_recipe_makes_stays():
    data = DATA | {"trusted": DATA["test"] | {"path": "trusted.jsonl"}}
    reference = {"training": {"epochs": 3}}
    config = recipe({"large": "Qwen/Qwen2-7B"}, reference=reference, data=data)
    assert config.reference.model is None
    assert "tuned here" in config.notes[0]


def test_a_recipe_that_names_both_models_has_nothing_to_say():
    models = {"large": "Qwen/Qwen2-7B", "small": "ME/SMALL"}
    config = recipe(models, reference={"model": "ME/TUNED"})
    assert (config.models.small, config.notes) == ("ME/SMALL", ())


def test_a_folder_can_be_of_a_family_by_name():
    config = recipe({"large": "models/my-qwen2", "family": "qwen2"})
    assert config.models.small == "Qwen/Qwen2-0.5B"


def test_families_of_a_file_are_added_or_replace(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("mine: {large: [ME/BIG], small: ME/SMALL, reference: ME/TUNED}\n")
    assert families(path).keys() == KNOWN.keys() | {"mine"}
    config = recipe({"large": "ME/BIG", "families_file": str(path)})
    assert (config.models.small, config.reference.model) == ("ME/SMALL", "ME/TUNED")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "write NAME: {large:"),
        ("a: [", "not valid YAML"),
        ("a: {large: [x], small: y}", "families.a.reference: Field required"),
        ("a: {large: [x], small: y, referense: z, reference: z}", "unknown key"),
    ],
)
def test_a_file_that_holds_no_families_is_refused(tmp_path, text, message):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        families(path)


def test_a_large_model_of_no_family_is_refused_with_what_is_known():
    with pytest.raises(ConfigError, match=r"no family is known for ME/BIG.*\(llama-2, "):
        recipe({"large": "ME/BIG"})
    with pytest.raises(ConfigError, match="no such file of model families"):
        families(path=Path("none.yaml"))
