"""Fixtures that all tests share."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

SHARED = Path(__file__).parents[1].parent / "shared"


def shared_folder(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"needs the folder shared/{name} beside the repository")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets, where they are there."""
    return shared_folder("data")


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """Real tokenizers and tiny models, where they are there."""
    return shared_folder("models")


SENTENCES = (
    "The storm caused the flood in the old town, and the flood caused the damage.",
    "Relation between the engine and the car: Component-Whole(e1,e2) or Component-Whole(e2,e1)?",
    "Cause-Effect(e1,e2), Cause-Effect(e2,e1), Cause, Content-Container(e1,e2), Other",
    "A box of letters; the author wrote the letters. Product-Producer(e2,e1)",
)
VOCABULARY = 320

ARCHITECTURES = ("qwen2", "llama", "gemma2", "gpt2")


@pytest.fixture(scope="session")
def bpe_tokenizer():
    """A byte-level BPE trained on a few sentences: merges cross from prompts into completions."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(SENTENCES * 5, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>")


def _tiny_config(architecture, **changes):
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,  # far from uniform predictions, which hide mistakes
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 1,
    }
    if architecture == "gpt2":
        names = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
        kept = ("vocab_size", "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id")
        return GPT2Config(**{name: shape[name] for name in kept} | names | changes)
    if architecture == "gemma2":
        return Gemma2Config(
            **shape
            | {
                "head_dim": 8,
                "query_pre_attn_scalar": 8,
                "final_logit_softcapping": 3.0,  # small enough to bend these logits a lot
                "sliding_window": 256,
                "attn_implementation": "eager",  # transformers has no sdpa for Gemma 2
            }
            | changes
        )
    return {"qwen2": Qwen2Config, "llama": LlamaConfig}[architecture](**shape | changes)


@pytest.fixture(scope="session")
def tiny_model():
    """Random models of four architectures, by name, with changes of their configuration."""
    classes = {
        "qwen2": Qwen2ForCausalLM,
        "llama": LlamaForCausalLM,
        "gemma2": Gemma2ForCausalLM,
        "gpt2": GPT2LMHeadModel,
    }

    def build(architecture, *, seed=0, **changes):
        torch.manual_seed(seed)
        return classes[architecture](_tiny_config(architecture, **changes)).eval()

    return build


@pytest.fixture(scope="session")
def saved_model(tiny_model, bpe_tokenizer, tmp_path_factory):
    """The folder of such a model, with its tokenizer."""

    def save(architecture="qwen2", *, seed=0, **changes):
        folder = tmp_path_factory.mktemp(architecture)
        tiny_model(architecture, seed=seed, **changes).save_pretrained(folder)
        bpe_tokenizer.save_pretrained(folder)
        return folder

    return save


# `ATLANTIS_HYPOTHESIS=long pytest` looks far longer for inputs that break a reader.
settings.register_profile("short", max_examples=100, deadline=None)
settings.register_profile("long", max_examples=10_000, deadline=None)
settings.load_profile(os.environ.get("ATLANTIS_HYPOTHESIS", "short"))
