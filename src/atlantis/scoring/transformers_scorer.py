"""Log-probabilities of completions under a transformers model, one batch at a time."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from atlantis.data.tokenization import TokenizedExample, Turn
from atlantis.models.backbone import (
    OneDnnProducts,
    SharedPrefix,
    end_to_end_hidden,
    reads_end_to_end,
    share_prefix,
)
from atlantis.models.encoder_decoder import decoder_hidden
from atlantis.models.head import completion_logprobs
from atlantis.records import TokenScores
from atlantis.scoring.budget import CPU_TOKENS, probed_budget
from atlantis.scoring.scorer import token_scores


class TransformersScorer:
    """Scores batches of tokenized rows with one model, causal or encoder-decoder.

    The backbone runs once over right-padded rows, or over rows without padding where attention has
    a kernel for them; the vocabulary projection runs on the scored positions only, in float32
    blocks. What all rows of a window begin with can be read once.

    Args:
        model: A language model.
        score_end_of_turn: Whether end-of-turn tokens count.
        padding_free: Whether to lay rows end to end; by default if FlashAttention is used.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        score_end_of_turn: bool = False,
        padding_free: bool | None = None,
    ) -> None:
        self._model = model
        self._score_end_of_turn = score_end_of_turn
        self._prefix: SharedPrefix | None = None
        wanted = _has_varlen_attention(model) if padding_free is None else padding_free
        self.is_padding_free = wanted and reads_end_to_end(model)

    def begin(self, rows: Sequence[TokenizedExample]) -> int:
        """Read once what all rows of a window begin with; returns how many tokens that is."""
        with OneDnnProducts():
            self._prefix = share_prefix(self._model, rows)
        return self._num_shared

    @property
    def _num_shared(self) -> int:
        return 0 if self._prefix is None else self._prefix.num_tokens

    @torch.inference_mode()
    def score(self, batch: Sequence[TokenizedExample]) -> list[TokenScores]:
        """Score rows with status ``ok`` in one forward pass; they are of the window begun last."""
        device, shared = self._model.device, self._num_shared
        positions = [row.scored_positions(end_of_turn=self._score_end_of_turn) for row in batch]
        rows, columns = (part.to(device) for part in _indices(positions))
        pairs = list(zip(batch, positions, strict=True))
        targets = [row.input_ids[position] for row, found in pairs for position in found]
        # Nothing is predicted from the last scored token and from what follows it.
        read = [row.input_ids[shared : found[-1]] for row, found in pairs]
        with OneDnnProducts():
            if self.is_padding_free and not shared:
                starts = torch.tensor([0, *(len(ids) for ids in read)], device=device).cumsum(0)
                hidden = end_to_end_hidden(self._model, read)[starts[rows] + columns - 1]
            else:
                padded, mask = (part.to(device) for part in pad_right(read))
                hidden = self._hidden(batch, padded, mask)[rows, columns - 1 - shared]
            logprobs = completion_logprobs(
                self._model, hidden, torch.tensor(targets, device=device)
            )
        values = logprobs.cpu().split([len(found) for found in positions])
        return [token_scores(row, part.numpy()) for row, part in zip(batch, values, strict=True)]

    def measured_budget(self, max_length: int) -> int:
        """Padded tokens that one pass may hold; on a GPU two passes are tried for it.

        Args:
            max_length: Most tokens of a row; the trial rows are no longer than that.
        """
        device = self._model.device
        if device.type != "cuda":
            return CPU_TOKENS
        length = min(max_length, 512)

        def peak_bytes(tokens: int) -> int:
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            self.score([_trial_row(length)] * max(1, tokens // length))
            return torch.cuda.max_memory_allocated(device) - before

        free, _ = torch.cuda.mem_get_info(device)
        return probed_budget(peak_bytes, free_bytes=free)

    def _hidden(self, batch: Sequence[TokenizedExample], input_ids: Tensor, mask: Tensor) -> Tensor:
        """What the head takes, ``[batch, token, hidden]``."""
        if self._model.config.is_encoder_decoder:
            prompts = pad_right([row.encoder_ids for row in batch])
            encoder_ids, encoder_mask = (part.to(input_ids.device) for part in prompts)
            return decoder_hidden(self._model, encoder_ids, encoder_mask, input_ids, mask)
        if self._prefix is not None:
            return self._prefix.hidden(input_ids, mask)
        return self._model.base_model(
            input_ids=input_ids, attention_mask=mask, use_cache=False
        ).last_hidden_state


def _has_varlen_attention(model: PreTrainedModel) -> bool:
    name = getattr(model.config, "_attn_implementation", "")
    return str(name).startswith("flash_attention")


def _trial_row(length: int) -> TokenizedExample:
    turn = Turn(1, length, length)
    ids = (1,) * length
    return TokenizedExample("trial", "ok", ids, (turn,), num_bytes=0, encoder_ids=ids)


def pad_right(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids ``[batch, token]`` padded on the right with 0, and their attention mask."""
    longest = max(len(row) for row in rows)
    input_ids = torch.zeros(len(rows), longest, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = torch.tensor(row)
        attention_mask[index, : len(row)] = 1
    return input_ids, attention_mask


def _indices(positions: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Row and column of every scored token."""
    rows = [row for row, found in enumerate(positions) for _ in found]
    columns = [column for found in positions for column in found]
    return torch.tensor(rows, dtype=torch.long), torch.tensor(columns, dtype=torch.long)
