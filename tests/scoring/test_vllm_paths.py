"""What is asked of vLLM and read from its answers; `tests/vllm` runs the engine itself."""

from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest

from atlantis.errors import ConfigError, ModelError
from atlantis.models.loading import LoadingConfig
from atlantis.scoring.vllm_scorer import AllTokens, FixedTokens, VllmScorer

IDS = (11, 12, 13, 14, 15, 16, 17)
POSITIONS = (3, 4, 6)
"""Two turns: 14 and 15 are scored, then 17."""


def test_the_fixed_token_request_has_one_row_for_each_token_after_its_start():
    request = FixedTokens().request(IDS, POSITIONS)
    # vLLM's contract: row i scores its ids as predictions of token start + i + 1, up to the last.
    start, rows = request["prompt_logprob_start"], request["prompt_logprob_token_ids"]
    assert len(rows) == len(IDS) - 1 - start
    assert {start + i + 1: row for i, row in enumerate(rows)} == {
        3: [14],
        4: [15],
        5: [16],
        6: [17],
    }


def test_the_fixed_token_answer_is_read_at_the_scored_positions():
    answer = np.array([[-3.0], [-4.0], [-5.0], [-6.0]], dtype=np.float32)
    output = SimpleNamespace(prompt_token_id_logprobs=answer)
    assert FixedTokens().read(output, IDS, POSITIONS).tolist() == [-3, -4, -6]


@pytest.mark.parametrize("answer", [None, np.zeros((3, 1)), np.zeros((4, 2)), np.zeros(4)])
def test_a_fixed_token_answer_of_another_shape_is_refused(answer):
    output = SimpleNamespace(prompt_token_id_logprobs=answer)
    with pytest.raises(ModelError, match="no prompt_token_id_logprobs"):
        FixedTokens().read(output, IDS, POSITIONS)


def test_the_plain_answer_is_read_by_token_id():
    answer = [None] + [{99: SimpleNamespace(logprob=-0.1)} for _ in IDS[1:]]
    for position in POSITIONS:
        answer[position][IDS[position]] = SimpleNamespace(logprob=-float(position))
    output = SimpleNamespace(prompt_logprobs=answer)
    assert AllTokens().read(output, IDS, POSITIONS).tolist() == [-3, -4, -6]
    with pytest.raises(ModelError, match="other tokens than those sent"):
        AllTokens().read(output, IDS, (3, 5))
    with pytest.raises(ModelError, match="other tokens than those sent"):
        AllTokens().read(SimpleNamespace(prompt_logprobs=None), IDS, POSITIONS)


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_the_extra_is_named():
    with pytest.raises(ConfigError, match=r"pip install 'atlantis-sft\[vllm\]'"):
        VllmScorer("model", loading=LoadingConfig(), max_length=64)
