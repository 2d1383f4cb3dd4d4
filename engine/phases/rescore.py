"""Rescoring: the teacher scores some rows of a cache again, and the new records are compared with the old ones.

The same teacher gives the same records except for rounding: another micro-batch, number of threads or machine rounds a
matrix product differently, which can change a sampled id. So records are compared by the mass on equal ids, not bit for
bit.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.cache.garbage import users
from engine.cache.record import Records
from engine.cache.store import CacheStore
from engine.channel.channel import Channel
from engine.channel.events import EventWriter
from engine.data.packing import PackedRow
from engine.data.tokens import SPLITS, Split, TokenFile, TokenFileWriter
from engine.errors import CacheMismatch, FolderError, Problem, SettingsError, TinyDistillError
from engine.machine.gpu_check import visible
from engine.model_files.spec import fingerprint, read_spec

AGREEING = 0.9
"""Least mean overlap of records from the same teacher. On one machine it is above 0.99; two models share far less."""

_MICRO_BATCH = 4
_WAVE_TOKENS = 4_096


@dataclass(frozen=True)
class Rescored:
    """Result of scoring rows again.

    Attributes:
        rows, tokens: that were scored again.
        same: share of the records whose ids are all the same.
        overlap: mean over records of the probability mass that lies on the same ids, 1 where nothing differs.
        label_difference: mean difference of the label's log-prob, in nats.
    """

    rows: int
    tokens: int
    same: float
    overlap: float
    label_difference: float

    @property
    def agrees(self) -> bool:
        """Whether these are records of this teacher."""
        return not self.tokens or self.overlap >= AGREEING


def rescore(
    store: CacheStore, num_rows: int, teacher: str | None, *, device: str | None = None, seed: int = 0
) -> Rescored:
    """Score rows of a cache again and compare.

    The rows' tokens come from a run that used the cache; what the teacher computes in comes from the manifest.

    Args:
        store: an open cache.
        num_rows: rows, by chance from all that the cache and the run have in common.
        teacher: a model's folder or id; that of the run when None.
        device: that the teacher computes on; that of the run where it is here, else the CPU, when None.
        seed: of the choice of rows.

    Raises:
        FolderError: no run that used the cache exists, so the tokens are unknown.
        CacheMismatch: the teacher that was named has other weights than the manifest says.
        DamagedShard, RecordsMissing: a record cannot be read.
    """
    run = _run_with_tokens(store)
    settings = json.loads((run / "run.json").read_text(encoding="utf-8"))["settings"]
    way = _Way(
        device or settings.get("device") or "cpu",
        is_wished=device is not None,
        layer_by_layer=bool(settings.get("layer_by_layer")),
        trust_remote_code=bool(settings.get("trust_remote_code")),
    )
    spec = read_spec(teacher or str(settings["teacher"]), trust_remote_code=way.trust_remote_code)
    if (found := fingerprint(spec)) != store.identity.teacher:
        raise CacheMismatch(
            f"{spec.path} is not the teacher of {store.path}: its weights' fingerprint is {found[:12]}…, the records "
            f"belong to {store.identity.teacher[:12]}….",
            "Another teacher gives other records for the same text.",
            "Name the folder of the teacher that made them with --teacher.",
        )
    with tempfile.TemporaryDirectory(prefix="tinydistill-rescore-") as name, TokenFile(run / "tokens.h5") as tokens:
        folder = Path(name)
        chosen = _chosen(store, tokens, num_rows, seed)
        _write_rows(folder / "tokens.h5", tokens, chosen)
        with TokenFile(folder / "tokens.h5") as few:
            again = _score(folder, few, store, spec.path, way)
            return _compared(few, store, again)


@dataclass(frozen=True)
class _Way:
    """How the teacher is run: as the run did it, so that it has room where it had."""

    device: str
    is_wished: bool
    layer_by_layer: bool
    trust_remote_code: bool


def _run_with_tokens(store: CacheStore) -> Path:
    for run in users(store.path):
        try:
            with TokenFile(run / "tokens.h5") as tokens:
                if any(len(store.missing(tokens.hashes(split))) < tokens.num_rows(split) for split in SPLITS):
                    return run
        except TinyDistillError:
            continue
    raise FolderError(
        f"No run is left that used {store.path}.",
        "A cache has no text, only hashes of it; the words to score again are in a run's tokens.h5.",
        "Verify it without --rescore.",
    )


def _chosen(store: CacheStore, tokens: TokenFile, num_rows: int, seed: int) -> list[tuple[Split, int]]:
    there: list[tuple[Split, int]] = []
    for split in SPLITS:
        hashes = tokens.hashes(split)
        absent = {*store.missing(hashes, top1=split == "holdout")}
        there += [(split, index) for index in range(len(hashes)) if index not in absent]
    return sorted(random.Random(seed).sample(there, min(num_rows, len(there))))


def _write_rows(path: Path, tokens: TokenFile, chosen: list[tuple[Split, int]]) -> None:
    with TokenFileWriter(
        path,
        sequence_length=tokens.sequence_length,
        vocab_size=tokens.vocab_size,
        pad_id=tokens.pad_id,
        eos_id=tokens.eos_id,
        attributes={},
    ) as writer:
        for split, index in chosen:
            rows = tokens.rows(split, [index])
            length = int(rows.lengths[0])
            scored, begins = rows.scored[0, :length], rows.begins[0, :length]
            writer.add(split, PackedRow(rows.tokens[0, :length].astype(np.int32), scored, begins))
        writer.commit()


def _score(folder: Path, tokens: TokenFile, store: CacheStore, teacher: Path, way: _Way) -> CacheStore:
    os.environ.setdefault("CUDA_DEVICE_ORDER", visible("")["CUDA_DEVICE_ORDER"])  # read when torch starts the driver
    import torch

    from engine.machine.torch_device import PRECISIONS, is_there, kind_of
    from engine.models.resident import ResidentTeacher
    from engine.models.streaming.teacher import StreamedTeacher, StreamingMemory
    from engine.planner.sizes import head_chunk_tokens
    from engine.teacher.score import ScoreSettings, score

    identity = store.identity
    dtype = PRECISIONS[identity.precision]
    again = CacheStore.open(folder / "cache", identity, writable=True)
    device = torch.device(way.device)
    if not is_there(device):
        if way.is_wished:
            raise SettingsError([Problem("device", way.device, "torch finds no such device here; use cpu")])
        device = torch.device("cpu")
    values: dict[str, Any] = {"dtype": dtype, "device": device, "trust_remote_code": way.trust_remote_code}
    values["quantization"] = identity.quantization
    model: ResidentTeacher | StreamedTeacher
    if way.layer_by_layer:
        spill = folder if kind_of(device).is_host else None
        model = StreamedTeacher(teacher, memory=StreamingMemory(hidden_bytes=0, spill_folder=spill), **values)
    else:
        model = ResidentTeacher(teacher, **values)
    score(
        teacher=model,
        tokens=tokens,
        store=again,
        splits=SPLITS,
        channel=Channel(EventWriter(folder / "events.jsonl")),
        settings=ScoreSettings(
            micro_batch=_MICRO_BATCH,
            wave_tokens=_WAVE_TOKENS,
            chunk_tokens=head_chunk_tokens(model.vocab_rows, device=kind_of(device)),
            record_size=identity.record_size,
            temperature=identity.temperature,
            seed=identity.seed,
        ),
    )
    model.close()
    return again


def _compared(tokens: TokenFile, store: CacheStore, again: CacheStore) -> Rescored:
    rows = count = 0
    same = overlap = difference = 0.0
    with again:
        for split in SPLITS:
            for row_hash in tokens.hashes(split):
                before, now = store.fetch([row_hash]), again.fetch([row_hash])
                shared = _shared_mass(before, now)
                same += float((np.sort(before.ids) == np.sort(now.ids)).all(1).sum())
                overlap += float(shared.sum())
                difference += float(abs(before.label_log_prob - now.label_log_prob).sum())
                rows, count = rows + 1, count + len(before)
    total = max(1, count)
    return Rescored(rows, count, same / total, overlap / total, difference / total)


def _shared_mass(one: Records, other: Records) -> np.ndarray:
    """The mass that two records of each position have on the same ids: sum of the smaller weight, [N]."""
    is_same = one.ids[:, :, None] == other.ids[:, None, :]
    smaller = np.minimum(one.weights()[:, :, None], other.weights()[:, None, :])
    return (is_same * smaller).sum((1, 2))
