"""Ranks that each have a part of the student train the student of one process, within rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.student.sharded import ShardedWorld
from tests.engine.student.ranks import STEPS, assert_same, end_of, ended, go_on, in_ranks
from tests.engine.student.small_run import make_run, open_run


@pytest.mark.parametrize(
    ("architecture", "world", "changes"),
    [
        ("llama", 2, {}),
        # A tied head; more ranks than the last step has rows.
        pytest.param("qwen2", 4, {"gradient_accumulation": 2}, marks=pytest.mark.slow),
        # Rows of a step, and of weights, that cannot be divided evenly.
        pytest.param("gpt2", 3, {"gradient_checkpointing": True}, marks=pytest.mark.slow),
    ],
)
def test_sharded_ranks_train_the_student_of_one_process(
    tmp_path: Path, architecture: str, world: int, changes: dict[str, object]
) -> None:
    changes = {"architecture": architecture, **changes}
    folders = {name: tmp_path / name for name in ("one", "many")}
    for folder in folders.values():
        make_run(folder, short=True)
    go_on(folders["one"], None, STEPS, **changes)
    many = folders["many"]
    pids = in_ranks(world, tmp_path / "store", lambda w: go_on(many, w, STEPS, **changes), kind=ShardedWorld)
    assert ended(pids) == [0] * world
    assert_same(end_of(many), end_of(folders["one"]))
    for rank in range(1, world):
        torch.testing.assert_close(end_of(many, rank), end_of(many), rtol=0, atol=0)
    events = {name: open_run(folder).read_events("metric") for name, folder in folders.items()}
    assert len(events["one"]) == STEPS
    for one, other in zip(events["one"], events["many"][::world], strict=True):
        assert other["step"] == one["step"]
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
