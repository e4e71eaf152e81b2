"""What the stages of a recipe draw on: its data and models, validated."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import torch
import transformers

from atlantis.config import RunConfig
from atlantis.data.splits import load_splits
from atlantis.disk import digest_json
from atlantis.errors import ConfigError, DataError
from atlantis.models.encoder_decoder import decoder_start_token, tokenize_for
from atlantis.models.loading import fingerprint_model, load_tokenizer
from atlantis.pipeline.families import Families
from atlantis.records import Example

_MOST_LABELS = 200
_NUM_PROBES = 50
"""Training prompts that tell tokenizers apart."""


class Inputs:
    """Data and models of a recipe. Building it reads the data and finds the models.

    Raises:
        InputError: The data or the models of the recipe are not usable.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.splits = load_splits(config.data)
        self.completions = {
            label: config.data.completion.format(label=label) for label in self.splits.labels.names
        }
        if len(self.splits.labels.names) > _MOST_LABELS:
            raise ConfigError(
                f"data: {len(self.splits.labels.names)} different completions; a recipe compares "
                f"arms on a closed set of at most {_MOST_LABELS} labels"
            )
        texts = [row.prompt for row in self.splits.train[:_NUM_PROBES]]
        self.families = Families(config, [*self.completions.values(), *texts])
        self.fingerprints = {name: fingerprint_model(name) for name in self.families.models}
        for name in self.fingerprints:
            decoder_start_token(name)  # refuses a model that does not say how a completion starts
        self.families.refuse_other_tokens()
        self._refuse_long_rows()

    def rows(self, which: str) -> tuple[Example, ...]:
        """Rows that an arm trains on.

        Raises:
            ConfigError: Those with a right label are asked for, and none is known.
        """
        if which == "train+trusted":
            return (*self.splits.train, *self.splits.trusted)
        if which == "train":
            return self.splits.train
        right = tuple(row for row in self.splits.train if row.label == row.gold_label)
        if not right:
            raise ConfigError("rows: right needs true labels of the training rows; drop that arm")
        return right

    def too_long(self, rows: Sequence[Example], model: str) -> list[str]:
        """Ids of rows that no label fits after, in the tokens of a model."""
        tokenizer = load_tokenizer(model)
        longest = max(self.completions.values(), key=lambda text: len(tokenizer(text).input_ids))
        pairs = [Example(row.example_id, row.prompt, longest) for row in rows]
        limit = self.config.scoring.max_length
        tokenized = tokenize_for(decoder_start_token(model), pairs, tokenizer, max_length=limit)
        return [row.example_id for row in tokenized if row.status == "too_long"]

    def _refuse_long_rows(self) -> None:
        """Every test row has to be answered, so that one over the limit is found at once.

        So has every held-out row, by the models of the headline arm's weights.
        """
        judge = self.families.tokenizers(self.config.arms[self.config.headline].cross)["small"]
        asked = {self.config.models.large: (*self.splits.test, *self.splits.heldout)}
        asked.setdefault(judge, self.splits.heldout)
        for model, rows in asked.items():
            too_long = self.too_long(rows, model)
            if too_long:
                raise DataError(
                    f"test row {too_long[0]!r} and {len(too_long) - 1} more are longer than "
                    f"scoring.max_length {self.config.scoring.max_length} with their longest label "
                    f"in the tokens of {model}; raise it"
                )


@lru_cache(maxsize=32)  # many stages depend on the same rows
def digest_rows(rows: tuple[Example, ...]) -> str:
    """Digest of everything in some rows."""
    return digest_json([asdict(row) for row in rows])


def versions(code: int) -> dict[str, Any]:
    """Versions that numbers depend on, ours among them."""
    return {
        "code": code,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
