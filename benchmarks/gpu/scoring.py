"""Scoring on a GPU: a model of Qwen2-1.5B's shape with random weights, in bfloat16.

As ``benchmarks/scoring.py``, and the share of the GPU's arithmetic that goes into the model: twice
the weights that a token passes, over the peak of dense bfloat16 products. From the root of the
repository: ``python -m benchmarks.gpu.scoring --peak-tflops 989``.
"""

import argparse
import importlib.util
import logging

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM
from trl.trainer.utils import add_fused_lm_head

from atlantis.scoring.transformers_scorer import TransformersScorer
from benchmarks.scoring import (
    BATCH,
    Rows,
    Score,
    floor,
    largest_difference,
    lm_eval_scorer,
    measure,
    notebook_loop,
    ours,
    scored,
    trl_fused_head,
    workloads,
)


def make_model() -> Qwen2ForCausalLM:
    """Qwen2-1.5B without its weights."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=151_936,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    with torch.device("cuda"):
        return Qwen2ForCausalLM(config).to(torch.bfloat16).eval()


def synchronised(score: Score) -> Score:
    """The same work, done when it returns."""

    def work() -> list[float]:
        scores = score()
        torch.cuda.synchronize()
        return scores

    return work


def needed_flops(model: Qwen2ForCausalLM, rows: Rows) -> int:
    """Two per weight: of the layers for every token, of the head for every scored position."""
    *layers, head = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    tokens = sum(row.num_tokens for row in rows)
    positions = sum(len(scored(row)) for row in rows)
    weights = sum(layer.weight.numel() for layer in layers)
    return 2 * (tokens * weights + positions * head.weight.numel())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1024, help="of each set; a quarter if long")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--peak-tflops", type=float, default=989.0, help="dense bfloat16; an H100's"
    )
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu/scoring.py needs an NVIDIA GPU; torch sees none here")
    logging.disable(logging.WARNING)
    model = make_model()
    add_fused_lm_head(model)
    budget = TransformersScorer(model).measured_budget(1024)
    rows_by_name, tokenizer = workloads(options.rows)
    title = f"{torch.cuda.get_device_name()}, {budget:,} tokens a pass"
    table = Table("rows", "scorer", "seconds", "utilisation", "difference", title=title)
    for name, rows in rows_by_name.items():
        contenders: dict[str, Score] = {
            "one row at a time": lambda rows=rows: notebook_loop(model, rows),
            f"TRL's fused head, batches of {BATCH}": lambda rows=rows: trl_fused_head(model, rows),
            "atlantis": lambda rows=rows: ours(model, rows, token_budget=budget),
            "products alone": floor(model, rows, size=8192),
        }
        if importlib.util.find_spec("lm_eval") is not None:
            contenders["lm-eval HFLM"] = lm_eval_scorer(model, tokenizer, rows)
        work = {label: synchronised(score) for label, score in contenders.items()}
        timings = measure(work, options.rounds)
        exact = timings["one row at a time"].scores
        for scorer, timing in timings.items():
            share = needed_flops(model, rows) / timing.seconds / options.peak_tflops / 1e12
            difference = largest_difference(timing.scores, exact) if timing.scores else 0.0
            table.add_row(
                name, scorer, f"{timing.seconds:.2f}", f"{share:.0%}", f"{difference:.1g}"
            )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
