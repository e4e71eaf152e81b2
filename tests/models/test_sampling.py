"""Completions through ``generate`` of transformers: what is new, why it ended, which numbers."""

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from atlantis.data.prompts import RenderedPrompt
from atlantis.errors import DataError
from atlantis.models.generation import generate_greedily
from atlantis.models.sampling import SamplingConfig, TransformersGenerator

TEXTS = ["The storm caused", "Relation between the engine and the car:", "A"]
PROMPTS = [RenderedPrompt(f"p{i}", text, False) for i, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def t5():
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=320,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=1,
        pad_token_id=1,
        eos_token_id=0,
    )
    return T5ForConditionalGeneration(config).eval()


@pytest.fixture(params=["qwen2", "gpt2", "t5"])
def model(request, tiny_model, t5):
    return t5 if request.param == "t5" else tiny_model(request.param, seed=4)


def test_greedy_completions_are_those_of_greedy_decoding(model, bpe_tokenizer):
    generator = TransformersGenerator(model, bpe_tokenizer)
    config = SamplingConfig(max_new_tokens=9)
    generator.check(PROMPTS, config)
    found = generator.complete(PROMPTS, config, seed=0)
    expected = generate_greedily(model, bpe_tokenizer, TEXTS, max_new_tokens=9)
    assert [said.text for (said,) in found] == expected


def test_the_end_token_is_counted_and_not_shown(tiny_model, bpe_tokenizer):
    model = tiny_model("qwen2", seed=4)
    free = TransformersGenerator(model, bpe_tokenizer)
    config = SamplingConfig(max_new_tokens=9)
    ((whole,),) = free.complete(PROMPTS[:1], config, seed=0)
    ids = bpe_tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    new = model.generate(ids, do_sample=False, max_new_tokens=9, eos_token_id=None)[
        0, ids.shape[1] :
    ]
    model.generation_config.eos_token_id = [int(new[4]), 0]
    ((cut,),) = TransformersGenerator(model, bpe_tokenizer).complete(PROMPTS[:1], config, seed=0)
    num_tokens = new.tolist().index(int(new[4])) + 1
    assert (whole.num_tokens, whole.finish_reason) == (9, "length")
    assert (cut.num_tokens, cut.finish_reason) == (num_tokens, "stop")


def test_defaults_that_a_checkpoint_ships_do_not_count(tiny_model, bpe_tokenizer):
    plain, loud = (tiny_model("qwen2", seed=4) for _ in range(2))
    loud.generation_config.update(
        do_sample=True, temperature=3.0, top_k=1, repetition_penalty=9.0, top_p=0.1
    )
    for config in (SamplingConfig(max_new_tokens=9), SamplingConfig(temperature=1.0)):
        both = [
            TransformersGenerator(model, bpe_tokenizer).complete(PROMPTS[:1], config, seed=7)
            for model in (plain, loud)
        ]
        assert both[0] == both[1]


def test_sampling_leaves_the_random_numbers_of_others_alone(tiny_model, bpe_tokenizer):
    generator = TransformersGenerator(tiny_model("qwen2", seed=4), bpe_tokenizer)
    before = torch.random.get_rng_state()
    generator.complete(PROMPTS, SamplingConfig(max_new_tokens=3, temperature=1.0), seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_token_that_the_model_does_not_know_is_refused(tiny_model, bpe_tokenizer):
    generator = TransformersGenerator(tiny_model("qwen2", vocab_size=64), bpe_tokenizer)
    with pytest.raises(DataError, match=r"'p0': the prompt has the token \d+, the model knows 64"):
        generator.check(PROMPTS, SamplingConfig(max_new_tokens=3))


def test_a_prompt_beyond_the_last_position_is_refused(tiny_model, bpe_tokenizer):
    generator = TransformersGenerator(tiny_model("gpt2"), bpe_tokenizer)
    with pytest.raises(DataError, match="more than the model's 256"):
        generator.check(PROMPTS, SamplingConfig(max_new_tokens=255))
