"""Every protocol by which a run's files come to the disk, each in small: do it, and look at what a power cut left.

``work`` does the protocol's steps and says after each that it is done. ``check`` looks at a folder as a power cut has
left it: what was called done has to be there, and nothing that is there may be wrong. It raises AssertionError.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from engine.cache.check import damaged_shards
from engine.cache.record import Records
from engine.cache.store import CacheIdentity, CacheStore
from engine.data.tokens import SPLITS, TokenFile, TokenFileWriter
from engine.model_files.spec import read_spec
from engine.models.derive import derive_student
from engine.models.load import load_causal_lm
from engine.run.folder import FORMAT, Run
from engine.student.checkpoint import Checkpoints
from engine.student.export import export_student
from engine.student.trainable import WholeModel
from tests.crash.disk import Cuts, Disk, unplugged
from tests.engine.cache.some_records import wave
from tests.engine.student.small_run import make_rows
from tests.tiny import VOCAB_SIZE, tiny_model

Done = Callable[[int], None]


@dataclass(frozen=True)
class Protocol:
    """One of them.

    Attributes:
        begin: makes the folder as it is before; that is on the disk.
        work: does the steps; calls its second argument with 1, 2, … after each that is done.
        check: of a folder, with the number of steps that had been called done.
    """

    begin: Callable[[Path], None]
    work: Callable[[Path, Done], None]
    check: Callable[[Path, int], None]


def nothing(folder: Path) -> None:
    """The folder is empty."""


IDENTITY = CacheIdentity("t", "t", "", 1.0, 6, 300, 0, "fp32", "none")
_WAVES = range(1, 4)


def _commit_waves(folder: Path, done: Done) -> None:
    with CacheStore.open(folder / "cache", IDENTITY, writable=True) as store:
        for number in _WAVES:
            rows, records = wave(number, top1=number == 3)
            if store.missing([row for row, _ in rows]):
                store.commit(rows, records)
            done(number)


def _check_waves(folder: Path, done: int) -> None:
    if not (folder / "cache" / "manifest.json").exists():
        assert done == 0, "the whole cache is gone"
        return
    with CacheStore.open(folder / "cache", IDENTITY, writable=True) as store:
        assert store.problems == [], store.problems
        for number in _WAVES:
            rows, records = wave(number, top1=number == 3)
            missing = store.missing([row for row, _ in rows])
            assert not missing or number > done, f"shard {number} was called done, and is gone"
            if not missing:
                _same_records(store.fetch([row for row, _ in rows]), records)
    _commit_waves(folder, lambda number: None)
    with CacheStore.open(folder / "cache", IDENTITY, writable=False) as store:
        assert store.num_shards == len(_WAVES)
        assert [*store.problems, *damaged_shards(store)] == []


def _same_records(found: Records, expected: Records) -> None:
    assert np.array_equal(found.num_head, expected.num_head), "records of other rows"
    assert np.array_equal(np.sort(found.ids), np.sort(expected.ids)), "records of other rows"


def _student(step: int) -> nn.Module:
    torch.manual_seed(step)
    return nn.Linear(7, 5)


def _checkpoints(folder: Path, told: list[str]) -> Checkpoints:
    return Checkpoints(folder / "checkpoints", keep=1, on_problem=told.append)


def _save_checkpoints(folder: Path, done: Done) -> None:
    checkpoints = _checkpoints(folder, [])
    for step in (1, 2, 3):
        model = _student(step)
        checkpoints.writing(
            step,
            weights=WholeModel(model).tensors(),
            optimizer={"w/first": torch.full((3,), step)},
            state={"tokens": step},
        )()
        done(step)


def _check_checkpoints(folder: Path, done: int) -> None:
    told: list[str] = []
    checkpoints = _checkpoints(folder, told)
    checkpoints.sweep()
    latest = checkpoints.latest()
    assert told == [], told
    step = 0 if latest is None else latest.step
    assert step >= done, f"step {done} was called done, and only {step} is there"
    if latest is not None:
        model = _student(0)
        latest.load_weights(WholeModel(model).tensors())
        assert torch.equal(model.weight, _student(step).weight), "weights of another step"
        with latest.tensors("optimizer") as moments:
            assert torch.equal(moments["w/first"], torch.full((3,), step)), "moments of another step"
        assert latest.state["tokens"] == step, "state of another step"


def _write_tokens(folder: Path, done: Done) -> None:
    with TokenFileWriter(
        folder / "tokens.h5", sequence_length=24, vocab_size=VOCAB_SIZE, pad_id=1, eos_id=0, attributes={}
    ) as writer:
        for split in SPLITS:
            for row in make_rows(6, 1):
                writer.add(split, row)
        writer.commit()
    done(1)


def _check_tokens(folder: Path, done: int) -> None:
    if not (folder / "tokens.h5").exists():
        assert done == 0, "tokens.h5 was called done, and is gone"
        return
    with TokenFile(folder / "tokens.h5") as tokens:
        for split in SPLITS:
            rows = tokens.rows(split, range(6))
            assert np.array_equal(rows.tokens, np.stack([row.tokens for row in make_rows(6, 1)])), "other rows"


def _run_info(number: int) -> dict[str, Any]:
    known = {"versions": {}, "choices": [], "created": 0.0, "asked": {}, "predicted": {}, "hardware": {}}
    changing = {"number": number, "text": "x" * 100 * number}
    return {"format": FORMAT, "jobs": [], "settings": {"seed": 3}, **known, **changing}


def _begin_run(folder: Path) -> None:
    Run(folder, _run_info(0)).save()


def _change_run(folder: Path, done: Done) -> None:
    for number in (1, 2):
        Run(folder, _run_info(number)).save()
        done(number)


def _check_run(folder: Path, done: int) -> None:
    run = Run.open(folder)
    assert run.info == _run_info(run.info["number"]), "half of one and half of another"
    assert run.info["number"] >= done, "the change was called done, and is gone"


def _finish_phases(folder: Path, done: Done) -> None:
    run = Run.open(folder)
    for number, phase in enumerate(("prepare", "teacher"), start=1):
        run.finish_phase(phase, {"rows": number})
        done(number)


def _check_phases(folder: Path, done: int) -> None:
    run = Run.open(folder)
    assert run.damaged_results(("prepare", "teacher")) == []
    for number, phase in enumerate(("prepare", "teacher"), start=1):
        result = run.result(phase)
        assert result == {"rows": number} or (result is None and number > done), f"the result of {phase} is gone"


def _begin_student(folder: Path) -> None:
    _export(folder, 1)


def _export(folder: Path, seed: int) -> None:
    model = load_causal_lm(tiny_model("llama", num_layers=1, seed=seed), dtype=torch.float32)
    source = read_spec(tiny_model("llama", num_layers=1, seed=seed))
    export_student(model, source, folder / "student", f"# {seed}\n")


def _replace_student(folder: Path, done: Done) -> None:
    _export(folder, 2)
    done(1)


def _check_student(folder: Path, done: int) -> None:
    student = folder / "student"
    if not student.exists():
        assert done == 0, "the student was called done, and is gone"
        return
    seed = int((student / "README.md").read_text().removeprefix("# ") or 0)
    assert seed == 2 or done == 0, "the old student is there"
    expected = load_causal_lm(tiny_model("llama", num_layers=1, seed=seed), dtype=torch.float32).state_dict()
    found = load_causal_lm(student, dtype=torch.float32).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected), "weights of another student"
    json.loads((student / "tokenizer.json").read_text())


def _derive(folder: Path, done: Done) -> None:
    derive_student(read_spec(tiny_model("llama")), 1, folder / "initial-student")
    done(1)


def _check_derived(folder: Path, done: int) -> None:
    derived = folder / "initial-student"
    if not (derived / "config.json").exists():
        assert done == 0, "the first student was called done, and is gone"
        return
    load_causal_lm(derived, dtype=torch.float32)
    json.loads((derived / "tokenizer.json").read_text())


PROTOCOLS = {
    "shard and journal": Protocol(nothing, _commit_waves, _check_waves),
    "checkpoint": Protocol(nothing, _save_checkpoints, _check_checkpoints),
    "tokens": Protocol(nothing, _write_tokens, _check_tokens),
    "run.json": Protocol(_begin_run, _change_run, _check_run),
    "phase result": Protocol(_begin_run, _finish_phases, _check_phases),
    "student": Protocol(_begin_student, _replace_student, _check_student),
    "first student": Protocol(nothing, _derive, _check_derived),
}


def problems(protocol: Protocol, scratch: Path, *, most: int | None = None) -> tuple[int, list[str]]:
    """Cut the power at every step of a protocol; how many states that gave, and what was wrong with some of them.

    Args:
        protocol: which one.
        scratch: a new folder for it.
        most: look no further when so many were wrong.
    """
    folder = scratch / "run"
    folder.mkdir(parents=True)
    protocol.begin(folder)
    cuts = Cuts(Disk(folder, scratch / "notes"), scratch)

    def done(number: int) -> None:
        cuts.acknowledged = number

    found = []
    with cuts.everywhere():
        protocol.work(folder, done)
    for state, acknowledged, where in cuts.states:
        if most is not None and len(found) >= most:
            break
        try:
            with unplugged():
                protocol.check(state, acknowledged)
        except Exception as wrong:
            found.append(f"{where}: {type(wrong).__name__}: {str(wrong).splitlines()[0] if str(wrong) else ''}")
    return len(cuts.states), found
