"""The first phase tries everything that writing the student needs later."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.channel.channel import Channel
from engine.channel.events import EventWriter, read_events
from engine.errors import FolderError, ModelError, SettingsError, TokenizerMismatch
from engine.model_files.spec import read_spec
from engine.phases.prepare import check_end, check_named_layers
from tests.engine.models.architectures import tiny_architecture
from tests.jobs import prepare_job
from tests.tiny import tiny_model


@pytest.fixture
def events(tmp_path: Path) -> Iterator[EventWriter]:
    writer = EventWriter(tmp_path / "events.jsonl", phase="prepare")
    yield writer
    writer.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model("llama", num_layers=2, seed=1), tmp_path / "source")


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **changes}))


def check(folder: Path, events: EventWriter) -> None:
    check_end(read_spec(folder), read_spec(tiny_model("llama")), folder.parent / "student", Channel(events))


def test_a_student_with_the_teachers_tokenizer_passes_and_nothing_is_left(folder: Path, events: EventWriter) -> None:
    check(folder, events)
    assert sorted(entry.name for entry in folder.parent.iterdir()) == ["events.jsonl", "source"]
    assert not list(read_events(folder.parent / "events.jsonl"))


@pytest.mark.parametrize("kind", ["FutureSplit", "", None])
def test_a_tokenizer_that_cannot_be_loaded_is_found(folder: Path, events: EventWriter, kind: str | None) -> None:
    edit(folder / "tokenizer.json", pre_tokenizer={"type": kind})
    with pytest.raises(ModelError, match="cannot be loaded"):
        check(folder, events)


@pytest.mark.parametrize("value", [5, "x", {"a": 5}])
def test_special_tokens_that_cannot_be_are_found(folder: Path, events: EventWriter, value: object) -> None:
    edit(folder / "tokenizer_config.json", extra_special_tokens=value)
    with pytest.raises(ModelError, match="cannot be loaded"):
        check(folder, events)


def test_a_tokenizer_that_cuts_text_in_another_way_is_found(folder: Path, events: EventWriter) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    edit(folder / "tokenizer.json", pre_tokenizer={**content["pre_tokenizer"], "add_prefix_space": True})
    with pytest.raises(TokenizerMismatch, match="cut text in different ways"):
        check(folder, events)


def test_settings_that_generation_refuses_are_told_at_once(folder: Path, events: EventWriter) -> None:
    edit(folder / "generation_config.json", num_return_sequences=2)
    check(folder, events)
    told = [event["message"] for event in read_events(folder.parent / "events.jsonl")]
    assert len(told) == 1
    assert "num_return_sequences = 2" in told[0]


def test_a_place_where_no_folder_can_be_is_found(folder: Path, events: EventWriter) -> None:
    (folder.parent / "student").write_text("a file")
    with pytest.raises(FolderError, match="is not a folder"):
        check(folder, events)


def _named(teacher: Path, layers: object, student: str = "from-teacher") -> None:
    check_named_layers(read_spec(teacher), prepare_job(teacher=str(teacher), student=student, student_layers=layers))


@pytest.mark.parametrize("name", ["diffllama", "zamba2"])
def test_named_layers_that_are_no_model_are_refused_in_words(name: str) -> None:
    folder = tiny_architecture(name)
    total = read_spec(folder).num_layers
    layers = ",".join(map(str, [0, *range(2, total)]))
    with pytest.raises(SettingsError) as refusal:
        _named(folder, layers)
    assert f"--student_layers {layers}: these layers do not fit together" in str(refusal.value)
    assert "layers alone" in refusal.value.todo
    _named(folder, ",".join(map(str, range(total))))
    _named(folder, total - 1)  # a number alone: layers that fit are chosen


def test_named_layers_that_are_a_model_pass() -> None:
    _named(tiny_model("llama"), "0,2,3")
    _named(tiny_model("llama"), 3)
