"""From columns to rows: every format of instruction data, and what is wrong with a row."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlantis.data.columns import read_row
from atlantis.data.files import content_id
from atlantis.errors import DataError
from atlantis.records import Conversation, Example

USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}
CHAT = {"messages": [USER, ASSISTANT]}
HUMAN = {"from": "human", "value": "Hi"}
GPT = {"from": "gpt", "value": "Hello"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def read(columns):
    return read_row(columns, "f:1")[1]


def chat(*messages, **columns):
    return read({"messages": list(messages), **columns})


def sharegpt(*turns, **columns):
    return read({"conversations": list(turns), **columns})


def test_every_turn_of_the_assistant_is_learnt():
    row = chat(USER, ASSISTANT, USER, ASSISTANT, USER)
    assert row.messages == (USER, ASSISTANT, USER, ASSISTANT, USER)
    assert (row.learnt, row.tools) == ((1, 3), ())


def test_of_prompt_and_completion_as_messages_only_the_completion_is_learnt():
    row = read({"prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT, USER, ASSISTANT]})
    assert row.messages == (USER, ASSISTANT, USER, ASSISTANT, USER, ASSISTANT)
    assert row.learnt == (3, 5)


@pytest.mark.parametrize("name", ["loss_weight", "weight"])
def test_turns_of_weight_zero_are_not_learnt_and_templates_do_not_see_it(name):
    row = chat(USER | {name: 0.0}, ASSISTANT | {name: 0}, USER, ASSISTANT | {name: 1.0})
    assert row.learnt == (3,)
    assert row.messages == (USER, ASSISTANT, USER, ASSISTANT)
    assert row.example_id != chat(USER, ASSISTANT, USER, ASSISTANT).example_id


def test_text_parts_are_joined():
    parts = [{"type": "text", "text": "He"}, {"type": "text", "value": "llo", "text": None}]
    assert chat(USER, ASSISTANT | {"content": parts}) == chat(USER, ASSISTANT)


def test_null_keys_of_a_message_count_as_absent_and_others_are_kept():
    given = ASSISTANT | {"name": "Ann", "reasoning_content": "greet back", "tool_calls": None}
    message = chat(USER, given).messages[1]
    assert message == ASSISTANT | {"name": "Ann", "reasoning_content": "greet back"}


@pytest.mark.parametrize(
    "call",
    [
        CALL,
        {"name": "add", "arguments": {"a": 1}},
        {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}},
    ],
)
def test_calls_in_every_form_become_one_form_and_are_learnt(call):
    answer = {"role": "tool", "content": "", "tool_call_id": "7"}
    row = chat(USER, {"role": "assistant", "content": None, "tool_calls": [call]}, answer)
    assert row.messages[1:] == ({"role": "assistant", "tool_calls": [CALL]}, answer)
    assert row.learnt == (1,)


def test_a_call_keeps_its_id():
    (call,) = chat(USER, ASSISTANT | {"tool_calls": [CALL | {"id": "7"}]}).messages[1]["tool_calls"]
    assert call == CALL | {"id": "7"}


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [TOOL["function"]]])
def test_tools_come_as_a_list_or_as_json_with_or_without_their_envelope(tools):
    assert chat(USER, ASSISTANT, tools=tools).tools == (TOOL,)


@pytest.mark.parametrize("tools", [None, "", "[]", []])
def test_no_tools_are_no_tools(tools):
    assert chat(USER, ASSISTANT, tools=tools) == chat(USER, ASSISTANT)


def test_sharegpt_turns_become_messages():
    row = sharegpt(
        HUMAN,
        {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
        {"from": "observation", "value": "2"},
        GPT,
        system="Be brief.",
        tools=json.dumps([TOOL["function"]]),
    )
    assert row.messages == (
        {"role": "system", "content": "Be brief."},
        USER,
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "content": "2"},
        ASSISTANT,
    )
    assert (row.learnt, row.tools) == ((2, 4), (TOOL,))


def test_several_calls_at_once_are_one_turn():
    calls = json.dumps([CALL, CALL])
    row = sharegpt(HUMAN, {"from": "function_call", "value": calls})
    assert row.messages[1]["tool_calls"] == [CALL, CALL]


@pytest.mark.parametrize("system", [None, ""])
def test_an_empty_system_column_adds_no_turn(system):
    assert sharegpt(HUMAN, GPT, system=system) == sharegpt(HUMAN, GPT) == chat(USER, ASSISTANT)


@pytest.mark.parametrize("given", [{}, {"input": ""}, {"input": " "}, {"input": None}])
def test_alpaca_rows_without_input_are_a_task_and_an_answer(given):
    row = read({"instruction": "Add 1 and 1.", "output": "2\n"} | given)
    prompt = "Task:\nAdd 1 and 1.\n\nAnswer:\n"
    assert row == Example(content_id(prompt, "2\n"), prompt, "2\n", label="2")


def test_alpaca_rows_show_their_input():
    row = read({"instruction": "Add.", "input": "1 and 1", "output": "2", "example_id": "a"})
    assert row.prompt == "Task:\nAdd.\n\nInput:\n1 and 1\n\nAnswer:\n"
    assert row.example_id == "a"


def test_content_ids_of_chats_depend_on_content_and_not_on_the_order_of_keys():
    turned = {"messages": [dict(reversed(USER.items())), ASSISTANT], "note": 3}
    assert read(turned).example_id == read(CHAT).example_id
    changed = [
        chat(USER, ASSISTANT | {"content": "Hello."}),
        chat(USER, ASSISTANT, tools=[TOOL]),
        chat(USER, ASSISTANT, ASSISTANT),
        read({"prompt": [USER, ASSISTANT], "completion": [ASSISTANT]}),
    ]
    assert len({row.example_id for row in [*changed, read(CHAT)]}) == 5


def test_odd_but_sound_text_is_kept():
    for text in ("\0", "x" * 1_000_000, " \u2028", "\U0001f600"):
        assert read({"prompt": "Q", "completion": f"a{text}"}).completion == f"a{text}"
        assert chat(USER, ASSISTANT | {"content": f"a{text}"}).messages[1]["content"] == f"a{text}"


def deep(levels):
    value = "x"
    for _ in range(levels):
        value = [value]
    return value


READY = {"prompt": "Q", "completion": "A"}
WRONG_COLUMNS = [
    ({}, r"no known format \(present: none\); name the columns for one of prompt and completion"),
    ({"text": "x"}, r"no known format \(present: text\)"),
    ({"x\ny": 1, "z" * 99: 2}, r"\(present: 'x\\ny', 'zzz.*\.\.\.\)"),
    ({str(n): n for n in range(99)}, r"\(present: 0, 1, .*, 11 and 87 more\)"),
    ({"prompt": "Q"}, r"column 'completion' is missing \(present: prompt\); add it"),
    ({"prompt": "Q", "chosen": "A", "rejected": "B"}, "column 'completion' is missing"),
    ({"messages": None}, "messages is null; fill it in or remove the row"),
    ({"output": "A"}, "column 'instruction' is missing"),
    (READY | CHAT, "could be prompt and completion or messages; keep the columns of one"),
    (READY | {"system": "Be brief."}, "column 'system' would have no effect on prompt and compl"),
    (CHAT | {"system": "Be brief."}, "column 'system' would have no effect on messages"),
    (CHAT | {"images": ["a.png"]}, "column 'images' would have no effect on messages"),
    (CHAT | {"chat_template_kwargs": {"x": 1}}, "'chat_template_kwargs' would have no effect"),
    (READY | {"tools": "[1]"}, "column 'tools' has no effect on a prompt that is text"),
    (
        {"instruction": "Q", "output": "A", "history": [["a", "b"]]},
        "column 'history' would have no effect on instruction and output",
    ),
    ({"instruction": "Q", "output": "A", "input": 0}, "input: expected a string, found 0"),
    ({"instruction": "Q", "output": ""}, "output: is empty; fill it in or remove the row"),
    ({"prompt": [USER], "completion": "A"}, "prompt: expected a string, found"),
    ({"prompt": "Q", "completion": [ASSISTANT]}, "completion: expected a string, found"),
    ({"prompt": [], "completion": [ASSISTANT]}, "prompt: is empty"),
    ({"prompt": [USER], "completion": [USER]}, "no turn of the assistant to learn"),
    ({"prompt": [ASSISTANT], "completion": [USER]}, "no turn of the assistant to learn"),
    (READY | {"example_id": True}, "example_id: expected a string, found True"),
    (READY | {"example_id": None}, "example_id: expected a string, found None"),
    (READY | {"example_id": "\ud800"}, "example_id: holds half of a surrogate pair"),
    (READY | {"completion": deep(5000)}, "completion: expected a string, found a list nested too"),
]
WRONG_MESSAGES = [
    ([], "messages: is empty"),
    ("Hi", "messages: expected a JSON list, found 'Hi'"),
    (["Hi"], r"messages\[0\]: expected a JSON object"),
    ([USER], "no turn of the assistant to learn; add one or remove the row"),
    ([USER, ASSISTANT | {"loss_weight": 0}], "no turn of the assistant to learn"),
    ([USER, {"content": "x"}], r"messages\[1\]: column 'role' is missing \(present: content\)"),
    ([USER, ASSISTANT | {"role": "model"}], r"messages\[1\]: role 'model' is unknown; use system,"),
    ([USER, ASSISTANT | {"role": []}], r"role \[\] is unknown"),
    ([USER, {"role": "assistant"}], r"messages\[1\]: column 'content' is missing"),
    ([USER, ASSISTANT | {"content": " "}], r"messages\[1\].content: is empty"),
    ([USER | {"content": ""}, ASSISTANT], r"messages\[0\].content: is empty"),
    ([USER, ASSISTANT | {"content": 4}], r"content: expected a string, found 4"),
    ([USER, ASSISTANT | {"content": ["x"]}], r"content\[0\]: expected a JSON object"),
    ([USER, ASSISTANT | {"content": [{"type": "image"}]}], r"content\[0\]: expected a text part"),
    ([USER, ASSISTANT | {"content": [{"text": "x"}]}], r"content\[0\]: column 'type' is missing"),
    ([USER, ASSISTANT | {"content": "\ud800"}], r"content: holds half of a surrogate pair"),
    ([USER, ASSISTANT | {"name": "\ud800"}], r"f:1: holds half of a surrogate pair"),
    ([USER, ASSISTANT | {"name": float("nan")}], r"f:1: JSON has no form for it"),
    ([USER, ASSISTANT | {"name": b"x"}], r"f:1: JSON has no form for it .*bytes"),
    ([USER, ASSISTANT | {"name": deep(70)}], r"f:1: is nested deeper than 64 levels"),
    ([USER, ASSISTANT | {"loss_weight": 0.5}], r"messages\[1\]: loss_weight 0.5: a turn is learnt"),
    ([USER, ASSISTANT | {"loss_weight": True}], r"messages\[1\]: loss_weight True"),
    ([USER, ASSISTANT | {"weight": "1"}], r"messages\[1\]: weight '1'"),
    ([USER, ASSISTANT | {"weight": 1, "loss_weight": 1}], r"mean the same; remove one"),
    ([USER | {"loss_weight": 1}, ASSISTANT], r"messages\[0\]: loss_weight 1, but only turns of"),
    ([USER | {"tool_calls": [CALL]}, ASSISTANT], r"only the assistant has tool_calls; remove"),
    ([USER, ASSISTANT | {"tool_calls": {}}], r"tool_calls: expected a JSON list"),
    ([USER, ASSISTANT | {"tool_calls": [{"name": "f"}]}], r"\[0\]: column 'arguments' is missing"),
    ([USER, ASSISTANT | {"tool_calls": [CALL | {"type": "x"}]}], r"\[0\]: type 'x': only function"),
    ([USER, ASSISTANT | {"tool_calls": [{"function": 1}]}], r"\[0\].function: expected a JSON obj"),
    (
        [USER, ASSISTANT | {"tool_calls": [{"name": "f", "arguments": "x"}]}],
        r"tool_calls\[0\]: arguments: not JSON \(",
    ),
    (
        [USER, ASSISTANT | {"tool_calls": [{"name": "f", "arguments": '{"a": 1, "a": 2}'}]}],
        r"arguments: key 'a' stands there twice; remove one",
    ),
]
WRONG_SHAREGPT = [
    ([HUMAN], {}, "no turn of the assistant to learn"),
    ([HUMAN, {"from": "bard", "value": "x"}], {}, r"conversations\[1\]: from 'bard' is unknown; "),
    ([HUMAN, {"from": [], "value": "x"}], {}, r"conversations\[1\]: from \[\] is unknown"),
    ([USER, ASSISTANT], {}, r"conversations\[0\]: has 'content' in a list of turns with `from`"),
    ([HUMAN, {"from": "gpt"}], {}, r"column 'value' is missing \(present: from\)"),
    ([HUMAN, {"from": "gpt", "value": None}], {}, r"column 'content' is missing"),
    ([HUMAN, {"from": "function_call", "value": "f(x)"}], {}, r"\[1\].value: not JSON"),
    ([HUMAN, {"from": "function_call", "value": "1"}], {}, r"tool_calls\[0\]: expected a JSON obj"),
    ([HUMAN, {"from": "function_call", "value": "[" * 9999}], {}, r"\[1\].value: not JSON"),
    ([{"from": "system", "value": "x"}, GPT], {"system": "y"}, r"\[0\]: there is a column 'system"),
    ([HUMAN, GPT], {"tools": "x"}, "tools: not JSON"),
    ([HUMAN, GPT], {"tools": "{}"}, "tools: expected a JSON list"),
    ([HUMAN, GPT], {"tools": [{}]}, r"tools\[0\]: column 'name' is missing"),
    ([HUMAN, GPT], {"tools": [{"function": {}}]}, r"tools\[0\].function: column 'name' is missing"),
]
WRONG = (
    WRONG_COLUMNS
    + [({"messages": messages}, message) for messages, message in WRONG_MESSAGES]
    + [({"conversations": c} | columns, message) for c, columns, message in WRONG_SHAREGPT]
)


@pytest.mark.parametrize(("columns", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_is_wrong_with_a_row_is_one_line_with_its_place(columns, message):
    with pytest.raises(DataError, match=message) as error:
        read(columns)
    assert str(error.value).startswith("f:1: ")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


ANY_TEXT = st.text(st.characters(), max_size=8)  # lone halves of surrogate pairs among them
ATOMS = st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT
WORDS = st.sampled_from([
    "role", "content", "from", "value", "type", "text", "function", "name", "arguments", "weight",
    "loss_weight", "tool_calls", "user", "assistant", "system", "tool", "human", "gpt",
    "function_call", "[]", '{"name": "f", "arguments": {}}',
])  # fmt: skip
JSON = st.recursive(
    ATOMS | WORDS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(WORDS | ANY_TEXT, inner, max_size=4)
    ),
    max_leaves=12,
)
COLUMNS = st.sampled_from([
    "prompt", "completion", "messages", "conversations", "instruction", "input", "output", "tools",
    "system", "history", "example_id", "gold_completion",
])  # fmt: skip
CALLS = st.fixed_dictionaries(
    {}, optional={"type": JSON, "function": JSON, "name": WORDS, "arguments": JSON}
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "role": st.sampled_from(["user", "assistant", "tool"]) | JSON,
            "content": ANY_TEXT | JSON,
            "from": st.sampled_from(["human", "gpt", "function_call"]) | JSON,
            "value": ANY_TEXT | JSON,
            "tool_calls": st.lists(CALLS, max_size=2) | JSON,
            "loss_weight": st.sampled_from([0, 1, 0.0]) | JSON,
        },
    ),
    max_size=4,
)


@given(columns=st.dictionaries(COLUMNS | ANY_TEXT, JSON | MESSAGES, max_size=4))
def test_any_columns_are_a_row_or_refused_in_one_line(columns):
    try:
        row = read(columns)
    except DataError as error:
        row, message = None, str(error)
    if row is None:
        assert message.startswith("f:1: ")
        assert "\n" not in message
    elif isinstance(row, Example):
        assert row.prompt.strip()
        assert row.completion.strip()
    else:
        assert_sound(row)


def assert_sound(row):
    assert isinstance(row, Conversation)
    json.dumps([row.messages, row.tools], allow_nan=False, ensure_ascii=False).encode()
    assert row.learnt == tuple(sorted(set(row.learnt)))
    for position in row.learnt:
        message = row.messages[position]
        assert message["role"] == "assistant"
        assert message.get("tool_calls") or message["content"].strip()


@given(turns=st.lists(st.tuples(st.booleans(), ANY_TEXT), min_size=1, max_size=6))
def test_sharegpt_and_messages_with_one_content_are_one_row(turns):
    messages = [{"role": "assistant" if gpt else "user", "content": text} for gpt, text in turns]
    shared = [{"from": "gpt" if gpt else "human", "value": text} for gpt, text in turns]
    try:
        expected = chat(*messages)
    except DataError:
        with pytest.raises(DataError):
            sharegpt(*shared)
        return
    assert sharegpt(*shared) == expected
    assert [position in expected.learnt for position in range(len(turns))] == [
        gpt for gpt, _ in turns
    ]
