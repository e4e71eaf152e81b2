"""The three models of proxy-tuning: whether they fit, and what they have in common."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import (
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from atlantis.errors import ConfigError, ModelError
from atlantis.models.loading import is_encoder_decoder, load_tokenizer
from atlantis.models.settings import LoadingConfig
from atlantis.models.sources import read_config

ROLES = ("large", "small", "reference")
_PROBE = "The value, 3.14 (about)…  Ünïcode 語 emoji 🙂\n\tdef f(x): return x**2  # it's"
"""Read alike by two tokenizers of one vocabulary, unless they split or normalise differently."""
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len")


class ProxyTunedConfig(PreTrainedConfig):
    """What others ask of a model's configuration: the shared vocabulary and the shortest limit."""

    model_type = "proxy_tuned"


def vocabulary_size(config: PreTrainedConfig) -> int:
    """How many logits a model gives; padding makes it more than its tokenizer has tokens."""
    return int(config.get_text_config().vocab_size)


def length_limit(config: PreTrainedConfig) -> int | None:
    """Most tokens that a model has positions for, where its configuration says so."""
    fields: Any = config.get_text_config()
    found = (getattr(fields, name, None) for name in _LENGTHS)
    return next((int(limit) for limit in found if limit is not None), None)


def check_roles(names: Mapping[str, str], config: LoadingConfig) -> None:
    """Refuse three models that cannot be one, before any weights are read.

    Args:
        names: Folder or Hub name of each role.
        config: How they will be loaded.

    Raises:
        ModelError: One cannot be found or is an encoder-decoder, or their tokenizers differ.
        ConfigError: A setting fits one model only.
    """
    config.check_here()
    for setting in ("revision", "adapter"):
        if getattr(config, setting) is not None:
            raise ConfigError(
                f"{setting} belongs to one model, proxy-tuning has three; "
                "give a folder that has it as large, small or reference"
            )
    for role, name in names.items():
        if is_encoder_decoder(name, config):
            raise ModelError(f"{role} {name}: has an encoder; proxy-tuning needs causal models")
    width = min(vocabulary_size(read_config(name, config)) for name in names.values())
    first, *others = [(name, load_tokenizer(name, config)) for name in names.values()]
    for other in others:
        _check_tokenizers(first, other, width)


def _check_tokenizers(
    first: tuple[str, PreTrainedTokenizerBase],
    second: tuple[str, PreTrainedTokenizerBase],
    width: int,
) -> None:
    """Every id of the shared vocabulary is the same token, and text becomes the same ids."""
    a, b = (
        {token: i for token, i in tokenizer.get_vocab().items() if i < width}
        for _, tokenizer in (first, second)
    )
    differing = sorted(token for token in a.keys() | b.keys() if a.get(token) != b.get(token))
    refusal = f"{second[0]} and {first[0]} have different tokenizers"
    advice = "proxy-tuning needs models of one family"
    if differing:
        token = differing[0]
        raise ModelError(
            f"{refusal}: {len(differing):,} tokens differ, such as {token!r} with the id "
            f"{b.get(token)} and {a.get(token)}; {advice}"
        )
    x, y = (tok(_PROBE, add_special_tokens=False)["input_ids"] for _, tok in (first, second))
    if x != y:
        raise ModelError(f"{refusal}: the same text becomes other tokens; {advice}")


def shared_config(configs: Sequence[PreTrainedConfig]) -> ProxyTunedConfig:
    """The smallest vocabulary and the shortest limit of the three."""
    limits = [limit for config in configs if (limit := length_limit(config)) is not None]
    make: Any = ProxyTunedConfig  # takes whatever fields it is given
    return make(
        name_or_path="proxy-tuned",
        vocab_size=min(vocabulary_size(config) for config in configs),
        tie_word_embeddings=False,
        **({"max_position_embeddings": min(limits)} if limits else {}),
    )


def generation_defaults(models: Sequence[PreTrainedModel], width: int) -> GenerationConfig:
    """Those of the large model, with every model's stop ids."""
    configs: list[Any] = [model.generation_config for model in models]
    found = copy.deepcopy(configs[0])
    stops = {i for config in configs for i in _ids(config.eos_token_id) if i < width}
    pads = [i for config in configs for i in _ids(config.pad_token_id) if i < width]
    found.eos_token_id = sorted(stops) or None
    found.pad_token_id = next(iter([*pads, *sorted(stops)]), None)
    if found.cache_implementation == "hybrid":  # a sliding window's, from before dynamic ones
        found.cache_implementation = None
    return found


def _ids(given: int | list[int] | None) -> list[int]:
    if given is None:
        return []
    return [given] if isinstance(given, int) else list(given)
