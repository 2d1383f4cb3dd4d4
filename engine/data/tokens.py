"""tokens.h5: the rows of a run, training and hold-out, each with a hash that finds its records.

Rows are stored contiguously (ragged: values and offsets), compressed, and are read by number in any order. Each token
has flags: whether it is a label, and whether a document begins with it. The file is written under a temporary name and
renamed when it is complete. A row whose bytes do not match its hash at reading is damaged and never used.

Knows nothing of text, of tokenizers and of the use of rows.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from engine.data.packing import PackedRow
from engine.disk.fault import commit_point
from engine.disk.files import commit_file
from engine.disk.hdf5_file import WrittenFile
from engine.errors import TokensDamaged

Split = Literal["train", "holdout"]
SPLITS: tuple[Split, ...] = ("train", "holdout")

FORMAT = 2  # 2: where documents begin
HASH_BYTES = 16
_CHUNK_TOKENS = 16_384  # 64 KiB: a row at random costs the decompression of one or two of these
_BUFFER_TOKENS = 2**20
_CHUNK_CACHE_BYTES = 2**20  # of each data set: 262,144 tokens; rows in order, or of a short text, are unpacked once
_ROW_COLUMNS = ("tokens", "scored", "begins")
_BAD_FILE = (OSError, KeyError, ValueError, TypeError, RuntimeError)  # h5py's, by the part that is damaged


def row_hash(row: PackedRow) -> bytes:
    """Return each row's hash: blake2b of its tokens (int32, little-endian), scored bits and begins bits, 16 bytes.

    Tokens and bits need no mark between them: their common length gives the number of tokens.
    """
    digest = blake2b(np.ascontiguousarray(row.tokens, "<i4").tobytes(), digest_size=HASH_BYTES)
    digest.update(np.packbits(row.scored).tobytes())
    digest.update(np.packbits(row.document_begins()).tobytes())
    return digest.digest()


@dataclass(frozen=True)
class Rows:
    """Some rows, padded on the right.

    Attributes:
        tokens: int64 [rows, longest].
        scored: bool [rows, longest]; True where the token is a label. Its record belongs to the position before it.
        begins: bool [rows, longest]; True where a document begins, at the first token of a row always.
        lengths: int64 [rows].
        hashes: 16 bytes each.
    """

    tokens: NDArray[np.int64]
    scored: NDArray[np.bool_]
    begins: NDArray[np.bool_]
    lengths: NDArray[np.int64]
    hashes: list[bytes]


class _SplitWriter:
    """Appends the rows of one split, some 4 MiB at a time."""

    def __init__(self, group: h5py.Group) -> None:
        def appendable(name: str, dtype: str, chunk: tuple[int, ...]) -> Any:
            return group.create_dataset(
                name,
                shape=(0, *chunk[1:]),
                maxshape=(None, *chunk[1:]),
                chunks=chunk,
                dtype=dtype,
                compression="gzip",
                compression_opts=1,
                shuffle=True,
                fletcher32=True,
            )

        self._group = group
        self._tokens = appendable("tokens", "<i4", (_CHUNK_TOKENS,))
        self._scored = appendable("scored", "u1", (_CHUNK_TOKENS,))
        self._begins = appendable("begins", "u1", (_CHUNK_TOKENS,))
        self._ends = appendable("ends", "<i8", (4096,))
        self._hashes = appendable("hashes", "u1", (1024, HASH_BYTES))
        self._rows: list[PackedRow] = []
        self._waiting = 0
        self._digest = blake2b(digest_size=HASH_BYTES)
        self.num_rows = self.num_tokens = self.num_scored = 0

    def add(self, row: PackedRow) -> None:
        self._rows.append(row)
        self._waiting += len(row.tokens)
        if self._waiting >= _BUFFER_TOKENS:
            self.flush()

    def flush(self) -> None:
        if not self._rows:
            return
        hashes = b"".join(row_hash(row) for row in self._rows)
        lengths = np.array([len(row.tokens) for row in self._rows], np.int64)
        scored = np.concatenate([row.scored for row in self._rows])
        _append(self._tokens, np.concatenate([row.tokens for row in self._rows]))
        _append(self._scored, scored.astype(np.uint8))
        _append(self._begins, np.concatenate([row.document_begins() for row in self._rows]).astype(np.uint8))
        _append(self._ends, self.num_tokens + np.cumsum(lengths))
        _append(self._hashes, np.frombuffer(hashes, np.uint8).reshape(-1, HASH_BYTES))
        self._digest.update(hashes)
        self.num_rows += len(self._rows)
        self.num_tokens += int(lengths.sum())
        self.num_scored += int(scored.sum())
        self._rows, self._waiting = [], 0

    def finish(self) -> None:
        self.flush()
        self._group.attrs.update(
            num_rows=self.num_rows,
            num_tokens=self.num_tokens,
            num_scored=self.num_scored,
            data_hash=self._digest.hexdigest(),
        )


class TokenFileWriter:
    """Writer of a token file, which is removed unless ``commit`` was reached. A context manager.

    Args:
        path: where the file will be.
        sequence_length: most tokens in a row.
        vocab_size: V_eff; every id is below it.
        pad_id: what short rows are filled with when they are read.
        eos_id: ends a text; None where the tokenizer has no such token.
        attributes: more to keep with it: strings and numbers.

    Raises:
        DiskFull: there is no room, in any of the methods.
    """

    def __init__(
        self,
        path: Path,
        *,
        sequence_length: int,
        vocab_size: int,
        pad_id: int,
        eos_id: int | None,
        attributes: Mapping[str, str | int | float],
    ) -> None:
        self._path = path
        self._temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        self._vocab_size = vocab_size
        self._sequence_length = sequence_length
        for left_behind in path.parent.glob(f"{path.name}.*.tmp"):  # by a writer that was killed
            left_behind.unlink(missing_ok=True)
        self._raw = WrittenFile(self._temporary, path)
        self._file = h5py.File(self._raw, "w", libver="v110")
        self._file.attrs.update(
            format=FORMAT,
            sequence_length=sequence_length,
            vocab_size=vocab_size,
            pad_id=pad_id,
            eos_id=-1 if eos_id is None else eos_id,
            **attributes,
        )
        self._splits = {split: _SplitWriter(self._file.create_group(split)) for split in SPLITS}

    def add(self, split: Split, row: PackedRow) -> None:
        """Append a row."""
        assert 0 < len(row.tokens) <= self._sequence_length, "the packer keeps to the sequence length"
        begins = row.document_begins()
        assert begins[0], "a row begins with a document, or with a piece of one"
        assert not (row.scored & begins).any(), "nothing comes before the first token of a document"
        assert row.tokens.min() >= 0, "ids come from the tokenizer"
        assert row.tokens.max() < self._vocab_size, "ids come from the tokenizer"
        self._splits[split].add(row)
        self._raw.check()

    def keep(self, name: str, value: str | int | float) -> None:
        """Keep one more attribute with the file."""
        self._file.attrs[name] = value

    def commit(self) -> None:
        """Rename the complete file to its final name."""
        for split in self._splits.values():
            split.finish()
        self._file.attrs["checksum"] = _checksum(dict(self._file.attrs))
        self._file.close()
        commit_point("tokens-written")
        self._raw.sync()
        commit_point("tokens-synced")
        commit_file(self._temporary, self._path, point="tokens")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()  # closing twice is no error
        self._raw.close()
        self._temporary.unlink(missing_ok=True)


class TokenFile:
    """Reader of a token file. A context manager; not thread-safe.

    Attributes:
        sequence_length: most tokens in a row.
        vocab_size: V_eff; every id is below it.
        pad_id: fills short rows.
        eos_id: ends a text; None where the tokenizer has no such token.
        attributes: what was kept with it.

    Raises:
        TokensDamaged: the file is missing or damaged, here and in ``rows``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # HDF5's own lock is none too many where there are locks (the file never changes), and an error elsewhere.
            self._file = h5py.File(path, "r", rdcc_nbytes=_CHUNK_CACHE_BYTES, locking=False)
        except OSError as error:
            raise self._damaged("it is missing" if not path.exists() else "it cannot be opened") from error
        try:
            attributes = dict(self._file.attrs)
            if attributes.pop("format") != FORMAT:
                raise self._damaged("it was written by another version")
            # HDF5 keeps strings where it has no checksum. Files of before have none of ours either.
            checksum = attributes.pop("checksum", None)
            if checksum not in (None, _checksum({"format": FORMAT, **attributes})):
                raise self._damaged("its attributes are not those that were written")
            self.sequence_length = int(attributes.pop("sequence_length"))
            self.vocab_size = int(attributes.pop("vocab_size"))
            self.pad_id = int(attributes.pop("pad_id"))
            eos_id = int(attributes.pop("eos_id"))
            self.eos_id = None if eos_id < 0 else eos_id
            self.attributes = attributes
            self._ends = {split: self._file[split]["ends"][:] for split in SPLITS}
            self._hashes = {split: self._file[split]["hashes"][:].tobytes() for split in SPLITS}
            self._check_hashes()
            # HDF5 unpacks a whole chunk to read a row, and keeps chunks only of data sets that are open.
            self._columns = {split: [self._file[split][name] for name in _ROW_COLUMNS] for split in SPLITS}
        except _BAD_FILE as error:
            self._file.close()
            raise self._damaged("a part of it cannot be read") from error
        except TokensDamaged:
            self._file.close()
            raise

    @property
    def chat_template(self) -> str | None:
        """The template in which the conversations are written; None where there are none."""
        template = self.attributes.get("chat_template")
        return None if template is None else str(template)

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens after which nothing is said any more: the end of a text, and what ends an answer."""
        return self.answer_end_ids | ({self.eos_id} if self.eos_id is not None else set())

    @property
    def answer_end_ids(self) -> frozenset[int]:
        """Tokens that end an answer of a conversation; none where there are only texts."""
        return frozenset(int(number) for number in str(self.attributes.get("end_ids", "")).split())

    def num_rows(self, split: Split) -> int:
        """Rows in a split."""
        return len(self._ends[split])

    def num_tokens(self, split: Split) -> int:
        """Tokens in a split."""
        return int(self._file[split].attrs["num_tokens"])

    def num_scored(self, split: Split) -> int:
        """Tokens of a split that are labels."""
        return int(self._file[split].attrs["num_scored"])

    def data_hash(self, split: Split) -> str:
        """Return a fingerprint of a split's rows and their order."""
        return str(self._file[split].attrs["data_hash"])

    def hashes(self, split: Split) -> list[bytes]:
        """The hash of each row, in order."""
        data = self._hashes[split]
        return [data[place : place + HASH_BYTES] for place in range(0, len(data), HASH_BYTES)]

    def rows(self, split: Split, indices: Sequence[int]) -> Rows:
        """Some rows, in the order asked for.

        Raises:
            TokensDamaged: what is there does not give the row's hash.
        """
        found = [self._row(split, int(index)) for index in indices]
        lengths = np.array([len(row.tokens) for row in found], np.int64)
        longest = int(lengths.max(initial=0))
        tokens = np.full((len(found), longest), self.pad_id, np.int64)
        scored, begins = np.zeros((2, len(found), longest), np.bool_)
        for place, row in enumerate(found):
            tokens[place, : len(row.tokens)] = row.tokens
            scored[place, : len(row.scored)] = row.scored
            begins[place, : len(row.tokens)] = row.document_begins()
        hashes = [self._hash(split, int(index)) for index in indices]
        return Rows(tokens, scored, begins, lengths, hashes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _row(self, split: Split, index: int) -> PackedRow:
        ends = self._ends[split]
        if not 0 <= index < len(ends):
            raise IndexError(f"row {index} of {len(ends)}")
        start, end = (int(ends[index - 1]) if index else 0), int(ends[index])
        try:
            tokens, scored, begins = (column[start:end] for column in self._columns[split])
            row = PackedRow(tokens, scored.astype(np.bool_), begins.astype(np.bool_))
        except _BAD_FILE as error:
            raise self._damaged(f"row {index} of {split} cannot be read") from error
        if row_hash(row) != self._hash(split, index):
            raise self._damaged(f"row {index} of {split} is not what was written")
        return row

    def _hash(self, split: Split, index: int) -> bytes:
        return self._hashes[split][index * HASH_BYTES : (index + 1) * HASH_BYTES]

    def _check_hashes(self) -> None:
        for split in SPLITS:
            digest = blake2b(self._hashes[split], digest_size=HASH_BYTES).hexdigest()
            if digest != self.data_hash(split) or len(self._hashes[split]) != HASH_BYTES * self.num_rows(split):
                raise self._damaged(f"its {split} rows are not those that were written")

    def _damaged(self, how: str) -> TokensDamaged:
        return TokensDamaged(
            f"{self.path} is damaged: {how}.",
            "It holds the tokens that teacher and student read.",
            "Delete it and resume the run: it is made again from the data.",
        )


def _checksum(attributes: Mapping[str, Any]) -> str:
    return blake2b(repr([(key, str(attributes[key])) for key in sorted(attributes)]).encode()).hexdigest()


def _append(dataset: Any, values: NDArray[Any]) -> None:
    old = dataset.shape[0]
    dataset.resize(old + len(values), axis=0)
    dataset[old:] = values
