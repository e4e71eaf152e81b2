"""The configuration of data: which files, which rows of them, and how a row becomes text."""

from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator

from atlantis.data.noise import NoiseConfig
from atlantis.records import RelationExample
from atlantis.validation import check_template

SplitName = Literal["train", "trusted", "test"]

_DEFAULT_COMPLETION = " {label}"
_DEFAULT_HOLDOUT = 0.25


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class SplitConfig(_Config):
    """One split: a file and what is done with its rows, in the order of the fields."""

    format: Literal["semeval", "conll04", "wrench", "prompt_completion"]
    """Layout of the file. ``prompt_completion`` is JSONL, JSON or Parquet with the columns
    ``prompt`` and ``completion``, or Alpaca's ``instruction``, ``input`` and ``output``."""

    path: Path
    """The file, absolute or from the data's ``root``."""

    labels: str = Field(default="gold", pattern=r"^(gold|majority|function:\d+)$")
    """Where labels come from (wrench only): ``gold``, the ``majority`` of the labelling
    functions, or ``function:<n>`` for one of them. The true label is kept beside it."""

    mode: Literal["gold_pairs", "with_none"] | None = None
    """Which pairs of entities are rows (conll04 only, required there): those in a relation, or
    every ordered pair, with NO_RELATION where there is none."""

    direction: Literal["keep", "drop"] = "keep"
    """``drop`` turns ``Cause-Effect(e1,e2)`` and ``Cause-Effect(e2,e1)`` into ``Cause-Effect``."""

    drop_labels: tuple[str, ...] = ()
    """Rows with these labels are left out."""

    excluding: tuple[SplitName, ...] = ()
    """Rows whose sentence stands in one of these splits are left out; markers, case, spaces and
    punctuation make no difference."""

    sample: PositiveInt | None = None
    """So many rows are drawn, without replacement; they stay in the order of the file."""

    noise: NoiseConfig | None = None
    """Labels are made wrong, or mixed with true ones; the true label is kept."""

    seed: int = Field(default=0, ge=0)
    """Decides tied majorities, the sample, the noise, and which trusted rows are held out."""

    @model_validator(mode="after")
    def _options_have_effect(self) -> Self:
        if self.labels != "gold" and self.format != "wrench":
            raise ValueError(f"labels: {self.labels} has no effect on format {self.format}")
        if self.mode is not None and self.format != "conll04":
            raise ValueError(f"mode: {self.mode} has no effect on format {self.format}")
        if self.mode is None and self.format == "conll04":
            raise ValueError("format conll04 needs mode: gold_pairs or with_none")
        if self.format == "prompt_completion" and (self.noise or self.direction == "drop"):
            raise ValueError(
                "direction and noise have no effect on format prompt_completion, whose completions "
                "are used as they stand; remove them"
            )
        return self


class DataConfig(_Config):
    """All data of a run."""

    root: Path = Path()
    """The folder that relative paths start from; by default the working directory."""

    train: SplitConfig
    """What is learnt from; its labels may be wrong."""

    trusted: SplitConfig | None = None
    """A small set with labels to rely on."""

    test: SplitConfig
    """What results are measured on, with true labels."""

    prompt: str | None = None
    """Template of the prompt, with {text} (the sentence with its entity markers), {head} and
    {tail}. Required by every format but prompt_completion."""

    completion: str = _DEFAULT_COMPLETION
    """Template of the completion, with {label}. By default a space and the label."""

    negative_label: str | None = None
    """The label that means "none of these", such as Other."""

    holdout_fraction: float = Field(default=_DEFAULT_HOLDOUT, ge=0.0, lt=1.0)
    """Share of the trusted rows that is set aside."""

    @field_validator("prompt")
    @classmethod
    def _prompt_fields(cls, template: str | None) -> str | None:
        if template is not None:
            check_template(template, allowed=("text", "head", "tail"), required="text")
        return template

    @field_validator("completion")
    @classmethod
    def _completion_fields(cls, template: str) -> str:
        check_template(template, allowed=("label",), required="label")
        return template

    @model_validator(mode="after")
    def _options_have_effect(self) -> Self:
        ready_made = {split.format == "prompt_completion" for split in self.splits.values()}
        if False in ready_made and self.prompt is None:
            raise ValueError("prompt: give a template with {text}, such as '{text}\\nRelation:'")
        if False not in ready_made and (self.prompt or self.completion != _DEFAULT_COMPLETION):
            raise ValueError(
                "prompt and completion have no effect: every split is prompt_completion, used as "
                "it stands; remove them"
            )
        if self.trusted is None and self.holdout_fraction != _DEFAULT_HOLDOUT:
            raise ValueError("holdout_fraction has no effect without a trusted split; remove it")
        if self.test.noise or self.test.labels != "gold":
            raise ValueError("test: results are measured on true labels; remove noise and labels")
        return self

    @model_validator(mode="after")
    def _excluding_can_be_resolved(self) -> Self:
        for name, split in self.splits.items():
            if missing := set(split.excluding) - set(self.splits):
                raise ValueError(f"{name}: excluding {sorted(missing)}, which is not configured")
        try:
            self.reading_order()
        except CycleError as error:
            cycle = " excludes ".join(reversed(error.args[1]))
            raise ValueError(f"excluding goes in a circle ({cycle}); remove one") from error
        return self

    @property
    def splits(self) -> Mapping[str, SplitConfig]:
        """The splits that are configured, by name."""
        named = {"train": self.train, "trusted": self.trusted, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}

    def reading_order(self) -> tuple[str, ...]:
        """The names of the splits, each after those that it excludes."""
        graph = {name: split.excluding for name, split in self.splits.items()}
        return tuple(TopologicalSorter(graph).static_order())

    def render_prompt(self, row: RelationExample) -> str:
        """The prompt of a row of relation data."""
        assert self.prompt is not None  # required for relation data, see _options_have_effect
        return self.prompt.format(text=row.text, head=row.head, tail=row.tail)
