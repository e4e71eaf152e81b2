"""Log-probability of every string of a closed set after a prompt, in one forward pass per prompt.

The choices form a tree of tokens (many share a beginning). The tree is appended to the prompt; a
mask lets every node see the prompt and its own ancestors only, and its position is that of its
depth. The prompt is computed once instead of once per choice. The same pass tells which way greedy
decoding goes as long as it stays inside the tree. For encoder-decoders see `decoder_choices`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from atlantis.data.tokenization import common_prefix_length, tokenize
from atlantis.errors import DataError, ModelError
from atlantis.models.decoder_choices import OUTSIDE, score_decoder_choices
from atlantis.models.head import target_logprobs
from atlantis.records import Example

_ROOT = -1

_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.05}
"""Nats per token that two ways of computing a score may differ, by the model's dtype."""


@dataclass(frozen=True)
class ChoiceScores:
    """Scores of all choices after each prompt."""

    logprobs: NDArray[np.float64]
    """Log-probability of choice + end-of-turn, ``[prompt, choice]``."""
    greedy: NDArray[np.int64]
    """The choice that greedy decoding gives, or `OUTSIDE`, ``[prompt]``."""


@dataclass(frozen=True)
class _Tree:
    """Token tree of the choices. Edge ``e`` predicts ``targets[e]`` at node ``sources[e]``."""

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    depths: tuple[int, ...]
    sources: tuple[int, ...]
    targets: tuple[int, ...]
    paths: tuple[tuple[int, ...], ...]
    """Edges of each choice, the end-of-turn edge last."""

    @staticmethod
    def grow(choices: Sequence[tuple[int, ...]]) -> "_Tree":
        """Build the tree; each choice ends in the end-of-turn token, which is predicted only."""
        nodes: dict[tuple[int, ...], int] = {(): _ROOT}
        tokens: list[int] = []
        parents: list[int] = []
        depths: list[int] = []
        edges: dict[tuple[int, int], int] = {}
        paths: list[tuple[int, ...]] = []
        for choice in choices:
            path: list[int] = []
            for depth, token in enumerate(choice):
                source = nodes[choice[:depth]]
                path.append(edges.setdefault((source, token), len(edges)))
                if depth + 1 < len(choice) and choice[: depth + 1] not in nodes:
                    nodes[choice[: depth + 1]] = len(tokens)
                    tokens.append(token)
                    parents.append(source)
                    depths.append(depth)
            paths.append(tuple(path))
        sources, targets = zip(*edges, strict=True)
        return _Tree(tuple(tokens), tuple(parents), tuple(depths), sources, targets, tuple(paths))

    def visible(self) -> Tensor:
        """True where a node sees a node: its ancestors and itself, ``[node, node]``."""
        seen = torch.eye(len(self.tokens), dtype=torch.bool)
        for node, parent in enumerate(self.parents):
            if parent != _ROOT:
                seen[node] |= seen[parent]
        return seen

    def follow(self, top_tokens: Sequence[int]) -> int:
        """Index of the choice that greedy decoding reaches, given each edge's top token."""
        best = dict(zip(self.sources, top_tokens, strict=True))
        for index, path in enumerate(self.paths):
            if all(best[self.sources[edge]] == self.targets[edge] for edge in path):
                return index
        return OUTSIDE


@dataclass(frozen=True)
class _Row:
    index: int
    prompt_ids: tuple[int, ...]


def score_choices(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    choices: Sequence[str],
    *,
    token_budget: int = 4096,
    max_length: int = 1024,
) -> ChoiceScores:
    """Score every choice after every prompt.

    Args:
        model: A causal language model with ``sdpa`` or ``eager`` attention, or an encoder-decoder.
        tokenizer: Its tokenizer.
        prompts: Rendered prompts.
        choices: Completions as they follow a prompt, leading space included.
        token_budget: Padded tokens of one forward pass.
        max_length: Most tokens of a prompt with a choice.

    Raises:
        DataError: A prompt with a choice is longer than ``max_length``.
        ModelError: A log-probability is not finite, or the architecture does not take a tree.
    """
    if not prompts:
        return ChoiceScores(np.empty((0, len(choices))), np.empty(0, dtype=np.int64))
    if model.config.is_encoder_decoder:
        return ChoiceScores(
            *score_decoder_choices(
                model,
                tokenizer,
                prompts,
                choices,
                token_budget=token_budget,
                max_length=max_length,
            )
        )
    logprobs = np.empty((len(prompts), len(choices)))
    greedy = np.empty(len(prompts), dtype=np.int64)
    for suffixes, rows in _grouped(tokenizer, prompts, choices, max_length=max_length).items():
        tree = _Tree.grow(suffixes)
        rows.sort(key=lambda row: -len(row.prompt_ids))
        _check_plainly(model, tree, [rows[0].prompt_ids, rows[-1].prompt_ids], suffixes[-1])
        size = max(1, token_budget // (len(rows[0].prompt_ids) + len(tree.tokens)))
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            scores, top_tokens = _forward(model, tree, [row.prompt_ids for row in batch])
            for position, row in enumerate(batch):
                logprobs[row.index] = [scores[position, list(p)].sum() for p in tree.paths]
                greedy[row.index] = tree.follow(top_tokens[position].tolist())
    return ChoiceScores(logprobs, greedy)


def _grouped(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    choices: Sequence[str],
    *,
    max_length: int,
) -> dict[tuple[tuple[int, ...], ...], list[_Row]]:
    """Prompts by the token ids that the choices have after them: nearly always one group."""
    groups: dict[tuple[tuple[int, ...], ...], list[_Row]] = {}
    pairs = [Example(str(i), p, c) for i, p in enumerate(prompts) for c in choices]
    tokenized = tokenize(pairs, tokenizer, max_length=max_length)
    for index in range(len(prompts)):
        rows = tokenized[index * len(choices) : (index + 1) * len(choices)]
        if any(row.status != "ok" for row in rows):
            raise DataError(
                f"row {index}: the prompt with a label is longer than max_length {max_length}, or "
                "one of them is empty"
            )
        # One choice may merge with the prompt's end: all are then scored from before the merge.
        boundary = min(row.num_prompt_tokens for row in rows)
        for row in rows[1:]:
            boundary = min(boundary, common_prefix_length(rows[0].input_ids, row.input_ids))
        suffixes = tuple(row.input_ids[boundary:] for row in rows)
        groups.setdefault(suffixes, []).append(_Row(index, rows[0].input_ids[:boundary]))
    return groups


@torch.inference_mode()
def _forward(
    model: PreTrainedModel, tree: _Tree, prompts: Sequence[tuple[int, ...]]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Log-probability and top token of every edge, ``[prompt, edge]``."""
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    longest, num_nodes = int(lengths.max()), len(tree.tokens)
    input_ids = torch.zeros(len(prompts), longest + num_nodes, dtype=torch.long)
    positions = torch.arange(longest).repeat(len(prompts), 1)
    depths = lengths[:, None] + torch.tensor(tree.depths, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        input_ids[row, : len(prompt)] = torch.tensor(prompt)
    input_ids[:, longest:] = torch.tensor(tree.tokens, dtype=torch.long)
    all_positions = torch.cat([positions, depths], 1)
    hidden = model.base_model(
        input_ids=input_ids.to(model.device),
        position_ids=all_positions.to(model.device),
        attention_mask=_masks(model, _visible(lengths, longest, tree), all_positions),
        use_cache=False,
    ).last_hidden_state
    sources = torch.tensor(tree.sources)
    # A root edge is predicted by the prompt's last token, any other by its node.
    where = torch.where(sources == _ROOT, lengths[:, None] - 1, longest + sources)
    rows = torch.arange(len(prompts))[:, None]
    targets = torch.tensor(tree.targets, device=model.device).repeat(len(prompts))
    result = target_logprobs(model, hidden[rows, where].flatten(0, 1), targets, chunk_size=512)
    shape = (len(prompts), len(tree.targets))
    return (
        result.logprobs.double().reshape(shape).cpu().numpy(),
        result.top_tokens.reshape(shape).cpu().numpy(),
    )


def _visible(lengths: Tensor, longest: int, tree: _Tree) -> Tensor:
    """True where a query position sees a key position, ``[prompt, query, key]``."""
    total = longest + len(tree.tokens)
    sees = torch.zeros(len(lengths), total, total, dtype=torch.bool)
    sees[:, :longest, :longest] = torch.ones(longest, longest, dtype=torch.bool).tril()
    is_prompt = torch.arange(longest) < lengths[:, None]
    sees[:, longest:, :longest] = is_prompt[:, None, :]
    sees[:, longest:, longest:] = tree.visible()
    return sees


def _masks(model: PreTrainedModel, sees: Tensor, positions: Tensor) -> Tensor | dict[str, Tensor]:
    """The mask, or one per kind of layer: a mask of ours replaces the model's sliding window."""
    fields = model.config.get_text_config().to_dict()
    window, kinds = fields.get("sliding_window"), set(fields.get("layer_types") or ())
    full = _additive(sees, model)
    if not window or kinds == {"full_attention"}:
        return full
    near = positions[:, :, None] - positions[:, None, :] < window
    narrow = _additive(sees & near, model)
    return {"full_attention": full, "sliding_attention": narrow} if kinds else narrow


def _check_plainly(
    model: PreTrainedModel,
    tree: _Tree,
    prompts: Sequence[tuple[int, ...]],
    last_choice: tuple[int, ...],
) -> None:
    """Compare the last choice after the longest and the shortest prompt with plain forward passes.

    Layers that look at a token's place in the row (local windows, distances by index, recurrence)
    take no tree, and nothing but the numbers would say so.
    """
    refusal = (
        f"{model.name_or_path}: this architecture ({model.config.model_type}) cannot be evaluated "
        "on labels yet: scored together they differ from plain scores"
    )
    try:
        scores, _ = _forward(model, tree, prompts)
    except (ValueError, TypeError, IndexError):  # its mask has other axes
        raise ModelError(refusal) from None
    tolerance = _TOLERANCE[model.dtype] * len(last_choice)
    for row, prompt in enumerate(prompts):
        found = scores[row, list(tree.paths[-1])].sum()
        expected = _plain_logprob(model, prompt, last_choice)
        if not (np.isfinite(found) and np.isfinite(expected)):
            raise ModelError(f"{model.name_or_path}: a log-probability is not finite")
        if abs(found - expected) > tolerance:
            raise ModelError(f"{refusal} by {abs(found - expected):.3g} nats")


@torch.inference_mode()
def _plain_logprob(
    model: PreTrainedModel, prompt: tuple[int, ...], choice: tuple[int, ...]
) -> float:
    ids = torch.tensor([prompt + choice], device=model.device)
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
    start = len(prompt)
    predicting, targets = hidden[start - 1 : -1], ids[0, start:]
    logprobs = target_logprobs(model, predicting, targets, chunk_size=512).logprobs
    return float(logprobs.double().sum())


def _additive(sees: Tensor, model: PreTrainedModel) -> Tensor:
    mask = torch.zeros(sees.shape, dtype=model.dtype)
    mask.masked_fill_(~sees, torch.finfo(model.dtype).min)
    return mask[:, None].to(model.device)
