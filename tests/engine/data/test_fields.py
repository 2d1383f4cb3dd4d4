"""Conversations in every form in which people write them, and what is refused with which way out."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.data.conversation import NOT_WANTED, PREFERENCE
from engine.data.document import Document
from engine.data.form import PAIRS
from engine.data.sources import NO_WEIGHT, OTHER_SPLIT, TextSource, open_source
from engine.data.turns import read_turns, told
from engine.errors import DataError

Q, A = "Where is the lamp?", "Under the window."
TURNS = ({"role": "user", "content": Q}, {"role": "assistant", "content": A})
SYSTEM = {"role": "system", "content": "Be brief."}
NO = [{"role": "assistant", "content": "No."}]
HUMAN, GPT = {"from": "human", "value": Q}, {"from": "gpt", "value": A}


def source(path: Path, text_field: str | None = None) -> TextSource:
    return open_source(str(path), text_field=text_field, split="train")


def written(tmp_path: Path, *records: Any, name: str = "a.jsonl") -> Path:
    path = tmp_path / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


def conversation(path: Path, text_field: str | None = None) -> tuple[dict[str, Any], ...]:
    (document,) = source(path, text_field).documents()
    assert document.messages is not None, document
    return document.messages


def refusal(path: Path, text_field: str | None = None) -> DataError:
    with pytest.raises(DataError) as caught:
        list(source(path, text_field).documents())
    return caught.value


def left_out(path: Path) -> dict[str, int]:
    there = source(path)
    with contextlib.suppress(DataError):
        assert not list(there.documents())
    return there.skipped


# The same conversation in many forms

FORMS: dict[str, dict[str, Any]] = {
    "messages": {"messages": TURNS},
    "messages beside a text": {"text": f"{Q} {A}", "messages": TURNS},
    "sharegpt": {"id": "c7", "conversations": [HUMAN, GPT]},
    "sharegpt, one conversation": {"conversation": [HUMAN, GPT]},
    "sharegpt with role and content": {"conversations": TURNS},
    "sharegpt with null": {"conversations": [{**HUMAN, "weight": None}, {**GPT, "weight": None}]},
    "another name": {"id": 3, "thread": TURNS},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": Q}]}, TURNS[1]]},
    "two parts": {
        "messages": [
            TURNS[0],
            {"role": "assistant", "content": [{"type": "text", "text": t} for t in ("Under ", "the window.")]},
        ]
    },
    "Gemini": {"contents": [{"role": "user", "parts": [{"text": Q}]}, {"role": "model", "parts": [{"text": A}]}]},
    "prompt and completion": {"prompt": Q, "completion": A},
    "prompt and response": {"prompt": Q, "response": A, "text": f"{Q} {A}"},
    "prompt and completion as turns": {"prompt": TURNS[:1], "completion": TURNS[1:]},
    "instruction and output": {"instruction": Q, "output": A},
    "Alpaca without input": {"instruction": Q, "input": "", "output": A},
    "dolly": {"instruction": Q, "context": "", "response": A, "category": "open_qa"},
    "question and answer": {"question": Q, "answer": A},
    "Question and Answer": {"Question": Q, "Answer": A},
    "preference": {"prompt": Q, "chosen": A, "rejected": "No."},
    "preference as turns": {"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": [TURNS[1]]},
    "preference with the question in both": {"chosen": TURNS, "rejected": [TURNS[0], {**TURNS[1], "content": "No."}]},
    "preference beside its prompt": {"prompt": Q, "chosen": TURNS, "rejected": TURNS},
    "preference as transcripts": {
        "chosen": f"\n\nHuman: {Q}\n\nAssistant: {A}",
        "rejected": f"\n\nHuman: {Q}\n\nAssistant: No.",
    },
    "OpenAI's preference": {
        "input": {"messages": TURNS[:1]},
        "preferred_output": TURNS[1:],
        "non_preferred_output": NO,
    },
    "OpenAI's preference, the other way": {
        "non_preferred_output": NO,
        "preferred_output": TURNS[1:],
        "input": {"messages": TURNS[:1], "parallel_tool_calls": True},
    },
    "LLaMA-Factory's preference": {
        "conversations": [HUMAN],
        "chosen": GPT,
        "rejected": {"from": "gpt", "value": "No."},
    },
    "preference behind its question": {"rejected": NO, "messages": TURNS[:1], "chosen": TURNS[1:]},
    "preference beside the conversation": {"rejected": NO, "chosen": TURNS[1:], "messages": TURNS},
    "rejected turns beside the conversation": {"rejected_messages": [TURNS[0], *NO], "thread": TURNS},
    "wanted by its label": {"prompt": Q, "completion": A, "label": True},
    "wanted by its label as a number": {"prompt": Q, "completion": A, "label": 1},
    "LLaMA-Factory's label": {"messages": TURNS, "kto_tag": True},
    "pairs": {"source": "x", "conversation": [{"input": Q, "output": A}]},
    "pairs of a human and an assistant": {"conversation_id": 1, "conversation": [{"human": Q, "assistant": A}]},
    "turns in columns": {"messages": {"role": ["user", "assistant"], "content": [Q, A]}},
    "the speaker as the key": {"messages": [{"user": Q}, {"assistant": A}]},
    "Bedrock": {
        "messages": [{"role": "user", "content": [{"text": Q}]}, {"role": "assistant", "content": [{"text": A}]}]
    },
    "Cohere": {"chat_history": [], "message": Q, "response": A},
    "Vertex": {"input_text": Q, "output_text": A},
    "FLAN": {"inputs": Q, "targets": A, "_task_name": "lamps"},
    "T0": {"inputs": [1, 2], "targets": [3], "inputs_pretokenized": Q, "targets_pretokenized": A},
    "UltraChat": {"id": "0", "data": [Q, A]},
    "LIMA": {"conversations": [Q, A], "source": "lamps"},
    "pairs of texts": {"conversations": [[Q, A]]},
    "glaive": {"chat": f"USER: {Q}\n\n\nASSISTANT: {A} <|endoftext|>\n\n\n", "system": ""},
    "glaive's first": {"sample": f"USER: {Q}\nASSISTANT: {A}"},
    "a chosen transcript alone": {"chosen": f"\n\nHuman: {Q}\n\nAssistant: {A}"},
    "a question as a transcript": {"prompt": f"\n\nHuman: {Q}\n\nAssistant:", "completion": A},
    "MBPP": {"task_id": 1, "text": Q, "code": A, "test_list": ["assert lamp"]},
    "a tree": {
        "message_tree_id": "m1",
        "prompt": {"role": "prompter", "text": Q, "replies": [{"role": "assistant", "text": A, "replies": []}]},
    },
}


LONG = "A text of some words."
QUESTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "input behind an instruction": ({"instruction": Q, "input": LONG, "output": A}, f"{Q}\n{LONG}"),
    "question behind an instruction": ({"instruction": LONG, "question": Q, "answer": A}, f"{LONG}\n{Q}"),
    "input and context": (
        {"instruction": LONG, "input": Q, "context": "And more.", "output": A},
        f"{LONG}\n{Q}\nAnd more.",
    ),
    "a list of passages": ({"question": Q, "context": [LONG, "Two."], "answer": A}, f"{Q}\n{LONG}\n\nTwo."),
    "a list of passages in JSON": (
        {"question": Q, "context": json.dumps([LONG, "Two."]), "answer": A},
        f"{Q}\n{LONG}\n\nTwo.",
    ),
    "a question within the prompt": ({"prompt": f"{LONG} {Q}", "question": Q, "answer": A}, f"{LONG} {Q}"),
    "nothing": ({"instruction": Q, "input": " ", "context": [], "output": A}, Q),
    "nothing in pandas": ({"instruction": Q, "input": float("nan"), "context": None, "output": A}, Q),
    "of a preference": ({"instruction": Q, "input": LONG, "chosen": A, "rejected": "No."}, f"{Q}\n{LONG}"),
}


@pytest.mark.parametrize("case", QUESTIONS)
@pytest.mark.parametrize("before", [0, 100])
def test_everything_that_is_asked_stands_in_the_question(tmp_path: Path, case: str, before: int) -> None:
    record, asked = QUESTIONS[case]
    # The first records of a file may have none of it.
    bare = {name: value for name, value in record.items() if name in ("instruction", "chosen", "rejected", "output")}
    is_late = before and len(bare) > 1
    path = written(tmp_path, *[bare] * (before if is_late else 0), record)
    *_, document = source(path).documents()
    assert document.messages == ({"role": "user", "content": asked}, TURNS[1])


def test_a_context_that_is_no_text_leaves_the_record_out_and_not_only_the_context(tmp_path: Path) -> None:
    path = written(tmp_path, {"question": Q, "answer": A}, {"question": Q, "context": {"title": [LONG]}, "answer": A})
    assert [document.text for document in source(path).documents()] == [told(TURNS)]
    path = written(tmp_path, {"question": Q, "context": {"title": [LONG]}, "answer": A})
    assert "record whose 'context' beside the question is no text" in refusal(path).why
    assert conversation(written(tmp_path, {"question": Q, "sources": {"title": [LONG]}, "answer": A})) == TURNS


@pytest.mark.parametrize(
    "name", ["reasoning", "thinking", "Complex_CoT", "deepseek_reasoning", "chain of thought", "reasoning_content"]
)
def test_reasoning_beside_an_answer_is_the_answers(tmp_path: Path, name: str) -> None:
    assert conversation(written(tmp_path, {"question": Q, name: LONG, "answer": A})) == (
        TURNS[0],
        {**TURNS[1], "reasoning_content": LONG},
    )


@pytest.mark.parametrize(("value", "said"), [(72, "72"), (2.5, "2.5"), (3.0, "3")])
def test_an_answer_that_is_a_number_is_an_answer(tmp_path: Path, value: float, said: str) -> None:
    path = written(tmp_path, {"question": Q, "answer": value})
    assert conversation(path) == (TURNS[0], {"role": "assistant", "content": said})


NOT_ANSWERED: dict[str, dict[str, Any]] = {
    "yes or no": {"question": Q, "answer": True},
    "yes or no of a passage": {"question": Q, "passage": LONG, "answer": False},
    "a letter": {"question": Q, "A": LONG, "B": A, "answer": "B"},
    "a number": {"question": Q, "choices": [LONG, A], "answer": 1},
    "a number of a field": {"question": Q, "option_a": LONG, "option_b": A, "answer": 2},
    "spans without their passage": {"title": LONG, "question": Q, "answers": {"text": ["lamp"], "answer_start": [4]}},
    "several answers": {"question": Q, "context": LONG, "answers": {"text": ["lamp"], "score": [4]}},
}


@pytest.mark.parametrize("case", NOT_ANSWERED)
def test_neither_a_question_nor_its_passage_is_learned_without_the_answer(tmp_path: Path, case: str) -> None:
    path = written(tmp_path, NOT_ANSWERED[case])
    assert "--text_field" in refusal(path).todo
    name = next(name for name, value in NOT_ANSWERED[case].items() if value in (LONG, Q))
    assert len(list(source(path, name).documents())) == 1  # the way out


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        ({"title": "Of a lamp", "text": LONG}, "'title'"),
        ({"article": LONG, "highlights": "In short, words."}, "'highlights'"),
        ({"question": Q, "answer": A, "hint": LONG, "generations": [LONG]}, "'hint', 'generations'"),
        ({"messages": TURNS, "summary": LONG}, "'summary'"),
        ({"row": json.dumps({"messages": TURNS, "summary": LONG})}, "'summary'"),
    ],
)
def test_sentences_that_are_not_read_are_said_with_their_fields(
    tmp_path: Path, record: dict[str, Any], fields: str
) -> None:
    there = source(written(tmp_path, record))
    assert len(list(there.documents())) == 1
    (note,) = there.notes
    assert note.startswith("Read from ")
    assert note.endswith(f" alone, not from {fields}")


@pytest.mark.parametrize(
    "record",
    [
        {"messages": TURNS, "prompt": Q, "id": "c7", "source": "of mine"},
        {"text": LONG, "url": "https://example.org/a", "timestamp": "2020-01-01 10:00", "label": 3},
        {"prompt": Q, "chosen": A, "rejected": "No, not at all."},
        {"system_prompt": "Be very brief.", "question": Q, "reasoning": LONG, "answer": A},
    ],
)
def test_nothing_is_said_of_fields_without_sentences_or_whose_words_are_read(
    tmp_path: Path, record: dict[str, Any]
) -> None:
    there = source(written(tmp_path, record))
    assert len(list(there.documents())) == 1
    assert there.notes == {}


@pytest.mark.parametrize("name", ["Text", "TEXT", "Content", "Messages", "CONVERSATIONS"])
def test_capitals_in_a_fields_name_change_nothing(tmp_path: Path, name: str) -> None:
    value = TURNS if name.lower() in ("messages", "conversations") else LONG
    (document,) = source(written(tmp_path, {"Title of it": "Of a lamp", name: value})).documents()
    assert document.text == (told(TURNS) if value is TURNS else LONG)


@pytest.mark.parametrize("form", FORMS)
def test_the_same_conversation_is_read_from_every_form(tmp_path: Path, form: str) -> None:
    assert conversation(written(tmp_path, FORMS[form])) == TURNS


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("wrapper", ["list", "lines in .json", "data", "alone"])
def test_a_form_is_the_same_in_every_kind_of_json(tmp_path: Path, form: str, wrapper: str) -> None:
    record = FORMS[form]
    texts = {
        "list": json.dumps([record]),
        "lines in .json": f"{json.dumps(record)}\n",
        "data": json.dumps({"version": 1, "data": [record]}),
        "alone": json.dumps(record, indent=1),
    }
    (tmp_path / "a.json").write_text(texts[wrapper])
    assert conversation(tmp_path / "a.json") == TURNS


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("with_id", [False, True])
def test_a_form_is_the_same_as_json_in_the_cells_of_a_table(tmp_path: Path, form: str, with_id: bool) -> None:
    record = {"id": "c7"} | FORMS[form] if with_id else {k: v for k, v in FORMS[form].items() if k != "id"}
    cells = {key: value if isinstance(value, str) else json.dumps(value) for key, value in record.items()}
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, list(cells))
        rows.writeheader()
        rows.writerow(cells)
    assert conversation(tmp_path / "a.csv") == TURNS
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist([cells]), tmp_path / "a.parquet")
    assert conversation(tmp_path / "a.parquet") == TURNS
    if "parts" in form:
        return  # a column is text or lists, not both
    parquet.write_table(pyarrow.Table.from_pylist([record]), tmp_path / "nested.parquet")
    assert conversation(tmp_path / "nested.parquet") == TURNS


@pytest.mark.parametrize("form", ["messages", "sharegpt", "Alpaca without input"])
def test_a_whole_record_as_json_in_one_cell_is_read(tmp_path: Path, form: str) -> None:
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["row"], [json.dumps(FORMS[form])]])
    assert conversation(tmp_path / "a.csv") == TURNS
    assert source(tmp_path / "a.csv").describe().text_field.startswith("row: ")  # type: ignore[union-attr]


def test_a_line_that_is_a_list_of_turns_is_a_conversation(tmp_path: Path) -> None:
    assert conversation(written(tmp_path, TURNS)) == TURNS
    (tmp_path / "a.json").write_text(json.dumps([TURNS]))
    assert conversation(tmp_path / "a.json") == TURNS


def test_the_field_may_be_named(tmp_path: Path) -> None:
    path = written(tmp_path, {"text": "rendered", "messages": TURNS, "again": json.dumps(TURNS)})
    assert conversation(path, "messages") == conversation(path, "again") == TURNS
    (document,) = source(path, "text").documents()
    assert (document.text, document.messages) == ("rendered", None)


# All that a conversation is

CALL = {"type": "function", "function": {"name": "add", "arguments": {"x": 2}}}


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": '{"x": 2}'}}]},
        {"role": "assistant", "content": [], "tool_calls": [CALL["function"]]},
        {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": '{"x": 2}'}},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"x": 2}}'},
    ],
)
def test_a_tool_call_is_the_same_however_it_is_written(tmp_path: Path, turn: dict[str, Any]) -> None:
    if "from" in turn:
        turns = [HUMAN, turn, {"from": "observation", "value": "4"}, GPT]
    else:
        turns = [TURNS[0], turn, {"role": "tool", "content": "4"}, TURNS[1]]
    found = conversation(written(tmp_path, {"messages": turns}))
    assert found[1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}
    assert found[2] == {"role": "tool", "content": "4"}


@pytest.mark.parametrize("result", ["4", 4, {"sum": 4}, [{"sum": 4}], [{"type": "text", "text": "4"}]])
def test_what_a_tool_gives_back_is_kept(tmp_path: Path, result: Any) -> None:
    turns = [TURNS[0], {"role": "tool", "content": result, "tool_call_id": "1", "name": "add"}, TURNS[1]]
    (_, turn, _) = conversation(written(tmp_path, {"messages": turns}))
    assert "4" in turn["content"]
    assert (turn["tool_call_id"], turn["name"]) == ("1", "add")


def test_fields_of_a_turn_and_of_a_record_are_kept(tmp_path: Path) -> None:
    record = {
        "messages": [SYSTEM, {**TURNS[0], "name": "Ada"}, {**TURNS[1], "reasoning_content": "hm"}],
        "tools": json.dumps([CALL]),
        "enable_thinking": False,
        "chat_template_kwargs": {"mood": "kind"},
        "rejected": "x",
    }
    (document,) = source(written(tmp_path, record)).documents()
    assert document.messages == tuple(record["messages"])
    assert document.fields == {"tools": [CALL], "enable_thinking": False, "mood": "kind"}


@pytest.mark.parametrize(
    "weight",
    [{"weight": 0}, {"weight": 0.0}, {"weight": "0"}, {"train": False}, {"loss": False}, {"loss_mask": 0}],
)
def test_a_weight_of_0_is_kept_and_does_not_change_the_side(tmp_path: Path, weight: dict[str, Any]) -> None:
    (document,) = source(written(tmp_path, {"messages": [TURNS[0], {**TURNS[1], **weight}]})).documents()
    assert document.messages is not None
    assert document.messages[1]["weight"] == 0
    assert document.text == told(TURNS)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"system": "Be brief.", "conversations": [HUMAN, GPT]}, (SYSTEM, *TURNS)),
        ({"system": "", "prompt": Q, "completion": A}, TURNS),
        ({"system": "Other", "messages": (SYSTEM, *TURNS)}, (SYSTEM, *TURNS)),
        (
            {"instruction": "Where is it?", "input": "the lamp", "output": A},
            ({"role": "user", "content": "Where is it?\nthe lamp"}, TURNS[1]),
        ),
        (
            {"instruction": Q, "input": "", "output": A, "history": [["Hi", "Hello"]]},
            ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, *TURNS),
        ),
        ({"prompt": [*TURNS, TURNS[0]], "completion": TURNS[1:]}, (TURNS[0], {**TURNS[1], "weight": 0}, *TURNS)),
        ({"messages": [{**SYSTEM, "role": "developer"}, *TURNS]}, ({**SYSTEM, "role": "developer"}, *TURNS)),
        (
            {"prompt": Q, "completion": '{"place": "window"}'},
            (TURNS[0], {"role": "assistant", "content": '{"place": "window"}'}),
        ),
    ],
)
def test_what_else_belongs_to_a_conversation(tmp_path: Path, record: dict[str, Any], expected: Any) -> None:
    assert conversation(written(tmp_path, record)) == expected


def test_keys_that_parquet_adds_are_taken_away_again(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [
        {"messages": [{"role": "user", "content": Q}, {"role": "assistant", "content": "", "tool_calls": [CALL]}]},
        {"messages": [{"role": "user", "content": Q, "name": "Ada"}, {"role": "assistant", "content": A}]},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    first, second = source(tmp_path / "a.parquet").documents()
    assert first.messages == tuple(rows[0]["messages"])
    assert second.messages == tuple(rows[1]["messages"])


# Records that are left out, by name


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, TURNS[1]]},
            "conversation with an image part",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}, TURNS[1]]},
            "conversation with an audio part",
        ),
        (
            {"image": "a.png", "conversations": [{"from": "human", "value": "<image> What?"}, GPT]},
            "conversation with a picture or a recording in 'image' (without this field its text alone is learned)",
        ),
        ({"prompt": Q, "completion": A, "label": False}, NOT_WANTED),
        ({"prompt": Q, "completion": A, "label": 0}, NOT_WANTED),
        ({"prompt": Q, "completion": A, "is_correct": 0, "topic": "lamps"}, NOT_WANTED),
        ({"messages": TURNS, "label": False}, NOT_WANTED),
        ({"conversations": [HUMAN, GPT], "kto_tag": False}, NOT_WANTED),
        ({"instruction": Q, "input": "", "output": A, "kto_tag": 0}, NOT_WANTED),
        ({"question": Q, "answer": A, "preferred": "False"}, NOT_WANTED),
        (
            {"messages": [TURNS[0], {"role": "assistant", "content": 4}]},
            "conversation with a turn whose content is no text",
        ),
        (
            {"conversations": [HUMAN, {"from": "narrator", "value": "x"}]},
            "conversation whose speakers are not user, assistant, system or tool",
        ),
    ],
)
def test_what_a_text_model_cannot_learn_is_counted_by_name(tmp_path: Path, record: Any, reason: str) -> None:
    assert left_out(written(tmp_path, record)) == {reason: 1}


def test_of_preferences_the_chosen_answer_is_learned_and_that_is_noted(tmp_path: Path) -> None:
    (document,) = source(written(tmp_path, FORMS["preference"])).documents()
    assert document.notes == (PREFERENCE,)
    assert "No." not in document.text


@pytest.mark.parametrize("question", ['{"enable_thinking": true}', '{"add_generation_prompt": true, "tools": []}'])
def test_a_question_in_json_gives_a_template_nothing(tmp_path: Path, question: str) -> None:
    """Its text is the question; OpenAI's ``input`` is an object."""
    (document,) = source(written(tmp_path, {"prompt": question, "completion": A})).documents()
    assert document.messages == ({"role": "user", "content": question}, TURNS[1])
    assert not document.fields


def test_a_number_for_a_label_says_nothing_beside_other_fields(tmp_path: Path) -> None:
    """The class of a text, say: only TRL's three fields are clear."""
    assert conversation(written(tmp_path, {"prompt": Q, "completion": A, "label": 0, "topic": "lamps"})) == TURNS


# Refusals, and their ways out


@pytest.mark.parametrize("answers", [[{"answer": A, "rank": 1}, {"answer": "No.", "rank": 2}], {"text": [A]}])
def test_a_question_is_no_text_where_answers_to_choose_from_stand_beside_it(tmp_path: Path, answers: Any) -> None:
    error = refusal(written(tmp_path, *[{"prompt": Q, "answers": answers}] * 3))
    assert "not clear which field" in error.what


@pytest.mark.parametrize("turn", [HUMAN, TURNS[0], {"speaker": "user", "text": Q}])
def test_single_turns_are_no_documents_whatever_field_is_named(tmp_path: Path, turn: dict[str, str]) -> None:
    path = written(tmp_path, *[turn] * 3)
    for field in (None, list(turn)[1]):
        error = refusal(path, field)
        assert "single turn of a conversation" in error.what
        assert "messages" in error.todo
    way_out = '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}'
    assert way_out in error.todo
    assert conversation(written(tmp_path, json.loads(way_out)))


@pytest.mark.parametrize("write", [str, lambda value: str(value).replace("}, {", "}\n {")])
@pytest.mark.parametrize("field", [None, "messages"])
def test_pythons_notation_is_refused_by_name(tmp_path: Path, write: Callable[[Any], str], field: str | None) -> None:
    rows = [{"id": "x", "messages": write(list(TURNS))}] * 2
    error = refusal(written(tmp_path, *rows), field)
    assert "'messages'" in error.what
    assert "repr" in error.what
    assert "json.dumps()" in error.todo
    assert conversation(written(tmp_path, {"id": "x", "messages": json.dumps(TURNS)}), field) == TURNS


@pytest.mark.parametrize("field", [None, "row"])
def test_a_structure_is_no_prose(tmp_path: Path, field: str | None) -> None:
    error = refusal(written(tmp_path, {"row": json.dumps({"a": [1, 2], "b": "x y"})}), field)
    assert "JSON" in error.what
    assert "messages" in error.todo


def test_prose_beside_a_structure_is_read(tmp_path: Path) -> None:
    (document,) = source(written(tmp_path, {"meta": '{"a": 1}', "story": "Once upon a time."})).documents()
    assert document.text == "Once upon a time."
    (document,) = source(written(tmp_path, {"text": "[a note in brackets] and prose"})).documents()
    assert document.messages is None


@pytest.mark.parametrize(("question", "answer"), PAIRS)
def test_two_names_that_mean_a_pair_are_one_where_no_other_field_holds_a_text(
    tmp_path: Path, question: str, answer: str
) -> None:
    record = {question.upper(): Q, answer.upper(): A, "lang": "en", "id": 3}
    assert conversation(written(tmp_path, record)) == TURNS
    assert conversation(written(tmp_path, {answer: A, question: Q})) == TURNS
    error = refusal(written(tmp_path, {question: Q, answer: A, "remark": LONG}))
    assert "prompt and completion" in error.todo
    # One of the names alone, and words in place of texts.
    assert refusal(written(tmp_path, {question: Q, "other": A})).why
    assert refusal(written(tmp_path, {question: "fr", answer: "de"})).why


def test_a_task_and_its_program_are_a_pair_beside_tests_alone(tmp_path: Path) -> None:
    there = source(written(tmp_path, {"text": Q, "code": A}))
    assert [document.messages for document in there.documents()] == [None]
    assert list(there.notes) == ["Read from 'text' alone, not from 'code'"]


@pytest.mark.parametrize("record", [{"messages": TURNS}, {"row": {"messages": TURNS}}])
def test_json_that_is_written_twice_is_what_it_holds(tmp_path: Path, record: dict[str, Any]) -> None:
    path = written(tmp_path, *[{name: json.dumps(json.dumps(value)) for name, value in record.items()}] * 2)
    assert [document.messages for document in source(path).documents()] == [TURNS] * 2
    path = written(tmp_path, {"text": "a b"}, {"text": "c d"}, {"text": json.dumps(json.dumps(TURNS))})
    assert left_out_among(path) == {"record whose 'text' is a conversation written as text": 1}


def left_out_among(path: Path) -> dict[str, int]:
    there = source(path)
    list(there.documents())
    return there.skipped


@pytest.mark.parametrize("record", [{"text": LONG}, {"messages": TURNS}])
def test_rows_that_name_another_split_are_not_learned_and_are_told(tmp_path: Path, record: dict[str, Any]) -> None:
    rows = [{**record, "split": name} for name in ("train", "test", "validation", "train_sft", "dev", "of mine")]
    path = written(tmp_path, *rows)
    there = source(path)
    assert len(list(there.documents())) == 3
    assert there.skipped == {OTHER_SPLIT.format(repr(name)): 1 for name in ("test", "validation", "dev")}
    assert not there.tally.lost
    # The way out, and a file that is named for its split.
    assert len(list(source(written(tmp_path, *({**record, "part": row["split"]} for row in rows))).documents())) == 6
    assert len(list(source(written(tmp_path, *rows, name="test.jsonl")).documents())) == 6


@pytest.mark.parametrize("name", ["weight", "Weight", "loss_weight", "sample_weight"])
@pytest.mark.parametrize("record", [{"text": LONG}, {"messages": TURNS}, {"prompt": Q, "completion": A}])
def test_rows_of_weight_0_are_not_learned_and_are_told(tmp_path: Path, record: dict[str, Any], name: str) -> None:
    there = source(written(tmp_path, *({**record, name: value} for value in (1, 0, 0.0, "0", 0.5, None, "", 2))))
    assert len(list(there.documents())) == 5
    assert there.skipped == {NO_WEIGHT.format(repr(name)): 3}
    assert not there.tally.lost
    # The way out.
    assert len(list(source(written(tmp_path, {**record, "grams": 0})).documents())) == 1


def test_of_unknown_pairs_the_way_out_is_to_name_the_fields(tmp_path: Path) -> None:
    error = refusal(written(tmp_path, {"src": Q, "tgt": A}))
    assert "prompt and completion" in error.todo
    assert conversation(written(tmp_path, {"prompt": Q, "completion": A})) == TURNS


def test_a_conversation_among_texts_is_counted_and_not_learned_as_text(tmp_path: Path) -> None:
    path = written(tmp_path, {"text": "a b"}, {"text": "c d"}, {"text": json.dumps(TURNS)}, {"text": str(list(TURNS))})
    there = source(path)
    assert [document.text for document in there.documents()] == ["a b", "c d"]
    assert there.skipped == {"record whose 'text' is a conversation written as text": 2}


def test_reading_turns_again_changes_nothing() -> None:
    turns = (SYSTEM, TURNS[0], {"role": "assistant", "content": "", "tool_calls": [CALL], "weight": 0})
    assert read_turns(turns) == turns
    assert Document("a", told(turns), turns).fields == {}


@pytest.mark.parametrize(
    ("named", "role"),
    [
        *((named, "user") for named in ("User", " user ", "HUMAN", "human:", "Prompter")),
        *((named, "assistant") for named in ("Assistant ", "GPT-4", "gpt-3.5-turbo", "ChatGPT", "gpt4", "Bard", "AI")),
        *((named, "assistant") for named in ("AI Assistant", "ai-assistant", "MODEL")),
        *((named, "tool") for named in ("Tool", "ipython", "tool response", "function-result", "observation")),
        *((named, "system") for named in ("System", "SYSTEM ")),
        ("Developer", "developer"),
    ],
)
@pytest.mark.parametrize("key", ["role", "from"])
def test_a_speaker_is_known_by_every_usual_name(named: str, role: str, key: str) -> None:
    (turn,) = read_turns([{key: named, "content": A}])
    assert turn == {"role": role, "content": A}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, False) for name in ("label", "is_correct", "correct", "passed", "is_good", "accepted", "thumbs_up")),
        *(("label", word) for word in ("false", "thumbs_down", "rejected")),
    ],
)
@pytest.mark.parametrize("record", [{"question": Q, "answer": A}, {"messages": TURNS}])
def test_an_answer_that_its_record_calls_wrong_is_not_learned(
    tmp_path: Path, record: dict[str, Any], name: str, value: Any
) -> None:
    assert left_out(written(tmp_path, {**record, name: value})) == {NOT_WANTED: 1}


def test_a_score_that_is_not_read_is_said(tmp_path: Path) -> None:
    for name in ("reward", "overall_score", "rating", "helpfulness"):
        there = source(written(tmp_path, {"prompt": Q, "response": A, name: -3.2}))
        assert len(list(there.documents())) == 1
        assert list(there.notes) == [f"Read from 'prompt + response' alone, not from {name!r}"]


@pytest.mark.parametrize(("one", "other"), [("conversation_a", "conversation_b"), ("en", "de")])
def test_of_two_conversations_that_differ_none_is_chosen(tmp_path: Path, one: str, other: str) -> None:
    path = written(tmp_path, {"winner": "b", one: [TURNS[0], *NO], other: TURNS})
    assert "--text_field" in refusal(path).todo
    assert conversation(path, other) == TURNS  # the way out
    assert conversation(written(tmp_path, {one: TURNS, other: TURNS})) == TURNS


TREE = {"a": {"message": {"author": {"role": "user"}, "content": {"parts": [Q]}}, "children": ["b"]}}
RICHER: dict[str, dict[str, Any]] = {
    "ChatGPT's export": {"title": "Of a lamp", "mapping": TREE},
    "a tree of turns": {"tree": "ready for export", "root": {"text": LONG, "replies": [{"text": A, "replies": []}]}},
    "paragraphs beside a number": {"id": "7", "paragraphs": [LONG, LONG]},
    "a request of a batch": {"method": "POST", "body": {"model": "a", "messages": [{"role": "user", "content": LONG}]}},
    "sections": {"heading": "Of a lamp", "sections": [{"head": "One", "body": LONG}, {"head": "Two", "body": LONG}]},
    "sections in JSON": {"heading": "Of a lamp", "sections": json.dumps([{"body": LONG}, {"body": LONG}])},
}


@pytest.mark.parametrize("case", RICHER)
def test_a_title_is_not_learned_in_place_of_the_text_that_it_names(tmp_path: Path, case: str) -> None:
    error = refusal(written(tmp_path, RICHER[case]))
    assert "holds JSON, not prose" in error.what
    assert repr([*RICHER[case]][1]) in error.what
    assert conversation(written(tmp_path, {"title": "Of a lamp", "messages": TURNS})) == TURNS  # the way out


@pytest.mark.parametrize("weights", [[1, 0], [0, 1, 0, 0], [1.0, 0.0], "[1, 0]"])
def test_weights_beside_the_turns_are_those_of_the_answers(tmp_path: Path, weights: Any) -> None:
    wrong = {"role": "assistant", "content": "Wrong."}
    path = written(tmp_path, {"messages": [*TURNS, TURNS[0], wrong], "weights": weights})
    assert conversation(path) == (*TURNS, TURNS[0], {**wrong, "weight": 0})


def test_weights_of_another_number_than_the_answers_leave_the_record_out(tmp_path: Path) -> None:
    path = written(tmp_path, {"messages": TURNS, "weights": [1, 0, 1]})
    assert left_out(path) == {"record whose 'weights' are not one for each answer": 1}


MEDIA = {
    "image": {"bytes": "x", "path": "a.png"},
    "images": ["a.png"],
    "Image URL": "https://a.example/a.png",
    "image_id": 7,
    "video_path": "a.mp4",
    "audio": {"path": "a.wav", "array": [0.1]},
}


@pytest.mark.parametrize("name", MEDIA)
@pytest.mark.parametrize("record", [{"question": Q, "answer": A}, {"messages": TURNS}, {"prompt": Q, "chosen": TURNS}])
def test_an_answer_about_a_picture_or_a_recording_is_not_learned_without_it(
    tmp_path: Path, name: str, record: dict[str, Any]
) -> None:
    record = {**record, "rejected": []} if "chosen" in record else record
    (reason,) = left_out(written(tmp_path, {**record, name: MEDIA[name]}))
    assert repr(name) in reason
    # The way out that the reason tells.
    assert len(list(source(written(tmp_path, record)).documents())) == 1


@pytest.mark.parametrize("nothing", [None, "", [], {}, [None], "[]"])
def test_an_empty_field_for_pictures_leaves_nothing_out(tmp_path: Path, nothing: Any) -> None:
    assert conversation(written(tmp_path, {"messages": TURNS, "images": nothing})) == TURNS


@pytest.mark.parametrize(
    ("given", "is_learned"),
    [
        *(({name: value}, value) for name in ("train_on", "learn", "supervised") for value in (False, True)),
        *(({name: value}, not value) for name in ("ignore", "masked", "no_loss", "skip") for value in (False, True)),
        ({"ignore": "true"}, False),
        ({"train": 1, "ignore": 1}, False),
    ],
)
def test_a_turn_that_says_that_it_is_not_learned_is_not(
    tmp_path: Path, given: dict[str, Any], is_learned: bool
) -> None:
    turns = conversation(written(tmp_path, {"messages": [TURNS[0], {**TURNS[1], **given}]}))
    assert turns == (TURNS[0], TURNS[1] if is_learned else {**TURNS[1], "weight": 0})


def test_a_flag_of_answers_that_is_not_known_is_said(tmp_path: Path) -> None:
    answers = [{**TURNS[1], "mask": number % 2, "edited": False} for number in range(4)]
    there = source(written(tmp_path, *({"messages": [TURNS[0], answer]} for answer in answers)))
    assert len(list(there.documents())) == 4
    assert list(there.notes) == ["Read from 'messages' alone, not from 'messages[].mask'"]


@pytest.mark.parametrize("history", ["Human: Hi\n\nAssistant: Hello", [["Hi", "Hello"]]])
def test_a_history_is_read_as_a_transcript_too(tmp_path: Path, history: Any) -> None:
    before = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"})
    assert conversation(written(tmp_path, {"prompt": Q, "response": A, "history": history})) == (*before, *TURNS)


@pytest.mark.parametrize("history", ["they spoke of lamps", ["Hi", "Hello"], [["Hi"]], 7])
def test_a_question_is_not_learned_without_a_history_that_is_not_understood(tmp_path: Path, history: Any) -> None:
    (reason,) = left_out(written(tmp_path, {"prompt": Q, "response": A, "history": history}))
    assert "history" in reason


def test_conversations_of_several_forms_in_one_file_are_all_read(tmp_path: Path) -> None:
    records = [FORMS["messages"], {"prompt": Q, "completion": A}, {"conversations": [HUMAN, GPT]}]
    records += [{"instruction": Q, "input": "", "output": A}]
    for order in (records, records[::-1], records * 3 + [{"id": 7}]):
        there = source(written(tmp_path, *order))
        found = [document.messages for document in there.documents()]
        assert found == [TURNS] * (len(order) // 4 * 4)
        assert [note.split(" among")[0] for note in there.notes] == ["Conversations of another form"]
        assert sum(there.skipped.values()) == len(order) % 4


def test_conversations_among_texts_are_read_and_texts_among_conversations_are_counted(tmp_path: Path) -> None:
    chats, texts = [FORMS["messages"]] * 2, [{"text": f"A text of words, {number}."} for number in range(4)]
    there = source(written(tmp_path, *texts, *chats))
    assert [document.messages for document in there.documents()] == [None] * 4 + [TURNS] * 2
    there = source(written(tmp_path, *chats * 4, *texts))
    assert [document.messages for document in there.documents()] == [TURNS] * 8
    assert there.skipped == {"record whose 'messages' holds no conversation": 4}


def test_a_broken_record_of_the_files_own_form_is_not_read_in_another(tmp_path: Path) -> None:
    records = [{"prompt": Q, "completion": A, "instruction": "Other", "output": "No."}] * 3
    there = source(written(tmp_path, *records, {**records[0], "completion": None}))
    assert len(list(there.documents())) == 3
    assert there.skipped == {"record without a question and its answer": 1}
    # A field that is named is the only one.
    there = source(written(tmp_path, {"text": "A text."}, FORMS["messages"]), "text")
    assert len(list(there.documents())) == 1
