"""Tiny Qwen3 models and their tokenizer, made from scratch on the spot."""

import random
import re
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging

PAD, END, UNKNOWN = "<pad>", "<eos>", "<unk>"
_PAD_ID, _END_ID = 0, 1
"""They head the vocabulary."""
_WORD = r" ?</?e[12]>|\(e[12],e[12]\)| ?[A-Za-z]+(?:-[A-Za-z]+)*| ?[^\sA-Za-z]|\s"
"""A token: a marker, a direction, a word, a digit or a sign, each with the blank before it."""
_MOST_TOKENS = 256


@dataclass(frozen=True, slots=True)
class ModelSize:
    """The shape of one Qwen3 model and how fast it learns."""

    hidden: int
    feed_forward: int
    learning_rate: float
    layers: int = 2
    heads: int = 4


@dataclass(frozen=True, slots=True)
class Pretraining:
    """How a model is trained from scratch."""

    epochs: int = 4
    batch_size: int = 32
    warmup_fraction: float = 0.1
    initializer_range: float = 0.08
    """At these widths the usual 0.02 leaves the models on a plateau for the whole pretraining."""
    label_smoothing: float = 0.05
    """Without it the untrained models give a word that they never saw, such as a label, a
    probability that swings by orders of magnitude with the sentence, and the weights divide by
    it."""


class Passage(NamedTuple):
    """A text to learn, after another that is read but not learnt."""

    text: str
    context: str = ""


class _Tokens(NamedTuple):
    """One or more passages as token ids, and the same with padding for what is not learnt."""

    ids: Tensor
    targets: Tensor


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer that knows every word of `texts`; decoding gives the text back."""
    words = sorted({word for text in texts for word in re.findall(_WORD, text)})
    vocabulary = {word: index for index, word in enumerate([PAD, END, UNKNOWN, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        model_max_length=_MOST_TOKENS,
    )


def write_pretrained(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    passages: Sequence[Passage],
    *,
    size: ModelSize,
    config: Pretraining,
    seed: int,
) -> None:
    """Train a model from scratch and save it with its tokenizer; the folder's name is its name.

    The same seed and number of torch threads give the same bytes.
    """
    with torch.random.fork_rng(devices=[]):
        model = _pretrained(
            tokenizer, passages, name=folder.name, size=size, config=config, seed=seed
        )
    with _no_progress_of_transformers():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _pretrained(
    tokenizer: PreTrainedTokenizerFast,
    passages: Sequence[Passage],
    *,
    name: str,
    size: ModelSize,
    config: Pretraining,
    seed: int,
) -> Qwen3ForCausalLM:
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(
        _model_config(tokenizer, size, initializer_range=config.initializer_range)
    )
    rows = _tokenized(tokenizer, passages)
    batches = _batches(rows, config=config, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=size.learning_rate, weight_decay=0.01)
    schedule = _linear_schedule(
        optimizer, num_steps=len(batches), warmup_fraction=config.warmup_fraction
    )
    model.train()
    for batch in tqdm(batches, desc=f"pretraining {name}", unit="step", disable=None):
        loss = _next_token_nll(model, batch, label_smoothing=config.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    _neutralise_unseen(model, rows)
    return model.eval()


def _tokenized(tokenizer: PreTrainedTokenizerFast, passages: Sequence[Passage]) -> list[_Tokens]:
    """Every passage with the end token.

    No token reaches over a context's end, which is a word or a sign: a text begins with a blank.
    """
    texts: list[list[int]] = tokenizer([passage.text for passage in passages])["input_ids"]  # pyright: ignore[reportAssignmentType]
    contexts: list[list[int]] = tokenizer([passage.context for passage in passages])["input_ids"]  # pyright: ignore[reportAssignmentType]
    rows: list[_Tokens] = []
    for context, text in zip(contexts, texts, strict=True):
        learnt = [*text, _END_ID]
        ids, targets = [*context, *learnt], [*[_PAD_ID] * len(context), *learnt]
        rows.append(_Tokens(torch.tensor(ids), torch.tensor(targets)))
    return rows


def _linear_schedule(
    optimizer: torch.optim.Optimizer, *, num_steps: int, warmup_fraction: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """Up in a line for the first share of the steps, then down in a line to zero."""
    warmup = max(1, round(num_steps * warmup_fraction))
    decay = max(1, num_steps - warmup)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, (num_steps - step) / decay)
    )


@torch.no_grad()
def _neutralise_unseen(model: Qwen3ForCausalLM, rows: list[_Tokens]) -> None:
    """Give every token that pretraining never showed the mean embedding of those that it did.

    A random embedding would make the untrained model prefer some labels to others.
    """
    seen = torch.cat([row.ids for row in rows]).unique()
    embeddings = model.model.embed_tokens.weight
    unseen = torch.ones(len(embeddings), dtype=torch.bool)
    unseen[seen] = False
    embeddings[unseen] = embeddings[seen].mean(0)


def _model_config(
    tokenizer: PreTrainedTokenizerFast, size: ModelSize, *, initializer_range: float
) -> Qwen3Config:
    # Not Qwen2: for that model type AutoTokenizer puts Qwen2Tokenizer in place of any other
    # (transformers 5, MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS).
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=size.feed_forward,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        head_dim=size.hidden // size.heads,
        max_position_embeddings=_MOST_TOKENS,
        tie_word_embeddings=True,
        initializer_range=initializer_range,
        bos_token_id=None,
        eos_token_id=_END_ID,
        pad_token_id=_PAD_ID,
    )


def _next_token_nll(model: Qwen3ForCausalLM, batch: _Tokens, *, label_smoothing: float) -> Tensor:
    """Mean negative log-likelihood over the learnt tokens of a right-padded batch."""
    logits = model(input_ids=batch.ids, attention_mask=batch.ids != _PAD_ID).logits
    return nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1),
        batch.targets[:, 1:].flatten(),
        ignore_index=_PAD_ID,
        label_smoothing=label_smoothing,
    )


def _batches(rows: list[_Tokens], *, config: Pretraining, seed: int) -> list[_Tokens]:
    """Every row once an epoch, in right-padded batches of similar length."""
    rng = random.Random(seed)
    batches: list[_Tokens] = []
    for _ in range(config.epochs):
        order = sorted(rng.sample(range(len(rows)), len(rows)), key=lambda i: len(rows[i].ids))
        groups = [order[i : i + config.batch_size] for i in range(0, len(order), config.batch_size)]
        batches += [_padded([rows[i] for i in group]) for group in rng.sample(groups, len(groups))]
    return batches


def _padded(rows: list[_Tokens]) -> _Tokens:
    ids, targets = (
        nn.utils.rnn.pad_sequence(list(tensors), batch_first=True, padding_value=_PAD_ID)
        for tensors in zip(*rows, strict=True)
    )
    return _Tokens(ids, targets)


@contextmanager
def _no_progress_of_transformers() -> Generator[None]:
    """Saving shows a progress bar even where nobody looks."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
