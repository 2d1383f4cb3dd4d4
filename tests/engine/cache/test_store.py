from __future__ import annotations

import dataclasses
import errno
import os
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from engine.cache import journal
from engine.cache.check import damaged_shards
from engine.cache.identity import CacheIdentity
from engine.cache.store import CacheStore, caches_below
from engine.errors import CacheMismatch, CorruptState, DiskFull, FolderError, RecordsMissing
from tests.engine.cache.some_records import random_records, row, wave

IDENTITY = CacheIdentity(
    teacher="t" * 32,
    tokenizer="k",
    chat_template="",
    temperature=1.0,
    record_size=6,
    vocab_size=300,
    seed=0,
    precision="fp32",
    quantization="none",
)
POINTS = ["shard-written", "shard-synced", "shard-renamed", "shard-folder-synced", "journal-written", "journal-synced"]
ROOT = Path(__file__).parents[3]


def fill(path: Path, waves: int = 3) -> None:
    path.parent.mkdir(exist_ok=True)
    with CacheStore.open(path, IDENTITY, writable=True) as store:
        for number in range(waves):
            rows, records = wave(number)
            if store.missing([name for name, _ in rows]):
                store.commit(rows, records)


def reading(path: Path) -> CacheStore:
    return CacheStore.open(path, IDENTITY, writable=False)


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir()) if file.name not in ("lock", "in-use")}


def names_of(number: int) -> list[bytes]:
    return [name for name, _ in wave(number)[0]]


def flip(file: Path, place: float = 0.5) -> None:
    data = bytearray(file.read_bytes())
    data[int(len(data) * place)] ^= 4
    file.write_bytes(data)


def test_records_are_found_by_the_rows_hash_in_the_order_asked_for(tmp_path):
    fill(tmp_path / "cache")
    with reading(tmp_path / "cache") as store:
        (rows0, records0), (rows2, _) = wave(0), wave(2)
        assert store.missing([rows2[1][0], row(9999), rows0[0][0]]) == [1]
        both = store.fetch([rows2[1][0], rows0[2][0]])
        assert len(both) == rows2[1][1] + rows0[2][1]
        last = records0.take(slice(rows0[0][1] + rows0[1][1], None))
        assert np.sort(both.ids[rows2[1][1] :]).tolist() == np.sort(last.ids).tolist()
        assert store.num_tokens == sum(len(wave(number)[1]) for number in range(3))
        assert store.num_shards == 3
        assert store.num_bytes == sum(file.stat().st_size for file in (tmp_path / "cache").glob("*.h5"))
        assert [*store.problems, *damaged_shards(store)] == []


def test_one_row_many_rows_and_no_row_can_be_asked_for(tmp_path):
    fill(tmp_path)
    with reading(tmp_path) as store:
        assert len(store.fetch([])) == 0
        assert store.missing([]) == []
        names = [name for number in range(3) for name in names_of(number)]
        whole = store.fetch(names)
        ends = np.cumsum([len(store.fetch([name])) for name in names])
        assert len(whole) == ends[-1]
        np.testing.assert_array_equal(whole.take(slice(ends[2], ends[3])).ids, store.fetch([names[3]]).ids)


def test_a_row_without_a_record_is_never_made_up(tmp_path):
    fill(tmp_path)
    with reading(tmp_path) as store, pytest.raises(RecordsMissing, match="1 of 2"):
        store.fetch([row(0), row(77_777)])


def test_a_cache_that_is_not_there_yet_lacks_everything(tmp_path):
    with reading(tmp_path / "none") as store:
        assert store.missing([row(0)]) == [0]
    assert not (tmp_path / "none").exists()


def test_the_same_records_give_the_same_bytes(tmp_path):
    fill(tmp_path / "a")
    fill(tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(CacheIdentity)])
def test_a_cache_of_something_else_is_refused_naming_what_differs(tmp_path, field):
    fill(tmp_path)
    before = content(tmp_path)
    value = getattr(IDENTITY, field)
    other = dataclasses.replace(IDENTITY, **{field: value + 1 if isinstance(value, (int, float)) else value + "x"})
    with pytest.raises(CacheMismatch, match=f"{field.split('_')[0]}[^(]*\\(.* there, .* here"):
        CacheStore.open(tmp_path, other, writable=True)
    assert other.digest() != IDENTITY.digest()
    assert content(tmp_path) == before


def test_everything_that_differs_is_named_at_once(tmp_path):
    fill(tmp_path)
    other = dataclasses.replace(IDENTITY, temperature=2.0, record_size=12, teacher="u" * 32)
    with pytest.raises(CacheMismatch) as caught:
        CacheStore.open(tmp_path, other, writable=False)
    for words in (
        "the teacher's weights (tttttttttttt… there, uuuuuuuuuuuu… here)",
        "the temperature (1.0 there, 2.0 here)",
        "the record size (6 there, 12 here)",
    ):
        assert words in caught.value.what


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("passing", [1, 3])
def test_a_writer_killed_anywhere_and_started_again_leaves_the_same_bytes(tmp_path, point, passing):
    fill(tmp_path / "whole")
    program = (
        "import sys; from pathlib import Path; from tests.engine.cache.test_store import fill; fill(Path(sys.argv[1]))"
    )
    environment = {**os.environ, "TINYDISTILL_CRASH_AT": f"{point}:{passing}"}
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path / "cut")], env=environment, cwd=ROOT)
    assert killed.returncode == -9
    with reading(tmp_path / "cut") as store:
        assert [*store.problems, *damaged_shards(store)] == [], "whatever the journal names is whole"
        assert store.num_shards == passing - (point not in ("journal-written", "journal-synced"))
    fill(tmp_path / "cut")
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


@pytest.mark.parametrize("point", POINTS[:-1])
def test_a_full_disk_leaves_the_cache_as_it_was_and_says_how_much_was_needed(tmp_path, point, monkeypatch):
    fill(tmp_path / "whole")
    fill(tmp_path / "full", waves=1)
    before = content(tmp_path / "full")
    monkeypatch.setattr("engine.disk.fault._passed", Counter())
    monkeypatch.setenv("TINYDISTILL_ENOSPC_AT", f"{point}:1")
    with CacheStore.open(tmp_path / "full", IDENTITY, writable=True) as store:
        with pytest.raises(DiskFull, match=r"no room for \d.* bytes of records in .*; .* are free"):
            store.commit(*wave(1))
        assert content(tmp_path / "full") == before
        assert store.missing(names_of(1)) == [0, 1, 2]
        store.commit(*wave(1))
    fill(tmp_path / "full")
    assert content(tmp_path / "full") == content(tmp_path / "whole")


def test_a_journal_that_cannot_be_flushed_is_taken_back(tmp_path, monkeypatch):
    fill(tmp_path, waves=1)
    before = content(tmp_path)

    def fsync(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("journal.jsonl"):
            raise OSError(errno.ENOSPC, "full")

    with CacheStore.open(tmp_path, IDENTITY, writable=True) as store:
        monkeypatch.setattr(journal.os, "fsync", fsync)
        with pytest.raises(DiskFull):
            store.commit(*wave(1))
    monkeypatch.undo()
    assert content(tmp_path) == before


def test_a_shard_is_on_the_disk_before_its_name_and_its_name_before_its_line(tmp_path, monkeypatch):
    fill(tmp_path, waves=1)
    happened = []
    fsync, replace = os.fsync, Path.replace

    def spied_fsync(descriptor: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        happened.append(f"flush {name.name if name != tmp_path else 'folder'}")
        if name.name == "journal.jsonl":
            assert b"shard-00001" in name.read_bytes()
        fsync(descriptor)

    def spied_replace(self: Path, target: Path) -> Path:
        happened.append(f"rename {self.name}")
        return replace(self, target)

    with CacheStore.open(tmp_path, IDENTITY, writable=True) as store:
        monkeypatch.setattr(os, "fsync", spied_fsync)
        monkeypatch.setattr(Path, "replace", spied_replace)
        store.commit(*wave(1))
    temporary = f"shard-00001.h5.{os.getpid()}.tmp"
    assert happened == [
        f"flush {temporary}",
        f"rename {temporary}",
        "flush folder",
        "flush journal.jsonl",
    ]


@pytest.mark.parametrize("place", [0.0, 0.01, 0.3, 0.5, 0.9, 0.9999])
def test_a_flipped_bit_is_named_never_used_and_the_rows_are_made_again(tmp_path, place):
    fill(tmp_path / "whole")
    fill(tmp_path / "cache")
    flip(tmp_path / "cache" / "shard-00001.h5", place)
    with reading(tmp_path / "cache") as store:
        with pytest.raises(RecordsMissing):
            store.fetch(names_of(1))
        assert store.missing(names_of(1)) == [0, 1, 2]
        assert (tmp_path / "cache" / "shard-00001.h5.bad").exists()
        assert len(store.problems) == 1
        assert "shard-00001.h5 is damaged" in store.problems[0]
        assert len(store.fetch(names_of(0))) == len(wave(0)[1]), "the other shards still serve"
    fill(tmp_path / "cache")
    with reading(tmp_path / "cache") as store:
        assert [*store.problems, *damaged_shards(store)] == []
        assert len(store.fetch(names_of(1))) == len(wave(1)[1])


@pytest.mark.parametrize("damage", ["truncate", "lengthen", "vanish", "empty", "swap"])
def test_a_damaged_file_is_noticed_when_the_cache_is_opened(tmp_path, damage):
    fill(tmp_path)
    shard = tmp_path / "shard-00001.h5"
    data = shard.read_bytes()
    if damage == "vanish":
        shard.unlink()
    elif damage == "swap":
        shard.write_bytes((tmp_path / "shard-00000.h5").read_bytes())
    else:
        shard.write_bytes({"truncate": data[: len(data) // 2], "lengthen": data + b"x", "empty": b""}[damage])
    with reading(tmp_path) as store:
        assert store.missing(names_of(0) + names_of(1)) == [3, 4, 5]
        assert "shard-00001.h5 is damaged" in store.problems[0]
        assert not list(damaged_shards(store))
    fill(tmp_path)
    with reading(tmp_path) as store:
        assert [*store.problems, *damaged_shards(store)] == []
        assert store.missing(names_of(1)) == []


@pytest.mark.parametrize("damage", ["truncate", "vanish"])
def test_a_file_that_shrinks_under_a_reader_is_an_error_and_not_the_end(tmp_path, damage):
    fill(tmp_path)
    with reading(tmp_path) as store:
        store.fetch(names_of(1))
        shard = tmp_path / "shard-00001.h5"
        shard.write_bytes(shard.read_bytes()[:1500]) if damage == "truncate" else shard.unlink()
        with pytest.raises(RecordsMissing, match="shard-00001"):
            store.fetch(names_of(1))


def test_a_disk_that_cannot_be_read_costs_a_shard_and_too_many_open_files_do_not(tmp_path, monkeypatch):
    fill(tmp_path)

    def fail_with(number: int):
        def pread(*_: object) -> bytes:
            raise OSError(number, os.strerror(number))

        return pread

    with reading(tmp_path) as store:
        store.fetch(names_of(1))
        monkeypatch.setattr(os, "pread", fail_with(errno.EMFILE))
        with pytest.raises(OSError, match="open files"):
            store.fetch(names_of(1))
        monkeypatch.setattr(os, "pread", fail_with(errno.EIO))
        with pytest.raises(RecordsMissing, match="cannot be read"):
            store.fetch(names_of(1))


def test_a_torn_last_line_of_the_journal_is_cut_off(tmp_path):
    fill(tmp_path / "a")
    with (tmp_path / "a" / "journal.jsonl").open("ab") as file:
        file.write(b'{"name": "shard-000')
    with reading(tmp_path / "a") as store:
        assert store.num_shards == 3
        assert store.problems == []
    fill(tmp_path / "a", waves=4)
    fill(tmp_path / "b", waves=4)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_a_damaged_line_of_the_journal_is_told_and_its_shard_is_kept_aside(tmp_path):
    fill(tmp_path)
    lines = (tmp_path / "journal.jsonl").read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"rows"', b'"rows')
    (tmp_path / "journal.jsonl").write_bytes(b"".join(lines))
    with CacheStore.open(tmp_path, IDENTITY, writable=True) as store:
        assert "1 lines of the journal" in store.problems[0]
        assert store.missing(names_of(0) + names_of(1) + names_of(2)) == [3, 4, 5]
        assert (tmp_path / "shard-00001.h5.bad").exists()
    with CacheStore.open(tmp_path, IDENTITY, writable=True) as store:
        assert store.problems == [], "the journal is repaired"


def test_a_shard_of_another_cache_is_not_taken_in(tmp_path):
    fill(tmp_path / "a")
    other = dataclasses.replace(IDENTITY, teacher="another")
    with CacheStore.open(tmp_path / "b", other, writable=True) as store:
        store.commit(*wave(0))
    for name in ("journal.jsonl", "shard-00000.h5"):
        (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    with reading(tmp_path / "a") as store:
        assert "belongs to another cache" in store.problems[0]
        assert store.missing(names_of(0)) == [0, 1, 2]


def test_what_a_kill_left_is_swept_by_the_next_writer_and_left_alone_by_readers(tmp_path):
    fill(tmp_path)
    before = content(tmp_path)
    left = ["shard-00003.h5.tmp", "shard-00003.h5", "journal.jsonl.77.tmp"]
    for name in left:
        (tmp_path / name).write_bytes(b"half")
    reading(tmp_path).close()
    assert all((tmp_path / name).exists() for name in left)
    CacheStore.open(tmp_path, IDENTITY, writable=True).close()
    assert content(tmp_path) == before


def test_a_second_writer_is_refused_and_a_reader_is_not(tmp_path):
    with CacheStore.open(tmp_path, IDENTITY, writable=True) as writer:
        with pytest.raises(FolderError, match="Another run is writing"):
            CacheStore.open(tmp_path, IDENTITY, writable=True)
        writer.commit(*wave(0))
        with reading(tmp_path) as reader:
            assert len(reader.fetch(names_of(0))) == len(wave(0)[1])
    CacheStore.open(tmp_path, IDENTITY, writable=True).close()


def test_a_second_writer_may_wait_and_finds_what_the_first_has_scored(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.cache.store._WAIT_SECONDS", 0.01)
    first = CacheStore.open(tmp_path, IDENTITY, writable=True)
    waited = []

    def wait() -> None:
        waited.append(1)
        if len(waited) == 3:
            first.commit(*wave(0))
            first.close()

    with CacheStore.open(tmp_path, IDENTITY, writable=True, wait=wait) as second:
        assert len(waited) == 3
        assert second.missing(names_of(0)) == []


def test_waiting_can_be_given_up(tmp_path):
    def give_up() -> None:
        raise KeyboardInterrupt

    with CacheStore.open(tmp_path, IDENTITY, writable=True), pytest.raises(KeyboardInterrupt):
        CacheStore.open(tmp_path, IDENTITY, writable=True, wait=give_up)


@pytest.mark.parametrize(
    "text", ["{", "", "[]", '{"identity": 3}', "[" * 100_000], ids=["torn", "empty", "list", "number", "deep"]
)
def test_a_manifest_that_is_none_is_said(tmp_path, text):
    fill(tmp_path)
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(CorruptState, match=r"manifest\.json"):
        CacheStore.open(tmp_path, IDENTITY, writable=True)


def test_shards_without_a_manifest_belong_to_nobody(tmp_path):
    fill(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(CorruptState, match=r"manifest\.json is missing"):
        CacheStore.open(tmp_path, IDENTITY, writable=True)


def test_a_row_scored_to_train_on_is_missing_where_it_is_measured_with(tmp_path):
    with CacheStore.open(tmp_path, IDENTITY, writable=True) as store:
        rows, records = wave(1)
        store.commit(rows, records)
        assert store.missing(names_of(1)) == []
        assert store.missing(names_of(1), top1=True) == [0, 1, 2]
        store.commit(*wave(1, top1=True))
        store.commit(*wave(2))
        assert store.missing(names_of(1), top1=True) == []
        both = store.fetch(names_of(1))
        assert both.top1_id is not None
        mixed = store.fetch([names_of(1)[0], names_of(2)[0], names_of(1)[1]])
        assert mixed.top1_id is None
        assert len(mixed) == rows[0][1] + wave(2)[0][0][1] + rows[1][1]


def test_opening_and_reading_leaves_no_file_open(tmp_path):
    fill(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        with reading(tmp_path) as store:
            store.fetch(names_of(0) + names_of(2))
        fill(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="Not a directory"):
        CacheStore.open(tmp_path / "file" / "cache", IDENTITY, writable=True)


@pytest.mark.parametrize(("number", "kind"), [(errno.EACCES, FolderError), (errno.ENOSPC, DiskFull)])
def test_a_folder_that_cannot_be_used_is_said(tmp_path, monkeypatch, number, kind):
    fill(tmp_path)
    opened = os.open

    def refuse(path: object, *arguments: object, **named: object) -> int:
        if str(path).endswith((".h5", "lock")):
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, *arguments, **named)

    monkeypatch.setattr(os, "open", refuse)
    for writable in (True, False):
        with pytest.raises(kind, match=os.strerror(number)):
            CacheStore.open(tmp_path, IDENTITY, writable=writable)


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_and_started_again_leaves_the_same_bytes(tmp_path):
    waves = 40
    fill(tmp_path / "whole", waves)
    program = (
        "import sys; from pathlib import Path; from tests.engine.cache.test_store import fill; "
        "print('begun', flush=True); fill(Path(sys.argv[1]), int(sys.argv[2]))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "cut"), str(waves)]
    random = np.random.default_rng(0)
    for _ in range(25):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(float(random.uniform(0, 0.1)))
        process.kill()
        process.communicate()
        with reading(tmp_path / "cut") as store:
            assert [*store.problems, *damaged_shards(store)] == []
    fill(tmp_path / "cut", waves)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_the_runs_that_opened_a_cache_are_remembered_once_each(tmp_path):
    for run in ("a", "b", "a"):
        CacheStore.open(tmp_path, IDENTITY, writable=True, used_by=Path(run)).close()
    assert (tmp_path / "used-by.jsonl").read_text() == '{"run": "a"}\n{"run": "b"}\n'


def test_caches_are_found_in_a_folder_and_right_below_it(tmp_path):
    fill(tmp_path / "one")
    fill(tmp_path / "two")
    assert list(caches_below(tmp_path)) == [tmp_path / "one", tmp_path / "two"]
    assert list(caches_below(tmp_path / "one")) == [tmp_path / "one"]
    assert list(caches_below(tmp_path / "none")) == []


def test_reading_in_any_order_takes_no_more_memory_from_a_cache_of_many_shards(tmp_path):
    records = random_records(4000, 6, 300)

    def peak_of_reading(name: str, shards: int) -> int:
        names = [row(number) for number in range(40 * shards)]
        with CacheStore.open(tmp_path / name, IDENTITY, writable=True) as store:
            for first in range(0, len(names), 40):
                store.commit([(name, 100) for name in names[first : first + 40]], records)
            size = store.num_bytes
        order = np.random.default_rng(0).permutation(len(names))[:160].tolist()
        with reading(tmp_path / name) as store:
            tracemalloc.start()
            for first in range(0, len(order), 8):
                store.fetch([names[place] for place in order[first : first + 8]])
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert shards < 10 or size > 3 * peak, "the cache is too small for this to show anything"
        return peak

    peak_of_reading("warm-up", 1)
    few, many = peak_of_reading("few", 4), peak_of_reading("many", 30)
    assert many < few + 2**15, f"{few:,} bytes with 4 shards, {many:,} with 30"
