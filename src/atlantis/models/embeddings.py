"""One vector per row: the mean of a model's last hidden states."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from atlantis.models.backbone import OneDnnProducts


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
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    start = 0
    while start < len(order):
        longest = len(rows[order[start]])
        batch = order[start : start + max(1, token_budget // longest)]
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(batch):
            ids[place, : len(rows[row])] = torch.tensor(rows[row])
            mask[place, : len(rows[row])] = 1
        backbone = model.base_model
        with OneDnnProducts():
            hidden = backbone(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                use_cache=False,
            ).last_hidden_state
        counted = mask.to(hidden.device)[..., None]
        means = (hidden.float() * counted).sum(1) / counted.sum(1)
        found[batch] = means.cpu().numpy()
        start += len(batch)
    return found
