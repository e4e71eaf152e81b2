"""Scores of labels under encoder-decoders, against one plain float64 pass for each label."""

import copy

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from atlantis.errors import DataError, ModelError
from atlantis.evaluation.stage import _decode
from atlantis.generation.decoding import generate_greedily
from atlantis.models.choices import OUTSIDE, score_choices

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
SHAPE = {"vocab_size": 320, "d_model": 32, "pad_token_id": 1, "eos_token_id": 0}
T5 = {"d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
BART = {
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "init_std": 0.3,
    "dropout": 0.0,
    "forced_eos_token_id": None,
}


@pytest.fixture(scope="module")
def build():
    def build(name):
        torch.manual_seed(0)
        if name == "t5":
            shape = SHAPE | {"decoder_start_token_id": 1}
            return T5ForConditionalGeneration(T5Config(**shape | T5)).eval()
        shape = SHAPE | {"decoder_start_token_id": 0}
        model = BartForConditionalGeneration(BartConfig(**shape | BART)).eval()
        torch.nn.init.normal_(model.final_logits_bias)
        return model

    return build


@pytest.fixture(scope="module")
def tokenizers(bpe_tokenizer):
    """T5 puts an end after every text; BART a beginning before it, too, which is read and given."""

    def wrapped(template):
        inner = copy.deepcopy(bpe_tokenizer.backend_tokenizer)
        inner.post_processor = TemplateProcessing(
            single=template, special_tokens=[("<eos>", 0), ("<pad>", 1)]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>", bos_token="<pad>"
        )

    return {"t5": wrapped("$A <eos>"), "bart": wrapped("<pad> $A <eos>")}


def naive_scores(model, tokenizer, prompts, choices):
    """One prompt and one label at a time, from the model's own logits in float64."""
    double = copy.deepcopy(model).double()
    start = model.config.decoder_start_token_id
    result = []
    for prompt in prompts:
        encoder_ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        scores = []
        for choice in choices:
            target = tokenizer(choice)["input_ids"]
            num_before = 1 if target[0] == 1 else 0  # BART's beginning
            read = torch.tensor([[start, *target[:-1]]])
            with torch.no_grad():
                logits = double(input_ids=encoder_ids, decoder_input_ids=read).logits[0]
            logprobs = logits.log_softmax(-1)
            positions = range(num_before, len(target))
            scores.append(sum(logprobs[t, target[t]].item() for t in positions))
        result.append(scores)
    return torch.tensor(result, dtype=torch.float64)


@pytest.mark.parametrize("name", ["t5", "bart"])
@pytest.mark.parametrize("token_budget", [1, 1000, 100_000])
def test_every_label_scores_as_if_it_were_scored_alone(build, tokenizers, name, token_budget):
    model, tokenizer = build(name), tokenizers[name]
    found = score_choices(model, tokenizer, PROMPTS, CHOICES, token_budget=token_budget)
    expected = naive_scores(model, tokenizer, PROMPTS, CHOICES)
    assert expected.std() > 3
    torch.testing.assert_close(torch.tensor(found.logprobs), expected, rtol=0.0, atol=1e-4)


def taught(model, tokenizer, pairs, *, steps=80):
    """A model that has learnt to answer some prompts, so that greedy decoding goes somewhere."""
    start = model.config.decoder_start_token_id
    rows = [
        (tokenizer(p, return_tensors="pt")["input_ids"], tokenizer(a)["input_ids"])
        for p, a in pairs
    ]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        loss = sum(
            model(
                input_ids=encoder_ids,
                decoder_input_ids=torch.tensor([[start, *target[:-1]]]),
                labels=torch.tensor([target]),
            ).loss
            for encoder_ids, target in rows
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def greedy_text(model, tokenizer, prompt, num_tokens=40):
    """Greedy decoding by hand: one token after the other, without a cache."""
    encoder_ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    target = tokenizer("x")["input_ids"]
    ids = [model.config.decoder_start_token_id, *([1] if target[0] == 1 else [])]
    begun = len(ids)
    while len(ids) < begun + num_tokens:
        with torch.no_grad():
            logits = model(input_ids=encoder_ids, decoder_input_ids=torch.tensor([ids])).logits
        ids.append(int(logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[begun:], skip_special_tokens=True)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_greedy_labels_and_generated_texts_are_what_the_model_writes(build, tokenizers, name):
    answers = [CHOICES[0], CHOICES[2], " Cause-Nothing", CHOICES[4], CHOICES[1]]
    model, tokenizer = build(name), tokenizers[name]
    model = taught(model, tokenizer, list(zip(PROMPTS, answers, strict=True)))
    # What a published checkpoint ships: greedy decoding would not be argmax under it.
    model.generation_config.forced_bos_token_id = 7
    model.generation_config.no_repeat_ngram_size = 1
    model.generation_config.num_beams = 3
    expected = [greedy_text(model, tokenizer, prompt) for prompt in PROMPTS]
    assert expected == answers
    generated = generate_greedily(model, tokenizer, PROMPTS, max_new_tokens=40, batch_size=2)
    assert generated == expected
    found = score_choices(model, tokenizer, PROMPTS, CHOICES)
    assert found.greedy.tolist() == [0, 2, OUTSIDE, 4, 1]
    assert found.logprobs.argmax(1).tolist()[:2] == [0, 2]
    assert _decode(model, tokenizer, PROMPTS, CHOICES, found.greedy) == expected


def test_a_prompt_over_the_limit_is_refused(build, tokenizers):
    model, tokenizer = build("t5"), tokenizers["t5"]
    prompt = len(tokenizer(PROMPTS[0])["input_ids"])
    label = 1 + max(len(tokenizer(choice)["input_ids"]) for choice in CHOICES)
    score_choices(model, tokenizer, PROMPTS[:1], CHOICES, max_length=prompt + label)
    with pytest.raises(DataError, match="row 0: the prompt with a label is longer"):
        score_choices(model, tokenizer, PROMPTS[:1], CHOICES, max_length=prompt + label - 1)


def test_no_prompt_has_no_scores(build, tokenizers):
    found = score_choices(build("t5"), tokenizers["t5"], [], CHOICES)
    assert found.logprobs.shape == (0, len(CHOICES))


def test_a_model_of_nan_has_no_best_label(build, tokenizers):
    model = build("t5")
    with torch.no_grad():
        model.shared.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="not finite"):
        score_choices(model, tokenizers["t5"], PROMPTS, CHOICES)


def test_a_model_without_a_start_is_refused(build, tokenizers):
    model = build("t5")
    model.config.decoder_start_token_id = None
    with pytest.raises(ModelError, match="names no decoder_start_token_id"):
        score_choices(model, tokenizers["t5"], PROMPTS, CHOICES)
