from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.data import survey as survey_module
from engine.data.document import Document
from engine.data.python_docs import python_documents
from engine.data.survey import survey
from engine.data.tally import NO_ANSWER, NOT_LEARNED
from engine.errors import DataError


def test_small_folder_is_counted_exactly(tmp_path: Path) -> None:
    for number in range(7):
        (tmp_path / f"{number}.md").write_text(f"# {number}\n" + "word " * 200)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    found = survey(str(tmp_path))
    assert (found.files, found.documents, found.kinds) == (7, 7, {".md": 7})
    assert found.bytes == found.characters == 7 * (4 + 1000)
    assert found.estimated_tokens == 7 * 1004 // 4
    assert found.skipped == {".png file": 1}
    assert found.sampled == 1.0
    assert [document.name for document in found.preview] == [f"{number}.md" for number in range(7)]


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "json", "csv"])
def test_large_file_is_estimated_from_its_beginning(tmp_path: Path, suffix: str) -> None:
    texts = ["Some words of a sentence. " * (10 + number % 30) for number in range(25_000)]
    path = tmp_path / f"large.{suffix}"
    if suffix == "txt":
        path.write_text("\n\n".join(texts))
    elif suffix == "jsonl":
        path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    elif suffix == "json":
        path.write_text(json.dumps([{"text": text} for text in texts]))
    else:
        path.write_text("text\n" + "\n".join(texts))
    found = survey(str(path))
    assert found.sampled < 0.5
    assert found.characters == pytest.approx(sum(map(len, texts)), rel=0.1)
    if suffix != "txt":
        assert found.documents == pytest.approx(25_000, rel=0.1)


@pytest.mark.slow
def test_many_files_are_estimated_from_some_of_them(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / f"{number:04}.txt").write_text("a word " * (1 + number % 7))
    found = survey(str(tmp_path))
    assert found.files == 1000
    assert found.sampled < 0.5
    assert found.documents == pytest.approx(1000, rel=0.1)


def test_conversations_and_the_field_are_found(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"id": "a", "messages": turns}) + "\n")
    found = survey(str(tmp_path / "chat.jsonl"))
    assert found.has_messages
    assert (found.text_field, found.fields) == ("messages", ("id", "messages"))
    assert found.preview[0].text == "user: Hello?\n\nassistant: Yes."


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"content": ""}, NO_ANSWER),
        ({"content": " \n"}, NO_ANSWER),
        ({"content": None}, NO_ANSWER),
        ({"content": "Here.", "weight": 0}, NOT_LEARNED),
        ({"content": "Here.", "train": False}, NOT_LEARNED),
        (None, NO_ANSWER),
        ({"content": "", "tool_calls": [{"function": {"name": "add", "arguments": {}}}]}, None),
        ({"content": "", "reasoning_content": "hm"}, None),
    ],
)
def test_what_teaches_nothing_is_told_before_a_run(tmp_path: Path, answer: Any, reason: str | None) -> None:
    asked = {"role": "user", "content": "Where?"}
    whole = [asked, {"role": "assistant", "content": "There."}]
    chats = [whole, whole, [asked] if answer is None else [asked, {"role": "assistant", **answer}]]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    lost = survey(str(tmp_path)).left_out
    assert lost is not None
    assert lost.lost == ({reason: 1} if reason else {})


def test_wrong_field_is_an_error_with_those_that_exist(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "Why is it so?", "answer": "Because it is."}\n')
    with pytest.raises(DataError, match="no field 'txt'") as caught:
        survey(str(tmp_path), text_field="txt")
    assert "'question', 'answer'" in caught.value.why


def test_cancelling_ends_it_with_what_is_known(tmp_path: Path) -> None:
    for number in range(50):
        (tmp_path / f"{number}.txt").write_text("a word " * 5)
    seen: list[tuple[int, int]] = []
    found = survey(str(tmp_path), cancelled=lambda: len(seen) >= 3, on_progress=lambda *counts: seen.append(counts))
    assert found.cancelled
    assert seen == [(1, 50), (2, 50), (3, 50)]
    assert found.files == 50
    assert survey(str(tmp_path), cancelled=lambda: True).documents is None


@pytest.mark.slow
def test_built_in_text_is_about_as_large_as_is_said_without_reading_it() -> None:
    found = survey("python-docs", previews=0)
    assert found.preview == ()
    documents = list(python_documents())
    assert found.documents == pytest.approx(len(documents), rel=0.2)
    assert found.characters == pytest.approx(sum(len(document.text) for document in documents), rel=0.2)


def test_built_in_text_is_shown_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [Document(f"topic {number}", "long " * 1000) for number in range(5)]
    monkeypatch.setattr(survey_module, "python_documents", lambda: iter(documents))
    shown = survey("python-docs", previews=2).preview
    assert [document.name for document in shown] == ["topic 0", "topic 1"]
    assert len(shown[0].text) == 2000


def test_looking_loads_no_heavy_library() -> None:
    heavy = {"torch", "transformers", "numpy", "h5py", "datasets", "pyarrow"}
    code = (
        "import sys; from engine.data.survey import survey; survey('python-docs', previews=0);"
        f"print(sorted({heavy!r} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
