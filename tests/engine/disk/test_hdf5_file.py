from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from engine.disk import hdf5_file
from engine.disk.hdf5_file import WrittenFile
from engine.errors import DiskFull


def test_what_hdf5_wrote_through_it_is_a_file_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    values = np.arange(50_000).reshape(500, 100)
    with WrittenFile(path, path) as raw:
        with h5py.File(raw, "w") as file:
            data = file.create_dataset("values", shape=(0, 100), maxshape=(None, 100), dtype="i8", compression=1)
            for start in range(0, 500, 100):
                data.resize(start + 100, axis=0)
                data[start:] = values[start : start + 100]
            file.attrs["name"] = "a"
        raw.sync()
    with h5py.File(path, "r") as file:
        np.testing.assert_array_equal(file["values"][:], values)
        assert file.attrs["name"] == "a"


def test_file_that_exists_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        WrittenFile(tmp_path / "a.h5", tmp_path / "a.h5")
    assert (tmp_path / "a.h5").read_bytes() == b"mine"


def test_no_room_for_the_file_itself_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(hdf5_file, "os", SimpleNamespace(**vars(os) | {"open": full}))
    with pytest.raises(DiskFull, match=r"no room to write .*final"):
        WrittenFile(tmp_path / "a.tmp", tmp_path / "final")


def test_first_error_is_kept_and_nothing_is_written_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = WrittenFile(tmp_path / "a", tmp_path / "a")
    raw.write(memoryview(b"whole"))
    with monkeypatch.context() as patch:

        def refuse(*_: object) -> int:
            raise OSError(errno.EIO, "broken")

        patch.setattr(hdf5_file, "os", SimpleNamespace(**vars(os) | {"pwrite": refuse}))
        raw.write(memoryview(b"lost"))
    raw.write(memoryview(b"after"))
    with pytest.raises(OSError, match="broken"):
        raw.sync()
    raw.close()
    assert (tmp_path / "a").read_bytes() == b"whole"


def test_process_that_met_a_full_disk_ends_in_order(tmp_path: Path) -> None:
    """With a path instead of this file, HDF5 ends the process with a segmentation fault here."""
    code = """
import resource, signal, sys
from pathlib import Path
import h5py, numpy as np
from engine.disk.hdf5_file import WrittenFile
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
with WrittenFile(Path(sys.argv[1]), Path(sys.argv[1])) as raw:
    with h5py.File(raw, "w") as file:
        data = file.create_dataset("x", shape=(0,), maxshape=(None,), chunks=(4096,), dtype="f8", compression=1)
        for part in range(20):
            data.resize(4096 * (part + 1), axis=0)
            data[4096 * part :] = np.random.default_rng(part).random(4096)
    assert raw.error is not None
print("in order")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.h5")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "in order"), done.stderr
