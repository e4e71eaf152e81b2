"""Log-probability of every string of a closed set after a prompt, in one forward pass per prompt.

The choices form a tree of tokens (many share a beginning). The tree is appended to the prompt; a
mask lets every node see the prompt and its own ancestors only, and its position is that of its
depth. The prompt is computed once instead of once per choice. The same pass tells which way greedy
decoding goes as long as it stays inside the tree.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from atlantis.data.tokenization import common_prefix_length, tokenize
from atlantis.errors import DataError
from atlantis.models.head import target_logprobs
from atlantis.records import Example

OUTSIDE = -1
"""Greedy decoding leaves the set of choices."""

_ROOT = -1


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
        model: A causal language model with ``sdpa`` or ``eager`` attention.
        tokenizer: Its tokenizer.
        prompts: Rendered prompts.
        choices: Completions as they follow a prompt, leading space included.
        token_budget: Padded tokens of one forward pass.
        max_length: Most tokens of a prompt with a choice.

    Raises:
        DataError: A prompt with a choice is longer than ``max_length``.
    """
    logprobs = np.empty((len(prompts), len(choices)))
    greedy = np.empty(len(prompts), dtype=np.int64)
    for suffixes, rows in _grouped(tokenizer, prompts, choices, max_length=max_length).items():
        tree = _Tree.grow(suffixes)
        rows.sort(key=lambda row: -len(row.prompt_ids))
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
                f"test row {index}: a prompt with a label is longer than max_length {max_length}"
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
    hidden = model.base_model(
        input_ids=input_ids.to(model.device),
        position_ids=torch.cat([positions, depths], 1).to(model.device),
        attention_mask=_additive(_visible(lengths, longest, tree), model),
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


def _additive(sees: Tensor, model: PreTrainedModel) -> Tensor:
    mask = torch.zeros(sees.shape, dtype=model.dtype)
    mask.masked_fill_(~sees, torch.finfo(model.dtype).min)
    return mask[:, None].to(model.device)
