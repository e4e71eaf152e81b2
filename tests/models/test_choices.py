"""Scores of label trees against the model's own logits, one label at a time, and `generate`."""

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from atlantis.data.tokenization import common_prefix_length
from atlantis.errors import DataError, ModelError
from atlantis.generation.decoding import generate_greedily
from atlantis.models.choices import OUTSIDE, score_choices

ARCHITECTURES = ["qwen2", "llama", "gemma2", "gpt2"]
PROMPTS = [  # ragged on purpose
    "The storm caused the flood in the old town, and the flood caused the damage. Relation:",
    "Q:",
    "A box of letters; the author wrote the letters.\nRelation between the engine and the car:",
    "The engine",
    "Relation:",
]
CHOICES = [
    " Cause-Effect(e1,e2)",
    " Cause-Effect(e2,e1)",
    " Cause",  # the beginning of two others
    " Content-Container(e1,e2)",
    " Other",
    " O",
]


def naive_logprob(model, prompt_ids, all_ids):
    """Sum over the completion in float64, from the logits of one plain forward pass."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([all_ids])).logits[0].double()
    logprobs = logits[:-1].log_softmax(-1)
    return sum(logprobs[t - 1, all_ids[t]].item() for t in range(len(prompt_ids), len(all_ids)))


def naive_scores(model, tokenizer, prompts, choices):
    result = []
    for prompt in prompts:
        prompt_ids = tokenizer(prompt)["input_ids"]
        rows = [tokenizer(prompt + choice)["input_ids"] for choice in choices]
        boundary = min(common_prefix_length(prompt_ids, row) for row in rows)
        eos = tokenizer.eos_token_id
        result.append([naive_logprob(model, prompt_ids[:boundary], [*row, eos]) for row in rows])
    return torch.tensor(result, dtype=torch.float64)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("token_budget", [1, 400, 100_000])
def test_every_label_scores_as_if_it_were_scored_alone(
    tiny_model, bpe_tokenizer, architecture, token_budget
):
    model = tiny_model(architecture)
    found = score_choices(model, bpe_tokenizer, PROMPTS, CHOICES, token_budget=token_budget)
    expected = naive_scores(model, bpe_tokenizer, PROMPTS, CHOICES)
    assert expected.std() > 3
    # Float32 forward passes over other batch shapes; the bound of the issue.
    torch.testing.assert_close(torch.tensor(found.logprobs), expected, rtol=0.0, atol=1e-4)


def test_no_prompt_and_no_label_sees_another_one(tiny_model, bpe_tokenizer):
    model = tiny_model("qwen2")
    together = score_choices(model, bpe_tokenizer, PROMPTS, CHOICES).logprobs
    for row, prompt in enumerate(PROMPTS):
        for column, choice in enumerate(CHOICES):
            alone = score_choices(model, bpe_tokenizer, [prompt], [choice]).logprobs
            assert alone.item() == pytest.approx(together[row, column], abs=1e-4)


def test_labels_in_another_order_have_the_same_scores(tiny_model, bpe_tokenizer):
    model = tiny_model("llama")
    order = [3, 5, 0, 2, 4, 1]
    expected = score_choices(model, bpe_tokenizer, PROMPTS, CHOICES)
    found = score_choices(model, bpe_tokenizer, PROMPTS, [CHOICES[i] for i in order])
    assert found.logprobs == pytest.approx(expected.logprobs[:, order], abs=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_labels_that_merge_with_the_end_of_the_prompt_are_scored_from_before_it(
    tiny_model, bpe_tokenizer, architecture
):
    prompts = ["The storm Cau", "Relation: th", "Relation between the engine and the car:"]
    choices = ["se-Effect(e1,e2)", "e flood", " Other"]
    ids = bpe_tokenizer(prompts[0])["input_ids"]
    merged = bpe_tokenizer(prompts[0] + choices[0])["input_ids"]
    assert common_prefix_length(ids, merged) < len(ids)
    model = tiny_model(architecture)
    found = score_choices(model, bpe_tokenizer, prompts, choices)
    expected = naive_scores(model, bpe_tokenizer, prompts, choices)
    torch.testing.assert_close(torch.tensor(found.logprobs), expected, rtol=0.0, atol=1e-4)


@pytest.mark.parametrize("token_budget", [1, 100_000])
def test_sliding_windows_shorter_than_the_prompt_stay_in_force(
    tiny_model, bpe_tokenizer, token_budget
):
    # Gemma 2 and 3 attend to a window in every other layer; a mask of one's own must not undo it.
    model = tiny_model("gemma2", sliding_window=6)
    found = score_choices(model, bpe_tokenizer, PROMPTS, CHOICES, token_budget=token_budget)
    expected = naive_scores(model, bpe_tokenizer, PROMPTS, CHOICES)
    torch.testing.assert_close(torch.tensor(found.logprobs), expected, rtol=0.0, atol=1e-4)


@pytest.mark.parametrize("sliding_window", [6, 40])
def test_a_window_in_every_layer_stays_in_force(tiny_model, bpe_tokenizer, sliding_window):
    # Mistral: no layer types, one mask. Forty tokens end inside the longest prompt.
    torch.manual_seed(0)
    shape = tiny_model("llama").config
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    names += ("num_attention_heads", "num_key_value_heads", "initializer_range")
    settings = {name: getattr(shape, name) for name in names}
    model = MistralForCausalLM(MistralConfig(**settings, sliding_window=sliding_window)).eval()
    found = score_choices(model, bpe_tokenizer, PROMPTS, CHOICES)
    expected = naive_scores(model, bpe_tokenizer, PROMPTS, CHOICES)
    torch.testing.assert_close(torch.tensor(found.logprobs), expected, rtol=0.0, atol=1e-4)


@pytest.mark.parametrize("name", ["local", "alibi"])
def test_an_architecture_that_ignores_the_mask_or_the_positions_is_refused(bpe_tokenizer, name):
    # Local windows by index (GPT-Neo), distances by index (Bloom); recurrent layers (Falcon-H1,
    # Qwen3-Next) are of the same kind: the scores would be wrong and nothing would say so.
    torch.manual_seed(0)
    if name == "local":
        config = GPTNeoConfig(
            vocab_size=320,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
            window_size=6,
            initializer_range=0.3,
        )
        model = GPTNeoForCausalLM(config).eval()
    else:
        config = BloomConfig(
            vocab_size=320, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3
        )
        model = BloomForCausalLM(config).eval()
    with pytest.raises(ModelError, match=r"attention|architecture"):
        score_choices(model, bpe_tokenizer, PROMPTS, CHOICES)


def test_a_model_of_nan_has_no_best_label(tiny_model, bpe_tokenizer):
    # argmax over NaN would give the first label to every prompt, as if it had been predicted.
    model = tiny_model("qwen2")
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="finite"):
        score_choices(model, bpe_tokenizer, PROMPTS, CHOICES)


def taught_to_write(model, tokenizer, pairs, *, steps=60):
    """A model that has learnt to answer some prompts, so that greedy decoding goes somewhere."""
    rows = [
        tokenizer(prompt + answer + tokenizer.eos_token)["input_ids"] for prompt, answer in pairs
    ]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        loss = sum(
            model(input_ids=torch.tensor([row]), labels=torch.tensor([row])).loss for row in rows
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def taught(tiny_model, bpe_tokenizer):
    answers = [CHOICES[0], CHOICES[2], CHOICES[4], " Cause-Nothing", CHOICES[1]]
    model = tiny_model("qwen2", seed=1, initializer_range=0.05)
    pairs = list(zip(PROMPTS, answers, strict=True))
    return taught_to_write(model, bpe_tokenizer, pairs), answers


def generated(model, tokenizer, prompt):
    """What stock `generate` writes after one prompt, alone."""
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=40,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("token_budget", [1, 100_000])
def test_the_greedy_label_is_the_one_that_generate_writes(taught, bpe_tokenizer, token_budget):
    model, answers = taught
    found = score_choices(model, bpe_tokenizer, PROMPTS, CHOICES, token_budget=token_budget)
    texts = [generated(model, bpe_tokenizer, prompt) for prompt in PROMPTS]
    assert texts == answers  # it has learnt: a label, a prefix of it, and something outside
    expected = [CHOICES.index(text) if text in CHOICES else OUTSIDE for text in texts]
    assert found.greedy.tolist() == expected
    assert OUTSIDE in expected


def test_greedy_texts_in_batches_are_those_of_one_prompt_at_a_time(taught, bpe_tokenizer):
    model, _ = taught
    expected = [generated(model, bpe_tokenizer, prompt) for prompt in PROMPTS]
    for batch_size in (1, 2, 64):
        found = generate_greedily(
            model, bpe_tokenizer, PROMPTS, max_new_tokens=40, batch_size=batch_size
        )
        assert found == expected


def test_generation_is_greedy_whatever_the_models_own_settings_say(taught, bpe_tokenizer):
    # Qwen2 and Llama checkpoints ship sampling and repetition penalties in generation_config.json.
    model, _ = taught
    expected = generate_greedily(model, bpe_tokenizer, PROMPTS, max_new_tokens=40)
    own = model.generation_config
    model.generation_config = type(own)(
        **own.to_diff_dict() | {"repetition_penalty": 5.0, "no_repeat_ngram_size": 2}
    )
    try:
        found = generate_greedily(model, bpe_tokenizer, PROMPTS, max_new_tokens=40)
    finally:
        model.generation_config = own
    assert found == expected


def test_the_same_label_twice_has_the_same_score(tiny_model, bpe_tokenizer):
    found = score_choices(tiny_model("gpt2"), bpe_tokenizer, PROMPTS, [" Other", " Other"])
    assert (found.logprobs[:, 0] == found.logprobs[:, 1]).all()


def test_no_prompts_give_no_scores(tiny_model, bpe_tokenizer):
    found = score_choices(tiny_model("qwen2"), bpe_tokenizer, [], CHOICES)
    assert found.logprobs.shape == (0, len(CHOICES))


@pytest.mark.parametrize("prompts", [["Q:", PROMPTS[0] * 3], ["Q:", ""]])
def test_a_prompt_that_cannot_be_scored_is_refused_by_its_row(tiny_model, bpe_tokenizer, prompts):
    with pytest.raises(DataError, match="row 1: "):
        score_choices(tiny_model("qwen2"), bpe_tokenizer, prompts, CHOICES, max_length=60)
