"""Rows of well-known data sets, down to the words that are learned of them and what is said of the others."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from engine.data import message_rows
from engine.data.blocks import UnusableTurns, is_part, read_content
from engine.data.chat_template import TOOLS_LOST
from engine.data.known_sets import BEST_PATH, CHOICES, FIRST_ANSWER, IN_TURN, NO_SPAN, NOT_ON_PATH
from engine.data.message_rows import NO_PARENT, TOO_MANY
from engine.data.sources import TextSource, open_source
from engine.data.tokenise import DocumentTokeniser
from engine.data.transcripts import reads_as_conversation, transcript_of
from engine.data.turns import read_turns
from engine.errors import DataError
from tests.engine.data.chat_templates import QWEN3, learned_texts, tokenizer_with

TOKENIZER = tokenizer_with(QWEN3)
END = "<|im_end|>"
THOUGHT = "<think>\n\n</think>\n\n"
CALL = '<tool_call>\n{"name": "rate", "arguments": {"base": "USD"}}\n</tool_call>' + END
RATE = {
    "name": "rate",
    "description": "Of a currency",
    "parameters": {"type": "object", "properties": {"base": {"type": "string"}}},
}
SCHEMA = RATE["parameters"]


def read(tmp_path: Path, *records: Any, text_field: str | None = None) -> tuple[list[list[str]], list[str], TextSource]:
    """Return the words learned of each conversation, all of it as text, and the source."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    there = open_source(str(path), text_field=text_field, split="train")
    tokeniser = DocumentTokeniser(TOKENIZER, "tokenizer")
    learned, whole = [], []
    for document in there.documents():
        assert document.messages is not None
        tokens = tokeniser.conversation(document.messages, document.fields, document.notes)
        assert tokens is not None, tokeniser.skipped
        learned.append(learned_texts(TOKENIZER, tokens))
        whole.append(TOKENIZER.decode(tokens.ids))
    there.tally.skipped.update(tokeniser.noted)
    return learned, whole, there


# OpenAssistant: trees of messages, and the same messages as rows


def message(number: int, parent: int | None, role: str, text: str, **more: Any) -> dict[str, Any]:
    return {"message_id": f"m{number}", "parent_id": parent and f"m{parent}", "role": role, "text": text, **more}


ROWS = [
    message(1, None, "prompter", "Of what is a lamp?"),
    message(2, 1, "assistant", "Of cheese.", rank=1),
    message(3, 2, "prompter", "Really?"),
    message(4, 1, "assistant", "Of glass.", rank=0),
    message(5, 4, "prompter", "And the foot?", rank=None),
    message(6, 5, "assistant", "Of wood.", rank=None),
    message(7, 5, "assistant", "Removed.", rank=0, deleted=True),
    message(8, None, "prompter", "Another question"),
    message(9, 8, "assistant", "Another answer"),
]


def test_of_each_tree_of_rows_the_best_ranked_path_is_learned_and_the_others_are_counted(tmp_path: Path) -> None:
    learned, whole, there = read(tmp_path, *ROWS)
    assert learned == [[f"Of glass.{END}", f"{THOUGHT}Of wood.{END}"], [f"{THOUGHT}Another answer{END}"]]
    assert "cheese" not in whole[0]
    assert "Removed" not in whole[0]
    assert list(there.notes) == [CHOICES["tree"]]
    assert there.skipped == {BEST_PATH: 1, NOT_ON_PATH: 3}


@pytest.mark.parametrize("order", itertools.permutations(range(2)))
def test_a_tree_gives_the_same_whatever_order_its_replies_have(tmp_path: Path, order: tuple[int, ...]) -> None:
    replies = [
        {"role": "assistant", "text": "Of cheese.", "rank": 1.0, "replies": []},
        {"role": "assistant", "text": "Of glass.", "rank": 0.0, "replies": []},
    ]
    tree = {"role": "prompter", "text": "Of what is a lamp?", "replies": [replies[place] for place in order]}
    learned, _, there = read(tmp_path, {"message_tree_id": "m1", "tree_state": "ready_for_export", "prompt": tree})
    assert learned == [[f"{THOUGHT}Of glass.{END}"]]
    assert there.skipped == {BEST_PATH: 1, NOT_ON_PATH: 1}


def test_a_message_whose_question_is_not_there_is_counted(tmp_path: Path) -> None:
    learned, _, there = read(tmp_path, *ROWS[7:], message(11, 10, "assistant", "Of nothing."))
    assert learned == [[f"{THOUGHT}Another answer{END}"]]
    assert there.skipped == {NO_PARENT: 1}


@pytest.mark.parametrize("order", ["backwards", "by turns", "named and backwards within trees"])
def test_messages_are_put_together_whatever_their_order(tmp_path: Path, order: str) -> None:
    rows = {
        "backwards": ROWS[::-1],
        "by turns": ROWS[::2] + ROWS[1::2],
        "named and backwards within trees": [
            {**row, "message_tree_id": f"m{tree}"}
            for tree, part in ((1, ROWS[6::-1]), (8, ROWS[:6:-1]))
            for row in part
        ],
    }[order]
    learned, _, there = read(tmp_path, *rows)
    trees = [[f"Of glass.{END}", f"{THOUGHT}Of wood.{END}"], [f"{THOUGHT}Another answer{END}"]]
    assert sorted(learned) == sorted(trees)
    assert there.skipped == {BEST_PATH: 1, NOT_ON_PATH: 3}


def test_more_messages_in_shuffled_order_than_are_kept_are_told_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(message_rows, "_MOST_CHARACTERS", 2_000)
    rows = [{**row, "message_tree_id": "m1" if row in ROWS[:7] else "m8"} for row in ROWS]
    with pytest.raises(DataError, match="no usable text") as caught:
        read(tmp_path, *(rows[::2] + rows[1::2]))
    assert f"9 × {TOO_MANY}" in caught.value.why
    learned, _, _ = read(tmp_path, *sorted(rows, key=lambda row: str(row["message_tree_id"])))  # the way out
    assert len(learned) == 2


def test_messages_are_no_texts_though_their_field_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="single turn of a conversation"):
        read(tmp_path, *ROWS, text_field="text")


# Tools and their calls, in each vendor's notation

TALK = ["Rate?", "0.85", "It is 0.85."]
VENDORS: dict[str, dict[str, Any]] = {
    "OpenAI": {
        "messages": [
            {"role": "user", "content": TALK[0]},
            {
                "role": "assistant",
                "tool_calls": [{"id": "1", "function": {"name": "rate", "arguments": '{"base": "USD"}'}}],
            },
            {"role": "tool", "tool_call_id": "1", "content": TALK[1]},
            {"role": "assistant", "content": TALK[2]},
        ],
        "tools": [{"type": "function", "function": RATE}],
        "parallel_tool_calls": False,
    },
    "OpenAI's functions": {
        "messages": [
            {"role": "user", "content": TALK[0]},
            {"role": "assistant", "content": None, "function_call": {"name": "rate", "arguments": '{"base": "USD"}'}},
            {"role": "function", "name": "rate", "content": TALK[1]},
            {"role": "assistant", "content": TALK[2]},
        ],
        "functions": [RATE],
    },
    "Anthropic": {
        "messages": [
            {"role": "user", "content": TALK[0]},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "1", "name": "rate", "input": {"base": "USD"}}],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": TALK[1]}]},
            {"role": "assistant", "content": [{"type": "text", "text": TALK[2], "cache_control": None}]},
        ],
        "tools": [{"name": RATE["name"], "description": RATE["description"], "input_schema": SCHEMA}],
    },
    "Gemini": {
        "contents": [
            {"role": "user", "parts": [{"text": TALK[0]}]},
            {"role": "model", "parts": [{"functionCall": {"name": "rate", "args": {"base": "USD"}}}]},
            {"role": "user", "parts": [{"functionResponse": {"name": "rate", "response": TALK[1]}}]},
            {"role": "model", "parts": [{"text": TALK[2]}]},
        ],
        "tools": [{"functionDeclarations": [RATE]}],
    },
    "Bedrock": {
        "messages": [
            {"role": "user", "content": [{"text": TALK[0]}]},
            {
                "role": "assistant",
                "content": [{"toolUse": {"toolUseId": "1", "name": "rate", "input": {"base": "USD"}}}],
            },
            {"role": "user", "content": [{"toolResult": {"toolUseId": "1", "content": [{"text": TALK[1]}]}}]},
            {"role": "assistant", "content": [{"text": TALK[2]}]},
        ],
        "toolConfig": {
            "tools": [
                {"toolSpec": {"name": "rate", "description": RATE["description"], "inputSchema": {"json": SCHEMA}}}
            ]
        },
    },
    "ShareGPT": {
        "conversations": [
            {"from": "human", "value": TALK[0]},
            {"from": "function_call", "value": '{"name": "rate", "arguments": {"base": "USD"}}'},
            {"from": "observation", "value": TALK[1]},
            {"from": "gpt", "value": TALK[2]},
        ],
        "tools": json.dumps([{"type": "function", "function": RATE}]),
    },
    "ShareGPT with glaive's quotes": {
        "conversations": [
            {"from": "human", "value": TALK[0]},
            {"from": "function-call", "value": """{"name": "rate", "arguments": '{"base": "USD"}'}"""},
            {"from": "function-response", "value": TALK[1]},
            {"from": "gpt", "value": TALK[2]},
        ],
        "tools": [json.dumps({"type": "function", "function": RATE})],
    },
}


@pytest.mark.parametrize("vendor", VENDORS)
def test_tools_calls_and_results_are_the_same_in_every_notation(tmp_path: Path, vendor: str) -> None:
    learned, whole, there = read(tmp_path, VENDORS[vendor])
    assert learned == [[CALL, f"{THOUGHT}{TALK[2]}{END}"]]
    tools = f"<tools>\n{json.dumps({'type': 'function', 'function': RATE})}\n</tools>"
    assert whole[0].startswith(f"<|im_start|>system\n{tools}")
    assert f"<tool_response>\n{TALK[1]}\n</tool_response>" in whole[0]
    assert there.skipped == {}


@pytest.mark.parametrize("vendor", VENDORS)
def test_keys_that_a_table_fills_with_null_change_nothing(tmp_path: Path, vendor: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    plain = VENDORS[vendor]
    if vendor == "Anthropic":  # a column is text or lists, not both
        turns = [
            {
                **turn,
                "content": [{"type": "text", "text": turn["content"]}]
                if isinstance(turn["content"], str)
                else turn["content"],
            }
            for turn in plain["messages"]
        ]
        plain = {**plain, "messages": turns}
    parquet.write_table(pyarrow.Table.from_pylist([plain]), tmp_path / "a.parquet")
    (document,) = open_source(str(tmp_path / "a.parquet"), text_field=None, split="train").documents()
    tokens = DocumentTokeniser(TOKENIZER, "t").conversation(document.messages or (), document.fields)
    assert learned_texts(TOKENIZER, tokens) == [CALL, f"{THOUGHT}{TALK[2]}{END}"]


def test_tools_that_are_no_objects_are_told(tmp_path: Path) -> None:
    record = {**VENDORS["OpenAI"], "tools": "a clock and a scale"}
    assert read(tmp_path, record)[2].skipped == {TOOLS_LOST: 1}


def test_tools_that_the_system_turn_lists_are_written_once(tmp_path: Path) -> None:
    turns = VENDORS["ShareGPT"]["conversations"]
    listed = {"from": "system", "value": f"You call <tools>{json.dumps(RATE)}</tools>"}
    _, whole, there = read(tmp_path, {**VENDORS["ShareGPT"], "conversations": [listed, *turns]})
    assert whole[0].count('"Of a currency"') == 1
    assert there.skipped == {}


XLAM = {
    "query": TALK[0],
    "answers": json.dumps([{"name": "rate", "arguments": {"base": "USD"}}]),
    "tools": json.dumps([RATE]),
}


def test_answers_that_are_calls_are_learned_as_calls(tmp_path: Path) -> None:
    rows = [XLAM, {**XLAM, "answers": "No tool can do it."}, {**XLAM, "answers": '[{"name": "rate", '}, XLAM]
    learned, whole, there = read(tmp_path, *rows)
    assert learned == [[THOUGHT + CALL], [f"{THOUGHT}No tool can do it.{END}"], [THOUGHT + CALL]]
    assert "Of a currency" in whole[0]
    assert there.skipped == {"conversation with a tool call that is not written in JSON": 1}


@pytest.mark.parametrize("said", ["rate(base='USD')", '{"name": "rate", ', "[]", """{"name": "r", "arguments": 'x'}"""])
def test_a_call_that_is_none_is_not_learned_as_words(tmp_path: Path, said: str) -> None:
    turns = [{"from": "human", "value": "Rate?"}, {"from": "function_call", "value": said}]
    good = {"conversations": [turns[0], {"from": "gpt", "value": "Hm."}]}
    learned, _, there = read(tmp_path, {"conversations": turns}, good)
    assert learned == [[f"{THOUGHT}Hm.{END}"]]
    assert there.skipped == {"conversation with a tool call that is not written in JSON": 1}


# Thoughts

THINKERS: dict[str, dict[str, Any]] = {
    "reasoning_content": {"role": "assistant", "reasoning_content": "Hm.", "content": "Yes."},
    "thinking": {"role": "assistant", "thinking": "Hm.", "content": "Yes."},
    "a tag": {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nYes."},
    "Anthropic": {
        "role": "assistant",
        "content": [{"type": "thinking", "thinking": "Hm.", "signature": "x"}, {"type": "text", "text": "Yes."}],
    },
    "a reasoning part": {"role": "assistant", "content": [{"type": "reasoning", "text": "Hm."}, "Yes."]},
    "Gemini": {"role": "model", "parts": [{"text": "Hm.", "thought": True}, {"text": "Yes."}]},
    "Bedrock": {
        "role": "assistant",
        "content": [{"reasoningContent": {"reasoningText": {"text": "Hm.", "signature": "x"}}}, {"text": "Yes."}],
    },
}


@pytest.mark.parametrize("form", THINKERS)
def test_a_thought_is_the_same_in_every_notation(tmp_path: Path, form: str) -> None:
    learned, _, there = read(tmp_path, {"messages": [{"role": "user", "content": "Is it?"}, THINKERS[form]]})
    assert learned == [[f"<think>\nHm.\n</think>\n\nYes.{END}"]]
    assert there.skipped == {}


def test_the_analysis_channel_is_the_thought_of_the_next_answer(tmp_path: Path) -> None:
    user, thought = (
        {"role": "user", "content": "Is it?"},
        {"role": "assistant", "channel": "analysis", "content": "Hm."},
    )
    answer = {"role": "assistant", "channel": "final", "content": "Yes."}
    learned, _, there = read(tmp_path, {"messages": [user, thought, answer]}, {"messages": [user, thought]})
    assert learned == [[f"<think>\nHm.\n</think>\n\nYes.{END}"]]
    assert there.skipped == {"conversation with a thought that no answer follows": 1}


@pytest.mark.parametrize(
    ("part", "named"),
    [
        ({"inlineData": {"mimeType": "image/png", "data": "x"}}, "a file part"),
        ({"image": {"format": "png", "source": {"bytes": "x"}}}, "an image part"),
        ({"type": "image", "source": {"data": "x"}}, "an image part"),
        ({"type": "redacted_thinking", "data": "x"}, "a redacted_thinking part"),
        ({"type": "tool_result", "content": [{"type": "image", "source": {}}]}, "an image part"),
    ],
)
def test_a_part_that_is_no_text_is_named(part: dict[str, Any], named: str) -> None:
    with pytest.raises(UnusableTurns, match=f"conversation with {named}"):
        read_content([part])


@pytest.mark.parametrize("result", [{"sum": 4}, {"weather": {"source": "a roof"}}, {"name": "lamp"}])
def test_an_object_that_a_tool_gives_back_is_no_part(result: dict[str, Any]) -> None:
    assert not is_part(result)


# Spans, lists of texts, transcripts

PASSAGE = "It stood under the window, and there it stays."


def spans(*texts: str) -> dict[str, Any]:
    starts = [PASSAGE.find(text) for text in texts]
    return {"context": PASSAGE, "question": "Where?", "answers": {"text": [*texts], "answer_start": starts}}


def test_an_answer_in_a_passage_is_learned_with_both_asked(tmp_path: Path) -> None:
    learned, whole, there = read(tmp_path, spans("the window", "under the window"), spans(), spans("there", "there"))
    assert learned == [[f"{THOUGHT}the window{END}"], [f"{THOUGHT}there{END}"]]
    assert f"<|im_start|>user\nWhere?\n{PASSAGE}{END}" in whole[0]
    assert there.skipped == {FIRST_ANSWER: 1, NO_SPAN: 1}


def test_texts_in_turn_are_told(tmp_path: Path) -> None:
    learned, _, there = read(
        tmp_path, {"id": "0", "data": ["How are you?", "Well.", "Good."]}, {"id": "1", "data": ["Hi"]}
    )
    assert learned == [[f"Well.{END}"]]
    assert list(there.notes) == [CHOICES["strings"]]
    assert there.skipped == {IN_TURN: 1, "record whose 'data' is no list of texts": 1}


GLAIVE = {
    "system": 'SYSTEM: You are helpful. Use them if required -\n{\n    "name": "rate"\n}\n',
    "chat": "USER: Book a flight?\n\n\nASSISTANT: I cannot. <|endoftext|>\n\n\nUSER: Rate?\n\n\n"
    """ASSISTANT: <functioncall> {"name": "rate", "arguments": '{"base": "USD"}'} <|endoftext|>\n\n\n"""
    'FUNCTION RESPONSE: {"rate": 0.85}\n\n\n'
    "ASSISTANT: It is 0.85. <|endoftext|>\n\n\n",
}


def test_glaives_chats_are_learned_with_their_calls(tmp_path: Path) -> None:
    learned, whole, there = read(tmp_path, GLAIVE)
    assert learned == [[f"I cannot.{END}", CALL, f"{THOUGHT}It is 0.85.{END}"]]
    assert whole[0].startswith("<|im_start|>system\nYou are helpful. Use them if required -")
    assert '<tool_response>\n{"rate": 0.85}\n</tool_response>' in whole[0]
    assert there.skipped == {}


@pytest.mark.parametrize(
    ("text", "roles"),
    [
        ("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d", "uaua"),
        ("\n\nHuman: a\n\nAssistant:", "u"),
        ("Human: a\nAssistant: b\nHuman: c\nAssistant:", "uau"),
        ("\n\nHuman: quoted:\nAssistant: no speaker\n\nAssistant: b", "ua"),
        ("SYSTEM: a\nUSER: b\nASSISTANT: c", "sua"),
        ("Human: a", ""),
        ("Human: a\n\nHuman: b", ""),
        ("A line before.\n\nHuman: a\n\nAssistant: b", ""),
        ("The Human: a\n\nAssistant: b", ""),
        ("User: a\nAssistant: b", ""),
    ],
)
def test_only_a_text_that_begins_with_a_speaker_is_a_transcript(text: str, roles: str) -> None:
    assert "".join(turn["role"][0] for turn in transcript_of(text)) == roles


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>", True),
        ("<s>[INST] Hi [/INST] Hello </s>", True),
        ("<start_of_turn>user\nHi<end_of_turn>", True),
        ("### Human: Hi### Assistant: Hello", True),
        ("Below is an instruction that describes a task.\n\n### Instruction:\nHi\n\n### Response:\nHello", True),
        ("User: Hi\nAssistant: Hello", True),
        ("## Installation\n\nRun it.", False),
        ("User: a word of the glossary, and no talk", False),
        ("He said: [INST] is a mark.", False),
        ("Humans and assistants.", False),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "txt"])
def test_a_conversation_that_is_written_as_a_text_is_told(tmp_path: Path, text: str, is_one: bool, suffix: str) -> None:
    assert reads_as_conversation([text]) is is_one
    path = tmp_path / f"a.{suffix}"
    path.write_text(json.dumps({"text": text}) if suffix == "jsonl" else text)
    there = open_source(str(path), text_field=None, split="train")
    (document,) = there.documents()
    assert document.text == text
    assert [note.partition(",")[0] for note in there.notes] == ["Conversations that are written as texts"] * is_one


# Fields beside a conversation

ASKED = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "And?"},
]


@pytest.mark.parametrize(
    "beside",
    [
        {"completion": "More"},
        {"response": {"role": "assistant", "content": "More"}},
        {"chosen": [{"role": "assistant", "content": "More"}], "rejected": [{"role": "assistant", "content": "Less"}]},
    ],
)
def test_turns_that_end_with_a_question_are_the_question_of_the_answer_beside_them(
    tmp_path: Path, beside: dict[str, Any]
) -> None:
    learned, whole, _ = read(tmp_path, {"messages": ASKED, **beside})
    assert learned == [[f"{THOUGHT}More{END}"]]
    assert "Hello" in whole[0]


def test_an_answer_beside_turns_that_have_theirs_is_not_taken(tmp_path: Path) -> None:
    learned, _, there = read(tmp_path, {"messages": ASKED[:2], "completion": "Some other words than these."})
    assert learned == [[f"{THOUGHT}Hello{END}"]]
    assert list(there.notes) == ["Read from 'messages' alone, not from 'completion'"]


def test_coheres_chat_has_its_question_and_preamble_in_other_fields(tmp_path: Path) -> None:
    history = [{"role": "USER", "message": "Where?"}, {"role": "CHATBOT", "message": "There."}]
    record = {"preamble": "Be brief.", "chat_history": history, "message": "And now?", "response": "Still there."}
    learned, whole, there = read(tmp_path, record)
    assert learned == [[f"There.{END}", f"{THOUGHT}Still there.{END}"]]
    assert whole[0].startswith(f"<|im_start|>system\nBe brief.{END}")
    assert "And now?" in whole[0]
    assert there.notes == {}


def test_a_system_text_in_blocks_is_read(tmp_path: Path) -> None:
    record = {"system": [{"text": "Be brief."}], "messages": ASKED[:2]}
    assert read(tmp_path, record)[1][0].startswith(f"<|im_start|>system\nBe brief.{END}")


def test_pairs_that_belong_to_an_instruction_are_not_read_without_it(tmp_path: Path) -> None:
    record = {"instruction": "Say it in a word", "instances": [{"input": "a long day", "output": "day"}]}
    with pytest.raises(DataError, match="not clear which field"):
        read(tmp_path, record)


def test_a_label_in_numbers_that_is_not_read_is_said(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi", "completion": "Hello", "label": label, "topic": "lamps"} for label in (0, 1)]
    assert list(read(tmp_path, *rows)[2].notes) == ["Read from 'prompt + completion' alone, not from 'label'"]


def test_the_number_of_a_class_is_no_answer(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        read(tmp_path, {"inputs": "Is it good, this lamp?", "targets": 3})


def test_a_result_stands_before_what_its_turn_says_and_leaves_no_empty_turn_behind() -> None:
    result = {"type": "tool_result", "tool_use_id": "1", "content": "0.85"}
    tool = {"role": "tool", "content": "0.85", "tool_call_id": "1"}
    said = {"type": "text", "text": "And now?"}
    assert read_turns([{"role": "user", "content": [result]}]) == (tool,)
    assert read_turns([{"role": "user", "content": [said, result]}]) == (tool, {"role": "user", "content": "And now?"})
