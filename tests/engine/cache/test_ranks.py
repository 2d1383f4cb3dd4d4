"""Writers side by side: their journals are merged, their files are told apart from remains, none needs a lock."""

import contextlib
import os
import time

import numpy as np
import pytest

from engine.cache.check import damaged_shards, leftovers
from engine.cache.garbage import find_garbage, remove
from engine.cache.store import CacheStore
from engine.disk import file_lock
from engine.errors import FolderError
from tests.engine.cache.some_records import wave
from tests.engine.cache.test_store import IDENTITY


def a_rank(path, number) -> CacheStore:
    return CacheStore.open(path, IDENTITY, writable=True, rank=number)


def commit(store: CacheStore, number: int):
    return store.commit(*wave(number))


def rows_of(number: int) -> list[bytes]:
    return [name for name, _ in wave(number)[0]]


def test_ranks_write_at_the_same_time_and_readers_see_one_cache(tmp_path):
    with contextlib.ExitStack() as opened:
        ranks = [opened.enter_context(a_rank(tmp_path, number)) for number in (0, 1, 1)]  # one was started twice
        for place in range(6):
            commit(ranks[place % 3], place)
        assert [store.num_shards for store in ranks] == [2, 2, 2]
        assert ranks[0].tokens_of_others() == sum(len(wave(place)[1]) for place in range(6) if place % 3)
    with CacheStore.open(tmp_path, IDENTITY, writable=False) as store:
        assert store.num_shards == 6
        assert store.missing([row for place in range(6) for row in rows_of(place)]) == []
        assert list(damaged_shards(store)) == []
        assert leftovers(store) == []
    with CacheStore.open(tmp_path, IDENTITY, writable=True) as store:  # the only writer continues beside their shards
        commit(store, 100)
        assert store.num_shards == 7
    assert (tmp_path / "shard-00000.h5").exists()


def test_no_rank_waits_for_another_and_the_only_writer_waits_for_all(tmp_path):
    with a_rank(tmp_path, 0), a_rank(tmp_path, 1), pytest.raises(FolderError, match="Another run is writing"):
        CacheStore.open(tmp_path, IDENTITY, writable=True)
    with CacheStore.open(tmp_path, IDENTITY, writable=True), pytest.raises(FolderError, match="Another run is writing"):
        a_rank(tmp_path, 0)


def test_ranks_need_no_locks(tmp_path, monkeypatch):
    def flock(descriptor, *, shared=False):
        raise OSError(next(iter(file_lock.NO_LOCKS)), "no locks")

    monkeypatch.setattr(file_lock, "try_flock", flock)
    with a_rank(tmp_path, 0) as one, a_rank(tmp_path, 1) as other:
        commit(one, 0)
        commit(other, 1)
        assert not one.without_locks, "there is nothing to warn of"
    with CacheStore.look(tmp_path) as store:
        assert store.num_shards == 2
    assert not list(tmp_path.glob("*.holder"))


def test_what_a_killed_rank_left_goes_when_it_is_old(tmp_path):
    with a_rank(tmp_path, 3) as store:
        entry = commit(store, 0)
    journal = next(tmp_path.glob("rank-*.jsonl"))
    whole = journal.read_bytes()
    journal.write_bytes(whole + whole[:20])  # killed while it wrote its next line
    stray = tmp_path / entry.name.replace("00000.h5", "00001.h5")
    stray.write_bytes(b"a shard that was not entered")
    half = tmp_path / f"{stray.name}.123.tmp"
    half.write_bytes(b"half a shard")
    with CacheStore.open(tmp_path, IDENTITY, writable=True) as store:
        assert store.problems == []
        assert store.num_shards == 1
        assert stray.exists()
        assert half.exists(), "a rank of another machine may be at work"
        assert leftovers(store) == []
    assert journal.read_bytes() == whole + whole[:20], "the next writer does not touch it"
    for file in (stray, half):
        os.utime(file, (time.time() - 100_000,) * 2)
    garbage, _ = find_garbage(tmp_path, now=time.time())
    assert {item.path for item in garbage} == {stray, half}
    with CacheStore.open(tmp_path, IDENTITY, writable=True):
        assert not stray.exists()
        assert not half.exists()


def test_a_damaged_shard_of_a_rank_is_told_once(tmp_path):
    with a_rank(tmp_path, 0) as store:
        entry = commit(store, 0)
        commit(store, 1)
    (tmp_path / entry.name).write_bytes(b"cut short")
    with CacheStore.open(tmp_path, IDENTITY, writable=True) as store:
        assert len(store.problems) == 1
        assert store.missing(rows_of(0)) == list(range(len(rows_of(0))))
        assert store.missing(rows_of(1)) == []
    with CacheStore.open(tmp_path, IDENTITY, writable=True) as store:
        assert store.problems == []


def test_a_cache_that_ranks_wrote_is_removed_whole(tmp_path):
    cache = tmp_path / "cache"
    with a_rank(cache, 0) as one, a_rank(cache, 1) as other:
        commit(one, 0)
        commit(other, 1)
    garbage, kept = find_garbage(cache, now=time.time() + 10, older_than_seconds=0)
    assert [item.kind for item in garbage] == ["cache"], kept
    remove(garbage[0])
    assert not cache.exists()


def test_a_row_that_two_ranks_scored_is_read_once(tmp_path):
    with a_rank(tmp_path, 0) as one, a_rank(tmp_path, 1) as other:
        commit(one, 0)
        commit(other, 0)
    with CacheStore.open(tmp_path, IDENTITY, writable=False) as store:
        assert np.array_equal(store.fetch(rows_of(0)).ids, one.fetch(rows_of(0)).ids)
