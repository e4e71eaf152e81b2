"""The chunked head against whole-vocabulary logits of the model's own forward pass."""

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    ModernBertDecoderConfig,
    ModernBertDecoderForCausalLM,
    MptConfig,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    UMT5Config,
)

from atlantis.errors import ModelError
from atlantis.models.head import (
    LogitTransform,
    check_head,
    head_logits,
    logit_transform,
    target_logprobs,
)

SHAPE = {
    "vocab_size": 90,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}


@pytest.fixture
def build(tiny_model):
    """Architectures that cap, multiply or divide their logits, and some that do not."""

    def build(name):
        torch.manual_seed(0)
        if name == "cohere":
            return CohereForCausalLM(CohereConfig(**SHAPE, logit_scale=0.0625)).eval()
        if name == "granite":
            return GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=8.0)).eval()
        if name == "phi":
            model = PhiForCausalLM(PhiConfig(**SHAPE)).eval()
            torch.nn.init.normal_(model.lm_head.bias)
            return model
        return tiny_model(name, **({"vocab_size": 90}))

    return build


def states(model):
    """Hidden states of a ragged batch, and the model's own logits in float64."""
    ids = torch.randint(2, 90, (3, 11), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        hidden = model.base_model(input_ids=ids).last_hidden_state
        logits = model(input_ids=ids).logits.double()
    return hidden.flatten(0, 1), logits.flatten(0, 1)


NAMES = ["qwen2", "llama", "gemma2", "gpt2", "cohere", "granite", "phi"]


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_the_models_own(build, name):
    model = build(name)
    hidden, logits = states(model)
    with torch.no_grad():
        found = head_logits(model, hidden)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), logits, rtol=1e-5, atol=1e-5)  # float32 products


@pytest.mark.parametrize("chunk_size", [1, 7, 33, 1000])
@pytest.mark.parametrize("name", NAMES)
def test_logprobs_equal_a_float64_log_softmax_for_every_chunk_size(build, name, chunk_size):
    model = build(name)
    hidden, logits = states(model)
    targets = torch.randint(90, (33,), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        found = target_logprobs(model, hidden, targets, chunk_size=chunk_size)
    expected = logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    torch.testing.assert_close(found.logprobs.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.top_tokens, logits.argmax(-1))
    assert (found.logprobs <= 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_a_model_in_half_precision_has_float32_logits(build, name, dtype):
    model = build(name).to(dtype)
    hidden, _ = states(model)
    targets = torch.arange(33)
    with torch.no_grad():
        found = target_logprobs(model, hidden, targets, chunk_size=8).logprobs
        right = head_logits(model.double(), hidden.double()).double()
    expected = right.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    assert found.dtype == torch.float32
    # The weights and hidden states are rounded, their products are not.
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-5)


def test_a_head_in_half_precision_that_runs_by_itself_is_no_worse_than_its_rounding(build):
    # While gradients are recorded, and for heads with an adapter.
    model = build("qwen2").bfloat16()
    hidden, _ = states(model)
    whole = head_logits(model, hidden)
    with torch.no_grad():
        exact = head_logits(model, hidden)
    assert whole.requires_grad
    error = (whole - exact).abs().max() / exact.abs().max()
    assert 0 < error < torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("name", ["qwen2", "gemma2"])
def test_gradients_equal_those_of_the_plain_definition(build, name):
    model = build(name).double()
    ids = torch.randint(2, 90, (2, 9), generator=torch.Generator().manual_seed(3))
    targets = torch.randint(90, (18,), generator=torch.Generator().manual_seed(4))
    weights = torch.linspace(0.1, 2.0, 18, dtype=torch.float64)

    def gradients(logprobs):
        model.zero_grad()
        (weights * logprobs).sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    logits = model(input_ids=ids).logits.flatten(0, 1)
    plain = gradients(logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1))
    for chunk_size in (4, 1000):  # recomputed in the backward pass, and kept
        hidden = model.base_model(input_ids=ids).last_hidden_state.flatten(0, 1)
        found = target_logprobs(model, hidden, targets, chunk_size=chunk_size).logprobs
        error = (gradients(found) - plain).norm() / plain.norm()
        assert error < 1e-6  # the head works in float32


def test_chunks_give_the_gradient_of_no_chunks(build):
    model = build("llama")
    hidden, _ = states(model)
    targets = torch.arange(33)
    results = []
    for chunk_size in (5, 1000):
        leaf = hidden.clone().requires_grad_()
        target_logprobs(model, leaf, targets, chunk_size=chunk_size).logprobs.sum().backward()
        results.append(leaf.grad)
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


def test_top_tokens_carry_no_gradient(build):
    model = build("qwen2")
    hidden, _ = states(model)
    found = target_logprobs(model, hidden.requires_grad_(), torch.arange(33), chunk_size=8)
    assert not found.top_tokens.requires_grad


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, LogitTransform(1.0, None)),
        ({"logit_scale": 0.25}, LogitTransform(0.25, None)),
        ({"logit_scale": None}, LogitTransform(1.0, None)),
        ({"logits_scaling": 8.0}, LogitTransform(0.125, None)),
        ({"lm_head_multiplier": 0.5}, LogitTransform(0.5, None)),
        ({"final_logit_softcapping": 30.0}, LogitTransform(1.0, 30.0)),
        ({"output_multiplier": 0.5}, LogitTransform(0.5, None)),  # as TRL's fused head reads it
        ({"logits_mup_width_multiplier": 4.0}, LogitTransform(0.25, None)),  # Inkling
        ({"logits_soft_cap": 30.0}, LogitTransform(1.0, 30.0)),  # RecurrentGemma
        ({"logit_scale": 2.0, "final_logit_softcapping": 5.0}, LogitTransform(2.0, 5.0)),
    ],
)
def test_transforms_are_read_from_the_configuration(fields, expected):
    assert logit_transform(Qwen2Config(**SHAPE, **fields)) == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (MptConfig(logit_scale=0.5), 1.0),  # transformers does not apply it
        (T5Config(d_model=64), 0.125),
        (T5Config(d_model=64, tie_word_embeddings=False), 1.0),
        (UMT5Config(d_model=64), 0.125),
    ],
)
def test_transforms_of_architectures_with_rules_of_their_own(config, expected):
    assert logit_transform(config).scale == expected


class Warmer(Qwen2ForCausalLM):
    """Does to its logits what no name in its configuration tells."""

    change = staticmethod(lambda logits: logits * 1.02)

    def forward(self, *inputs, **settings):
        output = super().forward(*inputs, **settings)
        output.logits = self.change(output.logits)
        return output


CHANGES = {
    "a scale": lambda logits: logits * 1.02,
    "a softcap": lambda logits: 30 * torch.tanh(logits / 30),
    "a bias on one token": lambda logits: logits + 0.3 * (torch.arange(90) == 7),
    "fewer tokens": lambda logits: logits[..., :80],
    "another order": lambda logits: logits.flip(-1),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CHANGES)
def test_an_architecture_with_an_unknown_transform_is_refused(name, dtype):
    torch.manual_seed(0)
    model = Warmer(Qwen2Config(**SHAPE)).to(dtype).eval()
    model.change = CHANGES[name]
    with pytest.raises(ModelError, match=r"this architecture \(qwen2\) cannot be scored: "):
        check_head(model)
    model.change = lambda logits: logits
    check_head(model)


def test_a_head_with_a_layer_of_its_own_is_refused():
    config = ModernBertDecoderConfig(
        **SHAPE | {"layer_types": ["full_attention"] * 2}, cls_token_id=0, sep_token_id=0
    )
    with pytest.raises(ModelError, match=r"\(modernbert-decoder\) cannot be scored"):
        check_head(ModernBertDecoderForCausalLM(config).eval())


def test_the_check_leaves_broken_weights_to_the_rows(build):
    model = build("qwen2")
    torch.nn.init.constant_(model.get_input_embeddings().weight, float("nan"))
    check_head(model)


def test_the_check_costs_two_rows_and_leaves_no_trace(build):
    model = build("llama").bfloat16()
    lengths = []
    watch = model.model.register_forward_pre_hook(
        lambda _, __, inputs: lengths.append(inputs["input_ids"].shape), with_kwargs=True
    )
    check_head(model)
    watch.remove()
    assert lengths == [(1, 8), (1, 8)]
    assert not model.lm_head._forward_hooks
