from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.errors import DiskFull
from engine.models.load_in_place import move_weights
from engine.student import mapped, optimizer
from engine.student.mapped import mapped_zeros, weights_in_files
from engine.student.optimizer import AdamW
from engine.student.train import Training
from tests.engine.student.small_run import SmallRun, make_run
from tests.engine.student.test_train import go, weights
from tests.tiny import tiny_model


def test_tensor_holds_what_is_written_and_leaves_no_file(tmp_path: Path) -> None:
    tensor = mapped_zeros(tmp_path / "scratch", (30, 7), torch.float32)
    assert not tensor.any()
    tensor.copy_(torch.arange(210.0).view(30, 7))
    assert torch.equal(tensor, torch.arange(210.0).view(30, 7))
    assert list((tmp_path / "scratch").iterdir()) == []


def test_full_disk_is_told_before_anything_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DiskFull, match="840 bytes"):
        mapped_zeros(tmp_path, (30, 7), torch.float32)
    assert list(tmp_path.iterdir()) == []


def test_file_that_a_kill_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / "mapped-abc.tmp").write_bytes(b"left")
    (tmp_path / "other").write_bytes(b"kept")
    weights_in_files(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["other"]


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_training_is_the_same_bit_for_bit(tmp_path: Path, architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "SMALLEST_BYTES", 1)
    monkeypatch.setattr(optimizer, "SMALLEST_BYTES", 1)

    def training(run: SmallRun, scratch: Path | None) -> Training:
        learner = run.learner(tiny_model(architecture, num_layers=2, hidden_size=64))
        if scratch is not None:
            move_weights(learner.model, weights_in_files(scratch))
        values = {"micro_batch": 4, "gradient_accumulation": 1, "lean": True}
        return run.training(
            learner,
            optimizer=AdamW(learner.model.named_parameters(), weight_decay=0.01, bits=8, scratch=scratch),
            **values,
        )

    plain_run, mapped_run = make_run(tmp_path / "plain"), make_run(tmp_path / "mapped")
    plain, from_file = training(plain_run, None), training(mapped_run, tmp_path / "scratch")
    assert from_file.learner.tied == plain.learner.tied
    go(plain_run, plain)
    go(mapped_run, from_file)
    torch.testing.assert_close(weights(from_file), weights(plain), rtol=0, atol=0)


def test_mapped_memory_is_not_the_processs_own(tmp_path: Path) -> None:
    program = f"""
import torch
from pathlib import Path
from engine.student.mapped import mapped_zeros
def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))
before = anonymous()
tensor = mapped_zeros(Path({str(tmp_path)!r}), (64, 2**18), torch.float32)
tensor.fill_(1.5)
print(anonymous() - before)
"""
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(out.stdout) < 8 * 1024, f"{out.stdout} KiB of 64 MiB are the process's own"
