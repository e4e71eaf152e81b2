"""Data configurations: what makes no sense is refused before any file is read."""

import json

import pytest
from pydantic import ValidationError

from atlantis.data.config import DataConfig, SplitConfig
from atlantis.data.noise import ConfusableNoise, MixGoldNoise, UniformNoise


def semeval(**options):
    return {"format": "semeval", "path": "a.txt", **options}


def config(**changes):
    given = {"train": semeval(), "test": semeval(), "prompt": "{text} {head} {tail}"}
    return DataConfig.model_validate(given | changes)


READY = {"format": "prompt_completion", "path": "p.jsonl"}
CONLL = {"format": "conll04", "path": "c.json"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "{sentence}"}, r"unknown field \{sentence\}; use \{text\} \{head\} \{tail\}"),
        ({"prompt": "{head}"}, r"\{text\} is missing"),
        ({"prompt": "{text"}, "write a brace as"),
        ({"prompt": "{text} {}"}, r"unknown field \{\}"),
        ({"prompt": "{text.__class__}"}, r"unknown field \{text.__class__\}"),
        ({"prompt": None}, "prompt: give a template"),
        ({"completion": "{text}"}, r"unknown field \{text\}; use \{label\}"),
        ({"completion": " label"}, r"\{label\} is missing; use \{label\}"),
        ({"train": semeval(labels="majority")}, "labels: majority has no effect on format semeval"),
        ({"train": semeval(labels="function:x")}, "String should match pattern"),
        ({"train": semeval(mode="with_none")}, "mode: with_none has no effect on format semeval"),
        ({"train": CONLL}, "format conll04 needs mode"),
        ({"train": READY | {"direction": "drop"}}, "have no effect on format prompt_completion"),
        (
            {"train": READY | {"noise": {"kind": "uniform", "rate": 0.1}}},
            "have no effect on format prompt_completion",
        ),
        ({"train": READY, "test": READY}, "prompt and completion have no effect"),
        (
            {"train": READY, "test": READY, "prompt": None, "completion": "{label}"},
            "prompt and completion have no effect",
        ),
        ({"holdout_fraction": 0.5}, "holdout_fraction has no effect without a trusted split"),
        ({"test": semeval(noise={"kind": "uniform", "rate": 0.1})}, "measured on true labels"),
        ({"train": semeval(excluding=["trusted"])}, r"excluding \['trusted'\], which is not conf"),
        ({"train": semeval(excluding=["train"])}, "goes in a circle"),
        (
            {"train": semeval(excluding=["test"]), "test": semeval(excluding=["train"])},
            r"goes in a circle \((train excludes test|test excludes train) excludes \w+\)",
        ),
        ({"train": semeval(sample=0)}, "greater than 0"),
        ({"train": semeval(shuffle=True)}, "Extra inputs"),
    ],
)
def test_configs_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        config(**changes)


def test_a_config_survives_being_written_and_read():
    given = config(train=semeval(noise={"kind": "confusable", "rate": 0.1}))
    assert DataConfig.model_validate(json.loads(given.model_dump_json())) == given
    ready = DataConfig.model_validate({"train": READY, "test": READY})
    assert DataConfig.model_validate(ready.model_dump()) == ready


@pytest.mark.parametrize(
    "model", [DataConfig, SplitConfig, UniformNoise, ConfusableNoise, MixGoldNoise]
)
def test_every_config_field_is_documented(model):
    fields = {name: field for name, field in model.model_fields.items() if name != "kind"}
    assert [name for name, field in fields.items() if not field.description] == []
