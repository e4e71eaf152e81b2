"""The recipe: everything a run depends on, validated before anything expensive starts."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    model_validator,
)

from atlantis.data.config import DataConfig
from atlantis.evaluation.stage import EvaluationConfig
from atlantis.models.config import (
    ModelsConfig,
    filled_from_family,
    folder_of_models,
    models_in_words,
)
from atlantis.scoring.stage import ScoringConfig
from atlantis.selection.stage import SelectionConfig
from atlantis.training.config import Loss, TrainingConfig
from atlantis.weighting.schemes import Weighting


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


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
        is_plain = (self.train_on, self.training) == ("trusted", TrainingConfig())
        if self.model is not None and not is_plain:
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
    cross: str | None = None
    """The family in ``models.cross`` whose small model and reference weigh the rows; None for the
    trained model's own."""
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
        if self.cross is not None and self.weights is None:
            raise ValueError(f"cross: {self.cross} has no effect without weights")
        return self


class RunConfig(_Config):
    """A whole experiment: data, models, arms, and how they are compared."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """Name of the run, and of its folder."""
    seeds: tuple[NonNegativeInt, ...] = Field(default=(0, 1, 2), min_length=1)
    """Each seed trains its own reference and every arm."""
    models: Annotated[ModelsConfig, BeforeValidator(folder_of_models)]
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
        return filled_from_family(settings)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the recipe would not see in it."""
        own = self.models.family
        notes = [models_in_words(f"the family {own}", self.models.small, self.reference.model)]
        for name, family in self.models.cross.items():
            arms = ", ".join(arm for arm, each in self.arms.items() if each.cross == name)
            models = models_in_words(f"another family, {name}", family.small, family.reference)
            notes.append(f"{arms}: weights by {models}; each text in that family's own tokens")
        return tuple(notes if own is not None else notes[1:])

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
    def _families_weigh_arms(self) -> Self:
        families = self.models.cross
        for name, arm in self.arms.items():
            if arm.cross is None or arm.weights is None:
                continue
            if arm.cross not in families:
                known = ", ".join(families) or "none"
                raise ValueError(
                    f"arms.{name}.cross: {arm.cross!r} is not in models.cross: {known}"
                )
            if not {"small", "reference"} & set(arm.weights.scheme.models):
                raise ValueError(
                    f"arms.{name}.cross: the scheme {arm.weights.scheme.kind} takes no small model "
                    "and reference of another family"
                )
        unused = families.keys() - {arm.cross for arm in self.arms.values()}
        if unused:
            raise ValueError(f"models.cross.{min(unused)}: no arm has cross: {min(unused)}")
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
        for name, family in self.models.cross.items():
            if family.reference is None and self.reference.model is not None:
                raise ValueError(
                    f"models.cross.{name}.reference: name one, as reference.model does"
                )
        if needs and self.data.trusted is None:
            raise ValueError(f"{needs[0]} needs trusted rows: give data.trusted")
        return self
