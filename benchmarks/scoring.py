"""Time and memory of scoring: a notebook's loop, lm-eval, TRL and ours, against a floor.

All score the same token ids under the same random model of Qwen2's shape; tokenization is not
timed. The floor is the matrix products of the tokens that are not padding, and of the scored
positions with the vocabulary, by themselves: once as torch does them, once the fastest way found.
Needs the data folder and an idle machine: ``python benchmarks/scoring.py``.
"""

import argparse
import importlib.util
import logging
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from trl.trainer.utils import add_fused_lm_head

from atlantis.data.files import read_json_lines
from atlantis.data.formats import read_semeval
from atlantis.data.tokenization import TokenizedExample, tokenize
from atlantis.models.backbone import OneDnnProducts
from atlantis.records import Example
from atlantis.scoring.batching import make_batches
from atlantis.scoring.budget import CPU_TOKENS
from atlantis.scoring.transformers_scorer import TransformersScorer, pad_right

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
BATCH = 16
PRODUCT_SIZES = (256, 512, 1024)
INSTRUCTION = """You label the relation between two marked entities of a sentence. The first entity
stands between <e1> and </e1>, the second between <e2> and </e2>. Decide by what this sentence says.
(e1,e2) after a name means that the first entity has the first role of the name, (e2,e1) that the
second one has it. Answer with one of these and nothing else:
{labels}

Sentence: {{text}}
Relation:"""

Rows = Sequence[TokenizedExample]
Score = Callable[[], list[float]]


class Timing(NamedTuple):
    """Median seconds of a contender, and its sequence log-probabilities."""

    seconds: float
    scores: list[float]


def workloads(num_rows: int) -> tuple[dict[str, Rows], PreTrainedTokenizerFast]:
    """Rows to score by name, and the tokenizer that was made for them."""
    relations = read_semeval(DATA / "semeval2010_task8" / "TRAIN_FILE.TXT").rows[:2000]
    read = read_json_lines(DATA / "instruct" / "alpaca_6k.jsonl")
    instructions = [row for _, row in islice(read, 2000)]
    labels = "\n".join(sorted({row.label for row in relations}))
    prompts = {"long": INSTRUCTION.format(labels=labels), "short": "{text}\nRelation:"}
    examples = {
        f"relations, {name} prompt": [
            Example(row.example_id, prompt.replace("{text}", row.text), f" {row.label}")
            for row in relations[: num_rows // (4 if name == "long" else 1)]
        ]
        for name, prompt in prompts.items()
    }
    examples["instructions"] = [
        Example(str(i), f"{row['instruction']}\n{row['input']}\n", str(row["output"]))
        for i, row in enumerate(instructions[:num_rows])
    ]
    texts = [row.text for row in relations] + [str(row) for row in instructions]
    tokenizer = make_tokenizer([*texts, *prompts.values()])
    tokenized = {
        name: [row for row in tokenize(rows, tokenizer, max_length=1024) if row.status == "ok"]
        for name, rows in examples.items()
    }
    return tokenized, tokenizer


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte pairs of these texts; 16,000 tokens, so that the ids fit every vocabulary here."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=16_000,
        special_tokens=["<eos>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<eos>")


def make_model(vocabulary: int) -> Qwen2ForCausalLM:
    """A random model of 39 million parameters besides its embeddings, in Qwen2's proportions."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=512,
        intermediate_size=2752,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config).eval()


@torch.inference_mode()
def notebook_loop(model: Qwen2ForCausalLM, rows: Rows) -> list[float]:
    """One row at a time, log-softmax over all of its positions."""
    scores: list[float] = []
    for row in rows:
        ids = torch.tensor([row.input_ids], device=model.device)
        logprobs = model(input_ids=ids).logits.float().log_softmax(-1)
        found = logprobs[0, :-1].gather(-1, ids[0, 1:, None]).squeeze(-1)
        scores.append(found[[i - 1 for i in scored(row)]].double().sum().item())
    return scores


def lm_eval_scorer(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: Rows, *, batch: int = BATCH
) -> Score:
    """``HFLM`` of lm-eval; it sorts by length and takes the log-softmax of all positions."""
    from lm_eval.models.huggingface import HFLM

    scorer = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch, backend="causal")
    requests = [
        (
            (str(i), ""),
            list(row.input_ids[: scored(row)[0]]),
            [row.input_ids[j] for j in scored(row)],
        )
        for i, row in enumerate(rows)
    ]
    return lambda: [total for total, _ in scorer._loglikelihood_tokens(requests, disable_tqdm=True)]


@torch.inference_mode()
def trl_fused_head(model: Qwen2ForCausalLM, rows: Rows, *, batch: int = BATCH) -> list[float]:
    """TRL's head on padded batches in the order of the rows; the model was given that head."""
    scores: list[float] = []
    for start in range(0, len(rows), batch):
        chosen = rows[start : start + batch]
        input_ids, mask = (
            part.to(model.device) for part in pad_right([r.input_ids for r in chosen])
        )
        labels = torch.full_like(input_ids, -100)
        for i, row in enumerate(chosen):
            labels[i, list(scored(row))] = input_ids[i, list(scored(row))]
        output = model(input_ids=input_ids, attention_mask=mask, labels=labels, fused_lm_head=True)
        scores += output.log_probs.double().sum(1).tolist()
    return scores


def ours(model: Qwen2ForCausalLM, rows: Rows, *, token_budget: int) -> list[float]:
    """The batches and the scorer of ``atlantis score``."""
    scorer = TransformersScorer(model)
    scores = [0.0] * len(rows)
    for batch in make_batches([row.num_tokens for row in rows], token_budget=token_budget):
        for i, result in zip(batch, scorer.score([rows[i] for i in batch]), strict=True):
            assert result.sequence_logprob is not None
            scores[i] = result.sequence_logprob
    return scores


@torch.inference_mode()
def products(model: Qwen2ForCausalLM, rows: Rows, *, size: int) -> None:
    """Every linear layer on as many tokens as the rows have, ``size`` at a time."""
    *layers, head = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    weight = head.weight
    inputs = {
        width: torch.randn(size, width, device=weight.device, dtype=weight.dtype)
        for width in {layer.in_features for layer in [*layers, head]}
    }
    for tokens in sizes(sum(row.num_tokens for row in rows), size):
        for layer in layers:
            layer(inputs[layer.in_features][:tokens])
    for positions in sizes(sum(len(scored(row)) for row in rows), min(size, 256)):
        head(inputs[head.in_features][:positions])


def fastest_products(model: Qwen2ForCausalLM, rows: Rows, rounds: int) -> float:
    """Seconds of the products by oneDNN, for the best number of tokens at a time."""
    with OneDnnProducts():
        return min(
            measure({"": floor(model, rows, size=size)}, rounds)[""].seconds
            for size in PRODUCT_SIZES
        )


def floor(model: Qwen2ForCausalLM, rows: Rows, *, size: int) -> Score:
    """The products as a contender without scores."""

    def work() -> list[float]:
        products(model, rows, size=size)
        return []

    return work


def sizes(total: int, size: int) -> Iterator[int]:
    """``total`` in pieces of ``size``."""
    for start in range(0, total, size):
        yield min(size, total - start)


def scored(row: TokenizedExample) -> tuple[int, ...]:
    """Positions of the completion's tokens."""
    return row.scored_positions(end_of_turn=False)


def measure(contenders: dict[str, Score], rounds: int) -> dict[str, Timing]:
    """Medians; the contenders take turns, and each runs once before."""
    results = {name: score() for name, score in contenders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, score in contenders.items():
            begin = time.perf_counter()
            score()
            seconds[name].append(time.perf_counter() - begin)
    return {name: Timing(statistics.median(seconds[name]), results[name]) for name in contenders}


def compare(
    model: Qwen2ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: Rows,
    *,
    token_budget: int,
    rounds: int,
) -> dict[str, Timing]:
    """All contenders on one workload; ``products`` are torch's own."""
    contenders: dict[str, Score] = {
        "one row at a time": lambda: notebook_loop(model, rows),
        f"TRL's fused head, batches of {BATCH}": lambda: trl_fused_head(model, rows),
        "atlantis": lambda: ours(model, rows, token_budget=token_budget),
        "products": floor(model, rows, size=512),
    }
    if importlib.util.find_spec("lm_eval") is not None:
        contenders[f"lm-eval HFLM, batches of {BATCH}"] = lm_eval_scorer(model, tokenizer, rows)
    return measure(contenders, rounds)


def largest_difference(first: list[float], second: list[float]) -> float:
    """In nats of a whole sequence."""
    return max(abs(a - b) for a, b in zip(first, second, strict=True))


def timing_table(vocabularies: Sequence[int], *, num_rows: int, rounds: int) -> Table:
    """Every contender on every workload with every vocabulary."""
    table = Table("rows", "vocabulary", "scorer", "seconds", "x torch's", "x fastest", "difference")
    rows_by_name, tokenizer = workloads(num_rows)
    for vocabulary in vocabularies:
        model = make_model(vocabulary)
        add_fused_lm_head(model)
        for name, rows in rows_by_name.items():
            fastest = fastest_products(model, rows, rounds)
            timings = compare(model, tokenizer, rows, token_budget=CPU_TOKENS, rounds=rounds)
            torchs = timings.pop("products")
            exact = timings["one row at a time"].scores
            table.add_section()
            for scorer, timing in timings.items():
                table.add_row(
                    name,
                    f"{vocabulary:,}",
                    scorer,
                    f"{timing.seconds:.2f}",
                    f"{timing.seconds / torchs.seconds:.2f}",
                    f"{timing.seconds / fastest:.2f}",
                    f"{largest_difference(timing.scores, exact):.0e}",
                )
            table.add_row(
                name, "", "products alone: torch, fastest", f"{torchs.seconds:.2f}, {fastest:.2f}"
            )
    return table


def peak_bytes(vocabulary: int, num_rows: int) -> int:
    """Most memory of this process while it scores, above what the model takes. Linux only."""
    rows_by_name, _ = workloads(num_rows)
    model = make_model(vocabulary)
    notebook_loop(model, rows_by_name["instructions"][:1])  # the libraries' own buffers
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = resident("VmRSS")
    for rows in rows_by_name.values():
        ours(model, rows, token_budget=CPU_TOKENS)
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """Bytes of a field of ``/proc/self/status``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=64, help="of each set; a quarter if long")
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[32_000, 152_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.disable(logging.WARNING)  # lm-eval and transformers on being given a model
    console = Console(width=130)
    if options.memory_of:
        console.print(peak_bytes(options.memory_of, options.rows))
        return
    if importlib.util.find_spec("lm_eval") is None:
        console.print("lm-eval is left out: pip install lm_eval==0.4.13")
    console.print(timing_table(options.vocabulary, num_rows=options.rows, rounds=options.rounds))
    for vocabulary in options.vocabulary:
        own = [sys.executable, __file__, "--rows", str(options.rows)]
        printed = subprocess.check_output([*own, "--memory-of", str(vocabulary)], text=True)
        console.print(f"vocabulary {vocabulary:,}: {int(printed) / 1e6:.0f} MB above the model")


if __name__ == "__main__":
    main()
