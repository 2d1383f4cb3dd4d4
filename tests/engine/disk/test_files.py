"""File systems that refuse operations which others allow."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace

import pytest

from engine.disk.files import fsync_folder, make_folder, no_room, write_atomic
from engine.errors import DiskFull


def refusing(number):
    def fsync(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(number, os.strerror(number))

    return fsync


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS])
def test_a_file_system_that_flushes_no_folders_is_passed_over(number, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "fsync", refusing(number))
    fsync_folder(tmp_path)
    make_folder(tmp_path / "a/b")
    write_atomic(tmp_path / "a/b/c", "text")
    assert (tmp_path / "a/b/c").read_text() == "text"


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_folder_that_was_not_flushed_because_the_disk_failed_is_told(number, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "fsync", refusing(number))
    with pytest.raises(OSError, match=os.strerror(number)):
        fsync_folder(tmp_path)


@pytest.mark.parametrize(("number", "word"), [(errno.ENOSPC, "full"), (errno.EDQUOT, "quota"), (errno.EFBIG, "4 GB")])
def test_each_lack_of_room_has_its_own_reason(number, word, monkeypatch, tmp_path):
    def refuse(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(DiskFull) as caught:
        write_atomic(tmp_path / "a", "text")
    assert word in caught.value.paragraph()
    assert "resume the run" in caught.value.todo
    assert not list(tmp_path.iterdir())
    kept = no_room("It was not written.", OSError(number, ""), kept="the rest is kept")
    assert kept.why.endswith("; the rest is kept.")


def test_a_file_system_without_inodes_is_not_called_full(monkeypatch, tmp_path):
    """``df`` shows free space there, and freeing some does not help."""
    status = SimpleNamespace(f_files=100, f_favail=0)
    monkeypatch.setattr(os, "statvfs", lambda folder: status)
    error = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "x"))
    assert "takes no more files" in no_room("It was not written.", error).paragraph()
    status.f_favail = 5
    assert "The disk is full" in no_room("It was not written.", error).paragraph()
    status.f_files = status.f_favail = 0  # btrfs counts none
    assert "The disk is full" in no_room("It was not written.", error).paragraph()
