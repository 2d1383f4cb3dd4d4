from __future__ import annotations

import errno
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from engine.errors import DiskFull
from engine.student.checkpoint import Checkpoints, StudentCheckpoint, find_damage
from engine.student.trainable import WholeModel


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 5)
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("nothing", torch.zeros(0, 4))
        self.brief = nn.Parameter(torch.randn(3).to(torch.bfloat16))


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def checkpoints(tmp_path: Path, told: list[str]) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", keep=2, on_problem=told.append)


def save(checkpoints: Checkpoints, step: int, model: nn.Module | None = None, **values: Any) -> Path:
    path, num_bytes = checkpoints.writing(
        step,
        weights=WholeModel(model or Tied()).tensors(),
        optimizer={"head/first": torch.arange(6.0).view(2, 3), "head/first_codes": torch.ones(4, dtype=torch.uint8)},
        state={"tokens": 12, **values.pop("state", {})},
        **values,
    )()
    assert num_bytes == sum(entry.stat().st_size for entry in path.iterdir())
    return path


def newest(checkpoints: Checkpoints) -> StudentCheckpoint:
    found = checkpoints.latest()
    assert found is not None
    return found


def test_everything_comes_back_as_it_was(checkpoints: Checkpoints) -> None:
    model = Tied()
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    path = save(checkpoints, 20, model, state={"best": 0.25})
    drawn = random.random(), np.random.rand(), torch.rand(1)
    found = newest(checkpoints)
    assert (found.path, found.step) == (path, 20)
    assert found.state["tokens"] == 12
    assert found.state["best"] == 0.25
    other = Tied()
    found.load_weights(WholeModel(other).tensors())
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)
    with found.tensors("optimizer") as moments:
        assert torch.equal(moments["head/first"], torch.arange(6.0).view(2, 3))
        assert moments.keys() == {"head/first", "head/first_codes"}
    found.restore_generators()
    assert (random.random(), np.random.rand(), torch.rand(1)) == drawn


def test_files_are_plain_safetensors_and_a_tied_weight_is_written_once(checkpoints: Checkpoints) -> None:
    model = Tied()
    path = save(checkpoints, 1, model)
    weights = load_file(path / "weights.safetensors")
    assert set(weights) == {"embedding.weight", "count", "nothing", "brief"}
    assert torch.equal(weights["brief"], model.brief.detach())
    assert not list(path.glob("*.pt"))


def test_newest_are_kept_and_the_best(checkpoints: Checkpoints) -> None:
    for step in (10, 20, 30, 40):
        save(checkpoints, step, best_step=10)
    assert checkpoints.steps() == [10, 30, 40]


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "rng.safetensors", "state.json"])
@pytest.mark.parametrize("fault", ["flipped", "cut", "gone", "longer"])
def test_any_damage_is_found_named_and_stepped_over(
    checkpoints: Checkpoints, told: list[str], name: str, fault: str
) -> None:
    save(checkpoints, 10)
    file = save(checkpoints, 20) / name
    content = file.read_bytes()
    middle = len(content) // 2
    match fault:
        case "flipped":
            file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        case "cut":
            file.write_bytes(content[:-1])
        case "gone":
            file.unlink()
        case "longer":
            file.write_bytes(content + b"\0")
    assert newest(checkpoints).step == 10
    assert len(told) == 1
    assert "step-00000020" in told[0]
    assert name in told[0]
    assert (checkpoints.folder / "step-00000020.damaged").is_dir()
    save(checkpoints, 20)
    assert newest(checkpoints).step == 20


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"state.json": 3}', "\0" * 40])
def test_checksums_that_say_nothing_are_damage(checkpoints: Checkpoints, content: str) -> None:
    path = save(checkpoints, 10)
    (path / "checksums.json").write_text(content)
    assert find_damage(path) is not None


def test_no_whole_checkpoint_at_all_is_told_and_the_student_learns_from_its_beginning(
    checkpoints: Checkpoints, told: list[str]
) -> None:
    path = save(checkpoints, 10)
    (path / "state.json").unlink()
    assert checkpoints.latest() is None
    assert "state.json" in told[0]
    assert "from its beginning" in told[1]


def test_half_written_folder_is_never_taken_for_a_checkpoint(checkpoints: Checkpoints) -> None:
    save(checkpoints, 10)
    torn = checkpoints.folder / ".step-00000020.77.tmp"
    torn.mkdir()
    (torn / "weights.safetensors").write_bytes(b"half")
    assert newest(checkpoints).step == 10
    checkpoints.sweep()
    assert not torn.exists()


POINTS = [f"checkpoint-{name}" for name in ("weights", "optimizer", "rng", "state", "before-rename")]


@pytest.mark.parametrize("point", POINTS)
def test_full_disk_says_how_much_is_needed_and_leaves_the_one_before(
    checkpoints: Checkpoints, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(checkpoints, 10)
    monkeypatch.setattr("engine.disk.fault._passed", Counter())
    monkeypatch.setenv("TINYDISTILL_ENOSPC_AT", f"{point}:1")
    with pytest.raises(DiskFull, match=r"takes [\d,]+ bytes, [\d,]+ are free") as caught:
        save(checkpoints, 20)
    assert "resume" in caught.value.todo
    assert [entry.name for entry in checkpoints.folder.iterdir()] == ["step-00000010"]


def test_full_disk_in_the_middle_of_a_tensor(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    written = os.write

    def full(descriptor: int, data: memoryview) -> int:
        if len(data) > 100:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(DiskFull):
        save(checkpoints, 20)
    assert list(checkpoints.folder.iterdir()) == []


def test_order_of_the_steps_is_write_flush_rename_flush(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A power cut keeps what was flushed and may lose the rest: every file before the rename, the folder after it.
    import os

    happened: list[str] = []
    real_fsync, real_rename = os.fsync, Path.rename

    def fsync(descriptor: int) -> None:
        happened.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name.split('.tmp')[0]}")
        real_fsync(descriptor)

    def rename(self: Path, target: Path) -> Path:
        happened.append(f"rename {target.name}")
        return real_rename(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    save(checkpoints, 7)
    files = ["weights.safetensors", "optimizer.safetensors", "rng.safetensors", "state.json", "checksums.json"]
    pid = os.getpid()
    assert happened == [
        f"fsync {checkpoints.folder.parent.name}",  # the name of the folder of checkpoints
        *(f"fsync {name}" for name in files),
        f"fsync .step-00000007.{pid}",
        "rename step-00000007",
        "fsync checkpoints",
    ]


def test_state_is_plain_json(checkpoints: Checkpoints) -> None:
    path = save(checkpoints, 3)
    assert json.loads((path / "state.json").read_text())["step"] == 3
