"""A recipe about maths problems: train on solutions, the expert's or rewritten ones, and test."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, field_validator, model_validator

from atlantis.evaluation.maths_comparison import MEAN
from atlantis.evaluation.maths_stage import MathsEvaluationConfig
from atlantis.models.settings import LoadingConfig
from atlantis.rewriting.config import RewritingConfig
from atlantis.training.config import Loss, TrainingConfig
from atlantis.validation import check_template

BASE = "base"
"""The arm that is the model as it is."""


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class MathsDataConfig(_Config):
    """Problems to train and to test on."""

    root: Path = Path()
    """The folder that relative paths start from; by default the working directory."""
    train: Path
    """Demonstrations: rows of any format with a column answer, or, with ``prompt``, problems with
    solutions (JSONL)."""
    prompt: str | None = None
    """The training prompt of a problem, with {problem}. Without it, ``train`` has prompts."""
    chat: bool = False
    """Whether that prompt is what a user says in a chat."""
    benchmarks: Mapping[str, Path] = Field(min_length=1)
    """What is tested on, by name: JSONL with problems and answers."""

    @field_validator("benchmarks")
    @classmethod
    def _mean_is_no_benchmark(cls, named: Mapping[str, Path]) -> Mapping[str, Path]:
        if MEAN in named:
            raise ValueError(f"{MEAN!r} is the name of all benchmarks together; choose another")
        return named

    @field_validator("prompt")
    @classmethod
    def _prompt_can_be_filled(cls, template: str | None) -> str | None:
        if template is not None:
            check_template(template, allowed=("problem",), required="problem")
        return template

    @model_validator(mode="after")
    def _chat_has_effect(self) -> Self:
        if self.chat and self.prompt is None:
            raise ValueError("chat has no effect without prompt: the rows of train are as they are")
        return self


class MathsArm(_Config):
    """One way of training the model."""

    rows: Literal["expert", "rewritten"] = "expert"
    """The expert's solutions, or those that data rewriting makes of them."""
    loss: Loss | None = None
    """Loss of a token in this arm, such as dft; None for that of ``training``."""


class GenerationConfig(_Config):
    """What completes prompts."""

    backend: Literal["transformers", "vllm"] = "transformers"
    """In this process; vllm needs an environment with it."""
    batch_size: int = Field(default=32, ge=1)
    """Completions at a time (transformers)."""


class MathsRunConfig(_Config):
    """A whole experiment: problems, a model, arms, and how they are compared."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    """Name of the run, and of its folder."""
    kind: Literal["maths"]
    """Tells this kind of recipe from those about labels, which name none."""
    seeds: tuple[NonNegativeInt, ...] = Field(default=(0, 1, 2), min_length=1)
    """Each seed rewrites the data, trains every arm and draws its own samples."""
    model: str
    """The model to be trained, which also rewrites: a folder or a Hub name."""
    loading: LoadingConfig = LoadingConfig()
    """How it is put into memory."""
    data: MathsDataConfig
    """Problems to train and to test on."""
    max_length: int = Field(default=2048, ge=2)
    """Most tokens of a training row; what is over the limit is cut off at the end."""
    generation: GenerationConfig = GenerationConfig()
    """What samples, in rewriting and in tests."""
    rewriting: RewritingConfig = RewritingConfig()
    """How the expert's solutions are rewritten; its seed is the run's."""
    training: TrainingConfig = TrainingConfig()
    """How the model is fine-tuned, the same in every arm."""
    arms: dict[str, MathsArm] = Field(min_length=1)
    """What is compared, by name; the model as it is always stands beside them."""
    baseline: str = "sft"
    """The arm that every other one is compared with."""
    headline: str = "dr_dft"
    """The arm that the report is about."""
    evaluation: MathsEvaluationConfig = MathsEvaluationConfig()
    """How checkpoints are tested; its seed is the run's."""
    keep_models: Literal["all", "headline", "none"] = "headline"
    """Which arms' checkpoints stay on disk once they are tested."""

    @model_validator(mode="after")
    def _arms_exist(self) -> Self:
        if BASE in self.arms:
            raise ValueError(
                f"arms.{BASE}: that is the name of the untrained model; choose another"
            )
        known = (BASE, *self.arms)
        for role in ("baseline", "headline"):
            if getattr(self, role) not in known:
                raise ValueError(
                    f"{role}: {getattr(self, role)!r} is no arm; there are {', '.join(known)}"
                )
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: {list(self.seeds)} has a seed twice")
        return self

    @model_validator(mode="after")
    def _seeds_are_those_of_the_run(self) -> Self:
        for name in ("rewriting", "evaluation"):
            if getattr(self, name).seed:
                raise ValueError(f"{name}.seed has no effect: seeds says with which to run")
        return self

    @model_validator(mode="after")
    def _losses_need_no_other_model(self) -> Self:
        for name, arm in self.arms.items():
            loss = arm.loss or self.training.loss
            if loss.columns:
                raise ValueError(
                    f"arms.{name}: loss {loss.name} needs scores of other models, which recipes "
                    "about maths do not make; use 'atlantis score' and 'atlantis train'"
                )
        return self

    @property
    def needs_rewriting(self) -> bool:
        """Whether any arm trains on rewritten rows."""
        return any(arm.rows == "rewritten" for arm in self.arms.values())

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the recipe would not see in it."""
        return ()
