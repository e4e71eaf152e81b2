"""Completions of a model in this process: what is new, why it ended, which numbers."""

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from atlantis.data.prompts import Prompt, user_says
from atlantis.data.rendering import PlainTemplate
from atlantis.errors import DataError, ModelError
from atlantis.generation.decoding import generate_greedily
from atlantis.generation.requests import Request, requests_for
from atlantis.generation.sampling import SamplingConfig
from atlantis.generation.transformers_generator import TransformersGenerator
from atlantis.models.proxy import ProxyTunedLM

TEXTS = ["The storm caused", "Relation between the engine and the car:", "A"]
PROMPTS = [Prompt(f"p{i}", text) for i, text in enumerate(TEXTS)]
REQUESTS = [Request(prompt) for prompt in PROMPTS]


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


@pytest.fixture(params=["qwen2", "gpt2", "t5", "proxy"])
def model(request, tiny_model, t5):
    if request.param == "t5":
        return t5
    if request.param == "proxy":
        return ProxyTunedLM(*(tiny_model("qwen2", seed=seed) for seed in (4, 5, 6)), alpha=0.7)
    return tiny_model(request.param, seed=4)


@pytest.fixture
def generator_of(bpe_tokenizer):
    def make(model, **options):
        return TransformersGenerator(model, bpe_tokenizer, template=PlainTemplate(), **options)

    return make


def completed(generator, requests, config):
    """The completions of each request, in order."""
    found = [pair for unit in generator.complete(requests, config) for pair in unit]
    assert sorted(place for place, _ in found) == list(range(len(requests)))
    return [said for _, said in sorted(found)]


def test_greedy_completions_are_those_of_greedy_decoding(model, bpe_tokenizer, generator_of):
    generator = generator_of(model, batch_size=2)
    config = SamplingConfig(max_new_tokens=9)
    generator.check(REQUESTS, config)
    found = completed(generator, REQUESTS, config)
    expected = generate_greedily(model, bpe_tokenizer, TEXTS, max_new_tokens=9)
    assert [said.text for (said,) in found] == expected


def test_a_batch_is_finished_at_once_and_the_longest_come_first(tiny_model, generator_of):
    generator = generator_of(tiny_model("qwen2"), batch_size=2)
    units = list(generator.complete(REQUESTS, SamplingConfig(max_new_tokens=2)))
    assert [[place for place, _ in unit] for unit in units] == [[1, 0], [2]]


def test_a_sample_is_the_same_alone_and_beside_others(model, generator_of):
    config = SamplingConfig(max_new_tokens=9, temperature=1.3, top_p=0.9, num_return_sequences=4)
    requests = requests_for(PROMPTS, config)
    together = completed(generator_of(model, batch_size=64), requests, config)
    alone = [completed(generator_of(model), [request], config)[0] for request in requests]
    assert together == alone
    assert len({said.text for (said,) in together[:4]}) == 4


def test_a_sample_depends_on_seed_example_and_attempt(tiny_model, generator_of):
    generator = generator_of(tiny_model("qwen2", seed=4))
    config = SamplingConfig(max_new_tokens=9, temperature=1.3)
    asked = [
        (Request(Prompt(name, "A"), attempt), config.model_copy(update={"seed": seed}))
        for name in ("x", "y")
        for attempt in (0, 1)
        for seed in (0, 1)
    ]
    texts = [completed(generator, [request], chosen)[0][0].text for request, chosen in asked]
    assert len(set(texts)) == len(texts)


def test_beams_are_those_of_transformers(tiny_model, bpe_tokenizer, generator_of):
    model = tiny_model("qwen2", seed=4)
    config = SamplingConfig(max_new_tokens=7, num_beams=3, num_return_sequences=2)
    found = completed(generator_of(model), REQUESTS, config)
    for text, said in zip(TEXTS, found, strict=True):
        ids = bpe_tokenizer(text, return_tensors="pt")["input_ids"]
        output = model.generate(ids, num_beams=3, num_return_sequences=2, max_new_tokens=7)
        new = output[:, ids.shape[1] :]
        expected = bpe_tokenizer.batch_decode(new, skip_special_tokens=True)
        assert [completion.text for completion in said] == expected


def test_the_end_token_is_counted_and_not_shown(tiny_model, bpe_tokenizer, generator_of):
    model = tiny_model("qwen2", seed=4)
    free = generator_of(model)
    config = SamplingConfig(max_new_tokens=9)
    ((whole,),) = completed(free, REQUESTS[:1], config)
    ids = bpe_tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    new = model.generate(ids, do_sample=False, max_new_tokens=9, eos_token_id=None)[
        0, ids.shape[1] :
    ]
    model.generation_config.eos_token_id = [int(new[4]), 0]
    ((cut,),) = completed(generator_of(model), REQUESTS[:1], config)
    num_tokens = new.tolist().index(int(new[4])) + 1
    assert (whole.num_tokens, whole.finish_reason) == (9, "length")
    assert (cut.num_tokens, cut.finish_reason) == (num_tokens, "stop")


def test_defaults_that_a_checkpoint_ships_do_not_count(tiny_model, generator_of):
    plain, loud = (tiny_model("qwen2", seed=4) for _ in range(2))
    loud.generation_config.update(
        do_sample=True, temperature=3.0, top_k=1, repetition_penalty=9.0, top_p=0.1
    )
    for config in (SamplingConfig(max_new_tokens=9), SamplingConfig(temperature=1.0)):
        both = [completed(generator_of(model), REQUESTS[:1], config) for model in (plain, loud)]
        assert both[0] == both[1]


def test_sampling_leaves_the_random_numbers_of_others_alone(tiny_model, generator_of):
    generator = generator_of(tiny_model("qwen2", seed=4))
    before = torch.random.get_rng_state()
    completed(generator, REQUESTS, SamplingConfig(max_new_tokens=3, temperature=1.0))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_half_a_batch_is_tried_where_the_memory_is_too_small(tiny_model, generator_of, monkeypatch):
    model = tiny_model("qwen2", seed=4)
    config = SamplingConfig(max_new_tokens=5)
    expected = completed(generator_of(model), REQUESTS, config)
    sizes, generate = [], model.generate

    def small(input_ids, **options):
        sizes.append(len(input_ids))
        if len(input_ids) > 1:
            raise torch.OutOfMemoryError
        return generate(input_ids=input_ids, **options)

    monkeypatch.setattr(model, "generate", small)
    assert completed(generator_of(model), REQUESTS, config) == expected
    assert sizes == [3, 1, 2, 1, 1]
    monkeypatch.setattr(
        model, "generate", lambda **_: (_ for _ in ()).throw(torch.OutOfMemoryError)
    )
    with pytest.raises(ModelError, match="'p1': the GPU's memory is too small"):
        completed(generator_of(model), REQUESTS, config)


def test_a_chat_is_read_through_the_template(tiny_model, generator_of):
    generator = generator_of(tiny_model("qwen2", seed=4))
    config = SamplingConfig(max_new_tokens=5)
    said = completed(generator, [Request(user_says("the storm", example_id="c"))], config)
    text = Request(Prompt("t", "User: the storm\n\nAssistant:"))
    assert said == completed(generator, [text], config)


def test_a_token_that_the_model_does_not_know_is_refused(tiny_model, generator_of):
    generator = generator_of(tiny_model("qwen2", vocab_size=64))
    with pytest.raises(DataError, match=r"'p0': the prompt has the token \d+, the model knows 64"):
        generator.check(REQUESTS, SamplingConfig(max_new_tokens=3))


def test_a_prompt_beyond_the_last_position_is_refused(tiny_model, generator_of):
    generator = generator_of(tiny_model("gpt2"))
    with pytest.raises(DataError, match="more than the model's 256"):
        generator.check(REQUESTS, SamplingConfig(max_new_tokens=255))


def test_logits_that_are_not_finite_are_no_sample(tiny_model, generator_of):
    model = tiny_model("qwen2", seed=4, tie_word_embeddings=False)
    model.get_output_embeddings().weight.data[7] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        completed(generator_of(model), REQUESTS, SamplingConfig(temperature=1.0))
