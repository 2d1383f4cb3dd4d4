from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engine.channel.channel import Channel
from engine.channel.events import EventWriter
from engine.errors import CacheMismatch
from engine.model_files.spec import read_spec
from engine.phases.teacher import _room, open_store
from engine.run.folder import Run
from tests.jobs import score_job
from tests.tiny import VOCAB_SIZE, tiny_model


def opened(folder: Path, **settings: Any) -> Path:
    """Where a run's records lie, once it has opened them for writing."""
    folder.mkdir(exist_ok=True)
    job = score_job(teacher=str(tiny_model("llama")), **settings)
    run = Run(folder, {"settings": {"teacher": job.teacher, **settings}})
    with open_store(run, job, VOCAB_SIZE, Channel(EventWriter(run.events_path)), writable=True) as store:
        return store.path


def test_each_rank_of_a_streamed_teacher_has_its_share_of_the_budget() -> None:
    spec = read_spec(tiny_model("llama"))

    def room(**settings: Any) -> Any:
        return _room(score_job(layer_by_layer=True, **settings), spec, torch.device("cpu"))

    budget = 2**30
    for ranks in (2, 4):
        shared = room(memory_budget=ranks * budget, ram_budget=ranks * budget, processes=ranks)
        assert shared == room(memory_budget=budget, ram_budget=budget)
    assert not room(memory_budget=budget, ram_budget=budget, processes=16).reads_ahead


def test_another_runs_cache_serves_a_second_student(tmp_path: Path) -> None:
    first = opened(tmp_path / "first")
    assert first == tmp_path / "first" / "cache"
    assert opened(tmp_path / "second", cache_dir=str(first), target="ghost", kd_weight=0.5) == first


def test_another_runs_cache_of_something_else_is_refused_with_the_difference_named(tmp_path: Path) -> None:
    first = opened(tmp_path / "first")
    with pytest.raises(CacheMismatch, match="temperature"):
        opened(tmp_path / "second", cache_dir=str(first), temperature=2.0)


def test_a_shared_folder_holds_caches_by_what_they_belong_to(tmp_path: Path) -> None:
    shared = str(tmp_path / "shared")
    paths = [
        opened(tmp_path / name, cache_dir=shared, temperature=t) for name, t in (("a", 1.0), ("b", 1.0), ("c", 2.0))
    ]
    assert paths[0] == paths[1]
    assert {path.parent for path in paths} == {tmp_path / "shared"}
    assert paths[2] != paths[0]
