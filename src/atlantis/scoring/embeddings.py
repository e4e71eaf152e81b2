"""One vector per row: the mean of a model's last hidden states."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from atlantis.models.backbone import OneDnnProducts
from atlantis.scoring.batching import make_batches
from atlantis.scoring.transformers_scorer import pad_right


@torch.inference_mode()
def mean_hidden_states(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], *, token_budget: int
) -> NDArray[np.float32]:
    """Mean of the last hidden states over all tokens of each row, ``[row, hidden]``.

    Args:
        model: A causal language model.
        rows: Token ids, not empty.
        token_budget: Padded tokens of one forward pass.
    """
    size = int(model.config.get_text_config().hidden_size)
    found = np.zeros((len(rows), size), dtype=np.float32)
    for batch in make_batches([len(row) for row in rows], token_budget=token_budget):
        ids, mask = (part.to(model.device) for part in pad_right([rows[row] for row in batch]))
        with OneDnnProducts():
            output = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
        hidden, counted = output.last_hidden_state, mask[..., None]
        means = (hidden.float() * counted.to(hidden.device)).sum(1) / counted.sum(1).to(
            hidden.device
        )
        found[batch] = means.cpu().numpy()
    return found
