"""The share of the teacher's phase that writes records, and of the student's step that reads them.

    python -m tests.benchmarks.record_cost [--out tests/benchmarks/results/record_cost.json]

The demo's teacher and a student of four of its layers: with 5 million parameters and 4,096 ids both are far smaller
than any that are worth distilling, so every share here is the largest that will be met. Writing is encoding, making the
shard and putting it on the disk; it happens between two waves. Reading is tokens, records, checking and decoding; it
happens in a thread while the model works, so what matters is that it ends before the step does. One thread of torch,
processor time (fsync is told apart, in wall time).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from engine.cache.store import CacheIdentity, CacheStore
from engine.channel.channel import Channel
from engine.channel.events import EventWriter
from engine.data.passes import PrepareSettings
from engine.data.prepare import prepare
from engine.data.sources import open_source
from engine.data.tokens import TokenFile
from engine.model_files.demo import DEMO_TEACHER
from engine.model_files.spec import read_spec
from engine.models.derive import derive_student
from engine.models.load import load_causal_lm
from engine.models.resident import ResidentTeacher
from engine.planner.sizes import head_chunk_tokens, wave_tokens
from engine.student.batches import Source, StepPart
from engine.student.learner import Learner
from engine.student.loss import Objective
from engine.student.optimizer import AdamW
from engine.student.step import StepSettings, train_step
from engine.teacher.score import ScoreSettings, score

ROWS, LENGTH, BATCH, STEPS = 256, 128, 16, 8


def main() -> None:
    """Print the shares; with ``--out`` write them as JSON too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    found = [measure(size) for size in (8, 12, 24)]
    for row in found:
        print(
            f"k = {row['record_size']:>2}: writing {row['write_share']:.1%} of the teacher's phase "
            f"({row['teacher_tokens_per_second']:,.0f} tokens/s; on the disk {row['write_wall_seconds']:.3f} s of "
            f"{row['score_wall_seconds']:.1f}), reading {row['read_share']:.1%} of a step ({row['step_seconds']:.2f} s)"
        )
    if out is not None:
        result = {
            "question": (__doc__ or "").splitlines()[0],
            "shapes": {"rows": ROWS, "length": LENGTH, "batch": BATCH, "steps": STEPS},
            "results": found,
            "versions": {"torch": torch.__version__},
            "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
            "date": time.strftime("%Y-%m-%d"),
        }
        out.write_text(json.dumps(result, indent=1) + "\n")


def measure(size: int) -> dict[str, Any]:
    """Score some rows, then learn from them, with a clock at the store's two doors."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        channel = Channel(EventWriter(folder / "events.jsonl"))
        teacher_spec = read_spec(str(DEMO_TEACHER))
        prepare(
            source=open_source("python-docs", text_field=None, split="train"),
            teacher=teacher_spec,
            student=None,
            out=folder / "tokens.h5",
            channel=channel,
            settings=PrepareSettings(sequence_length=LENGTH, samples=ROWS, holdout=0.05, packing=True),
        )
        tokens = TokenFile(folder / "tokens.h5")
        identity = CacheIdentity("t", "t", "", 1.0, size, tokens.vocab_size, 0, "fp32", "none")
        store = CacheStore.open(folder / "cache", identity, writable=True)
        writing, writing_wall = [0.0], [0.0]
        store.commit = _timed(store.commit, writing, writing_wall)  # type: ignore[method-assign]
        teacher = ResidentTeacher(DEMO_TEACHER, dtype=torch.float32)
        began, began_wall = time.process_time(), time.perf_counter()
        result = score(
            teacher=teacher,
            tokens=tokens,
            store=store,
            splits=["train"],
            channel=channel,
            settings=ScoreSettings(
                micro_batch=BATCH,
                wave_tokens=wave_tokens(teacher_spec.hidden_size, BATCH * LENGTH, layer_by_layer=False),
                chunk_tokens=head_chunk_tokens(teacher_spec.vocab_size),
                record_size=size,
                temperature=1.0,
                seed=0,
            ),
        )
        scoring, scoring_wall = time.process_time() - began, time.perf_counter() - began_wall
        step_seconds, read_seconds = _steps(folder, tokens, store)
    return {
        "record_size": size,
        "teacher_tokens_per_second": result.tokens / scoring,
        "write_share": writing[0] / scoring,
        "write_wall_seconds": writing_wall[0],
        "score_wall_seconds": scoring_wall,
        "step_seconds": step_seconds,
        "read_seconds": read_seconds,
        "read_share": read_seconds / step_seconds,
    }


def _steps(folder: Path, tokens: TokenFile, store: CacheStore) -> tuple[float, float]:
    """Median processor seconds of a step, and of getting its micro-batch."""
    derive_student(read_spec(DEMO_TEACHER), 4, folder / "student")
    model = load_causal_lm(folder / "student", dtype=torch.float32)
    learner = Learner(model.train(), dtype=torch.float32, gradient_checkpointing=False)
    optimizer = AdamW(model.named_parameters(), weight_decay=0.01, bits=32)
    source = Source(tokens, store)
    reads, steps = [], []
    for step in range(STEPS):
        began = time.process_time()
        batch, _ = source.micro_batch("train", range(step * BATCH, (step + 1) * BATCH))
        reads.append(time.process_time() - began)
        began = time.process_time()
        train_step(
            learner,
            [StepPart(batch, len(batch.labels), True)],
            optimizer,
            StepSettings(
                Objective(tokens.vocab_size, "unbiased", 0.9, 1.0),
                learning_rate=1e-3,
                clip_norm=1.0,
                chunk_tokens=head_chunk_tokens(tokens.vocab_size),
            ),
        )
        steps.append(time.process_time() - began)
    return median(steps), median(reads)


def _timed(action: Callable[..., Any], processor: list[float], wall: list[float]) -> Callable[..., Any]:
    def timed(*arguments: Any) -> Any:
        began, began_wall = time.process_time(), time.perf_counter()
        try:
            return action(*arguments)
        finally:
            processor[0] += time.process_time() - began
            wall[0] += time.perf_counter() - began_wall

    return timed


if __name__ == "__main__":
    main()
