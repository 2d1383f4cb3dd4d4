from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from engine.cache.store import CacheIdentity, CacheStore
from engine.channel.channel import Channel
from engine.channel.events import EventWriter
from engine.cli.cache import main
from engine.data.tokens import SPLITS, TokenFile, TokenFileWriter
from engine.errors import CacheMismatch, FolderError
from engine.model_files.spec import fingerprint, read_spec
from engine.models.resident import ResidentTeacher
from engine.models.streaming.teacher import StreamedTeacher
from engine.phases.rescore import rescore
from engine.teacher.score import ScoreSettings, score
from tests.engine.student.small_run import SEQUENCE_LENGTH, make_rows
from tests.pretend_gpu import pretend_gpu
from tests.tiny import VOCAB_SIZE, tiny_model


def a_run(folder: Path, *, scored_by: Path, claimed: Path) -> Path:
    """A run with text and with records that one teacher made and another is said to have made; returns the cache."""
    folder.mkdir()
    with TokenFileWriter(
        folder / "tokens.h5", sequence_length=SEQUENCE_LENGTH, vocab_size=VOCAB_SIZE, pad_id=1, eos_id=0, attributes={}
    ) as writer:
        for split, count in (("train", 12), ("holdout", 4)):
            for row in make_rows(count, count, short=True):
                writer.add(split, row)
        writer.commit()
    identity = CacheIdentity(fingerprint(read_spec(claimed)), "", "", 1.0, 8, VOCAB_SIZE, 0, "fp32", "none")
    with TokenFile(folder / "tokens.h5") as tokens, CacheStore.open(folder / "cache", identity, writable=True) as store:
        score(
            teacher=ResidentTeacher(scored_by, dtype=torch.float32),
            tokens=tokens,
            store=store,
            splits=SPLITS,
            channel=Channel(EventWriter(folder / "events.jsonl")),
            settings=ScoreSettings(
                micro_batch=3, wave_tokens=200, chunk_tokens=16, record_size=8, temperature=1.0, seed=0
            ),
        )
    (folder / "run.json").write_text(json.dumps({"settings": {"teacher": str(claimed)}}))
    return folder / "cache"


@pytest.fixture(scope="module")
def teachers() -> tuple[Path, Path]:
    return tiny_model("llama"), tiny_model("llama", seed=9)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory, teachers: tuple[Path, Path]) -> Path:
    return a_run(tmp_path_factory.mktemp("honest") / "run", scored_by=teachers[0], claimed=teachers[0])


@pytest.fixture(scope="module")
def false(tmp_path_factory: pytest.TempPathFactory, teachers: tuple[Path, Path]) -> Path:
    return a_run(tmp_path_factory.mktemp("false") / "run", scored_by=teachers[1], claimed=teachers[0])


def test_the_same_teacher_says_the_same_again_whatever_the_micro_batch(honest):
    with CacheStore.look(honest) as store:
        found = rescore(store, 100, None)
    assert found.rows == 16
    assert found.agrees
    assert found.overlap > 0.99
    assert found.label_difference < 0.01


def test_records_of_another_teacher_are_found_out_though_every_checksum_is_right(false):
    with CacheStore.look(false) as store:
        found = rescore(store, 6, None)
    assert found.rows == 6
    assert not found.agrees


def test_verify_tells_of_it_and_exits_4(honest, false, capsys):
    assert main(["verify", str(honest), "--rescore", "3"]) == 0
    assert "3 rows" in capsys.readouterr().out
    assert main(["verify", str(false)]) == 0
    assert main(["verify", str(false), "--rescore", "3"]) == 4
    assert "The teacher gives other records now" in capsys.readouterr().out


def test_another_teacher_than_the_manifest_names_is_refused(honest, teachers):
    with CacheStore.look(honest) as store, pytest.raises(CacheMismatch, match="is not the teacher of"):
        rescore(store, 2, str(teachers[1]))


def test_without_a_run_nobody_knows_the_words(honest, tmp_path):
    for file in honest.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with CacheStore.look(tmp_path) as store, pytest.raises(FolderError, match="No run is left"):
        rescore(store, 2, None)


@pytest.mark.parametrize("layer_by_layer", [False, True])
def test_records_are_scored_again_as_the_run_did_it(honest, tmp_path, monkeypatch, layer_by_layer):
    """On the run's device where that is here, and layer by layer where the whole teacher had no room."""
    settings_of = json.loads
    way = {"device": "cuda:0", "layer_by_layer": layer_by_layer}

    def loads(text):
        found = settings_of(text)
        if isinstance(found, dict) and "settings" in found:
            found["settings"] |= way
        return found

    monkeypatch.setattr("engine.phases.rescore.json.loads", loads)
    made = []
    for kind in (ResidentTeacher, StreamedTeacher):
        own = kind.__init__

        def begin(self, *arguments, own=own, **keywords):
            made.append((type(self).__name__, str(keywords["device"])))
            own(self, *arguments, **keywords)

        monkeypatch.setattr(kind, "__init__", begin)
    with CacheStore.look(honest) as store:
        assert rescore(store, 2, None).overlap > 0.99  # no such device is here
        with pretend_gpu():
            assert rescore(store, 2, None).overlap > 0.99
    kind = "StreamedTeacher" if layer_by_layer else "ResidentTeacher"
    assert made == [(kind, "cpu"), (kind, "cuda:0")]


def test_a_device_that_was_named_and_is_not_here_is_refused(honest, capsys):
    assert main(["verify", str(honest), "--rescore", "1", "--device", "xpu:7"]) == 2
    assert "torch finds no such device" in capsys.readouterr().err
