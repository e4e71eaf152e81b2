"""The command line in this process, and models for it."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from atlantis.cli import main


@dataclass(frozen=True)
class CommandResult:
    """What a command left behind."""

    code: int
    out: list[str]
    err: list[str]


Atlantis = Callable[..., CommandResult]


@pytest.fixture
def atlantis(capfd, monkeypatch) -> Atlantis:
    """Runs the command line inside this process: `atlantis("score", path, "--model", ...)`."""

    def run(*arguments: object) -> CommandResult:
        monkeypatch.setattr(sys, "argv", ["atlantis", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capfd.readouterr()
        code = 0 if stop.value.code is None else int(stop.value.code)
        return CommandResult(code, captured.out.splitlines(), captured.err.splitlines())

    return run


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> Path:
    """A folder with `large` and `small`: random weights, one word-level tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    words = ["<eos>", "<pad>", "yes", "no", "maybe", *(f"w{i}" for i in range(40))]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>", unk_token="<pad>"
    )
    for name, size in (("large", 16), ("small", 8)):
        torch.manual_seed(size)
        # Not Qwen2: for that model type AutoTokenizer loads its own tokenizer class instead.
        config = Qwen3Config(
            vocab_size=len(words),
            hidden_size=size,
            intermediate_size=2 * size,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=64,
            initializer_range=0.3,
            eos_token_id=0,
            pad_token_id=1,
        )
        Qwen3ForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder
