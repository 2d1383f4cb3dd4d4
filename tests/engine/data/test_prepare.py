"""Phase 0 as a whole, on tiny models and texts written here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.channel.control import PhaseControl
from engine.channel.events import read_events
from engine.data.document import Document
from engine.data.holdout import FEWEST_HOLDOUT_ROWS, MOST_HOLDOUT_ROWS, is_holdout, wanted_holdout_rows
from engine.data.passes import QUESTION_TOO_LONG
from engine.data.prepare import PrepareResult
from engine.data.tally import Tally
from engine.data.tokens import TokenFile
from engine.errors import DataError, SettingsError, Stopped
from engine.model_files.spec import read_spec
from engine.models.load import load_tokenizer
from tests.engine.data.small_data import TEMPLATE, make_bos_model, make_chat_model, run_prepare, texts_of, write_chats
from tests.tiny import MAX_POSITIONS, VOCAB_SIZE, tiny_model, tiny_texts

EOS = 0


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A folder of 60 short texts, each of which says its number."""
    folder = tmp_path / "notes"
    folder.mkdir()
    for number, text in enumerate(tiny_texts(60)):
        (folder / f"{number:02}.txt").write_text(f"[{number}] {text}\n")
    return folder


def run(data: Path | str, tmp_path: Path, **other: Any) -> PrepareResult:
    return run_prepare(data, tmp_path / "tokens.h5", **other)


def logs(tmp_path: Path) -> dict[str, str]:
    return {
        event.get("code", ""): event["message"]
        for event in read_events(tmp_path / "events.jsonl")
        if event["kind"] == "log"
    }


def test_every_document_is_on_the_side_that_its_text_tells_and_none_is_lost(notes: Path, tmp_path: Path) -> None:
    result = run(notes, tmp_path)
    written = [path.read_text() for path in sorted(notes.iterdir())]
    assert texts_of(tmp_path / "tokens.h5", "train") == [text for text in written if not is_holdout(text, 0.2)]
    assert texts_of(tmp_path / "tokens.h5", "holdout") == [text for text in written if is_holdout(text, 0.2)]
    assert result.documents + result.holdout_documents == 60
    assert result.vocab_size == VOCAB_SIZE
    with TokenFile(tmp_path / "tokens.h5") as file:
        begins = file.rows("train", range(result.train_rows)).begins.sum()
    assert begins > result.train_rows
    assert result.train_scored == result.train_tokens - begins, "all but the first of each document"
    assert [path.name for path in tmp_path.glob("tokens*")] == ["tokens.h5"]


def test_one_text_file_is_enough(tmp_path: Path) -> None:
    story = "\n\n".join(tiny_texts(60))
    (tmp_path / "story.txt").write_text(story)
    for characters in (2_000, 20_000, len(story)):
        (tmp_path / "story.txt").write_text(story[:characters])
        result = run(tmp_path / "story.txt", tmp_path, holdout=0.05)
        assert result.train_rows > result.holdout_rows > 0
        both = "".join(texts_of(tmp_path / "tokens.h5", "train") + texts_of(tmp_path / "tokens.h5", "holdout"))
        assert len(both) == characters
    assert "fine-holdout" in logs(tmp_path)


def test_a_single_short_text_cannot_be_split_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("Just this.")
    with pytest.raises(DataError, match="too little text"):
        run(tmp_path / "note.txt", tmp_path)
    assert not list(tmp_path.glob("tokens*"))


def test_equal_texts_are_not_called_too_little_text(tmp_path: Path) -> None:
    """More of them, or another --holdout, would not have helped."""
    (tmp_path / "notes.jsonl").write_text((json.dumps({"text": "The lamp is on the table."}) + "\n") * 80)
    with pytest.raises(DataError, match=r"The 80 texts of .* are one and the same") as caught:
        run(tmp_path / "notes.jsonl", tmp_path)
    assert caught.value.todo == "Give different texts."


def test_samples_are_at_most_that_many_rows_and_reading_ends_there(notes: Path, tmp_path: Path) -> None:
    endless = _Endless()
    result = run(notes, tmp_path, source=endless, samples=7)
    assert result.train_rows == 7
    assert result.holdout_rows == FEWEST_HOLDOUT_ROWS
    assert endless.count < 10_000


def test_holdout_rows_stay_within_bounds() -> None:
    assert wanted_holdout_rows(None, 0.5) == MOST_HOLDOUT_ROWS
    assert wanted_holdout_rows(1_000_000, 0.05) == MOST_HOLDOUT_ROWS
    assert wanted_holdout_rows(500, 0.05) == 27
    assert wanted_holdout_rows(1, 0.05) == FEWEST_HOLDOUT_ROWS


def test_fewer_rows_than_samples_are_told(notes: Path, tmp_path: Path) -> None:
    result = run(notes, tmp_path, samples=100_000)
    assert f"The text gives {result.train_rows} rows, not 100,000." in logs(tmp_path)["fewer-rows"]


def test_without_packing_each_document_has_its_own_rows(notes: Path, tmp_path: Path) -> None:
    result = run(notes, tmp_path, packing=False, sequence_length=MAX_POSITIONS)
    assert result.train_rows >= result.documents
    with TokenFile(tmp_path / "tokens.h5") as file:
        rows = file.rows("train", range(file.num_rows("train")))
    for row, length in zip(rows.tokens, rows.lengths, strict=True):
        assert EOS not in row[: length - 1]


def test_same_settings_leave_the_same_file(notes: Path, tmp_path: Path) -> None:
    run(notes, tmp_path)
    first = (tmp_path / "tokens.h5").read_bytes()
    (tmp_path / "tokens.h5").unlink()
    run(notes, tmp_path)
    assert (tmp_path / "tokens.h5").read_bytes() == first


def test_stopping_leaves_no_file(notes: Path, tmp_path: Path) -> None:
    control = PhaseControl()
    control._stop = True
    with pytest.raises(Stopped):
        run(notes, tmp_path, control=control)
    assert not list(tmp_path.glob("tokens*"))


def test_stopping_in_the_middle_leaves_no_file_and_the_old_one_as_it_was(notes: Path, tmp_path: Path) -> None:
    run(notes, tmp_path)
    before = (tmp_path / "tokens.h5").read_bytes()
    control = PhaseControl()
    endless = _Endless(stop=lambda: setattr(control, "_stop", True), after=2_000)
    with pytest.raises(Stopped):
        run(notes, tmp_path, control=control, source=endless)
    assert 2_000 <= endless.count < 5_000
    assert (tmp_path / "tokens.h5").read_bytes() == before
    assert [path.name for path in tmp_path.glob("tokens*")] == ["tokens.h5"]


def test_no_word_of_the_text_is_in_the_events(tmp_path: Path) -> None:
    rows = [{"text": f"xyzzy {number} " * 30} for number in range(50)] + [{"text": "xyzzy\0"}, {"text": ""}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\nxyzzy is no JSON\n")
    run(tmp_path / "rows.jsonl", tmp_path)
    told = (tmp_path / "events.jsonl").read_text()
    assert "xyzzy" not in told
    assert logs(tmp_path)["skipped"] == (
        "3 of 53 documents left out: 1 × broken JSON, 1 × document with NUL characters, 1 × empty document, "
        "for example rows.jsonl 51."
    )


def test_progress_ends_with_all_rows(notes: Path, tmp_path: Path) -> None:
    result = run(notes, tmp_path)
    progress = [event for event in read_events(tmp_path / "events.jsonl") if event["kind"] == "progress"]
    assert progress[-1]["done"] == progress[-1]["total"] == result.train_rows + result.holdout_rows


def test_a_row_longer_than_the_models_read_is_refused_before_anything_is_read(notes: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f"the student reads at most {MAX_POSITIONS} tokens"):
        run(notes, tmp_path, sequence_length=MAX_POSITIONS + 1)
    assert not list(tmp_path.glob("tokens*"))


# Conversations


@pytest.fixture
def chat_model(tmp_path: Path) -> Path:
    return make_chat_model(tmp_path / "chat-model")


@pytest.mark.parametrize("packing", [True, False])
def test_of_conversations_only_the_answers_are_labels(tmp_path: Path, chat_model: Path, packing: bool) -> None:
    path = write_chats(tmp_path / "chat.jsonl")
    spec = read_spec(chat_model)
    result = run(path, tmp_path, teacher=spec, student=None, packing=packing, sequence_length=64)
    with TokenFile(tmp_path / "tokens.h5") as file:
        rows = file.rows("train", range(file.num_rows("train")))
    tokenizer = load_tokenizer(chat_model)
    said = tokenizer.decode(rows.tokens[rows.scored].tolist())
    assert result.chat_template_sha
    assert "question" not in said
    assert "<assistant>" not in said
    assert "answer 7<|endoftext|>" in said
    assert result.train_scored == rows.scored.sum() < result.train_tokens / 2


def test_conversations_without_any_answer_are_an_error_that_says_why(tmp_path: Path, chat_model: Path) -> None:
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "Hello?"}]}))
    with pytest.raises(DataError, match="No conversation") as caught:
        run(tmp_path / "chat.jsonl", tmp_path, teacher=read_spec(chat_model), student=None)
    assert "conversation without an answer" in caught.value.why
    assert not list(tmp_path.glob("tokens*"))


def test_conversations_for_a_model_without_a_template_are_written_plainly_and_that_is_told(tmp_path: Path) -> None:
    result = run(write_chats(tmp_path / "chat.jsonl"), tmp_path, sequence_length=64)
    assert result.plain_template
    assert "no chat template" in (tmp_path / "events.jsonl").read_text()
    with TokenFile(tmp_path / "tokens.h5") as file:
        rows = file.rows("train", range(file.num_rows("train")))
    tokenizer = load_tokenizer(tiny_model())
    assert "User: question 7\n\nAssistant: answer 7<|endoftext|>" in tokenizer.decode(rows.tokens.flatten().tolist())
    assert "question" not in tokenizer.decode(rows.tokens[rows.scored].tolist())


def test_the_way_out_of_the_plain_template_is_one_in_the_teachers_folder(tmp_path: Path, chat_model: Path) -> None:
    result = run(write_chats(tmp_path / "chat.jsonl"), tmp_path, teacher=read_spec(chat_model), student=None)
    assert not result.plain_template
    assert "no chat template" not in (tmp_path / "events.jsonl").read_text()


def _write_half_refused(path: Path, refused: int, good: int) -> None:
    """Conversations, the first of which the template does not take."""
    rows = [[{"role": "assistant", "content": f"answer {n}"}] for n in range(refused)]
    rows += [
        [{"role": "user", "content": f"question {n}"}, {"role": "assistant", "content": f"answer {n}"}]
        for n in range(good)
    ]
    path.write_text("\n".join(json.dumps({"messages": row}) for row in rows))


@pytest.fixture
def strict_model(tmp_path: Path) -> Path:
    folder = make_chat_model(tmp_path / "strict-model")
    refusing = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('user first') }}{% endif %}" + TEMPLATE
    (folder / "chat_template.jinja").write_text(refusing)
    return folder


@pytest.mark.parametrize("good", [2, 3, 10, 40])
def test_the_hold_out_is_drawn_of_conversations_that_can_be_used(tmp_path: Path, strict_model: Path, good: int) -> None:
    _write_half_refused(tmp_path / "chat.jsonl", refused=40, good=good)
    result = run(
        tmp_path / "chat.jsonl",
        tmp_path,
        teacher=read_spec(strict_model),
        student=None,
        holdout=0.001,
        packing=False,
        allow_losses=True,
    )
    assert min(result.train_rows, result.holdout_rows) >= 1
    assert result.documents + result.holdout_documents == good
    assert result.skipped == {"conversation that the chat template refuses (user first)": 40}


def test_too_few_conversations_that_can_be_used_are_told_with_the_others(tmp_path: Path, strict_model: Path) -> None:
    _write_half_refused(tmp_path / "chat.jsonl", refused=40, good=1)
    with pytest.raises(DataError, match="too little text") as caught:
        run(tmp_path / "chat.jsonl", tmp_path, teacher=read_spec(strict_model), student=None)
    assert (
        "40 of 41 conversations left out: 40 × conversation that the chat template refuses (user first), "
        "for example chat.jsonl 1."
    ) in caught.value.why


def test_what_is_read_and_not_learned_is_told(tmp_path: Path, strict_model: Path) -> None:
    rows = [
        [{"role": "user", "content": f"q {n}"}, {"role": "assistant", "content": f"a {n}", "weight": n % 2}]
        for n in range(40)
    ]
    (tmp_path / "chat.jsonl").write_text("\n".join(json.dumps({"messages": 2 * row}) for row in rows))
    result = run(tmp_path / "chat.jsonl", tmp_path, teacher=read_spec(strict_model), student=None, sequence_length=64)
    assert result.skipped == {"conversation of which every answer has the weight 0": 20}
    (tmp_path / "chat.jsonl").write_text("\n".join(json.dumps({"messages": rows[0] + row}) for row in rows[1:]))
    result = run(tmp_path / "chat.jsonl", tmp_path, teacher=read_spec(strict_model), student=None, sequence_length=64)
    assert result.noted["answer with the weight 0 (read, not learned)"] >= 20
    assert "Of the conversations: 20 × answer with the weight 0" in (tmp_path / "events.jsonl").read_text()


def test_questions_that_fill_rows_ask_for_longer_rows(tmp_path: Path, chat_model: Path) -> None:
    path = write_chats(tmp_path / "chat.jsonl", 20)
    path.write_text(path.read_text().replace("question", "some words more than a row has"))
    with pytest.raises(DataError, match="No conversation") as caught:
        run(path, tmp_path, teacher=read_spec(chat_model), student=None, sequence_length=16)
    assert f"20 × {QUESTION_TOO_LONG}" in caught.value.why
    assert "--sequence_length" in caught.value.todo
    run(path, tmp_path, teacher=read_spec(chat_model), student=None, sequence_length=128)  # the way out


@pytest.mark.parametrize("packing", [True, False])
def test_a_conversation_whose_question_fills_a_row_is_left_out_and_counted(
    tmp_path: Path, chat_model: Path, packing: bool
) -> None:
    path = write_chats(tmp_path / "chat.jsonl")
    long_question = [{"role": "user", "content": "long " * 300}, {"role": "assistant", "content": "short"}]
    path.write_text(path.read_text() + "\n" + json.dumps({"messages": long_question}))
    result = run(path, tmp_path, teacher=read_spec(chat_model), student=None, packing=packing, sequence_length=64)
    assert result.skipped == {QUESTION_TOO_LONG: 1}
    assert (result.conversations, result.cut) == (41, 1)
    with TokenFile(tmp_path / "tokens.h5") as file:
        assert file.rows("train", range(file.num_rows("train"))).scored.any(axis=1).all()


def test_rows_begin_with_a_conversation_and_cut_ones_are_told_with_a_way_out(tmp_path: Path, chat_model: Path) -> None:
    path = write_chats(tmp_path / "chat.jsonl", answer="answer {} and more " + "words " * 12)
    spec = read_spec(chat_model)
    result = run(path, tmp_path, teacher=spec, student=None, sequence_length=64)
    assert (result.conversations, result.cut) == (40, 40)
    told = (tmp_path / "events.jsonl").read_text()
    assert "40 of 40 conversations are longer than a row of 64 tokens" in told
    assert "--sequence_length" in told
    with TokenFile(tmp_path / "tokens.h5") as file:
        rows = file.rows("train", range(file.num_rows("train")))
        tokenizer = load_tokenizer(chat_model)
        assert file.end_ids == {tokenizer.eos_token_id}
    assert all(tokenizer.decode(row.tolist()).startswith("<user>question") for row in rows.tokens)
    (tmp_path / "events.jsonl").unlink()
    result = run(path, tmp_path, teacher=spec, student=None, sequence_length=128)
    assert result.cut == 0
    assert "longer than a row" not in (tmp_path / "events.jsonl").read_text()


def test_models_that_expect_a_beginning_find_it_in_each_row(tmp_path: Path, notes: Path) -> None:
    folder = make_bos_model(tmp_path / "model")
    run(notes, tmp_path, teacher=read_spec(folder), student=None)
    with TokenFile(tmp_path / "tokens.h5") as file:
        rows = file.rows("train", range(file.num_rows("train")))
    assert (rows.tokens[:, 0] == 1).all()


def test_tokenizer_without_an_end_of_text_is_told(tmp_path: Path, notes: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model(), folder)
    for name in ("tokenizer_config.json", "config.json"):
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({key: value for key, value in settings.items() if "eos" not in key}))
    run(notes, tmp_path, teacher=read_spec(folder), student=None)
    assert "no-eos" in logs(tmp_path)
    with TokenFile(tmp_path / "tokens.h5") as file:
        assert file.eos_id is None
        assert not (file.rows("train", range(file.num_rows("train"))).tokens == EOS).any()


class _Endless:
    """A source that never ends, for a reader that has to."""

    whole_documents = False
    total_bytes = bytes_read = 0

    def __init__(self, stop: Callable[[], None] = lambda: None, after: int = 0) -> None:
        self.skipped: dict[str, int] = {}
        self.tally = Tally()
        self.files: list[Path] = []
        self.count = 0
        self._stop = stop
        self._after = after

    def documents(self) -> Iterator[Document]:
        while True:
            self.count += 1
            self.tally.documents += 1
            if self.count == self._after:
                self._stop()
            yield Document(f"{self.count}", f"{self.count} " * 40)
