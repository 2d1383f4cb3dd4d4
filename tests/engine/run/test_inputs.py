"""A model that is exchanged under its name while a run is under way is refused by the phase that would work with it."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from engine.channel.channel import Channel
from engine.channel.events import EventWriter
from engine.errors import ModelError
from engine.model_files.spec import read_spec
from engine.model_files.vocabulary import read_vocabulary
from engine.phases import teacher as teacher_phase
from engine.phases.prepare import run_prepare
from engine.phases.student import first_student
from engine.phases.teacher import cache_identity, open_store, run_teacher
from engine.run.folder import Run
from engine.run.inputs import check_unchanged, moved
from engine.settings.config import RunConfig
from tests.end_to_end.program import write_texts
from tests.jobs import complete, prepare_job, score_job, train_job
from tests.tiny import VOCAB_SIZE, tiny_model


def other_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] += 0.5
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def other_words(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    one, two = list(vocabulary)[100:102]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (folder / "tokenizer.json").write_text(json.dumps(content))


def other_generation(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.5}))


class Prepared:
    """A run with copies of two models, whose text is read."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.teacher = shutil.copytree(tiny_model("llama"), folder / "teacher")
        self.student = shutil.copytree(tiny_model("llama", num_layers=2, seed=1), folder / "student")
        self.named = {"teacher": str(self.teacher), "student": str(self.student), **settings}
        self.named["data"] = str(write_texts(folder / "texts"))
        settings = RunConfig.parse(complete(**self.named).model_dump(mode="json", by_alias=True, exclude_unset=True))
        (folder / "run").mkdir()
        self.run = Run(folder / "run", {"settings": settings.model_dump(mode="json", by_alias=True)})
        self.channel = Channel(EventWriter(self.run.events_path))
        run_prepare(self.run, prepare_job(**self.named), self.channel)

    def score(self) -> None:
        run_teacher(self.run, score_job(VOCAB_SIZE, **self.named), self.channel)

    def begin(self) -> None:
        first_student(self.run, train_job(**self.named), self.channel)


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return Prepared(tmp_path)


@pytest.mark.parametrize(("exchange", "part"), [(other_weights, "weights"), (other_words, "tokenizer")])
def test_a_phase_refuses_a_model_that_is_not_the_one_of_the_preparation(
    prepared: Prepared, exchange: Callable[[Path], None], part: str
) -> None:
    """Only the teacher's weights were compared: another student was trained under the name of the first."""
    prepared.begin()
    exchange(prepared.teacher)
    with pytest.raises(ModelError, match=f"teacher is not the teacher that this run was prepared with: its {part} "):
        prepared.score()
    prepared.begin()  # the training does not read the teacher
    exchange(prepared.student)
    with pytest.raises(ModelError, match=f"student is not the student that this run was prepared with: its {part} "):
        prepared.begin()


def test_a_student_is_not_cut_from_another_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = Prepared(tmp_path, student="from-teacher", student_layers=2)
    other_words(prepared.teacher)
    monkeypatch.setattr(teacher_phase, "cut_student", lambda *_: pytest.fail("cut from another teacher"))
    with pytest.raises(ModelError, match="its tokenizer is another one"):
        teacher_phase._only_cut(prepared.run, score_job(VOCAB_SIZE, **prepared.named), None, prepared.channel)


def test_settings_of_generation_and_another_place_change_nothing(prepared: Prepared, tmp_path: Path) -> None:
    other_generation(prepared.student)
    prepared.begin()
    moved = prepared.student.rename(tmp_path / "elsewhere")
    check_unchanged(prepared.run, "student", read_spec(moved))


@pytest.mark.parametrize("entry", [
    lambda prepared: check_unchanged(prepared.run, "teacher", read_spec(prepared.teacher)),
    lambda prepared: cache_identity(Run(prepared.run.path / "none", {}), score_job(VOCAB_SIZE, **prepared.named), 8),
])  # fmt: skip
def test_a_phase_that_has_compared_a_vocabulary_does_not_keep_it(
    prepared: Prepared, entry: Callable[[Prepared], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Descriptions of files that have just changed are not kept.
    monkeypatch.setattr("engine.model_files.descriptions._SETTLED_NS", -(10**12))
    vocabulary = weakref.ref(read_vocabulary(prepared.teacher))
    assert vocabulary() is not None, "else this shows nothing"
    entry(prepared)
    assert vocabulary() is None


def test_records_that_were_moved_are_taken_from_the_folder_that_is_named(tmp_path: Path) -> None:
    """A folder for records that was named again was refused as another one, though the run's own records were there."""
    before = tmp_path / "before"
    prepared = Prepared(tmp_path, cache_dir=str(before))
    store = open_store(
        prepared.run, score_job(VOCAB_SIZE, **prepared.named), VOCAB_SIZE, prepared.channel, writable=True
    )
    store.close()
    after = before.rename(tmp_path / "after")
    (tmp_path / "empty").mkdir()
    assert moved(prepared.run, {"cache_dir": str(after)}) == {"cache_dir": str(after)}
    assert moved(prepared.run, {"cache_dir": str(tmp_path / "empty")}) == {}
    prepared.run.info["settings"]["temperature"] = 2.0
    assert moved(prepared.run, {"cache_dir": str(after)}) == {}, "records of other settings"


def test_a_model_that_was_moved_is_asked_for_by_its_flag(prepared: Prepared, tmp_path: Path) -> None:
    for name, begin in (("student", prepared.begin), ("teacher", prepared.score)):
        getattr(prepared, name).rename(tmp_path / f"{name} elsewhere")
        with pytest.raises(ModelError) as caught:
            begin()
        assert f"add its new place: --{name} FOLDER" in caught.value.todo
