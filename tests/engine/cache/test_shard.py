from __future__ import annotations

import hashlib
import time

import h5py
import numpy as np
import pytest

from engine.cache.record import COLUMNS, EncodedRecords, decode, encode
from engine.cache.shard import DamagedShard, Shard, shard_image, write_shard
from tests.engine.cache.some_records import random_records, row, some_places


def an_image(counts: list[int], *, top1: bool = False) -> tuple[bytes, EncodedRecords, np.ndarray]:
    records = random_records(sum(counts), 6, 300, top1=top1)
    encoded = encode(records, 300, some_places(sum(counts)), counts)
    hashes = [row(number) for number in range(len(counts))]
    return shard_image(hashes, encoded, records.num_head.astype(np.int64), belongs_to="me"), encoded, records.num_head


@pytest.mark.parametrize("top1", [False, True])
@pytest.mark.parametrize("counts", [[1], [0, 3, 0, 0, 5, 0], [7] * 30, [0, 0]])
def test_every_piece_of_a_shard_can_be_read_by_itself(tmp_path, counts, top1):
    image, encoded, num_head = an_image(counts, top1=top1)
    write_shard(tmp_path / "a.h5", image)
    shard = Shard(tmp_path / "a.h5")
    assert shard.num_rows == len(counts)
    assert shard.num_records == sum(counts)
    assert shard.belongs_to == "me"
    assert [shard.num_records_of(place) for place in range(len(counts))] == counts
    assert [bytes(value) for value in shard.hashes] == [row(number) for number in range(len(counts))]
    whole = decode([encoded], 6)
    heads_to = np.append(0, np.cumsum(num_head, dtype=np.int64))
    for first in range(len(counts)):
        for last in range(first, min(first + 3, len(counts)) + 1):
            read = shard.read(first, last)
            start, end = sum(counts[:first]), sum(counts[:last])
            np.testing.assert_array_equal(read.tail_mass, encoded.tail_mass[start:end])
            np.testing.assert_array_equal(decode([read], 6).ids, whole.ids[start:end])
            np.testing.assert_array_equal(read.entropy, encoded.entropy[start:end])
            np.testing.assert_array_equal(read.head_log_probs, encoded.head_log_probs[heads_to[start] : heads_to[end]])
            assert (read.top1_id is not None) == top1


def test_anybody_can_read_a_shard_with_hdf5(tmp_path):
    image, encoded, _ = an_image([3, 4])
    write_shard(tmp_path / "a.h5", image)
    with h5py.File(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(file["ids"][:], encoded.ids)
        assert file["rows"]["records"].tolist() == [3, 7]
        assert file.attrs["belongs_to"] == b"me"


def test_the_bytes_do_not_depend_on_the_time():
    first, _, _ = an_image([3, 4])
    time.sleep(1.1)  # HDF5 counts in seconds
    assert an_image([3, 4])[0] == first


def test_headers_are_small_beside_a_wave_of_2000_tokens():
    image, encoded, _ = an_image([512] * 4)
    columns = [getattr(encoded, name) for name in COLUMNS]
    data = sum(values.nbytes for values in columns if values is not None)
    assert len(image) - data < 3000


def test_the_checksum_is_of_what_was_meant(tmp_path):
    image, _, _ = an_image([3, 4])
    sha256 = write_shard(tmp_path / "a.h5", image)
    assert sha256 == hashlib.sha256(image).hexdigest()
    shard = Shard(tmp_path / "a.h5")
    shard.check(sha256)
    data = bytearray(image)
    data[-1] ^= 1
    (tmp_path / "a.h5").write_bytes(data)
    with pytest.raises(DamagedShard, match="checksum"):
        shard.check(sha256)


def test_a_file_cut_anywhere_is_refused_when_it_is_opened_or_read(tmp_path):
    image, _, _ = an_image([3, 4, 5])
    for end in [*range(0, len(image), 97), len(image) - 1]:
        (tmp_path / "a.h5").write_bytes(image[:end])
        with pytest.raises(DamagedShard):
            Shard(tmp_path / "a.h5").read(0, 3)


def test_any_flipped_bit_is_an_error_of_ours_or_is_left_to_the_checksum(tmp_path):
    image, _, _ = an_image([3, 4])
    random = np.random.default_rng(0)
    for place in random.integers(0, len(image), 400).tolist():
        data = bytearray(image)
        data[place] ^= 1 << int(random.integers(0, 8))
        (tmp_path / "a.h5").write_bytes(data)
        try:
            shard = Shard(tmp_path / "a.h5")
            decode([shard.read(0, shard.num_rows)], 6)
        except (DamagedShard, ValueError):
            pass


@pytest.mark.parametrize("content", [b"", b"not HDF5 at all", b"\x89HDF\r\n\x1a\n" + bytes(600)])
def test_what_is_no_shard_is_said(tmp_path, content):
    (tmp_path / "a.h5").write_bytes(content)
    with pytest.raises(DamagedShard, match="not a complete HDF5 file"):
        Shard(tmp_path / "a.h5")
    with pytest.raises(DamagedShard, match="it is missing"):
        Shard(tmp_path / "b.h5")
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file.attrs["belongs_to"] = np.bytes_("me")
    with pytest.raises(DamagedShard, match="has no rows"):
        Shard(tmp_path / "c.h5")
