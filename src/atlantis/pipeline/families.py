"""Which models weigh an arm's rows, and whether what is compared per token has the same tokens."""

from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import combinations

from atlantis.config import ArmConfig, RunConfig
from atlantis.errors import ConfigError
from atlantis.models.loading import load_tokenizer
from atlantis.models.proxy_roles import check_roles
from atlantis.training.losses import REFERENCE

_ROLES = ("large", "small", "reference")


class Families:
    """The models of a recipe by family and role.

    A family is that of ``models.cross`` with a name, or None for the trained model's own.

    Args:
        config: The recipe.
        texts: Texts of its data, which tell tokenizers apart.
    """

    def __init__(self, config: RunConfig, texts: Sequence[str]) -> None:
        self._config = config
        self._texts = texts

    def model(self, role: str, family: str | None = None) -> str | None:
        """Name of the model in a role; None for a reference that is tuned here."""
        if role == "large":
            return self._config.models.large
        if family is not None:
            cross = self._config.models.cross[family]
            return cross.small if role == "small" else cross.reference
        return self._config.models.small if role == "small" else self._config.reference.model

    @cached_property
    def models(self) -> tuple[str, ...]:
        """Names of all models that are not tuned here."""
        named = [self.model(role, f) for f in (None, *self._config.models.cross) for role in _ROLES]
        return tuple(dict.fromkeys(name for name in named if name is not None))

    def tokenizers(self, family: str | None = None) -> dict[str, str]:
        """Per role the model whose tokenizer it has."""
        small = self.model("small", family)
        assert small is not None
        reference = self.model("reference", family) or small
        return {"large": self._config.models.large, "small": small, "reference": reference}

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the recipe would not see in it."""
        names = self.tokenizers()
        if self._has_same_tokens(names["large"], names["small"]):
            return ()
        return (
            f"{names['small']} has another tokenizer than {names['large']}: its weights are those "
            "of another family",
        )

    def refuse_other_tokens(self) -> None:
        """Refuse what is compared token by token between models that split text differently.

        Raises:
            ConfigError: An arm's weights or loss are.
            ModelError: Models cannot be proxy-tuned together.
        """
        for name, arm in self._config.arms.items():
            if arm.weights is not None:
                self._check_weights(name, arm)
            loss = arm.loss or self._config.training.loss
            if REFERENCE in loss.columns:
                what = f"loss {loss.name} reads the reference's log-probability of every token"
                roles = {role: self.tokenizers()[role] for role in ("large", "reference")}
                advice = "it needs a reference of the large model's family"
                self._refuse(name, what, roles, advice=advice)

    def _check_weights(self, name: str, arm: ArmConfig) -> None:
        assert arm.weights is not None
        scheme, tokenizers = arm.weights.scheme, self.tokenizers(arm.cross)
        if "proxy" in scheme.models:
            check_roles(tokenizers, self._config.models.loading)
        if scheme.compares_tokens:
            roles = {role: model for role, model in tokenizers.items() if role in scheme.models}
            what = f"weights {scheme.kind} are ratios per token"
            self._refuse(name, what, roles, advice="use unit: byte, or models of one family")

    def _refuse(self, arm: str, what: str, models: Mapping[str, str], *, advice: str) -> None:
        for (first, a), (second, b) in combinations(models.items(), 2):
            if not self._has_same_tokens(a, b):
                raise ConfigError(
                    f"arms.{arm}: {what}, but the {first} model {a} and the {second} model {b} "
                    f"split text into different tokens; {advice}"
                )

    def _has_same_tokens(self, first: str, second: str) -> bool:
        counts = [_token_counts(name, tuple(self._texts)) for name in {first, second}]
        return all(other == counts[0] for other in counts)


@lru_cache(maxsize=16)
def _token_counts(name: str, texts: tuple[str, ...]) -> list[int]:
    """Tokens of each text: few texts suffice, since different tokenizers soon differ."""
    tokenizer = load_tokenizer(name)
    return [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
