from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.data.chat_lengths import conversation_lengths
from engine.data.chat_template import REFUSED, UNKNOWN_ROLE
from engine.data.document import Document
from engine.data.tokenise import DocumentTokeniser
from engine.model_files.vocabulary import read_vocabulary
from tests.engine.data.chat_templates import FAMILIES, LLAMA3, QWEN3, tokenizer_with

TURNS = (
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What leaves records?"},
    {"role": "assistant", "content": "The teacher."},
    {"role": "user", "content": "Who learns?"},
    {"role": "assistant", "content": "The student, ünïcödé 漢字."},
)
TOOLS = [{"type": "function", "function": {"name": "add", "description": "adds", "parameters": {}}}]


@pytest.mark.parametrize("name", FAMILIES)
def test_lengths_are_those_of_the_run(tmp_path: Path, name: str) -> None:
    tokenizer = tokenizer_with(FAMILIES[name].template)
    tokenizer.save_pretrained(tmp_path)
    fields = {"tools": TOOLS} if FAMILIES[name].template in (QWEN3, LLAMA3) else {}
    documents = [Document("a", "", TURNS, fields), Document("b", "", TURNS[1:3]), Document("text", "text")]
    lengths = conversation_lengths(documents, tmp_path, read_vocabulary(tmp_path))
    tokeniser = DocumentTokeniser(tokenizer, "folder")
    found = [tokeniser.conversation(document.messages or (), document.fields) for document in documents[:2]]
    ends = 0 if name == "alpaca" else 1  # of that family the tokeniser ends the text itself
    assert lengths == [len(each.ids) + ends for each in found if each is not None]


def test_what_the_template_refuses_has_no_length(tmp_path: Path) -> None:
    tokenizer_with(FAMILIES["gemma"].template).save_pretrained(tmp_path)
    documents = [Document("a", "", TURNS[2:]), Document("b", "", TURNS[1:])]
    first, second = conversation_lengths(documents, tmp_path, read_vocabulary(tmp_path)) or []
    assert first == f"{REFUSED} (Conversation roles must alternate user/assistant/user/assistant/...)"
    assert isinstance(second, int)


@pytest.mark.parametrize("template", ["You help.", "{{ messages[0].content }}", "{{ raise_exception('None today') }}"])
def test_the_plan_and_the_preparation_give_the_same_reason(tmp_path: Path, template: str) -> None:
    tokenizer = tokenizer_with(template)
    tokenizer.save_pretrained(tmp_path)
    (reason,) = conversation_lengths([Document("a", "", TURNS)], tmp_path, read_vocabulary(tmp_path)) or []
    tokeniser = DocumentTokeniser(tokenizer, "folder")
    assert tokeniser.conversation(TURNS) is None
    assert list(tokeniser.skipped) == [reason]


def test_a_role_that_the_template_does_not_name_has_no_length(tmp_path: Path) -> None:
    tokenizer_with(FAMILIES["chatml"].template).save_pretrained(tmp_path)
    turns = ({"role": "customer", "content": "What?"}, *TURNS[1:])
    documents = [Document("a", "", turns), Document("b", "", TURNS[1:])]
    first, second = conversation_lengths(documents, tmp_path, read_vocabulary(tmp_path)) or []
    assert first == UNKNOWN_ROLE
    assert isinstance(second, int)


def test_without_tokenizer_json_nothing_is_counted(tmp_path: Path) -> None:
    tokenizer_with(None).save_pretrained(tmp_path)
    vocabulary = read_vocabulary(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert conversation_lengths([Document("b", "", TURNS)], tmp_path, vocabulary) is None
    (tmp_path / "tokenizer.json").unlink()
    assert conversation_lengths([Document("b", "", TURNS)], tmp_path, vocabulary) is None


def test_counting_does_not_load_transformers() -> None:
    import subprocess
    import sys

    program = (
        "import sys; from pathlib import Path; from engine.data.chat_lengths import conversation_lengths\n"
        "import engine.planner.text\n"
        f"print(json.dumps(sorted(set({json.dumps(['torch', 'transformers'])}) & set(sys.modules))))"
    )
    found = subprocess.run(
        [sys.executable, "-c", f"import json; {program}"], capture_output=True, text=True, check=True
    )
    assert json.loads(found.stdout) == []
