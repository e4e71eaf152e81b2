"""What a trained model says about itself."""

import yaml

from atlantis.training.model_card import model_card

RECORD = {
    "num_rows": 90,
    "left_out": {"too_long": 3},
    "num_steps": 40,
    "seed": 7,
    "config": {"loss_normaliser": "example_mean", "loss": {"name": "dft", "floor": 0.1}},
    "weights": {"effective_sample_size": 45.0, "ess_fraction": 0.5},
    "fingerprint": {
        "data": "d" * 64,
        "weights": "w" * 64,
        "model": {"model.safetensors": "m" * 64},
        "seed": 7,
        "versions.trl": "1.16.0",
        "training.lora": None,
    },
}
WEIGHING = {
    "scheme": {"scheme": {"kind": "influence", "alpha": 1.0, "unit": "token"}, "kappa": 1.0},
    "normalise_for": "examples",
    "scores": {"small": "s" * 64},
}


def test_the_card_has_metadata_for_the_hub_and_every_hash():
    card = model_card("org/base", RECORD, weighing=WEIGHING, results={"macro-F1": "0.87"})
    _, metadata, _ = card.split("---\n", 2)
    assert yaml.safe_load(metadata)["base_model"] == "org/base"
    for digest in "dwms":
        assert digest * 64 in card
    assert "| macro-F1 | 0.87 |" in card


def test_the_card_states_formula_normaliser_loss_and_effective_sample_size():
    card = model_card("org/base", RECORD, weighing=WEIGHING)
    assert r"p_\text{reference} / p_\text{small}" in card
    assert "mean one over examples" in card
    assert "`example_mean`" in card
    assert "`{name: dft, floor: 0.1}`" in card
    assert "45.0 of 90 rows (50.0%)" in card
    assert "3 left out (too_long)" in card
    assert "Results" not in card


def test_a_training_without_weights_has_no_such_section():
    plain = RECORD | {"fingerprint": RECORD["fingerprint"] | {"weights": None}}
    card = model_card("org/base", plain)
    assert "without weights" in card
    assert "## Weights" not in card


def test_a_value_that_is_none_or_text_is_one_cell():
    card = model_card("org/base", RECORD)
    assert "| training.lora | `null` |" in card
    assert "| versions.trl | `1.16.0` |" in card
