from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ModelError
from engine.model_files import descriptions as module
from engine.model_files import spec as specs
from engine.model_files import vocabulary as vocabularies
from engine.model_files.descriptions import Descriptions
from engine.model_files.hub import resolve_model
from engine.model_files.spec import read_spec
from engine.model_files.vocabulary import forget_vocabularies, read_vocabulary
from engine.planner import plan
from engine.run.request import check_request
from engine.settings.config import RunConfig
from tests.tiny import tiny_model

HOUR_NS = 3600 * 10**9


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as unchanged for long at once."""
    monkeypatch.setattr(module, "_SETTLED_NS", -HOUR_NS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(tiny_model("llama"), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.usefixtures("settled")
def test_a_model_is_described_again_when_a_file_changes(folder: Path) -> None:
    first = read_spec(folder)
    assert read_spec(folder) is first
    assert read_spec(folder, trust_remote_code=True) is not first
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 77}))
    assert read_spec(folder).max_positions == 77
    before = read_vocabulary(folder)
    assert read_vocabulary(folder) is before
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert read_vocabulary(folder).chat_template == "{{ messages }}"


@pytest.mark.usefixtures("settled")
def test_a_weight_file_that_is_cut_short_is_noticed(folder: Path) -> None:
    read_spec(folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(ModelError):
        read_spec(folder)


@pytest.mark.usefixtures("settled")
def test_weights_that_a_stand_in_has_elsewhere_are_looked_at(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    wrapped = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "text_config": config}
    (folder / "config.json").write_text(json.dumps(wrapped))
    first = read_spec(folder)
    assert first.path == resolve_model(folder) != folder
    assert read_spec(folder) is first
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(ModelError):
        read_spec(folder)


@pytest.mark.usefixtures("settled")
def test_the_vocabularies_that_are_kept_can_be_given_back(folder: Path) -> None:
    before = read_vocabulary(folder)
    forget_vocabularies()
    assert read_vocabulary(folder) is not before


def test_a_description_of_files_that_have_just_changed_is_not_kept(folder: Path) -> None:
    first = read_spec(folder)
    assert read_spec(folder) == first
    assert read_spec(folder) is not first


@pytest.mark.usefixtures("settled")
def test_the_oldest_description_goes_first(tmp_path: Path) -> None:
    files = [tmp_path / name for name in "abc"]
    for file in files:
        file.write_text("")
    kept: Descriptions[list[Path]] = Descriptions(2)

    def of(file: Path) -> list[Path]:
        return kept.of(file, lambda: [file], lambda found: found)

    a, _, c = [of(file) for file in files]
    assert of(files[2]) is c
    assert of(files[0]) is not a


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("student", ["of its own", "from-teacher"])
def test_the_plan_of_a_new_run_describes_each_model_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, student: str
) -> None:
    read: Counter[str] = Counter()

    def counted(owner: Any) -> None:
        before = owner._read

        def now(path: Any, *rest: Any) -> Any:
            read[f"{owner.__name__.rpartition('.')[2]} {Path(path).name}"] += 1
            return before(path, *rest)

        monkeypatch.setattr(owner, "_read", now)

    for owner in (specs, vocabularies):
        counted(owner)
    for name in ("teacher", "student"):
        shutil.copytree(tiny_model("llama", seed=len(name)), tmp_path / name)
    (tmp_path / "text.txt").write_text("Some words of a text.\n" * 500)
    other = str(tmp_path / "student") if student == "of its own" else student
    config = RunConfig(
        teacher=str(tmp_path / "teacher"),
        student=other,
        data=str(tmp_path / "text.txt"),
        steps=2,
        output_dir=tmp_path / "run",
    )
    check_request(plan(config, strict=False).settings)
    plan(config, strict=False)
    models = ["teacher", "student"] if student == "of its own" else ["teacher"]
    assert read == {f"{kind} {model}": 1 for kind in ("spec", "vocabulary") for model in models}
