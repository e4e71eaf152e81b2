"""Recipes: read, changed and refused, before anything expensive starts."""

import pytest
import yaml

from atlantis.config import RunConfig, load_recipe, validate_recipe
from atlantis.errors import ConfigError
from atlantis.recipes import builtin_recipes
from atlantis.weighting.schemes import PRESETS, Influence, Shuffled

RECIPE = """
name: small
seeds: [3, 1]
models: {large: some/large, small: some/small}
data:
  train: {format: semeval, path: train.txt, noise: {kind: uniform, rate: 0.2}}
  trusted: {format: semeval, path: trusted.txt}
  test: {format: semeval, path: test.txt}
  prompt: "{text}?"
training: {epochs: 3}
arms:
  sft: {}
  atlantis: {weights: influence}
  shuffled: {weights: {scheme: {kind: shuffled, of: influence}}}
"""


@pytest.fixture
def write(tmp_path):
    def write(text=RECIPE, name="recipe.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def load(write):
    return lambda *changes, text=RECIPE: load_recipe(write(text), changes)


@pytest.mark.parametrize("name", sorted(builtin_recipes()))
def test_every_recipe_of_the_package_is_valid_and_says_what_it_is(name):
    config = load_recipe(name)
    assert config.headline in config.arms
    first = builtin_recipes()[name].read_text().splitlines()[0]
    assert first.startswith("# ")
    assert first.rstrip().endswith(".")


def recipes_about_labels():
    found = {name: load_recipe(name) for name in builtin_recipes()}
    return sorted(name for name, recipe in found.items() if isinstance(recipe, RunConfig))


@pytest.mark.parametrize("name", recipes_about_labels())
def test_every_recipe_compares_with_plain_fine_tuning_and_a_shuffled_control(name):
    config = load_recipe(name)
    plain = config.arms[config.baseline]
    assert (plain.rows, plain.weights) == ("train", None)
    headline, control = config.arms[config.headline], config.arms[config.control]
    assert isinstance(control.weights.scheme, Shuffled)
    assert control.weights.scheme.of == headline.weights.scheme


def test_settings_keep_their_values_and_the_rest_its_defaults(load):
    config = load()
    assert config.seeds == (3, 1)
    assert config.training.epochs == 3
    assert config.training.learning_rate == RunConfig.model_fields["training"].default.learning_rate
    assert config.reference.training.epochs == 2.0  # another place, another setting
    assert config.arms["sft"].weights is None
    assert config.arms["atlantis"].weights.scheme == Influence()


def test_a_recipe_written_out_in_full_means_the_same(load):
    config = load()
    written = yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))
    assert validate_recipe(written, where="again") == config


@pytest.mark.parametrize(
    ("changes", "path", "expected"),
    [
        (["training.epochs=0.5"], "training.epochs", 0.5),
        (["training.learning_rate=1e-4"], "training.learning_rate", 1e-4),
        (["seeds=[7]"], "seeds", (7,)),
        (["training.epochs=1", "training.epochs=9"], "training.epochs", 9.0),
        (["reference.training.batch_size=3"], "reference.training.batch_size", 3),
        (["control=null"], "control", None),
        (["models=/some/family"], "models.large", "/some/family/large"),
        (["models=/some/family"], "models.small", "/some/family/small"),
        (["models.large=other"], "models.small", "some/small"),
        (["training.lora={r: 4}"], "training.lora.r", 4),
        (["data.prompt='{text} = what?'"], "data.prompt", "{text} = what?"),
        (["arms.atlantis.weights=report2025"], "arms.atlantis.weights", PRESETS["report2025"]),
        (["arms.more={rows: right}"], "arms.more.rows", "right"),
        (["name=1.2.3"], "name", "1.2.3"),
    ],
)
def test_a_change_reaches_the_setting_that_its_path_names(load, changes, path, expected):
    value = load(*changes)
    for part in path.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    assert value == expected


def test_a_change_leaves_the_file_and_other_settings_alone(write):
    path = write()
    changed, plain = load_recipe(path, ["training.epochs=1"]), load_recipe(path)
    assert plain.training.epochs == 3
    assert changed.model_dump(exclude={"training"}) == plain.model_dump(exclude={"training"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("training.epochs", "write key.subkey=value"),
        ("=3", "write key.subkey=value"),
        ("training.epochs={", "not valid YAML"),
        ("training.epochs.more=1", "'epochs' holds a value"),
        ("training=3", "training: .*given: 3"),
        ("training.epochs=many", "training.epochs: .*'many'"),
        ("training.epochs=-1", "training.epochs: .*greater than 0"),
        ("training.learning_rate=.nan", "training.learning_rate: .*finite"),
        ("scoring.max_length=1", "scoring.max_length"),
        ("seeds=[]", "seeds: "),
        ("seeds=[1, 1]", "has a seed twice"),
        ("name=a/b", "name: "),
        ("name=null", "name: "),
        ("arms={}", "arms: "),
        ("baseline=nothing", "baseline: 'nothing' is no arm; there are sft, atlantis, shuffled"),
        ("control=nothing", "control: 'nothing' is no arm"),
        ("headline=nothing", "headline: 'nothing' is no arm"),
        ("arms.atlantis.rows=right", "arms.atlantis: .*use rows: train"),
        ("arms.sft.rows=wrong", "arms.sft.rows: "),
        ("arms.atlantis.weights=influense", "arms.atlantis.weights.*did you mean 'influence'"),
        ("data.trusted=null", "reference needs trusted rows"),
        ("keep_models=some", "keep_models: "),
    ],
)
def test_a_wrong_change_is_refused_with_its_place(load, change, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load(change)
    assert "\n" not in str(caught.value)


def test_a_seed_that_no_generator_takes_is_refused_before_anything_starts(load):
    # numpy, and with it transformers.set_seed, takes no negative seeds.
    with pytest.raises(ConfigError, match=r"seeds\.0: "):
        load("seeds=[-1]")


@pytest.mark.parametrize(
    ("place", "nearest"),
    [
        ("trainig", "training"),
        ("training.epoch", "epochs"),
        ("training.learnin_rate", "learning_rate"),
        ("scoring.token_budge", "token_budget"),
        ("arms.sft.weight", "weights"),
        ("reference.trainon", "train_on"),
        ("models.larg", "large"),
        ("data.tain", "train"),
    ],
)
def test_an_unknown_key_is_refused_and_the_nearest_known_one_named(load, place, nearest):
    with pytest.raises(ConfigError, match=f"unknown key '{place}'; did you mean '{nearest}'"):
        load(f"{place}=1")


def test_a_misspelt_setting_of_a_scheme_is_named_too(load):
    with pytest.raises(ConfigError, match=r"alhpa'; did you mean 'alpha'"):
        load("arms.atlantis.weights={scheme: {kind: influence, alhpa: 0}}")


def test_a_reference_by_name_needs_no_trusted_rows(load):
    config = load("data.trusted=null", "reference.model=some/reference")
    assert config.reference.model == "some/reference"
    assert load("data.trusted=null", "reference.train_on=train").data.trusted is None


def test_an_arm_with_trusted_rows_needs_trusted_rows(load):
    with pytest.raises(ConfigError, match=r"more needs trusted rows: give data\.trusted"):
        load("data.trusted=null", "reference.train_on=train", "arms.more={rows: train+trusted}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "not valid YAML"),
        ("- a\n- b\n", "mapping of settings"),
        ("", "mapping of settings"),
        ("just words", "mapping of settings"),
        (RECIPE.replace("name: small", ""), "name: Field required"),
        (RECIPE.replace("models:", "modells:"), "models|modells"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_with_its_path(write, text, message):
    path = write(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"name: \xff\xfe")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_recipe(str(path))


@pytest.mark.parametrize("name", ["no-such-recipe", "."])
def test_a_recipe_that_is_not_there_is_refused_and_the_known_ones_named(name):
    with pytest.raises(
        ConfigError, match=r"neither a recipe file nor a built-in one .*semeval-weak"
    ):
        load_recipe(name)


def test_a_key_that_stands_twice_is_refused(write):
    # YAML keeps the last one and says nothing: the first would be silently without effect.
    with pytest.raises(ConfigError, match="training"):
        load_recipe(write(RECIPE + "training: {epochs: 1}\n"))


def test_training_settings_of_a_reference_that_is_not_trained_are_refused(load):
    # A configured option without effect is an error.
    with pytest.raises(ConfigError, match="reference"):
        load("reference.model=some/reference", "reference.training.epochs=9")


@pytest.mark.parametrize("setting", ["revision=main", "adapter=some/adapter", "quantization=4bit"])
def test_what_can_hold_for_one_model_only_is_refused_for_all(load, setting):
    with pytest.raises(
        ConfigError, match=rf"loading\.{setting.split('=')[0]} would hold for every"
    ):
        load(f"models.loading.{setting}")
