"""A few steps of one phase in a process of its own, to measure its memory and time.

The phase is the real one, started as the supervisor starts it. Only its inputs are made up, rows of random tokens and
records, as memory and time do not depend on the text. This file loads no torch.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from engine.cache.record import Records
from engine.channel.channel import Channel
from engine.channel.events import EventWriter, read_events
from engine.data.checks import check_models
from engine.data.packing import PackedRow
from engine.data.tokens import TokenFile, TokenFileWriter
from engine.jobs import ScoreJob, TrainJob, last_of
from engine.machine import safe_child
from engine.machine.process_memory import PeakMemory
from engine.model_files.narrow import width_of
from engine.phases.cut import CUT
from engine.phases.prepare import student_spec, teacher_spec
from engine.phases.teacher import open_store
from engine.planner import Plan, plan
from engine.planner.measure import MachineRates
from engine.planner.models import FROM_TEACHER
from engine.run import preloaded
from engine.run.child import Child, Started
from engine.run.folder import Run
from engine.run.phase_environment import environment_for
from engine.run.preloaded import Preloaded
from engine.settings.describe import layer_list

STEPS = 2
"""Optimizer steps of the student; the second has the optimizer's states."""

WAVE_TOKENS = 2_048
"""Tokens of text for the teacher, in two waves where a wave is that short."""


@dataclass(frozen=True)
class Trial:
    """Measurements of a phase.

    Attributes:
        peak_bytes: highest anonymous memory of its process; on a GPU all that it held there.
        predicted_bytes: what was predicted for just these few steps.
        seconds: of the whole process, start included.
        tokens: tokens that went through the model.
        problem: the last word of a phase that did not end well; empty when it did.
    """

    peak_bytes: int
    predicted_bytes: int
    seconds: float
    tokens: int
    problem: str


def try_phase(phase: str, planned: Plan, rates: MachineRates, folder: Path | None = None) -> Trial:
    """Run a few steps of a phase.

    Args:
        phase: teacher or student.
        planned: with every setting.
        rates: of this machine, so that the short run is planned without measuring again.
        folder: for the temporary run; the system's folder for temporary files when not given.
    """
    place = Path(tempfile.mkdtemp(prefix="tinydistill-trial-", dir=folder))
    try:
        run, tokens = _make_run(phase, planned, rates, place / "run")
        return _watch(phase, run, tokens)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _make_run(phase: str, planned: Plan, rates: MachineRates, folder: Path) -> tuple[Run, int]:
    scoring, training = last_of(planned.jobs, ScoreJob), last_of(planned.jobs, TrainJob)
    length = scoring.sequence_length
    if phase == "teacher":
        rows = max(scoring.teacher_batch, WAVE_TOKENS // length)
        train_rows, holdout_rows = 2 * rows, 1
    else:
        in_a_step = training.student_batch * training.gradient_accumulation
        train_rows, holdout_rows = STEPS * in_a_step, training.student_batch
    config = planned.settings.model_copy(
        update={"steps": STEPS, "epochs": None, "output_dir": folder, "checkpoint_every": STEPS, "samples": train_rows}
    )
    run = Run.create(folder, config, plan(config, machine=rates, strict=False))
    _write_tokens(run, last_of(run.jobs, TrainJob), train_rows, holdout_rows)
    if phase == "student":
        _write_records(run, last_of(run.jobs, TrainJob))
        _write_cut(run, last_of(run.jobs, ScoreJob))
    return run, (train_rows + holdout_rows) * length


def _write_tokens(run: Run, job: TrainJob, train_rows: int, holdout_rows: int) -> None:
    vocabulary = check_models(teacher_spec(job), student_spec(job), job.sequence_length)
    generator = np.random.default_rng(job.seed)
    length = job.sequence_length
    begins = np.arange(length) % (max(2, length // 2) if job.packing else length) == 0
    with TokenFileWriter(
        run.tokens_path,
        sequence_length=length,
        vocab_size=vocabulary.size,
        pad_id=vocabulary.pad_id,
        eos_id=vocabulary.eos_id,
        attributes={},
    ) as writer:
        for split, rows in (("train", train_rows), ("holdout", holdout_rows)):
            for _ in range(rows):
                ids = generator.integers(0, vocabulary.size, length, dtype=np.int32)
                writer.add(split, PackedRow(ids, ~begins, begins))  # type: ignore[arg-type]
        writer.commit()


def _write_records(run: Run, job: TrainJob) -> None:
    """Records of the usual form for every row: three heads, and the rest drawn."""
    channel = Channel(EventWriter(run.events_path))
    with (
        TokenFile(run.tokens_path) as tokens,
        open_store(run, job, tokens.vocab_size, channel, writable=True) as store,
    ):
        size = min(job.record_size, tokens.vocab_size)
        heads = min(3, size)
        generator = np.random.default_rng(job.seed)
        for split in ("train", "holdout"):
            hashes = tokens.hashes(split)
            counts = tokens.rows(split, range(len(hashes))).scored.sum(1).tolist()
            number = sum(counts)
            # Different ids within a record: steps of a random size around the vocabulary.
            step = generator.integers(1, max(2, tokens.vocab_size // size), (number, 1))
            ids = (generator.integers(0, tokens.vocab_size, (number, 1)) + step * np.arange(size)) % tokens.vocab_size
            log_probs = np.full((number, size), -np.inf, np.float32)
            log_probs[:, :heads] = math.log(0.5 / heads)
            records = Records(
                ids=ids.astype(np.int32),
                num_head=np.full(number, heads, np.uint8),
                head_log_probs=log_probs,
                tail_mass=np.full(number, 0.5, np.float32),
                label_log_prob=np.full(number, -3, np.float32),
                entropy=np.full(number, 3, np.float32),
                top1_id=ids[:, 0].astype(np.int32),
                top1_log_prob=np.full(number, -1, np.float32),
            )
            store.commit(list(zip(hashes, counts, strict=True)), records)


def _write_cut(run: Run, job: ScoreJob) -> None:
    """Choose arbitrary layers and neurons: they take as much memory as selected ones. The phase copies them."""
    if job.student != FROM_TEACHER:
        return
    spec = teacher_spec(job)
    count = job.num_kept
    spread = [place * (spec.num_layers - 1) // max(1, count - 1) for place in range(count)]
    found: dict[str, Any] = {
        "kept": list(layer_list(job.student_layers) or spread),
        "files": {"": ""},  # not written yet
    }
    if job.student_width < 1:
        width = width_of(spec, job.student_width)
        part = {"neurons": list(range(width.neurons)), "kv_heads": list(range(width.kv_heads))}
        found |= {"width": asdict(width), "parts": {str(layer): part for layer in range(spec.num_layers)}}
    run.finish_phase(CUT, found)


def _watch(phase: str, run: Run, tokens: int) -> Trial:
    began = time.monotonic()
    with _phase_process(phase, run) as child:
        assert child.pid is not None, "its process is ours, and no copy that another one makes"
        with PeakMemory(child.pid, interval_seconds=0.005) as peak:
            code = child.wait()
    problem = "" if code == 0 else (code > 0 and _last_word(run)) or _ending(code)
    predicted = int(run.info["predicted"][phase]["peak_bytes"])
    on_device = (run.result(phase) or {}).get(
        "device_peak_bytes"
    )  # where a GPU computes, the prediction is of its memory
    return Trial(on_device or peak.peak_bytes, predicted, time.monotonic() - began, tokens, problem)


@contextlib.contextmanager
def _phase_process(phase: str, run: Run) -> Iterator[Child]:
    """Run a phase that always ends with this context, before its folder is removed."""
    with run.log_path.open("ab") as log:
        child = _started(phase, run, log)
        try:
            yield child
        finally:
            child.kill()
            child.wait()


def _started(phase: str, run: Run, log: IO[bytes]) -> Child:
    """Start a phase as a run does where memory is as planned; it ends when this process does."""
    environment = environment_for(run.job(phase))
    if preloaded.is_worth_it(run.jobs, run.info["predicted"]):
        made_from = Preloaded(run.path, environment, log)
        child = made_from.begin(phase, environment, is_last=True)
        if child is not None:
            return child
        made_from.end()
    return Started(
        subprocess.Popen(
            safe_child.command("engine.phases.process", phase, str(run.path), str(os.getpid())),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
        )
    )


def _ending(code: int) -> str:
    return "killed, probably by the OOM killer" if code == -signal.SIGKILL else f"exit code {code}"


def _last_word(run: Run) -> str:
    said = [event for event in read_events(run.events_path) if event["kind"] in ("error", "log")]
    return str(said[-1].get("what") or said[-1].get("message") or "") if said else ""
