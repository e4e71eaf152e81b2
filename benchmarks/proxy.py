"""Time per token of a proxy-tuned model against its three models alone, one after the other.

Random models in Qwen2's proportions with its two padded vocabularies (152,064 and 151,936). All
generate greedily from the same prompts, turn by turn, so that a machine that gets slower slows them
all. Needs an idle machine: ``python benchmarks/proxy.py``.
"""

import argparse
import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from atlantis.models.proxy import ProxyTunedLM

PROMPT_TOKENS = 64


def make_model(*, width: int, layers: int, vocabulary: int, seed: int) -> Qwen2ForCausalLM:
    """A random model."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 11 // 2,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config).eval()


def make_family(device: torch.device, dtype: torch.dtype, scale: int) -> dict[str, PreTrainedModel]:
    """The three models and the one that they make together."""
    large = make_model(width=768 * scale, layers=12 * scale, vocabulary=152_064, seed=0)
    small = make_model(width=512 * scale, layers=6 * scale, vocabulary=151_936, seed=1)
    reference = make_model(width=512 * scale, layers=6 * scale, vocabulary=151_936, seed=2)
    parts: list[Any] = [model.to(device, dtype) for model in (large, small, reference)]
    names = ("large", "small", "reference")
    return dict(zip(names, parts, strict=True)) | {"proxy-tuned": ProxyTunedLM(*parts)}


@torch.inference_mode()
def seconds_per_token(model: Any, *, batch: int, tokens: int) -> float:
    """Of one call of ``generate``, the reading of the prompts in it."""
    ids = torch.arange(PROMPT_TOKENS * batch, device=model.device).view(batch, -1) % 1000 + 5
    begin = time.perf_counter()
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=tokens,
        eos_token_id=None,
        pad_token_id=0,
    )
    if output.is_cuda:
        torch.cuda.synchronize()
    assert output.shape[1] == PROMPT_TOKENS + tokens
    return (time.perf_counter() - begin) / tokens


def measure(
    models: Mapping[str, PreTrainedModel], *, batch: int, tokens: int, rounds: int
) -> dict[str, list[float]]:
    """Seconds per token of each model in each round; one round before is not counted."""
    found: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds + 1):
        for name, model in models.items():
            seconds = seconds_per_token(model, batch=batch, tokens=tokens)
            if number:
                found[name].append(seconds)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--scale", type=int, default=1, help="of widths and depths")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    models = make_family(torch.device(options.device), getattr(torch, options.dtype), options.scale)
    table = Table("batch", *models, "sum of three", "ratio", "ratios of the rounds")
    for batch in options.batch:
        found = measure(models, batch=batch, tokens=options.tokens, rounds=options.rounds)
        *parts, together = found.values()
        sums = [sum(seconds) for seconds in zip(*parts, strict=True)]
        ratios = sorted(a / b for a, b in zip(together, sums, strict=True))
        medians = [statistics.median(seconds) for seconds in [*found.values(), sums]]
        table.add_row(
            str(batch),
            *(f"{1000 * seconds:.1f} ms" for seconds in medians),
            f"{statistics.median(ratios):.3f}",
            f"{ratios[0]:.3f} to {ratios[-1]:.3f}",
        )
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
