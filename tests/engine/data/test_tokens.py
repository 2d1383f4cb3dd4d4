from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from hashlib import blake2b
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.data import tokens
from engine.data.packing import PackedRow
from engine.data.tokens import TokenFile, TokenFileWriter, row_hash
from engine.disk import hdf5_file
from engine.errors import CorruptState, DiskFull


def writer(path: Path, **other: Any) -> TokenFileWriter:
    arguments: dict[str, Any] = {"sequence_length": 16, "vocab_size": 100, "pad_id": 1, "eos_id": 0}
    arguments.update(attributes={"tokenizer": "sha"})
    arguments.update(other)
    return TokenFileWriter(path, **arguments)


def row(*ids: int) -> PackedRow:
    return PackedRow(np.array(ids, np.int32), np.array([place > 0 for place in range(len(ids))]))


def write(path: Path, train: list[PackedRow], holdout: list[PackedRow]) -> None:
    with writer(path) as file:
        for each in train:
            file.add("train", each)
        for each in holdout:
            file.add("holdout", each)
        file.commit()


rows = st.lists(
    st.lists(st.tuples(st.integers(0, 99), st.booleans()), min_size=1, max_size=16).map(
        lambda pairs: PackedRow(
            np.array([pair[0] for pair in pairs], np.int32),
            np.array([place > 0 and pair[1] for place, pair in enumerate(pairs)]),
        )
    ),
    max_size=20,
)


def test_rows_come_from_data_sets_that_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # HDF5 forgets the chunks of a data set that is closed: each row would be a whole chunk to unpack.
    write(tmp_path / "t.h5", [row(5, 6, 7), row(8, 9)], [row(10, 11)])
    with TokenFile(tmp_path / "t.h5") as file:
        opened = list[str]()
        monkeypatch.setattr(h5py.Group, "__getitem__", lambda group, name: opened.append(name))
        assert file.rows("train", [1, 0]).tokens.tolist() == [[8, 9, 1], [5, 6, 7]]
        assert file.rows("holdout", [0]).tokens.tolist() == [[10, 11]]
        assert opened == []


@given(rows, rows, st.randoms())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_come_back_as_they_were_in_any_order(
    tmp_path: Path, train: list[PackedRow], holdout: list[PackedRow], random: Any
) -> None:
    path = tmp_path / "tokens.h5"
    write(path, train, holdout)
    with TokenFile(path) as file:
        for split, written in (("train", train), ("holdout", holdout)):
            indices = random.sample(range(len(written)), len(written))
            found = file.rows(split, indices)  # type: ignore[arg-type]
            assert found.tokens.shape == found.scored.shape
            for place, index in enumerate(indices):
                length = found.lengths[place]
                assert found.tokens[place, :length].tolist() == written[index].tokens.tolist()
                assert found.scored[place, :length].tolist() == written[index].scored.tolist()
                assert (found.tokens[place, length:] == 1).all()
                assert not found.scored[place, length:].any()
                assert found.hashes[place] == row_hash(written[index]) == file.hashes(split)[index]  # type: ignore[arg-type]


def test_hash_is_of_tokens_scored_bits_and_borders() -> None:
    one = PackedRow(np.array([3, 4, 5], np.int32), np.array([False, True, False]))
    wanted = blake2b(b"\3\0\0\0\4\0\0\0\5\0\0\0" + bytes([0b01000000, 0b10000000]), digest_size=16).digest()
    assert row_hash(one) == wanted
    assert row_hash(PackedRow(one.tokens, np.array([False, True, True]))) != wanted
    assert row_hash(PackedRow(one.tokens, one.scored, np.array([True, False, True]))) != wanted


def test_counts_and_attributes(tmp_path: Path) -> None:
    write(tmp_path / "t.h5", [row(2, 3, 4), row(5, 6)], [row(7)])
    with TokenFile(tmp_path / "t.h5") as file:
        assert (file.sequence_length, file.vocab_size, file.pad_id, file.eos_id) == (16, 100, 1, 0)
        assert file.attributes == {"tokenizer": "sha"}
        assert [file.num_rows("train"), file.num_tokens("train"), file.num_scored("train")] == [2, 5, 3]
        assert [file.num_rows("holdout"), file.num_tokens("holdout"), file.num_scored("holdout")] == [1, 1, 0]
        assert file.rows("train", []).tokens.shape == (0, 0)
        with pytest.raises(IndexError):
            file.rows("train", [2])


def test_data_hash_tells_the_rows_and_their_order(tmp_path: Path) -> None:
    hashes = set()
    for number, train in enumerate([[row(2), row(3)], [row(3), row(2)], [row(2)], []]):
        write(tmp_path / f"{number}.h5", train, [])
        with TokenFile(tmp_path / f"{number}.h5") as file:
            hashes.add(file.data_hash("train"))
    assert len(hashes) == 4


def test_missing_end_of_text_is_none(tmp_path: Path) -> None:
    with writer(tmp_path / "t.h5", eos_id=None) as file:
        file.commit()
    with TokenFile(tmp_path / "t.h5") as found:
        assert found.eos_id is None


def test_without_commit_nothing_is_left_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    write(path, [row(2, 3)], [])
    before = path.read_bytes()
    with writer(path) as file:
        file.add("train", row(9))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_is_swept_away(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from engine.data.tokens import TokenFileWriter;"
        "w = TokenFileWriter(Path(sys.argv[1]), sequence_length=4, vocab_size=9, pad_id=0, eos_id=0, attributes={});"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "t.h5")], check=False)
    assert [path.suffix for path in tmp_path.iterdir()] == [".tmp"]
    write(tmp_path / "t.h5", [row(2)], [])
    assert [path.name for path in tmp_path.iterdir()] == ["t.h5"]


def fail_at(monkeypatch: pytest.MonkeyPatch, call: int, number: int = errno.ENOSPC) -> None:
    """Let the disk be full from one call on, and stay so: writing, cutting, bringing to the disk."""
    calls = iter(range(10**9))

    def failing(real: Any) -> Any:
        def called(*arguments: Any) -> Any:
            if next(calls) >= call:
                raise OSError(number, "refused")
            return real(*arguments)

        return called

    calls_that_fail = {name: failing(getattr(os, name)) for name in ("pwrite", "ftruncate", "fsync")}
    monkeypatch.setattr(hdf5_file, "os", SimpleNamespace(**vars(os) | calls_that_fail))


def test_disk_that_is_full_at_any_write_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "_BUFFER_TOKENS", 256)
    told = 0
    for call in range(10_000):
        with monkeypatch.context() as patch:
            fail_at(patch, call)
            try:
                write(tmp_path / "t.h5", [row(*range(2, 18)) for _ in range(100)], [row(3)])
                break
            except DiskFull:
                told += 1
            assert list(tmp_path.iterdir()) == []
    assert told > 20, "there are that many writes, at least"
    with TokenFile(tmp_path / "t.h5") as file:
        assert file.num_rows("train") == 100


def test_full_disk_is_told_when_it_is_met_not_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_BUFFER_TOKENS", 2**14)
    file = writer(tmp_path / "t.h5", sequence_length=1024)
    long_row = row(*np.random.default_rng(0).integers(0, 100, 1024))
    fail_at(monkeypatch, 0)

    def write_without_end() -> None:
        with file:
            for _ in range(20_000):
                file.add("train", long_row)
            raise AssertionError("80 MB, and the disk was not met")

    with pytest.raises(DiskFull):
        write_without_end()


def test_disk_that_refuses_for_another_reason_says_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, 3, errno.EIO)
    with pytest.raises(OSError, match="refused"):
        write(tmp_path / "t.h5", [row(2, 3)], [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", [0.02, 0.3, 0.5, 0.7, 0.98])
def test_flipped_bit_is_noticed_or_harmless(tmp_path: Path, place: float) -> None:
    path = tmp_path / "t.h5"
    generator = np.random.default_rng(0)
    written = [row(*generator.integers(0, 100, 16)) for _ in range(400)]
    write(path, written, written[:5])
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 0x10
    path.write_bytes(data)
    kept = None
    with contextlib.suppress(CorruptState), TokenFile(path) as file:
        kept = file.rows("train", range(file.num_rows("train"))).tokens.tolist()
    assert kept in (None, [each.tokens.tolist() for each in written])


@pytest.mark.parametrize("name", ["", "tokens", "scored", "begins", "ends", "hashes"])
@pytest.mark.parametrize("byte", [0, 4, 40])  # its signature, its version, and what a checksum covers
def test_damaged_header_in_the_file_is_named(tmp_path: Path, name: str, byte: int) -> None:
    path = tmp_path / "t.h5"
    write(path, [row(2, 3), row(4, 5)], [])
    with h5py.File(path) as file:
        place = h5py.h5o.get_info(file[f"train/{name}"].id).addr + byte
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(CorruptState, match=r"t\.h5 is damaged"), TokenFile(path) as file:
        file.rows("train", [0, 1])


def test_damaged_attribute_is_named_and_one_without_a_checksum_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    with writer(path, attributes={"end_ids": "31 32"}) as file:
        file.add("train", row(2, 3))
        file.commit()
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"31 32", b"31 36"))
    with pytest.raises(CorruptState, match="its attributes are not those that were written"):
        TokenFile(path)
    path.write_bytes(whole)
    with h5py.File(path, "r+") as of_before:
        del of_before.attrs["checksum"]
    with TokenFile(path) as file:
        assert file.end_ids == {0, 31, 32}
        assert file.answer_end_ids == {31, 32}


def test_row_that_is_not_what_was_written_is_named(tmp_path: Path) -> None:
    write(tmp_path / "t.h5", [row(2, 3), row(4, 5)], [])
    with h5py.File(tmp_path / "t.h5", "r+") as damaged:  # whole for HDF5, as a program's mistake would leave it
        damaged["train"]["tokens"][3] = 6
    with TokenFile(tmp_path / "t.h5") as file:
        assert file.rows("train", [0]).tokens.tolist() == [[2, 3]]
        with pytest.raises(CorruptState, match="row 1 of train is not what was written"):
            file.rows("train", [1])


@pytest.mark.parametrize("size", [0, 100, 3000])
def test_file_that_was_cut_off_is_named(tmp_path: Path, size: int) -> None:
    path = tmp_path / "t.h5"
    write(path, [row(*range(2, 18)) for _ in range(50)], [])
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CorruptState, match=r"t\.h5 is damaged"):
        TokenFile(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorruptState, match="it is missing"):
        TokenFile(tmp_path / "t.h5")


def test_writing_and_reading_take_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_BUFFER_TOKENS", 2**16)
    generator = np.random.default_rng(0)
    shape = 1024
    with writer(tmp_path / "t.h5", sequence_length=shape, vocab_size=50_000) as file:
        tracemalloc.start()
        for _ in range(2_000):  # 8 MB of tokens
            ids = generator.integers(0, 50_000, shape, dtype=np.int32)
            file.add("train", PackedRow(ids, np.arange(shape) > 0))
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        file.commit()
    assert peak_bytes < 3_000_000
    with TokenFile(tmp_path / "t.h5") as found:
        tracemalloc.start()
        for index in generator.integers(0, 2_000, 50):
            found.rows("train", [index])
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak_bytes < 1_000_000


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    write(tmp_path / "t.h5", [row(2, 3)], [])
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(10):
        with TokenFile(tmp_path / "t.h5") as file:
            file.rows("train", [0])
    shutil.copy(tmp_path / "t.h5", tmp_path / "bad.h5")
    (tmp_path / "bad.h5").write_bytes((tmp_path / "bad.h5").read_bytes()[:3000])
    for _ in range(10):
        with pytest.raises(CorruptState):
            TokenFile(tmp_path / "bad.h5")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("point", ["tokens-written", "tokens-synced", "tokens-renamed"])
def test_writer_killed_at_any_step_leaves_the_whole_file_or_none(tmp_path: Path, point: str) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.engine.data.test_tokens import row, write;"
        "write(Path(sys.argv[1]), [row(2, 3), row(4)], [row(5)])"
    )
    environment = {**os.environ, "TINYDISTILL_CRASH_AT": f"{point}:1"}
    killed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "t.h5")],
        env=environment,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert killed.returncode == -signal.SIGKILL
    write(tmp_path / "whole.h5", [row(2, 3), row(4)], [row(5)])
    if point == "tokens-renamed":
        assert (tmp_path / "t.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    else:
        assert not (tmp_path / "t.h5").exists()
    write(tmp_path / "t.h5", [row(2, 3), row(4)], [row(5)])
    assert (tmp_path / "t.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.h5", "whole.h5"]
