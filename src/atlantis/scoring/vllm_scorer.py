"""Log-probabilities of completions from vLLM, in this process's own engine."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from atlantis.data.tokenization import TokenizedExample
from atlantis.errors import ModelError
from atlantis.models.loading import LoadingConfig
from atlantis.models.vllm_engine import VllmEngine
from atlantis.records import TokenScores
from atlantis.scoring.scorer import token_scores


class _Path(Protocol):
    """A way to get the log-probabilities of a prompt out of vLLM."""

    def request(self, ids: Sequence[int], positions: Sequence[int]) -> dict[str, Any]:
        """Sampling parameters that ask for them."""
        ...

    def read(self, output: Any, ids: Sequence[int], positions: Sequence[int]) -> NDArray[Any]:
        """The log-probabilities at the positions.

        Raises:
            ModelError: They are not there.
        """
        ...


class FixedTokens:
    """``prompt_logprob_token_ids``: the head runs on the scored rows only, in chunks.

    vLLM 0.32 and later with its V2 model runner (a GPU and Triton). The answer is one array.
    """

    name = "prompt_logprob_token_ids"

    def request(self, ids: Sequence[int], positions: Sequence[int]) -> dict[str, Any]:
        # vLLM wants one row for each token after `start`, those between two turns too.
        start = positions[0] - 1
        return {
            "prompt_logprob_token_ids": [[token] for token in ids[start + 1 :]],
            "prompt_logprob_start": start,
        }

    def read(self, output: Any, ids: Sequence[int], positions: Sequence[int]) -> NDArray[Any]:
        found: Any = output.prompt_token_id_logprobs
        if found is None or np.shape(found) != (len(ids) - positions[0], 1):
            raise ModelError("vLLM returned no prompt_token_id_logprobs for a row")
        return np.asarray(found)[np.array(positions) - positions[0], 0]


class AllTokens:
    """``prompt_logprobs``: the whole prompt, as a dictionary of objects for each token.

    Every version and device has it. It is slower, and each number comes with its token id.
    """

    name = "prompt_logprobs"

    def request(self, ids: Sequence[int], positions: Sequence[int]) -> dict[str, Any]:
        return {"prompt_logprobs": 0}

    def read(self, output: Any, ids: Sequence[int], positions: Sequence[int]) -> NDArray[Any]:
        found: Any = output.prompt_logprobs
        if found is None or any(ids[position] not in found[position] for position in positions):
            raise ModelError("vLLM returned prompt_logprobs of other tokens than those sent")
        return np.array([found[position][ids[position]].logprob for position in positions])


class VllmScorer:
    """Scores batches of tokenized rows with vLLM, which batches them in its own way.

    Large batches are best: vLLM packs rows until the accelerator is full. Weights and activations
    have the dtype of ``loading``; the vocabulary projection is float32, as in `TransformersScorer`.
    """

    def __init__(
        self,
        model: str,
        *,
        loading: LoadingConfig,
        score_end_of_turn: bool = False,
        max_length: int,
    ) -> None:
        """Start the engine, and find the fastest path that it has.

        Args:
            model: Folder or Hub name of a causal language model.
            loading: Its dtype. vLLM has its own attention, and takes the device that it was
                built for; ``CUDA_VISIBLE_DEVICES`` chooses one of several.
            score_end_of_turn: Whether end-of-turn tokens count.
            max_length: Most tokens of a row. vLLM always generates one more, so that the model's
                context must be longer than this.

        Raises:
            ConfigError: vLLM is not installed, or does not have what ``loading`` asks for.
            ModelError: vLLM cannot load the model.
        """
        options = {
            "max_model_len": max_length + 1,
            "logprobs_mode": "raw_logprobs",
            "hf_overrides": {"head_dtype": "float32"},
            "enable_prefix_caching": False,  # useless for log-probabilities of a prompt
            "enforce_eager": True,  # one token is generated per row: no decoding to speed up
        }
        self._score_end_of_turn = score_end_of_turn
        self._engine = VllmEngine(model, loading, options)
        self.path: FixedTokens | AllTokens = self._find_path()
        """How log-probabilities are asked for."""

    def score(self, batch: Sequence[TokenizedExample]) -> list[TokenScores]:
        """Score rows with status ``ok``, in their order.

        Raises:
            ModelError: The rows are those of an encoder-decoder or of another tokenizer, or vLLM
                left out numbers.
            ResumableError: The engine stopped.
        """
        if any(row.encoder_ids for row in batch):
            raise ModelError("vLLM scores decoder-only models; use transformers")
        positions = [row.scored_positions(end_of_turn=self._score_end_of_turn) for row in batch]
        # Nothing after the last scored token has a say.
        ids = [row.input_ids[: p[-1] + 1] for row, p in zip(batch, positions, strict=True)]
        self._check_ids(ids)
        logprobs = self._finite_logprobs(ids, positions)
        return [token_scores(row, values) for row, values in zip(batch, logprobs, strict=True)]

    def _finite_logprobs(
        self, rows: Sequence[Sequence[int]], positions: Sequence[Sequence[int]]
    ) -> list[NDArray[Any]]:
        """Ask again for what is not finite, as long as that helps.

        A NaN stays in the block of memory that its row had, and spoils each shorter row that gets
        the block later (vLLM 0.32 on a CPU). In another block that row is as it should be.
        """
        found = self._logprobs(self.path, rows, positions)
        while True:
            spoilt = [n for n, values in enumerate(found) if not np.isfinite(values).all()]
            again = self._logprobs(
                self.path, [rows[n] for n in spoilt], [positions[n] for n in spoilt]
            )
            if not any(np.isfinite(values).all() for values in again):
                return found
            for n, values in zip(spoilt, again, strict=True):
                found[n] = values

    def _find_path(self) -> FixedTokens | AllTokens:
        try:
            self._logprobs(FixedTokens(), [(0, 1, 2)], [(1, 2)])
        except ModelError:
            return AllTokens()
        return FixedTokens()

    def _logprobs(
        self, path: _Path, rows: Sequence[Sequence[int]], positions: Sequence[Sequence[int]]
    ) -> list[NDArray[Any]]:
        pairs = list(zip(rows, positions, strict=True))
        outputs = self._generate(rows, [path.request(ids, chosen) for ids, chosen in pairs])
        return [
            path.read(output, ids, chosen)
            for output, (ids, chosen) in zip(outputs, pairs, strict=True)
        ]

    def _generate(
        self, rows: Sequence[Sequence[int]], requests: Sequence[dict[str, Any]]
    ) -> list[Any]:
        """One token for each row, which is the least that vLLM does."""
        common = {"max_tokens": 1, "temperature": 0.0, "detokenize": False}
        return self._engine.generate(rows, [common | request for request in requests])

    def _check_ids(self, rows: Sequence[Sequence[int]]) -> None:
        """An id that the model does not have stops the engine, or reads a row of zeros."""
        largest = max((max(ids) for ids in rows), default=0)
        size = self._engine.vocabulary
        if largest >= size:
            raise ModelError(
                f"token id {largest} is not in the model's vocabulary of {size}; the tokenizer "
                "belongs to another model"
            )
