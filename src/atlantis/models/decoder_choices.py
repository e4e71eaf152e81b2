"""Log-probability of every string of a closed set after a prompt, under an encoder-decoder.

The encoder reads each prompt once. The decoder then reads all choices beside one another, as rows
of a batch: the places of its tokens are counted by index, so that they do not stand in a tree.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from atlantis.data.tokenization import TokenizedExample, tokenize_pairs
from atlantis.errors import DataError, ModelError
from atlantis.models.encoder_decoder import encoder_hidden, loaded_start_token
from atlantis.models.head import target_logprobs
from atlantis.records import Example

OUTSIDE = -1
"""Greedy decoding leaves the set of choices."""


class _Choices(NamedTuple):
    """All choices as the decoder reads and predicts them, padded on the right."""

    decoder_ids: Tensor
    """``[choice, token]``"""
    decoder_mask: Tensor
    predicts: Tensor
    """True at the positions that predict a token of the choice, or its end, ``[choice, token]``."""
    targets: Tensor
    """What they predict, choice after choice, ``[target]``."""

    @staticmethod
    def of(rows: Sequence[TokenizedExample], device: torch.device) -> "_Choices":
        positions = [row.scored_positions(end_of_turn=True) for row in rows]
        longest = max(found[-1] for found in positions)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask, predicts = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        targets: list[int] = []
        for index, (row, found) in enumerate(zip(rows, positions, strict=True)):
            ids[index, : found[-1]] = torch.tensor(row.input_ids[: found[-1]])
            mask[index, : found[-1]] = 1
            predicts[index, [position - 1 for position in found]] = True
            targets += [row.input_ids[position] for position in found]
        tensors = (ids, mask, predicts, torch.tensor(targets))
        return _Choices(*(tensor.to(device) for tensor in tensors))


def score_decoder_choices(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    choices: Sequence[str],
    *,
    token_budget: int,
    max_length: int,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Score every choice after every prompt; see `models.choices.score_choices`.

    Returns:
        The log-probability of choice + end-of-turn, ``[prompt, choice]``; and the choice that
        greedy decoding gives, or `OUTSIDE`, ``[prompt]``.
    """
    start = loaded_start_token(model)

    def rows(pairs: Sequence[tuple[str, str]]) -> list[TokenizedExample]:
        examples = [Example(str(i), prompt, choice) for i, (prompt, choice) in enumerate(pairs)]
        return tokenize_pairs(examples, tokenizer, start_token=start, max_length=2**30)

    targets = rows([(prompts[0], choice) for choice in choices])
    encoded = [row.encoder_ids for row in rows([(prompt, choices[0]) for prompt in prompts])]
    _check_lengths(encoded, targets, max_length)
    beside = _Choices.of(targets, model.device)
    logprobs = np.empty((len(prompts), len(choices)))
    greedy = np.empty(len(prompts), dtype=np.int64)
    order = sorted(range(len(prompts)), key=lambda row: -len(encoded[row]))
    num_choices, num_tokens = beside.decoder_ids.shape
    # Each choice looks at the whole prompt, in its own row of the decoder.
    size = max(1, token_budget // (num_choices * (num_tokens + len(encoded[order[0]]))))
    for start_row in range(0, len(order), size):
        batch = order[start_row : start_row + size]
        logprobs[batch], greedy[batch] = _scored(model, beside, [encoded[row] for row in batch])
    if not np.isfinite(logprobs).all():
        raise ModelError(f"{model.name_or_path}: a log-probability is not finite")
    return logprobs, greedy


def _check_lengths(
    encoded: Sequence[tuple[int, ...]], targets: Sequence[TokenizedExample], max_length: int
) -> None:
    room = max_length - max(len(row.input_ids) for row in targets)
    for index, prompt in enumerate(encoded):
        if not 0 < len(prompt) <= room or any(row.status != "ok" for row in targets):
            raise DataError(
                f"row {index}: the prompt with a label is longer than max_length {max_length}, or "
                "one of them is empty"
            )


@torch.inference_mode()
def _scored(
    model: PreTrainedModel, choices: _Choices, prompts: Sequence[tuple[int, ...]]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Log-probability of every choice, and the greedy one, after each prompt of a batch."""
    device, num_choices = model.device, len(choices.decoder_ids)
    encoder_ids = torch.zeros(len(prompts), max(map(len, prompts)), dtype=torch.long)
    encoder_mask = torch.zeros_like(encoder_ids)
    for row, prompt in enumerate(prompts):
        encoder_ids[row, : len(prompt)] = torch.tensor(prompt)
        encoder_mask[row, : len(prompt)] = 1
    encoder_mask = encoder_mask.to(device)
    encoded = encoder_hidden(model, encoder_ids.to(device), encoder_mask)
    decoder: Any = model.get_decoder()
    hidden = decoder(
        input_ids=choices.decoder_ids.repeat(len(prompts), 1),
        attention_mask=choices.decoder_mask.repeat(len(prompts), 1),
        encoder_hidden_states=encoded.repeat_interleave(num_choices, 0),
        encoder_attention_mask=encoder_mask.repeat_interleave(num_choices, 0),
        use_cache=False,
    ).last_hidden_state
    result = target_logprobs(
        model,
        hidden[choices.predicts.repeat(len(prompts), 1)],
        choices.targets.repeat(len(prompts)),
        chunk_size=512,
    )
    lengths = choices.predicts.sum(1).tolist()
    scores = result.logprobs.double().view(len(prompts), -1).split(lengths, 1)
    is_top = (result.top_tokens == choices.targets.repeat(len(prompts))).view(len(prompts), -1)
    followed = torch.stack([part.all(1) for part in is_top.split(lengths, 1)], 1)
    greedy = torch.where(followed.any(1), followed.long().argmax(1), OUTSIDE)
    return torch.stack([part.sum(1) for part in scores], 1).cpu().numpy(), greedy.cpu().numpy()
