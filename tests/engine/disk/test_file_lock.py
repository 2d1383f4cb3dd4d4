"""Locks where the file system has none: a file says who holds, and is taken over when that process is gone."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys

import pytest

from engine.cache.locks import Locks
from engine.disk import file_lock
from engine.errors import FolderError
from engine.run.folder import Run


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def no_locks(request, monkeypatch):
    """flock(2) as a file system without locks answers it."""

    def refuse(_descriptor, _operation):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


def run_in(folder):
    folder.mkdir(exist_ok=True)
    return Run(folder, {})


def test_a_run_is_held_by_one_at_a_time(no_locks, tmp_path):
    first, second = run_in(tmp_path), run_in(tmp_path)
    assert not first.is_live()
    with first.lock():
        assert first.without_locks
        assert second.is_live()
        with pytest.raises(FolderError, match="already running"), second.lock():
            pass
        assert second.is_live(), "who was refused has taken nothing away"
    assert not second.is_live()
    with second.lock():
        pass


def test_the_marker_of_a_process_that_is_gone_is_taken_over(no_locks, tmp_path):
    lock = tmp_path / "lock"
    take = f"assert file_lock.take_marker(Path({str(lock)!r}))"
    code = f"from engine.disk import file_lock; from pathlib import Path; {take}"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert file_lock.marker_of(lock).exists()
    assert file_lock.marker_holder(lock) is None
    assert file_lock.take_marker(lock)


def test_a_pid_that_was_given_to_another_process_holds_nothing(no_locks, tmp_path):
    lock = tmp_path / "lock"
    assert file_lock.take_marker(lock)
    told = json.loads(file_lock.marker_of(lock).read_text())
    file_lock.marker_of(lock).write_text(json.dumps({**told, "began": "1"}))
    assert file_lock.marker_holder(lock) is None


def test_a_holder_on_another_machine_is_believed_and_the_way_out_is_named(no_locks, tmp_path):
    run = run_in(tmp_path)
    file_lock.marker_of(run.lock_path).write_text(json.dumps({"pid": 1, "began": "1", "machine": "elsewhere"}))
    with pytest.raises(FolderError, match="another machine") as caught, run.lock():
        pass
    assert str(file_lock.marker_of(run.lock_path)) in caught.value.todo


def test_a_cache_has_one_writer_and_is_never_removed_without_locks(no_locks, tmp_path):
    first, second = Locks(tmp_path), Locks(tmp_path)
    assert first.try_writer()
    assert second.use()
    assert not second.try_writer()
    first.release()
    assert second.try_writer()
    second.release()
    assert not second.try_alone(), "it is unknown whether it is in use"
    second.release()
    assert not list(tmp_path.glob("*.holder"))


def test_another_failure_of_a_lock_is_not_passed_over(monkeypatch, tmp_path):
    def refuse(_descriptor, _operation):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="Input/output"), run_in(tmp_path).lock():
        pass
