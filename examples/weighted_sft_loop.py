"""ATLANTIS in one file: score, weigh, train. Only torch and transformers; nothing of atlantis.

    python examples/weighted_sft_loop.py --data train.jsonl --large BIG --small SMALL \
        --reference SMALL-TUNED --out trained

`train.jsonl` holds {"prompt": "...", "completion": "..."} lines. The weight of an example says how
much better the tuned small model (reference) explains the completion than the same model before
tuning (small): what tuning taught it to expect weighs more. The large model then learns from the
weighted examples. All three models share one tokenizer here.

Read it to see the method; use `atlantis` for chats, long completions, clipping, packing, several
GPUs, resuming, and for the checks that say whether the weights are worth training on.
"""

# ruff: noqa: T201 - a script reports by printing

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)


class Tokens(NamedTuple):
    """One example as token ids: prompt, completion, end-of-sequence token."""

    ids: Tensor
    start: int
    """Position of the completion's first token."""


def read_rows(path: Path) -> list[dict]:
    """The lines of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def tokenize(row: dict, tokenizer: PreTrainedTokenizerBase) -> Tokens:
    """Tokenize the whole text at once, then find where the completion starts.

    Tokenizing the two parts alone and gluing them would give other ids than the model sees in use:
    tokens merge across the boundary. The completion starts where the ids of the prompt and of the
    whole text diverge, which is TRL's rule too.
    """
    completion = row["completion"].removesuffix(tokenizer.eos_token)
    whole = tokenizer(row["prompt"] + completion + tokenizer.eos_token).input_ids
    start = 0
    for ours, theirs in zip(tokenizer(row["prompt"]).input_ids, whole, strict=False):
        if ours != theirs:
            break
        start += 1
    if not 0 < start < len(whole) - 1:
        raise ValueError(f"no prompt or no completion: {row}")
    return Tokens(torch.tensor(whole), start)


def completion_logprobs(model: PreTrainedModel, batch: list[Tokens]) -> list[Tensor]:
    """Log-probability of each completion token and of the end token, one tensor per example."""
    ids = pad_sequence([example.ids for example in batch], batch_first=True)  # on the right
    lengths = torch.tensor([len(example.ids) for example in batch])
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    ids, mask = ids.to(model.device), mask.to(model.device)
    logits = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits
    # Logits at position t predict token t + 1. Float32: a bfloat16 log-softmax is off by 0.1 nats.
    logprobs = logits[:, :-1].float().log_softmax(-1)
    logprobs = logprobs.gather(-1, ids[:, 1:, None]).squeeze(-1)
    return [
        row[example.start - 1 : len(example.ids) - 1]
        for row, example in zip(logprobs, batch, strict=True)
    ]


@torch.no_grad()
def score(model: PreTrainedModel, examples: list[Tokens]) -> Tensor:
    """Mean log-probability per completion token of every example, in float64.

    Without the end token: the reference has learnt to stop and the small base model has not, so
    that it would say more about the length than about the content. The mean, not the sum: on long
    completions a sum gives nearly all weight to one example.
    """
    model.eval()
    means = [completion_logprobs(model, [example])[0][:-1].double().mean() for example in examples]
    return torch.stack(means).cpu()


def influence_weights(small: Tensor, reference: Tensor, num_tokens: Tensor) -> Tensor:
    """w_i = exp(reference_i - small_i), scaled so that the mean weight of a trained token is one.

    Mean one keeps the learning rate what it is in plain fine-tuning. In log space until the end.
    """
    log_weights = reference - small
    log_mean = torch.logsumexp(log_weights + num_tokens.double().log(), 0) - num_tokens.sum().log()
    return (log_weights - log_mean).exp()


def train(
    model: PreTrainedModel,
    examples: list[Tokens],
    weights: Tensor,
    *,
    epochs: int,
    batch_size: int,
    accumulation: int,
    learning_rate: float,
    seed: int | None,
    max_grad_norm: float = 1.0,
) -> list[float]:
    """AdamW on the weighted token mean; returns the loss of every step.

    loss = sum_i w_i sum_t nll_it / N, with N the trained tokens of the whole optimizer step. Not of
    a micro-batch, or examples with few neighbours would count more; and never the sum of weights of
    a micro-batch, which cancels them: at one example per micro-batch every weight would be one.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    losses = []
    model.train()
    for _ in range(epochs):
        size = len(examples)
        order = range(size) if generator is None else torch.randperm(size, generator=generator)
        order = [int(index) for index in order]
        for step in chunks(order, batch_size * accumulation):
            # Known before the first forward pass, so that every micro-batch can divide by it.
            num_tokens = sum(len(examples[i].ids) - examples[i].start for i in step)
            total = 0.0
            for part in chunks(step, batch_size):
                logprobs = completion_logprobs(model, [examples[i] for i in part])
                pairs = zip(part, logprobs, strict=True)
                loss = sum(-float(weights[i]) * values.sum() for i, values in pairs) / num_tokens
                loss.backward()  # gradients of the micro-batches add up
                total += float(loss.detach())
            torch.nn.utils.clip_grad_norm_(
                model.parameters(), max_grad_norm, error_if_nonfinite=True
            )
            optimizer.step()
            optimizer.zero_grad()
            losses.append(total)
    return losses


def chunks(values: list[int], size: int) -> list[list[int]]:
    """Consecutive parts of at most `size`."""
    return [values[start : start + size] for start in range(0, len(values), size)]


def load(name: str, device: str) -> PreTrainedModel:
    """A model in float32: bfloat16 weights are too coarse to add AdamW's small steps to."""
    return AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).to(device)


def main() -> None:
    """Score under the two small models, weigh, train the large one, save it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("data", "large", "small", "reference", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--accumulation", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(options.large)
    rows = [tokenize(row, tokenizer) for row in read_rows(Path(options.data))]
    examples = [row for row in rows if len(row.ids) <= options.max_length]
    print(
        f"{len(examples)} examples; {len(rows) - len(examples)} longer than --max-length left out"
    )
    # One model at a time: the scores are all that is kept of the small ones. The large model's own
    # score is not needed: it is in the loss already, and as a factor it would favour easy examples.
    small = score(load(options.small, options.device), examples)
    reference = score(load(options.reference, options.device), examples)
    num_tokens = torch.tensor([len(example.ids) - example.start for example in examples])
    weights = influence_weights(small, reference, num_tokens)
    # How many equally weighted examples these are worth: near 1, one example takes it all.
    size = weights.sum() ** 2 / weights.square().sum()
    print(f"weights from {weights.min():.3g} to {weights.max():.3g}; effective size {size:.1f}")

    model = load(options.large, options.device)
    names = ("epochs", "batch_size", "accumulation", "learning_rate", "seed")
    losses = train(model, examples, weights, **{name: getattr(options, name) for name in names})
    print(f"{len(losses)} steps, loss {losses[0]:.4f} -> {losses[-1]:.4f}; saved to {options.out}")
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)


if __name__ == "__main__":
    main()
