"""The recipe: everything a run depends on, validated before anything expensive starts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    model_validator,
)

from atlantis.data.config import DataConfig
from atlantis.errors import ConfigError
from atlantis.evaluation.stage import EvaluationConfig
from atlantis.models.families import families, family_of
from atlantis.models.loading import LoadingConfig
from atlantis.recipes import builtin_recipes
from atlantis.scoring.stage import ScoringConfig
from atlantis.selection.stage import SelectionConfig
from atlantis.training.config import Loss, TrainingConfig
from atlantis.validation import validated
from atlantis.weighting.schemes import Weighting


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ModelsConfig(_Config):
    """The model family."""

    large: str
    """The model to be trained: a folder or a Hub name."""
    small: str
    """The small base model, of the same tokenizer; by default that of the family."""
    family: str | None = None
    """Where models that the recipe does not name come from: a name that 'atlantis families' lists.
    A large model of the Hub tells its family itself."""
    families_file: str | None = None
    """YAML file with families of your own."""
    loading: LoadingConfig = LoadingConfig()
    """How models are put into memory; the same for all of them."""

    @model_validator(mode="after")
    def _loading_suits_all_models(self) -> Self:
        for name in ("revision", "adapter", "quantization"):
            if getattr(self.loading, name) is not None:
                raise ValueError(
                    f"loading.{name} would hold for every model, the trained one too; it is an "
                    "option of 'atlantis score' only"
                )
        return self


def _folder(value: Any) -> Any:
    """A bare path stands for a folder with ``large`` and ``small`` in it."""
    if not isinstance(value, str):
        return value
    return {"large": f"{value}/large", "small": f"{value}/small"}


class ReferenceConfig(_Config):
    """The tuned small model: given by name, or made here."""

    model: str | None = None
    """Folder or Hub name of a tuned model; None to fine-tune the small model here."""
    train_on: Literal["trusted", "train"] = "trusted"
    """Which rows the small model is tuned on, when it is made here."""
    training: TrainingConfig = TrainingConfig()
    """Hyperparameters of that fine-tuning."""

    @model_validator(mode="after")
    def _training_has_effect(self) -> Self:
        if self.model is not None and self.model_fields_set & {"train_on", "training"}:
            raise ValueError(
                "reference.train_on and reference.training have no effect beside reference.model"
            )
        return self


class ArmSelection(SelectionConfig):
    """Training on some of the rows."""

    judge: Literal["large", "small"] = "large"
    """Whose instruction-following difficulty it is: the model's to be trained (IFD), or the small
    base model's (Superfiltering)."""

    @model_validator(mode="after")
    def _is_of_scores_alone(self) -> Self:
        if self.pool is not None:
            raise ValueError("pool needs embeddings; it is an option of 'atlantis select' only")
        if self.keep_weights:
            raise ValueError(
                "keep_weights goes without saying: selected rows keep the arm's weights"
            )
        return self


class ArmConfig(_Config):
    """One way of training the large model."""

    rows: Literal["train", "train+trusted", "right"] = "train"
    """The noisy rows, these and the trusted ones, or only those whose label is the true one."""
    weights: Weighting | None = None
    """How the rows are weighted; None for ones."""
    select: ArmSelection | None = None
    """Train on some of the rows only, for as many epochs; by default on all of them, for as many
    steps as every other arm."""
    loss: Loss | None = None
    """Loss of a token in this arm; None for that of ``training``."""

    @model_validator(mode="after")
    def _only_training_rows_have_weights(self) -> Self:
        if (self.weights or self.select) is not None and self.rows != "train":
            raise ValueError("weights are computed for the training rows: use rows: train")
        if self.select is not None and self.select.method == "weight" and self.weights is None:
            raise ValueError("select by weight needs weights")
        return self


class RunConfig(_Config):
    """A whole experiment: data, models, arms, and how they are compared."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """Name of the run, and of its folder."""
    seeds: tuple[NonNegativeInt, ...] = Field(default=(0, 1, 2), min_length=1)
    """Each seed trains its own reference and every arm."""
    models: Annotated[ModelsConfig, BeforeValidator(_folder)]
    """The model family, or a folder that holds ``large`` and ``small``."""
    data: DataConfig
    """Training, trusted and test rows."""
    reference: ReferenceConfig = ReferenceConfig()
    """The model whose opinion makes the weights."""
    scoring: ScoringConfig = ScoringConfig()
    """How completions are scored."""
    training: TrainingConfig = TrainingConfig()
    """How the large model is fine-tuned, the same in every arm."""
    arms: dict[str, ArmConfig] = Field(min_length=1)
    """What is compared, by name."""
    baseline: str = "sft"
    """The arm that every other one is compared with."""
    control: str | None = "shuffled"
    """The arm that shows what uneven weights alone do."""
    headline: str = "atlantis"
    """The arm that the verdict of the report is about."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """How checkpoints are tested."""
    keep_models: Literal["all", "headline", "none"] = "headline"
    """Which arms' checkpoints stay on disk once they are tested."""

    @model_validator(mode="before")
    @classmethod
    def _family_fills_in(cls, settings: Any) -> Any:
        """Take from its family what the recipe does not name: the small model, the reference."""
        models = settings.get("models")
        if not isinstance(models, Mapping) or "large" not in models or "small" in models:
            return settings
        path = models.get("families_file")
        known = families(None if path is None else Path(path))
        name = models.get("family") or family_of(str(models["large"]), known)
        if name not in known:
            raise ValueError(
                f"models.small is not named, and no family is known for {models['large']}: name "
                f"models.small or models.family ({', '.join(known)})"
            )
        family = known[name]
        filled = {**models, "small": family.small, "family": name}
        reference = settings.get("reference") or {"model": family.reference}
        return {**settings, "models": filled, "reference": reference}

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the recipe would not see in it."""
        if self.models.family is None:
            return ()
        reference = self.reference.model or "tuned here from the small one"
        return (
            f"models of the family {self.models.family}: small {self.models.small}, "
            f"reference {reference}",
        )

    @model_validator(mode="after")
    def _arms_exist(self) -> Self:
        for role in ("baseline", "control", "headline"):
            name = getattr(self, role)
            if name is not None and name not in self.arms:
                raise ValueError(f"{role}: {name!r} is no arm; there are {', '.join(self.arms)}")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: {list(self.seeds)} has a seed twice")
        return self

    @model_validator(mode="after")
    def _losses_have_their_scores(self) -> Self:
        if self.reference.training.loss.columns:
            raise ValueError(
                f"reference.training.loss {self.reference.training.loss.name} needs scores of "
                "other models, which the reference's rows do not have"
            )
        for name, arm in self.arms.items():
            loss = arm.loss or self.training.loss
            if loss.columns and arm.rows == "train+trusted":
                raise ValueError(
                    f"arms.{name}: loss {loss.name} needs scores, and trusted rows have none"
                )
        return self

    @model_validator(mode="after")
    def _trusted_rows_exist(self) -> Self:
        needs = [name for name, arm in self.arms.items() if arm.rows == "train+trusted"]
        if self.reference.model is None and self.reference.train_on == "trusted":
            needs.append("reference")
        if needs and self.data.trusted is None:
            raise ValueError(f"{needs[0]} needs trusted rows: give data.trusted")
        return self


def load_recipe(name: str, changes: Sequence[str] = ()) -> RunConfig:
    """Read a recipe by path or built-in name, with ``a.b=value`` changes applied in order.

    Raises:
        ConfigError: There is no such recipe, it is no YAML, or a key or value is wrong.
    """
    path = builtin_recipes().get(name, Path(name))
    if not path.is_file():
        raise ConfigError(
            f"{name}: neither a recipe file nor a built-in one ({', '.join(builtin_recipes())})"
        )
    settings = _read_yaml(path)
    for change in changes:
        _change(settings, change)
    return validate_recipe(settings, where=str(path))


def validate_recipe(settings: Mapping[str, Any], *, where: str) -> RunConfig:
    """Check a recipe's settings; the error names the key, and the nearest known one.

    Raises:
        ConfigError: A key or value is wrong.
    """
    return validated(RunConfig, settings, where=where)


class _UniqueKeys(yaml.SafeLoader):
    """YAML keeps the last of two equal keys and says nothing; this refuses them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key: Any = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        settings: Any = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: not valid YAML ({reason})") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of settings")
    return settings


def _change(settings: dict[str, Any], change: str) -> None:
    """Apply one ``a.b=value``; the value is read as YAML."""
    place, equals, text = change.partition("=")
    if not equals or not place:
        raise ConfigError(f"--set {change}: write key.subkey=value")
    try:
        value: Any = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {change}: the value is not valid YAML") from None
    *parents, last = place.split(".")
    target = settings
    for parent in parents:
        below = target.setdefault(parent, {})
        if not isinstance(below, dict):
            raise ConfigError(f"--set {change}: {parent!r} holds a value, not settings")
        target = below
    target[last] = value
