"""A small run for the student: rows, a tiny teacher's records of them, and a student to train."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from engine.cache.record import Records
from engine.cache.store import CacheIdentity, CacheStore
from engine.channel.events import EventWriter, read_events
from engine.data.packing import PackedRow
from engine.data.tokens import TokenFile, TokenFileWriter
from engine.model_files.adapter_shape import AdapterShape
from engine.models.load import load_causal_lm
from engine.student.adapter import LowRankAdapter
from engine.student.batches import Source
from engine.student.checkpoint import Checkpoints
from engine.student.learner import Learner
from engine.student.loss import Objective
from engine.student.optimizer import AdamW
from engine.student.order import Order
from engine.student.schedule import Schedule
from engine.student.train import Training
from engine.teacher.sampling import draw_records
from tests.tiny import VOCAB_SIZE, tiny_model

SEQUENCE_LENGTH = 24


@dataclass(frozen=True)
class SmallRun:
    """A folder with ``tokens.h5`` and ``cache/``; opened files stay open as long as the object lives."""

    folder: Path
    tokens: TokenFile
    store: CacheStore
    source: Source
    objective: Objective

    def learner(
        self,
        student: Path | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        gradient_checkpointing: bool = False,
        device: str = "cpu",
        adapter: AdapterShape | None = None,
    ) -> Learner:
        model = load_causal_lm(student or tiny_model("llama", num_layers=2, seed=5), dtype=torch.float32, device=device)
        trained = None if adapter is None else LowRankAdapter(model, adapter, device=torch.device(device), seed=3)
        return Learner(model, dtype=dtype, gradient_checkpointing=gradient_checkpointing, trainable=trained)

    def training(self, learner: Learner | None = None, **changes: Any) -> Training:
        learner = learner or self.learner()
        order = Order.plan(
            num_rows=self.tokens.num_rows("train"),
            micro_batch=changes.pop("micro_batch", 2),
            gradient_accumulation=changes.pop("gradient_accumulation", 2),
            steps=changes.pop("steps", 6),
            seed=3,
        )
        values: dict[str, Any] = {
            "learner": learner,
            "optimizer": AdamW(
                learner.trainable.parameters(),
                weight_decay=0.01,
                bits=changes.pop("bits", 32),
                offload=changes.pop("offload", False),
            ),
            "source": self.source,
            "order": order,
            "schedule": Schedule(changes.pop("learning_rate", 3e-3), order.total_steps),
            "objective": self.objective,
            "clip_norm": 1.0,
            "chunk_tokens": 16,
            "checkpoint_every": 2,
            "evaluation_rows": 4,
        }
        return Training(**{**values, **changes})

    def checkpoints(self, events: EventWriter, keep: int = 2) -> Checkpoints:
        return Checkpoints(
            self.folder / "checkpoints", keep=keep, on_problem=lambda text: events.log("warning", text, "damaged")
        )

    def events(self) -> EventWriter:
        return EventWriter(self.folder / "events.jsonl", phase="student")

    def read_events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in read_events(self.folder / "events.jsonl") if event["kind"] == kind]


def make_rows(count: int, seed: int, *, short: bool = False) -> list[PackedRow]:
    """Rows of tokens with some order in them; ``short`` mixes lengths and leaves some tokens unscored."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        length = int(rng.integers(2, SEQUENCE_LENGTH + 1)) if short else SEQUENCE_LENGTH
        start, stride = rng.integers(0, VOCAB_SIZE), rng.integers(1, 4)
        tokens = ((start + stride * np.arange(length)) % VOCAB_SIZE).astype(np.int32)
        scored = np.ones(length, np.bool_)
        scored[0] = False
        if short and length > 4:
            scored[1 : int(rng.integers(1, 4))] = False
        rows.append(PackedRow(tokens, scored))
    return rows


def make_run(
    folder: Path,
    *,
    teacher: Path | None = None,
    num_rows: int = 12,
    num_holdout: int = 6,
    record_size: int = 8,
    target: Literal["unbiased", "topk", "ghost", "blend"] = "unbiased",
    kd_weight: float = 0.8,
    temperature: float = 1.0,
    short: bool = False,
    end_ids: str = "",
) -> SmallRun:
    """Write rows and records of them, and open both."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tokens.h5"
    with TokenFileWriter(
        path,
        sequence_length=SEQUENCE_LENGTH,
        vocab_size=VOCAB_SIZE,
        pad_id=1,
        eos_id=0,
        attributes={"end_ids": end_ids},
    ) as writer:
        for row in make_rows(num_rows, 1, short=short):
            writer.add("train", row)
        for row in make_rows(num_holdout, 2, short=short):
            writer.add("holdout", row)
        writer.commit()
    tokens = TokenFile(path)
    identity = CacheIdentity("t", "t", "", temperature, record_size, VOCAB_SIZE, 0, "fp32", "none")
    store = CacheStore.open(folder / "cache", identity, writable=True)
    model = load_causal_lm(teacher or tiny_model("llama"), dtype=torch.float32)
    for split in ("train", "holdout"):
        _score(model, tokens, store, split, record_size, temperature)
    objective = Objective(VOCAB_SIZE, target, kd_weight, temperature)
    return SmallRun(folder, tokens, store, Source(tokens, store), objective)


def open_run(folder: Path, **objective: Any) -> SmallRun:
    """Open what :func:`make_run` has written, in another process."""
    identity = CacheIdentity(**json.loads((folder / "cache" / "manifest.json").read_text())["identity"])
    tokens = TokenFile(folder / "tokens.h5")
    store = CacheStore.open(folder / "cache", identity, writable=False)
    return SmallRun(folder, tokens, store, Source(tokens, store), Objective(VOCAB_SIZE, "unbiased", 0.8, 1.0))


def _score(model: Any, tokens: TokenFile, store: CacheStore, split: Any, record_size: int, temperature: float) -> None:
    if not tokens.num_rows(split):
        return
    rows = tokens.rows(split, range(tokens.num_rows(split)))
    with torch.no_grad():
        logits = model(torch.from_numpy(rows.tokens)).logits[..., :VOCAB_SIZE].double()
    at = torch.from_numpy(rows.scored).nonzero()
    logits = logits[at[:, 0], at[:, 1] - 1]
    plain, soft = logits.log_softmax(1), (logits / temperature).log_softmax(1)
    generator = torch.Generator().manual_seed(11)
    drawn = draw_records(
        soft.float(), record_size=record_size, uniforms=torch.rand(len(soft), generator=generator).double()
    )
    labels = torch.from_numpy(rows.tokens)[at[:, 0], at[:, 1]]
    top = plain.max(1)
    records = Records(
        ids=drawn.ids.numpy().astype(np.int32),
        num_head=drawn.num_head.numpy().astype(np.uint8),
        head_log_probs=drawn.head_log_probs.numpy(),
        tail_mass=drawn.tail_mass.numpy(),
        label_log_prob=plain.gather(1, labels[:, None])[:, 0].numpy().astype(np.float32),
        entropy=drawn.entropy.numpy(),
        top1_id=top.indices.numpy().astype(np.int32),
        top1_log_prob=top.values.numpy().astype(np.float32),
    )
    store.commit([(row, int(n)) for row, n in zip(rows.hashes, rows.scored.sum(1), strict=True)], records)
