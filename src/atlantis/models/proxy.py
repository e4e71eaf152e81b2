"""Proxy-tuning: a large model moved by what tuning did to a small one, as one language model.

``logits = large + alpha (reference - small)`` at every step, in float32: ``small`` is the small
base model, ``reference`` its tuned version (Liu et al., arXiv 2401.08565). No weight changes; the
three models share a vocabulary and read the same tokens.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from atlantis.errors import ConfigError, ModelError
from atlantis.models.head import ComposedHead, head_logits, is_whole
from atlantis.models.loading import load_model
from atlantis.models.proxy_roles import (
    ROLES,
    ProxyTunedConfig,
    check_roles,
    generation_defaults,
    shared_config,
)
from atlantis.models.settings import LoadingConfig
from atlantis.validation import validated


class ProxyCache(Cache):
    """The keys and values of three models, kept in step.

    Its layers are those of its parts, so that whatever moves, cuts or copies all layers of a cache
    does so in the three models.
    """

    def __init__(self, parts: Sequence[Cache]) -> None:
        self.parts = tuple(parts)
        super().__init__(layers=[layer for part in parts for layer in part.layers])


class ProxyTunedLM(PreTrainedModel, GenerationMixin):
    """Three causal language models of one vocabulary as one: ``large + alpha (reference - small)``.

    ``generate`` works as with any model of transformers, and so does whatever stands on it. Logits
    of padded vocabularies are cut to the smallest one. Generation ends with the end token of any of
    the three; the other defaults of ``generate`` are those of ``large``.

    Args:
        large: The model that is moved.
        small: The small base model.
        reference: The small model, tuned.
        alpha: How far; 0 is ``large`` alone. Can be set later.

    Raises:
        ModelError: One is an encoder-decoder.
        ConfigError: ``alpha`` is not finite.
    """

    config_class = ProxyTunedConfig
    main_input_name = "input_ids"

    def __init__(
        self,
        large: PreTrainedModel,
        small: PreTrainedModel,
        reference: PreTrainedModel,
        *,
        alpha: float = 1.0,
    ) -> None:
        models = (large, small, reference)
        for role, model in zip(ROLES, models, strict=True):
            if model.config.is_encoder_decoder:
                raise ModelError(f"{role}: proxy-tuning needs causal models, this has an encoder")
        super().__init__(shared_config([model.config for model in models]))
        self.large, self.small, self.reference = large, small, reference
        self.generation_config = generation_defaults(models, int(self.config.vocab_size))
        self._forwards = [_Forward(model.forward) for model in models]
        self.alpha = alpha

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride] - three names
        cls, *, large: str, small: str, reference: str, alpha: float = 1.0, **loading: Any
    ) -> Self:
        """Load three models by folder or Hub name; ``small`` and ``reference`` may be adapters.

        Args:
            large: The model that is moved.
            small: The small base model.
            reference: The small model, tuned.
            alpha: How far.
            **loading: Fields of `LoadingConfig`, for all three.

        Raises:
            ModelError: A model cannot be loaded, or they have different tokenizers.
            ConfigError: A setting is wrong.
        """
        config = validated(LoadingConfig, loading, where="proxy-tuning")
        names: dict[str, str] = dict(zip(ROLES, (large, small, reference), strict=True))
        check_roles(names, config)
        loaded = {name: load_model(name, config) for name in dict.fromkeys(names.values())}
        return cls(*(loaded[names[role]] for role in ROLES), alpha=alpha)

    @property
    def models(self) -> tuple[PreTrainedModel, PreTrainedModel, PreTrainedModel]:
        """The three models: large, small, reference."""
        return self.large, self.small, self.reference

    @property
    def alpha(self) -> float:
        """How far the large model is moved."""
        return self._alpha

    @alpha.setter
    def alpha(self, value: float) -> None:
        if not math.isfinite(value):
            raise ConfigError(f"alpha {value}: give a finite number, such as 1.0")
        self._alpha = float(value)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: ProxyCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool = True,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Combined float32 logits ``[batch, token, vocabulary]`` of the three models' own ones.

        Args:
            input_ids: Token ids, ``[batch, token]``.
            attention_mask: 1 where a row has a token, ``[batch, past and present token]``.
            position_ids: ``[batch, token]``; for those of the models that take them.
            past_key_values: What `generate` made, or an earlier call returned.
            use_cache: Whether to keep keys and values.
            logits_to_keep: Only this many last positions; 0 for all.
            return_dict: Whether to return names with the values.
        """
        cache = self.cache_for(past_key_values, use_cache=use_cache)
        logits: list[Tensor] = []
        for index, forward in enumerate(self._forwards):
            output = forward(
                self.models[index],
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=None if cache is None else cache.parts[index],
                use_cache=cache is not None,
                logits_to_keep=logits_to_keep,
            )
            logits.append(_kept(output.logits, input_ids, logits_to_keep))
        found = CausalLMOutputWithPast(
            logits=cast("Any", self.combine(*logits)), past_key_values=cache
        )
        return found if return_dict else found.to_tuple()

    def combine(self, large: Tensor, small: Tensor, reference: Tensor) -> Tensor:
        """``large + alpha (reference - small)`` in float32, on the shared vocabulary."""
        width = int(self.config.vocab_size)
        moved, base, tuned = (
            part[..., :width].to(large.device).float() for part in (large, small, reference)
        )
        return (tuned - base).mul_(self.alpha).add_(moved)

    @property
    def base_model(self) -> nn.Module:
        """The three backbones side by side; their hidden states are what the head takes."""
        return _Backbones(self)

    def get_output_embeddings(self) -> Any:
        """The three heads together."""
        return _ProxyHead(self)

    def tie_weights(
        self, missing_keys: set[str] | None = None, recompute_mapping: bool = True
    ) -> None:
        """Nothing to do: each model has tied its own."""

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Refused: there are no weights of its own.

        Raises:
            ModelError: Always.
        """
        raise ModelError("a proxy-tuned model has no weights of its own; save the three models")

    def cache_for(self, given: Any, *, use_cache: bool | None) -> ProxyCache | None:
        """The cache that a forward pass fills: the given one, a new one, or none.

        Raises:
            ModelError: It is that of a single model.
        """
        if given is None:
            return self._new_cache() if use_cache else None
        if not isinstance(given, ProxyCache):
            raise ModelError(
                f"past_key_values is a {type(given).__name__}; a proxy-tuned model needs the cache "
                "that it returned itself"
            )
        return given

    def _new_cache(self) -> ProxyCache:
        configs = [model.config.get_text_config(decoder=True) for model in self.models]
        return ProxyCache([DynamicCache(config=config) for config in configs])

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Called by ``generate``: puts one cache for the three models where it looks for one."""
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise ModelError(
                f"cache_implementation {generation_config.cache_implementation!r}: a proxy-tuned "
                "model has dynamic caches only; leave it out"
            )
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = self._new_cache()


class _Forward:
    """A forward pass, called with those of our arguments that it takes."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._takes = frozenset(inspect.signature(forward).parameters)

    def __call__(self, module: nn.Module, **inputs: Any) -> Any:
        device: Any = module.device
        return module(
            **{
                name: value.to(device) if isinstance(value, Tensor) else value
                for name, value in inputs.items()
                if name in self._takes
            }
        )


class _Backbones(nn.Module):
    """Runs the three models up to their heads."""

    def __init__(self, model: ProxyTunedLM) -> None:
        super().__init__()
        self._model = [model]  # in a list, or it would be a part of this module

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: ProxyCache | None = None,
        use_cache: bool | None = None,
    ) -> BaseModelOutputWithPast:
        """Last hidden states one after the other, ``[batch, token, sum of the three widths]``."""
        (whole,) = self._model
        cache = whole.cache_for(past_key_values, use_cache=use_cache)
        hidden: list[Tensor] = []
        for index, model in enumerate(whole.models):
            output = _Forward(model.base_model.forward)(
                model.base_model,
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=None if cache is None else cache.parts[index],
                use_cache=cache is not None,
            )
            hidden.append(output.last_hidden_state.to(whole.device))
        return BaseModelOutputWithPast(
            last_hidden_state=cast("Any", torch.cat(hidden, -1)), past_key_values=cache
        )


class _ProxyHead(ComposedHead):
    """Three heads on hidden states that stand side by side."""

    def __init__(self, model: ProxyTunedLM) -> None:
        self._model = model
        self.out_features = int(model.config.vocab_size)
        self.is_whole = all(is_whole(part.get_output_embeddings()) for part in model.models)

    def logits(self, hidden: Tensor, tokens: slice) -> Tensor:
        """Combined float32 logits of ``tokens``, none of them beyond the shared vocabulary."""
        models = self._model.models
        start, stop, _ = tokens.indices(self.out_features)
        parts = hidden.split([_width(model) for model in models], -1)
        logits = [
            head_logits(model, part, slice(start, stop))
            for model, part in zip(models, parts, strict=True)
        ]
        return self._model.combine(*logits)


def _width(model: PreTrainedModel) -> int:
    """How many numbers its head takes; not everywhere the configuration's hidden size."""
    head: Any = model.get_output_embeddings()
    return int(head.in_features)


def _kept(logits: Tensor, input_ids: Tensor, keep: int | Tensor) -> Tensor:
    """The last positions, of a model that gave all of them."""
    if not isinstance(keep, int) or keep == 0 or logits.shape[1] != input_ids.shape[1]:
        return logits
    return logits[:, -keep:]
