"""Every kind of architecture through backbone and head, against a plain float64 loop."""

import copy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    CohereConfig,
    CohereForCausalLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    GPTJConfig,
    GPTJForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    MBartConfig,
    MBartForConditionalGeneration,
    MistralConfig,
    MistralForCausalLM,
    MT5Config,
    MT5ForConditionalGeneration,
    PhiConfig,
    PhiForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from atlantis.data.tokenization import tokenize, tokenize_pairs
from atlantis.models.head import check_head
from atlantis.records import Example
from atlantis.scoring.transformers_scorer import TransformersScorer

WITHIN = 1e-4
"""Nats per sequence: a float32 forward pass over padded rows against a float64 one row by row."""
WITHIN_BFLOAT16 = 2e-3
"""Nats per token, in the mean: the errors of bfloat16 activations cancel, a bias would not."""

SHAPE = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "decoder_sparse_step": 1,
}
T5 = {
    "vocab_size": 320,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "pad_token_id": 1,
    "eos_token_id": 0,
    "decoder_start_token_id": 1,
    "initializer_factor": 1.0,
}
BART = {
    "vocab_size": 320,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "max_position_embeddings": 256,
    "init_std": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
    "decoder_start_token_id": 0,
    "forced_eos_token_id": 0,
    "scale_embedding": True,
}
OTHERS = {
    "mistral, a window of 6": (MistralForCausalLM, MistralConfig(**SHAPE, sliding_window=6)),
    "phi": (PhiForCausalLM, PhiConfig(**SHAPE)),
    "granite": (GraniteForCausalLM, GraniteConfig(**SHAPE, logits_scaling=0.25)),
    "cohere": (CohereForCausalLM, CohereConfig(**SHAPE, logit_scale=4.0)),
    "qwen3-moe": (Qwen3MoeForCausalLM, Qwen3MoeConfig(**SHAPE | EXPERTS, head_dim=8)),
    "gpt-j": (
        GPTJForCausalLM,
        GPTJConfig(
            vocab_size=320,
            n_embd=32,
            n_layer=2,
            n_head=4,
            rotary_dim=4,
            n_positions=256,
            initializer_range=0.1,
        ),
    ),
    "falcon-h1": (
        FalconH1ForCausalLM,
        FalconH1Config(
            **SHAPE,
            lm_head_multiplier=3.0,
            mamba_d_ssm=32,
            mamba_n_heads=4,
            mamba_d_head=8,
            mamba_d_state=8,
            mamba_chunk_size=8,
        ),
    ),
}
SEQ2SEQ = {
    "t5": (T5ForConditionalGeneration, T5Config(**T5)),
    "t5, untied": (T5ForConditionalGeneration, T5Config(**T5, tie_word_embeddings=False)),
    # Nothing scales the head of mT5, which starts as wide as an embedding.
    "mt5": (MT5ForConditionalGeneration, MT5Config(**T5 | {"initializer_factor": 0.3})),
    "bart": (BartForConditionalGeneration, BartConfig(**BART)),
    "mbart": (MBartForConditionalGeneration, MBartConfig(**BART)),
}
IN_CONFTEST = {
    "qwen2": {"initializer_range": 0.1},
    "llama": {"initializer_range": 0.1},
    "gpt2": {"initializer_range": 0.1},
    "gemma2": {"initializer_range": 0.1, "attn_logit_softcapping": 5.0},
}
CAUSAL = [*IN_CONFTEST, *OTHERS]


@pytest.fixture(scope="module")
def build(tiny_model):
    """A random model by name; biases and heads are random too, where transformers starts at 0."""

    def build(name):
        if name in IN_CONFTEST:
            return tiny_model(name, **IN_CONFTEST[name])
        torch.manual_seed(0)
        kind, config = (OTHERS | SEQ2SEQ)[name]
        model = kind(copy.deepcopy(config)).eval()
        if name == "t5, untied":  # T5 1.1 keeps a head of its own in the file
            model.lm_head.weight = torch.nn.Parameter(torch.randn(320, 32) / 4)
        for bias in (model.get_output_embeddings().bias, getattr(model, "final_logits_bias", None)):
            if bias is not None:
                torch.nn.init.normal_(bias)
        return model

    return build


def ragged_examples():
    words = ["the", "storm", "caused", "flood", "in", "old", "town", "engine", "car", "box", "of"]
    rows = [
        Example(
            f"row{i}",
            " ".join(words[(i * 5 + k) % 11] for k in range(1 + (i * 7) % 19)),
            " " + " ".join(words[(i * 3 + k * 2) % 11] for k in range(1 + (i * 4) % 15)),
        )
        for i in range(24)
    ]
    return [*rows, Example("short", "Q", " a"), Example("long", "the storm " * 30, " box")]


@pytest.fixture(scope="module")
def rows(bpe_tokenizer):
    return tokenize(ragged_examples(), bpe_tokenizer, max_length=256)


@pytest.fixture(scope="module")
def pairs(bpe_tokenizer):
    def pairs(model):
        start = model.config.decoder_start_token_id
        return tokenize_pairs(ragged_examples(), bpe_tokenizer, start_token=start, max_length=256)

    return pairs


def naive_logprobs(model, row):
    """Scored tokens of one row alone, by the model's own logits in float64."""
    ids = torch.tensor([row.input_ids])
    if row.encoder_ids:
        inputs = {"input_ids": torch.tensor([row.encoder_ids]), "decoder_input_ids": ids}
    else:
        inputs = {"input_ids": ids}
    with torch.no_grad():
        logprobs = model(**inputs).logits[0].log_softmax(-1)
    assert logprobs.dtype == torch.float64
    return [logprobs[t - 1, ids[0, t]].item() for t in row.scored_positions(end_of_turn=True)]


def scores(model, rows, *, batch_size):
    scorer = TransformersScorer(model, score_end_of_turn=True)
    batches = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    found = [row for batch in batches for row in scorer.score(batch)]
    assert [row.example_id for row in found] == [row.example_id for row in rows]
    return [row.token_logprobs for row in found]


def errors(model, rows, *, batch_size):
    """Differences from what is right, by row."""
    right = copy.deepcopy(model).double()
    right.set_experts_implementation("eager")  # the fast ones know no float64
    expected = [naive_logprobs(right, row) for row in rows]
    assert torch.tensor([sum(values) for values in expected]).std() > 20
    found = scores(model, rows, batch_size=batch_size)
    return [
        torch.tensor(ours, dtype=torch.float64) - torch.tensor(values)
        for ours, values in zip(found, expected, strict=True)
    ]


@pytest.mark.parametrize("batch_size", [1, 26])
@pytest.mark.parametrize("name", CAUSAL)
def test_sequences_score_as_in_a_float64_loop(build, rows, name, batch_size):
    found = errors(build(name), rows, batch_size=batch_size)
    assert max(abs(row.sum().item()) for row in found) < WITHIN


@pytest.mark.parametrize("batch_size", [1, 26])
@pytest.mark.parametrize("name", SEQ2SEQ)
def test_completions_of_an_encoder_decoder_score_as_in_a_float64_loop(
    build, pairs, name, batch_size
):
    model = build(name)
    found = errors(model, pairs(model), batch_size=batch_size)
    assert max(abs(row.sum().item()) for row in found) < WITHIN


@pytest.mark.parametrize("name", CAUSAL)
def test_bfloat16_weights_score_as_the_same_weights_in_float64(build, rows, name):
    found = torch.cat(errors(build(name).bfloat16(), rows, batch_size=26))
    assert abs(found.mean().item()) < WITHIN_BFLOAT16


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_an_encoder_decoder_in_bfloat16_scores_as_in_float64(build, pairs, name):
    model = build(name).bfloat16()
    found = torch.cat(errors(model, pairs(model), batch_size=26))
    assert abs(found.mean().item()) < WITHIN_BFLOAT16


@pytest.mark.parametrize("name", ["large", "small"])
def test_a_trained_model_in_bfloat16_scores_as_in_float64(shared_models, name):
    folder = shared_models / "tiny-a" / name
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = tokenize(ragged_examples(), tokenizer, max_length=256)
    found = torch.cat(errors(model, rows, batch_size=26))
    assert abs(found.mean().item()) < WITHIN_BFLOAT16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [*CAUSAL, *SEQ2SEQ])
def test_the_check_at_loading_lets_them_through(build, name, dtype):
    check_head(build(name).to(dtype))
