"""Identity of a cache: all settings that could change one of its records, and the manifest that stores them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from pathlib import Path

from engine.disk.files import write_atomic
from engine.errors import CacheMismatch, CorruptState

FORMAT = 3  # 3: documents of a row do not see each other, and draws depend on the document, not on the row
MANIFEST = "manifest.json"

_WORDS = {
    "teacher": "the teacher's weights",
    "tokenizer": "the tokenizer",
    "chat_template": "the chat template",
    "temperature": "the temperature",
    "record_size": "the record size",
    "vocab_size": "the vocabulary's size",
    "seed": "the seed",
    "precision": "the teacher's precision",
    "quantization": "the teacher's quantization",
    "format": "the format of the records",
}
_SHOWN = 12  # characters of a fingerprint: enough to tell two apart


@dataclass(frozen=True)
class CacheIdentity:
    """Teacher and settings of records. The data is not part of it: a row's hash finds its records.

    Attributes:
        teacher: fingerprint of the weights.
        tokenizer: hash of vocabulary and merges.
        chat_template: hash of the template; empty where there is none.
        temperature: of the recorded distribution.
        record_size: k.
        vocab_size: V_eff.
        seed: of the draws.
        precision: what the teacher computed in.
        quantization: of the teacher's weights.
        format: version of the bytes.
    """

    teacher: str
    tokenizer: str
    chat_template: str
    temperature: float
    record_size: int
    vocab_size: int
    seed: int
    precision: str
    quantization: str
    format: int = FORMAT

    @property
    def ids_in_record(self) -> int:
        """Number of ids in a record: the record size, or fewer if the vocabulary is smaller."""
        return min(self.record_size, self.vocab_size)

    def check_format(self, folder: Path) -> None:
        """Check that this program can read the records.

        Raises:
            CacheMismatch: another version wrote them.
            CorruptState: the manifest has an invalid value.
        """
        if self.format != FORMAT:
            raise CacheMismatch(
                f"The records in {folder} are of format {self.format}; this program reads format {FORMAT}.",
                "Another version wrote them.",
                f"Use that version, or delete {folder}: a run that is resumed scores its rows again.",
            )
        kinds = {"str": (str,), "float": (float, int), "int": (int,)}
        if (
            any(type(value) not in kinds[_FIELD_TYPES[name]] for name, value in asdict(self).items())
            or not self.record_size >= 1
            or not self.vocab_size >= 1
        ):
            raise _unreadable(folder)

    def digest(self) -> str:
        """Return a short hash of the identity; it names the folder of a shared cache."""
        return blake2b(json.dumps(asdict(self), sort_keys=True).encode(), digest_size=8).hexdigest()

    def differences(self, there: CacheIdentity) -> list[str]:
        """Describe the differences from ``there``: ``the temperature (2.0 there, 1.0 here)``."""
        return [
            f"{_WORDS[name]} ({_short(theirs)} there, {_short(ours)} here)"
            for name, ours in asdict(self).items()
            if (theirs := getattr(there, name)) != ours
        ]

    def in_words(self) -> dict[str, str]:
        """Describe every part with its value, as text for users."""
        return {_WORDS[name].removeprefix("the "): str(value) or "none" for name, value in asdict(self).items()}


def read_manifest(folder: Path) -> CacheIdentity | None:
    """Read the identity of the cache in a folder; None if there is no manifest.

    Raises:
        CorruptState: the manifest cannot be read.
    """
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))["identity"]
        if not isinstance(values, dict):
            raise TypeError
        known = {field.name: values.get(field.name, "unknown") for field in fields(CacheIdentity)}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _unreadable(folder) from error
    return CacheIdentity(**known)


def write_manifest(folder: Path, identity: CacheIdentity) -> None:
    """Write the manifest of the cache in a folder.

    Raises:
        DiskFull: no room.
    """
    write_atomic(folder / MANIFEST, json.dumps({"identity": asdict(identity)}, indent=1) + "\n")


def check_identity(folder: Path, there: CacheIdentity, here: CacheIdentity) -> None:
    """Refuse records of another teacher or other settings.

    Raises:
        CacheMismatch: with all differences.
    """
    if differing := here.differences(there):
        raise CacheMismatch(
            f"The records in {folder} belong to something else: {'; '.join(differing)}.",
            "Records name token ids and probabilities of one teacher; those of another teacher would train the "
            "student on wrong targets.",
            "Use the same teacher and settings as before, or choose a new --cache_dir or --output_dir.",
        )


def _unreadable(folder: Path) -> CorruptState:
    return CorruptState(
        f"{folder / MANIFEST} cannot be read.",
        "It names the teacher and settings that the records belong to.",
        f"Delete {folder} and resume the run: the rows are scored again.",
    )


_FIELD_TYPES = {field.name: str(field.type) for field in fields(CacheIdentity)}


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:_SHOWN]}…" if len(text) > 2 * _SHOWN else text or "none"
