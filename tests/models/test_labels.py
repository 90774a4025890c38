"""Labels are the record's answers and the ends of their turns, whatever the chat template does."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ostlight.data.sample import Sample, Turn
from ostlight.errors import BadRecord, ModelError
from ostlight.models.encoding.encoder import Encoded, Encoder
from ostlight.models.losses import IGNORED, per_sample_losses

sys.path.insert(0, str(Path(__file__).parent))

import chat_templates as templates

TEMPLATES = {
    name: getattr(templates, name)
    for name in (
        "CHATML", "DEFAULT_SYSTEM", "QWEN3", "QWQ", "R1", "GEMMA", "MISTRAL", "LLAMA2", "LLAMA3", "VICUNA", "NO_END",
        "OTHER_END", "BLOCKS", "WIDE_BLOCKS", "BLOCKS_OF_CONTENT",
    )
}  # fmt: skip
END = {
    "GEMMA": "<end_of_turn>", "R1": "</s>", "MISTRAL": "</s>", "LLAMA2": "</s>", "LLAMA3": "<|eot_id|>",
    "VICUNA": "</s>", "NO_END": "", "BLOCKS_OF_CONTENT": "", "OTHER_END": "<|return|>",
}  # fmt: skip
TOKENIZERS: dict[str, Callable[[str], PreTrainedTokenizerFast]] = {
    "bytes": templates.byte_tokenizer,
    "metaspace": templates.metaspace_tokenizer,
    "metaspace, always": lambda template: templates.metaspace_tokenizer(template, "always"),
}


def sample(*turns: str | tuple[str, str]) -> Sample:
    """Questions and answers by turns, or named roles."""
    roles = [turn if isinstance(turn, tuple) else ("user", "assistant")[k % 2] for k, turn in enumerate(turns)]
    named = [turn if isinstance(turn, tuple) else (role, turn) for role, turn in zip(roles, turns, strict=True)]
    return Sample("s", tuple(Turn(role, text, role == "assistant") for role, text in named))  # type: ignore[arg-type]


def labelled(encoded: Encoded, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The runs of labelled tokens, decoded, without white space."""
    pairs = zip(encoded.labels.tolist(), encoded.inputs["input_ids"].tolist(), strict=True)
    runs = [[token for _, token in run] for is_label, run in groupby(pairs, lambda p: p[0] != IGNORED) if is_label]
    assert [k for k in encoded.labels.tolist() if k != IGNORED] == [token for run in runs for token in run]
    return ["".join(tokenizer.decode(run).split()) for run in runs]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_each_answer_and_the_end_of_its_turn_is_labelled_and_nothing_else(name: str, kind: str) -> None:
    tokenizer = TOKENIZERS[kind](TEMPLATES[name])
    end = END.get(name, "<|im_end|>")
    encoded = Encoder(tokenizer, 1000).encode(sample("say yes, answer yes", "yes", "answer no?", "no. <b>no</b>"))
    first_end = "<|im_end|>" if name == "OTHER_END" else end
    assert labelled(encoded, tokenizer) == [f"yes{first_end}", f"no.<b>no</b>{end}"]


@pytest.mark.parametrize("said", ["<b>7</b>\n", "<b>\n7\n</b> \n", "<br>\n", "see <b>7</b> ", "7\n\n", " <b>7</b>\n"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_white_space_at_the_end_of_an_answer_does_not_hide_the_end_of_its_turn(name: str, said: str) -> None:
    """Templates write it, strip it, or leave it to a block."""
    tokenizer, end = templates.byte_tokenizer(TEMPLATES[name]), END.get(name, "<|im_end|>")
    encoded = Encoder(tokenizer, 1000).encode(sample("why?", said, "and?", said))
    first_end = "<|im_end|>" if name == "OTHER_END" else end
    answer = "".join(said.split())
    assert labelled(encoded, tokenizer) == [answer + first_end, answer + end]


def test_an_answer_whose_end_of_turn_is_not_where_it_ends_is_refused() -> None:
    hides = templates.CHATML.replace("{{ m.content }}", "{{ m.content }}{{ '!' if '7' in m.content }}")
    assert hides != templates.CHATML
    encoder = Encoder(templates.byte_tokenizer(hides), 1000)
    assert (encoder.encode(sample("why?", "yes")).labels != IGNORED).any()
    with pytest.raises(BadRecord, match="the end of the turn does not follow the answer"):
        encoder.encode(sample("why?", "7"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_tokens_are_those_of_transformers_chat_template(name: str) -> None:
    tokenizer = templates.byte_tokenizer(TEMPLATES[name])
    given = sample("question", "answer", "yes or no?", " yes\n")
    messages = [{"role": turn.role, "content": turn.text} for turn in given.turns]
    expected = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    assert Encoder(tokenizer, 1000).encode(given).inputs["input_ids"].tolist() == expected


@pytest.mark.parametrize("name", ["BLOCKS", "BLOCKS_OF_CONTENT"])
def test_generation_blocks_give_transformers_own_mask_and_loss(name: str) -> None:
    tokenizer = templates.byte_tokenizer(TEMPLATES[name])
    given = sample("question", "answer yes", "yes or no?", "no")
    messages = [{"role": turn.role, "content": turn.text} for turn in given.turns]
    whole = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
    )
    mask = torch.as_tensor(whole["assistant_masks"]).bool().reshape(-1)
    encoded = Encoder(tokenizer, 1000).encode(given)
    assert torch.equal(encoded.labels != IGNORED, mask)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).double().eval()
    ids = whole["input_ids"]
    labels = ids.masked_fill(~mask, IGNORED)
    with torch.no_grad():
        expected = model(input_ids=ids, labels=labels).loss
        logits = model(input_ids=encoded.inputs["input_ids"][None]).logits
    assert per_sample_losses(logits, encoded.labels[None]).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("name", ["CHATML", "DEFAULT_SYSTEM", "QWEN3", "R1", "LLAMA3", "VICUNA", "BLOCKS"])
def test_a_conversation_may_begin_with_the_assistant(name: str) -> None:
    tokenizer = templates.byte_tokenizer(TEMPLATES[name])
    end = END.get(name, "<|im_end|>")
    encoder = Encoder(tokenizer, 1000)
    greeted = encoder.encode(sample(("assistant", "hello"), ("user", "hi"), ("assistant", "yes")))
    assert labelled(greeted, tokenizer) == [f"hello{end}", f"yes{end}"]
    assert labelled(encoder.encode(sample(("assistant", "hello"))), tokenizer) == [f"hello{end}"]


THOUGHT = "<think>\nwhy\n</think>\n\nyes"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("QWEN3", ["yes<|im_end|>", "<think>why</think>yes<|im_end|>"]),
        ("QWQ", ["yes<|im_end|>", "<think>why</think>yes<|im_end|>"]),
        ("R1", ["yes</s>", "yes</s>"]),
        ("CHATML", ["<think>why</think>yes<|im_end|>"] * 2),
        ("WIDE_BLOCKS", ["<think>why</think>yes<|im_end|>"] * 2),
    ],
)
def test_reasoning_is_labelled_where_the_template_keeps_it(name: str, expected: list[str]) -> None:
    tokenizer = templates.byte_tokenizer(TEMPLATES[name])
    encoded = Encoder(tokenizer, 1000).encode(sample("q?", THOUGHT, "r?", THOUGHT))
    assert labelled(encoded, tokenizer) == expected


def test_a_template_that_knows_reasoning_by_another_name_gets_no_tags() -> None:
    source = templates.CHATML.replace(
        "{{ m.content }}", "{% if 'thinking' in m %}{{ m.thinking }}{% endif %}{{ m.content }}"
    )
    encoder = Encoder(templates.byte_tokenizer(source), 1000)
    assert labelled(encoder.encode(sample("q?", "yes")), encoder.tokenizer) == ["yes<|im_end|>"]
    with pytest.raises(BadRecord) as caught:
        encoder.encode(sample("q?", THOUGHT))
    assert (caught.value.reason, caught.value.field) == ("template_refused", "turns")


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Ulm"}}}


@pytest.mark.parametrize("said", ["", "Let me see."])
def test_function_calls_are_part_of_the_answer(said: str) -> None:
    tokenizer = templates.byte_tokenizer(templates.TOOLS)
    turns = (
        Turn("user", "answer yes?"), Turn("assistant", said, True, tool_calls=(CALL, CALL)),
        Turn("tool", "rain", name="weather"), Turn("assistant", "no", True),
    )  # fmt: skip
    tools = ({"type": "function", "function": {"name": "weather", "description": "of a city"}},)
    encoded = Encoder(tokenizer, 1000).encode(Sample("s", turns, tools=tools))
    call = '<tool_call>{"name":"weather","arguments":{"city":"Ulm"}}</tool_call>'
    assert labelled(encoded, tokenizer) == ["".join(said.split()) + call * 2 + "<|im_end|>", "no<|im_end|>"]
    whole = tokenizer.decode(encoded.inputs["input_ids"])
    assert "of a city" in whole
    assert "<|im_start|>tool\nrain<|im_end|>" in whole


@pytest.mark.parametrize("name", ["CHATML", "R1"])
def test_a_template_that_leaves_out_function_calls_or_their_results_is_no_account_of_them(name: str) -> None:
    encoder = Encoder(templates.byte_tokenizer(TEMPLATES[name]), 1000)
    calling = (Turn("user", "question"), Turn("assistant", "Let me see.", tool_calls=(CALL,)))
    returned = (Turn("tool", "rain", name="weather"),)
    for turns in (calling, (*calling, *returned), (*calling[:1], *returned) if name == "R1" else calling):
        for encode in (encoder.encode, encoder.encode_prompt):
            with pytest.raises(BadRecord) as caught:
                encode(Sample("s", (*turns, Turn("assistant", "yes", True))))
            assert (caught.value.reason, caught.value.field) == ("no_tools", "turns")


def test_a_call_whose_reasoning_the_template_drops_is_labelled_without_it() -> None:
    with_calls = templates.QWEN3.replace(
        "{{- '<|im_end|>\n' }}",
        "{%- for call in m.tool_calls or [] %}{{- '<call>' + call.function.name + '</call>' }}{% endfor %}"
        "{{- '<|im_end|>\n' }}",
    )
    assert with_calls != templates.QWEN3
    tokenizer = templates.byte_tokenizer(with_calls)
    turns = (
        Turn("user", "q"), Turn("assistant", "<think>\nwhy\n</think>\n\n", True, tool_calls=(CALL,)),
        Turn("tool", "rain"), Turn("user", "and?"), Turn("assistant", THOUGHT, True),
    )  # fmt: skip
    encoder = Encoder(tokenizer, 1000)
    dropped = labelled(encoder.encode(Sample("s", turns)), tokenizer)
    assert dropped == ["<call>weather</call><|im_end|>", "<think>why</think>yes<|im_end|>"]
    kept = labelled(encoder.encode(Sample("s", turns[:2])), tokenizer)
    assert kept == ["<think>why</think><call>weather</call><|im_end|>"]


def test_only_the_trained_turns_are_labelled() -> None:
    tokenizer = templates.byte_tokenizer(templates.CHATML)
    whole = sample("q", "yes", "r", "no")
    muted = Sample("s", (whole.turns[0], Turn("assistant", "yes"), *whole.turns[2:]))
    assert labelled(Encoder(tokenizer, 1000).encode(muted), tokenizer) == ["no<|im_end|>"]


@pytest.mark.parametrize(
    ("name", "turns"),
    [
        ("GEMMA", [("system", "Be brief."), ("user", "q"), ("assistant", "a")]),
        ("GEMMA", [("user", "q"), ("user", "r"), ("assistant", "a")]),
        ("MISTRAL", [("system", "Be brief."), ("user", "q"), ("assistant", "a")]),
    ],
)
def test_a_template_that_refuses_a_conversation_rejects_it_in_its_own_words(name: str, turns: list) -> None:
    encoder = Encoder(templates.byte_tokenizer(TEMPLATES[name]), 1000)
    for encode in (encoder.encode, encoder.encode_prompt):
        with pytest.raises(BadRecord) as caught:
            encode(sample(*turns))
        assert (caught.value.reason, caught.value.field) == ("template_refused", "turns")
        assert "role" in caught.value.detail.lower()


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.role }}: {{ m.content | upper }}<|im_end|>{% endfor %}",
        "{% for m in messages %}{{ m.role }}: {{ m.content[:3] }}<|im_end|>{% endfor %}",
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}",
        "{% for m in messages %}{{ m.content }}{{ m.content }}<|im_end|>{% endfor %}",
        "{% for m in messages %}{{ m.role }}: {{ m.content | tojson }}<|im_end|>{% endfor %}",
    ],
    ids=["other letters", "cut", "left out", "twice", "quoted"],
)
def test_an_answer_that_does_not_come_out_as_it_is_is_rejected(template: str) -> None:
    encoder = Encoder(templates.byte_tokenizer(template), 1000)
    with pytest.raises(BadRecord) as caught:
        encoder.encode(sample("question", 'an "answer"'))
    assert (caught.value.reason, caught.value.field) == ("labels_unproved", "turns")


def test_tokens_that_say_something_else_than_the_answer_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = templates.byte_tokenizer(templates.CHATML)
    encoder = Encoder(tokenizer, 1000)
    given = sample("question", "answer")
    encoder.encode(given)
    right = encoder._process

    def shifted(*arguments):
        inputs, tokenized = right(*arguments)
        tokenized.offsets[1:] = tokenized.offsets[:-1].copy()
        return inputs, tokenized

    monkeypatch.setattr(encoder, "_process", shifted)
    with pytest.raises(BadRecord) as caught:
        encoder.encode(given)
    assert caught.value.reason == "labels_unproved"


PARTS = """
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\n' }}
    {%- for part in m.content %}{{ part.text }}{% endfor %}
    {{- '<|im_end|>\n' }}
{%- endfor %}"""


@pytest.mark.parametrize("template", [templates.CHATML, PARTS], ids=["strings", "parts"])
def test_contents_are_passed_in_the_form_the_template_takes(template: str) -> None:
    tokenizer = templates.byte_tokenizer(template)
    encoded = Encoder(tokenizer, 1000).encode(sample("question", "yes"))
    text = tokenizer.decode(encoded.inputs["input_ids"])
    assert text == "<|im_start|>user\nquestion<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"


@pytest.mark.parametrize("make", [templates.byte_tokenizer, templates.metaspace_tokenizer])
def test_the_tokenizers_first_token_comes_first_once(make: Callable[..., PreTrainedTokenizerFast]) -> None:
    for template in (templates.CHATML, templates.LLAMA3):
        tokenizer = make(template, adds_bos=True)
        encoder = Encoder(tokenizer, 1000)
        given = sample("question", "yes")
        text = tokenizer.apply_chat_template(
            [{"role": turn.role, "content": turn.text} for turn in given.turns], tokenize=False
        ).removeprefix("<s>")
        assert encoder.encode(given).inputs["input_ids"].tolist() == tokenizer(text)["input_ids"]
        assert encoder.encode_prompt(given).inputs["input_ids"].tolist().count(tokenizer.bos_token_id) == 1
    without = make(templates.CHATML)
    assert Encoder(without, 1000).encode(given).inputs["input_ids"][0] != without.bos_token_id


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("CHATML", "<|im_start|>assistant"),
        ("VICUNA", "ASSISTANT:"),
        ("QWEN3", "<|im_start|>assistant<think></think>"),
        ("QWQ", "<|im_start|>assistant"),
        ("R1", "<|Assistant|>"),
    ],
)
def test_a_prompt_is_what_stands_before_the_answer_in_training(name: str, before: str) -> None:
    tokenizer = templates.byte_tokenizer(TEMPLATES[name])
    encoder = Encoder(tokenizer, 1000)
    given = sample("question", "yes")
    prompt, whole = encoder.encode_prompt(given).inputs["input_ids"], encoder.encode(given)
    assert "".join(tokenizer.decode(prompt).split()).endswith(before)
    first = int((whole.labels != IGNORED).nonzero()[0])
    assert torch.equal(whole.inputs["input_ids"][:first], prompt)


def test_a_question_without_an_answer_gets_the_templates_prompt() -> None:
    tokenizer = templates.byte_tokenizer(templates.QWQ)
    prompt = Encoder(tokenizer, 1000).encode_prompt(sample("question"))
    assert tokenizer.decode(prompt.inputs["input_ids"]).endswith("<|im_start|>assistant\n<think>\n")


def test_a_tokenizer_that_cannot_place_its_tokens_is_refused() -> None:
    class Slow:
        is_fast = False
        chat_template = templates.CHATML

    with pytest.raises(ModelError, match="Slow"):
        Encoder(Slow(), 1000)


def test_two_thousand_turns_take_no_more_than_their_share_of_time() -> None:
    tokenizer = templates.byte_tokenizer(templates.CHATML)
    encoder = Encoder(tokenizer, 10**9)
    renders = 0
    render = encoder.chat._render

    def counted(*arguments):
        nonlocal renders
        renders += 1
        return render(*arguments)

    encoder.encode(sample("question", "answer"))
    encoder.chat._render = counted  # type: ignore[method-assign]
    long = encoder.encode(sample(*(f"text {k}" for k in range(2000))))
    assert renders == 2
    assert len(labelled(long, tokenizer)) == 1000


def test_a_conversation_of_many_turns_takes_time_by_its_length() -> None:
    encoder = Encoder(templates.byte_tokenizer(templates.CHATML), 10**9)
    texts = [f"question {k}, please" if k % 2 == 0 else f"answer {k}" for k in range(2_000)]
    encoder.encode(sample("warm", "up"))
    seconds = []
    for turns in (500, 2_000):
        began = time.process_time()
        encoded = encoder.encode(sample(*texts[:turns]))
        seconds.append(time.process_time() - began)
        assert len(labelled(encoded, encoder.tokenizer)) == turns // 2
    assert seconds[1] < 5
    assert seconds[1] < 10 * seconds[0]
