"""The models of a recipe: the family of the one that is trained, and others that weigh its rows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from atlantis.models.families import families, family_of
from atlantis.models.settings import LoadingConfig

FamilyName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class CrossFamily(_Config):
    """Small models of another family than the trained model's, with a tokenizer of their own."""

    small: str
    """The small base model."""
    reference: str | None = None
    """Its tuned version; None to tune it here as ``reference`` says."""


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
    cross: dict[FamilyName, CrossFamily] = {}
    """Other families by a name of your choice, whose weights an arm may take: ATLANTIS-cross."""
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


def folder_of_models(value: Any) -> Any:
    """A bare path stands for a folder with ``large`` and ``small`` in it."""
    if not isinstance(value, str):
        return value
    return {"large": f"{value}/large", "small": f"{value}/small"}


def filled_from_family(settings: Any) -> Any:
    """A recipe's settings with what it does not name from its family: small model, reference.

    Raises:
        ValueError: The small model is not named, and no family is known for the large one.
    """
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


def models_in_words(family: str, small: str, reference: str | None) -> str:
    """The models that make weights, for a reader of the plan."""
    return (
        f"models of {family}: small {small}, reference "
        f"{reference or 'tuned here from the small one'}"
    )
