"""Models by folder or Hub name: found and fingerprinted before anything is loaded."""

from typing import Any

from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.utils.import_utils import is_flash_attn_2_available

from atlantis.errors import ModelError
from atlantis.models.adapters import read_adapter_config, with_adapter
from atlantis.models.head import check_head
from atlantis.models.settings import DEFAULT, LoadingConfig
from atlantis.models.sources import (
    Repository,
    fingerprint_source,
    first_line,
    locate,
    read_config,
)


def fingerprint_model(name: str, config: LoadingConfig = DEFAULT) -> dict[str, str]:
    """What identifies a model: file hashes for a folder, the commit for a Hub name.

    Covers everything that decides numbers: weights, configuration, tokenizer, chat template, code,
    and those of an adapter. Nothing is loaded, and for a Hub name nothing but metadata is fetched.
    A file is hashed once in a process while its size and time stay.

    Raises:
        ModelError: There is no such model.
    """
    return fingerprint_source(name, config)


def is_encoder_decoder(name: str, config: LoadingConfig = DEFAULT) -> bool:
    """Whether a model reads the prompt with an encoder, from its configuration alone.

    Raises:
        ModelError: There is no such model, or its configuration cannot be read.
    """
    return bool(read_config(name, config).is_encoder_decoder)


def load_tokenizer(name: str, config: LoadingConfig = DEFAULT) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer; an adapter's own where the model is an adapter and has one.

    Raises:
        ModelError: There is no tokenizer.
    """
    source = locate(name, config).tokenizer
    try:
        return AutoTokenizer.from_pretrained(
            source.name, revision=source.revision, trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(f"{name}: no usable tokenizer ({first_line(error)})") from None


def load_model(name: str, config: LoadingConfig = DEFAULT) -> PreTrainedModel:
    """Load a causal or encoder-decoder language model in evaluation mode, with its adapter.

    Its log-probabilities are compared with its own forward pass once (`check_head`).

    Raises:
        ModelError: This machine cannot do what ``config`` asks for, the weights cannot be read,
            some that the architecture has are not there, the adapter is for another model, or the
            architecture cannot be scored.
    """
    config.check_here()
    source = locate(name, config)
    adapter_config = source.adapter and read_adapter_config(source.adapter)
    model = _load(source.base, config, is_seq2seq=is_encoder_decoder(name, config))
    if source.adapter is not None and adapter_config is not None:
        model = with_adapter(model, source.adapter, config=adapter_config)
    model = model.eval()
    if not is_deepspeed_zero3_enabled():  # then it is sharded, and cannot run yet
        check_head(model)
    return model


def with_fast_attention(name: str, config: LoadingConfig) -> LoadingConfig:
    """FlashAttention where it is left to us and can be had: it needs no padding.

    That is on a GPU, in half precision, where the package is installed and the architecture knows
    it.

    Raises:
        ModelError: There is no such model, or no such device.
    """
    can = (
        config.attention == "auto"
        and config.torch_device.type == "cuda"
        and config.dtype != "float32"
        and is_flash_attn_2_available()
        and _knows_flash_attention(name, config)
    )
    return config.model_copy(update={"attention": "flash_attention_2"}) if can else config


def _knows_flash_attention(name: str, config: LoadingConfig) -> bool:
    found = read_config(name, config)
    kind: Any = AutoModelForSeq2SeqLM if found.is_encoder_decoder else AutoModelForCausalLM
    if type(found) not in kind._model_mapping:  # code that comes with the model
        return False
    return bool(kind._model_mapping[type(found)]._supports_flash_attn)


def _load(base: Repository, config: LoadingConfig, *, is_seq2seq: bool) -> PreTrainedModel:
    kind: Any = AutoModelForSeq2SeqLM if is_seq2seq else AutoModelForCausalLM
    try:
        model, info = kind.from_pretrained(
            base.name,
            revision=base.revision,
            dtype=config.torch_dtype,
            attn_implementation=None if config.attention == "auto" else config.attention,
            device_map=_device_map(config),
            quantization_config=_quantization(config),
            trust_remote_code=config.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(f"{base.name}: cannot be loaded ({first_line(error)})") from None
    if info["missing_keys"]:  # transformers fills them with random numbers
        raise ModelError(
            f"{base.name}: not a language model, it has no weights {min(info['missing_keys'])}"
        )
    return model if _device_map(config) is not None else model.to(config.torch_device)


def _device_map(config: LoadingConfig) -> str | dict[str, Any] | None:
    if config.device_map is None and config.quantization is not None:
        return {"": config.torch_device}  # quantized where it stays
    return config.device_map


def _quantization(config: LoadingConfig) -> BitsAndBytesConfig | None:
    if config.quantization is None:
        return None
    if config.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=config.torch_dtype,
    )
