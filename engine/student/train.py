"""The student's training: steps, checkpoints, evaluations on the hold-out, and continuation after a stop.

It reads from top to bottom. :class:`Progress` holds the state between two steps, and all of that is in each
checkpoint: a run that was killed anywhere and resumed ends, on the CPU, with the same student bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.channel.channel import PROGRESS_SECONDS, Channel
from engine.errors import BadNumbers, CorruptState
from engine.machine.torch_device import kind_of
from engine.models.memory import return_memory_if_scarce
from engine.ranks import ALONE, Rank
from engine.student.adapter import LowRankAdapter
from engine.student.adapter_step import adapter_step, can_be_sliced
from engine.student.batches import Prefetch, Source
from engine.student.checkpoint import Checkpoints, StudentCheckpoint
from engine.student.checkpoint_writer import CheckpointWriter
from engine.student.evaluate import HoldoutBatches, Metrics, evaluate
from engine.student.judge import DocumentSums
from engine.student.lean_step import RunningNorms, can_be_lean, lean_step
from engine.student.learner import Learner
from engine.student.loss import Objective
from engine.student.optimizer import AdamW
from engine.student.order import Order
from engine.student.parts import Stored
from engine.student.schedule import Schedule
from engine.student.step import LossScale, StepResult, StepSettings, train_step
from engine.student.trainable import WholeModel
from engine.student.world import ONE_PROCESS, World

# A step without a usable gradient changes nothing. One may be an odd text; so many in a row will not go away.
BAD_STEPS_IN_A_ROW = 5

# A loss of more than 3 times the usual one and 3 nats is a training that comes apart: a step's loss is a mean over
# hundreds of tokens and more, and the worst text that a model can read costs it some ln(vocabulary), 7 to 12 nats.
_EXPLODED_FACTOR, _EXPLODED_MARGIN = 3.0, 3.0
_USUAL_MEMORY, _STEPS_BEFORE_USUAL = 0.95, 20

_BEST = "best"  # note with the figures of the best student, where a look sees the whole hold-out


@dataclass
class Progress:
    """State of a training; each checkpoint contains all of it.

    Attributes:
        step: optimizer steps done, skipped ones among them.
        tokens: scored tokens learned from.
        seconds: spent in steps.
        skipped: steps that were skipped because of bad numbers.
        skipped_in_a_row: those since the last good one.
        good_steps, usual_loss: steps that were applied, and their mean loss, the last ones weighing most.
        best_step, best_loss: the checkpoint with the lowest hold-out loss so far; None before the first look.
        loss_scale: float16's factor.
        norms: usual norm of each parameter's gradient, for :mod:`engine.student.lean_step`.
        notes: data of the caller, restored after a restart.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0
    good_steps: int = 0
    usual_loss: float = 0.0
    best_step: int | None = None
    best_loss: float | None = None
    loss_scale: LossScale = field(default_factory=LossScale)
    norms: dict[str, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, state: Mapping[str, Any]) -> Progress:
        """As it was written into a checkpoint."""
        values = {name: state[name] for name in cls.__dataclass_fields__ if name in state}
        return cls(**{**values, "loss_scale": LossScale(**values["loss_scale"])})

    @property
    def exploded_above(self) -> float:
        """A step whose loss is above this is not applied."""
        if self.good_steps < _STEPS_BEFORE_USUAL:
            return math.inf
        return _EXPLODED_FACTOR * max(0.0, self.usual_loss) + _EXPLODED_MARGIN

    def took(self, loss: float) -> None:
        """A step with this loss was applied."""
        memory = _USUAL_MEMORY if self.good_steps else 0.0
        self.usual_loss = memory * self.usual_loss + (1 - memory) * loss
        self.good_steps += 1


@dataclass(frozen=True)
class Training:
    """Model, data and settings of a training: the values that stay constant.

    ``evaluations`` on the hold-out are evenly spaced over the steps, the last one at their end.
    ``world`` are the ranks that share each step and each evaluation.
    ``lean`` updates in the backward pass and never holds a whole gradient; it needs a head that is a plain matrix, and
    has no effect where a step has several micro-batches. See :mod:`engine.student.lean_step`.
    """

    learner: Learner
    optimizer: AdamW
    source: Source
    order: Order
    schedule: Schedule
    objective: Objective
    clip_norm: float
    chunk_tokens: int
    checkpoint_every: int
    evaluation_rows: int
    lean: bool = False
    evaluations: int = 5
    world: World = ONE_PROCESS

    @property
    def is_lean(self) -> bool:
        """Whether steps are done without whole gradients."""
        is_whole = isinstance(self.learner.trainable, WholeModel)  # an adapter's gradients are small
        one_format = self.learner.dtype != torch.float16  # its factor is adjusted by the whole gradient's overflow
        alone = self.order.gradient_accumulation == 1 and self.rank == ALONE
        return is_whole and self.lean and alone and one_format and can_be_lean(self.learner)

    @property
    def rank(self) -> Rank:
        """Which of the ranks this process is."""
        return self.world.rank


def resume(training: Training, checkpoints: Checkpoints, channel: Channel) -> Progress | None:
    """Restore the newest undamaged checkpoint; None if there is none. Rank 0 says which one all ranks take."""
    if training.rank.number == 0:
        checkpoints.sweep()
    latest = _agreed(training, checkpoints, checkpoints.latest)
    if latest is None:
        return None
    with training.world.apart(), latest.tensors("optimizer") as moments:
        latest.load_weights(training.learner.trainable.tensors())
        training.optimizer.load_state(latest.state["updates"], moments)
    latest.restore_generators()
    if training.rank.number:  # other rows, other dropout
        torch.manual_seed(training.order.seed + (latest.step << 16) + training.rank.number)
    channel.log("info", f"Training continues after step {latest.step}, from {latest.path}.", "resumed-checkpoint")
    return Progress.read(latest.state)


def train(
    training: Training,
    progress: Progress,
    checkpoints: Checkpoints,
    channel: Channel,
) -> None:
    """Train to the end; ``progress`` and the model are then those of the last step.

    Raises:
        Stopped: the user stopped the run; a checkpoint was written.
        BadNumbers: too many steps in a row gave no usable gradient.
        DiskFull: there was no room for a checkpoint.
        RecordsMissing: a record is damaged or not there.
    """
    learner, order = training.learner, training.order
    looks = evaluation_steps(order.total_steps, training.evaluations)
    writer = CheckpointWriter(partial(_tell_of_checkpoint, channel))
    pace = _Pace(progress, order.total_steps, channel, writer)
    saved_step = progress.step
    learner.model.train()
    training.optimizer.make_moments()
    world = training.world
    with (
        channel.agreeing(world),
        Prefetch(training.source, order, progress.step, rank=training.rank, even=world.is_sharded) as ahead,
        writer,
    ):
        while progress.step < order.total_steps:
            pace.begin()
            learning_rate = training.schedule.learning_rate(progress.step)
            with world.passing():
                result = _step(training, progress, ahead, learning_rate, writer.wait)
            progress.step += 1
            _count(result, progress, channel)
            pace.end(result, learning_rate)

            is_look = progress.step in looks
            if is_look:
                documents = DocumentSums(training.source.eos_id) if _sees_all(training) else None
                metrics = look(training, limit_rows=training.evaluation_rows, documents=documents)
                channel.write("evaluation", which="student_during", step=progress.step, **metrics.as_dict())
                _keep_best(progress, metrics, documents)
                return_memory_if_scarce()
            if is_look or channel.stopping or progress.step % training.checkpoint_every == 0:
                save(training, progress, checkpoints, writer)
                saved_step = progress.step
            channel.safe_point()
    assert saved_step == progress.step, "the last step is a look, and a look is saved"


def _step(
    training: Training, progress: Progress, ahead: Prefetch, learning_rate: float, before_update: Callable[[], None]
) -> StepResult:
    learner, optimizer = training.learner, training.optimizer
    settings = StepSettings(
        objective=training.objective,
        learning_rate=learning_rate,
        clip_norm=training.clip_norm,
        chunk_tokens=training.chunk_tokens,
        loss_scale=progress.loss_scale,
        exploded_above=progress.exploded_above,
        world=training.world,
        before_update=before_update,
    )
    if training.is_lean:
        return lean_step(learner, ahead.step(), optimizer, settings, RunningNorms(training.clip_norm, progress.norms))
    is_adapter = isinstance(learner.trainable, LowRankAdapter)
    step = adapter_step if is_adapter and can_be_sliced(learner) else train_step
    return step(learner, ahead.step(), optimizer, settings)


def look(
    training: Training,
    *,
    limit_rows: int | None = None,
    on_batch: Callable[[], None] = lambda: None,
    documents: DocumentSums | None = None,
) -> Metrics:
    """Evaluate the student on the hold-out (its first ``limit_rows``).

    ``on_batch`` may raise to stop; ``documents`` takes the sums of each document.
    """
    return evaluate(
        training.learner,
        HoldoutBatches(training.source, training.order.micro_batch, limit_rows),
        vocab_size=training.objective.vocab_size,
        temperature=training.objective.temperature,
        chunk_tokens=training.chunk_tokens,
        on_batch=on_batch,
        documents=documents,
        world=training.world,
    )


def save(training: Training, progress: Progress, checkpoints: Checkpoints, writer: CheckpointWriter) -> None:
    """Begin to write a checkpoint. With several ranks, rank 0 writes it at once; the others give it what it lacks."""
    world = training.world
    weights = world.whole(training.learner.trainable.tensors(), training.optimizer.parameters)
    moments = world.whole(training.optimizer.state(), training.optimizer.parameters)
    with world.apart():
        if training.rank.number:
            world.hand_over(weights)
            world.hand_over(moments)
            return
        # On a device without streams (MPS), copies of another thread would come between the launches of this one.
        device = kind_of(training.learner.device)
        beside = training.rank == ALONE and (device.is_host or device.has_streams)
        writer.begin(
            progress.step,
            checkpoints.writing(
                progress.step,
                weights=_held(weights, training.optimizer) if beside else weights,
                optimizer=moments,
                state={**asdict(progress), "updates": training.optimizer.updates},
                best_step=progress.best_step,
            ),
        )
        if not beside:
            writer.wait()


def _held(weights: Mapping[str, Stored], optimizer: AdamW) -> dict[str, Stored]:
    """Weights that only an update changes: buffers, which a forward pass may change, are copied."""
    trained = {parameter.data_ptr() for parameter in optimizer.parameters.values()}
    return {
        name: tensor.clone() if isinstance(tensor, Tensor) and tensor.data_ptr() not in trained else tensor
        for name, tensor in weights.items()
    }


def _tell_of_checkpoint(channel: Channel, step: int, path: Path, num_bytes: int) -> None:
    channel.write("checkpoint", path=str(path), step=step, bytes=num_bytes)


def best_checkpoint(training: Training, progress: Progress, checkpoints: Checkpoints) -> StudentCheckpoint | None:
    """Return the checkpoint with the lowest hold-out loss, if it is not the last step and is undamaged."""
    step = progress.best_step
    if step is None or step == progress.step:
        return None
    return _agreed(training, checkpoints, lambda: checkpoints.read(step))


def _agreed(
    training: Training, checkpoints: Checkpoints, find: Callable[[], StudentCheckpoint | None]
) -> StudentCheckpoint | None:
    """Return the checkpoint that rank 0 finds, on each rank; they share the run's folder.

    Raises:
        CorruptState: this rank cannot read what rank 0 has read.
    """
    world = training.world
    with world.apart():
        found = find() if training.rank.number == 0 else None
    step = world.of_first(-1 if found is None else found.step)
    if step < 0:
        return None
    with world.apart():
        found = found or checkpoints.read(step)
    if found is None:
        raise CorruptState(
            f"Rank {training.rank.number} cannot read the checkpoint of step {step} in {checkpoints.folder}.",
            "All ranks of a training read the same run folder.",
            "See that every machine has the folder under the same path, then resume the run.",
        )
    return found


def evaluation_steps(total_steps: int, count: int) -> frozenset[int]:
    """Return the steps of the evaluations: evenly spaced, including the last one."""
    return frozenset(math.ceil(total_steps * number / count) for number in range(1, count + 1))


def _sees_all(training: Training) -> bool:
    """Whether the looks on the way see the whole hold-out."""
    return training.source.num_rows("holdout") <= training.evaluation_rows


def _keep_best(progress: Progress, metrics: Metrics, documents: DocumentSums | None) -> None:
    loss = metrics.holdout_loss
    if metrics.tokens and math.isfinite(loss) and (progress.best_loss is None or loss < progress.best_loss):
        progress.best_step, progress.best_loss = progress.step, loss
        progress.notes.pop(_BEST, None)
        if documents is not None:
            progress.notes[_BEST] = {
                "step": progress.step,
                "metrics": asdict(metrics),
                "documents": documents.table().tolist(),
            }


def measured_best(progress: Progress, step: int) -> tuple[Metrics, NDArray[np.float64]] | None:
    """Return the figures of a step's student, and the sums of each document; None where a look saw only some rows."""
    kept = progress.notes.get(_BEST)
    if kept is None or kept["step"] != step:
        return None
    return Metrics(**kept["metrics"]), np.array(kept["documents"])


def _count(result: StepResult, progress: Progress, channel: Channel) -> None:
    if not result.is_bad:
        progress.skipped_in_a_row = 0
        if result.applied:
            progress.tokens += result.tokens
            progress.took(result.loss)
        return
    progress.skipped += 1
    progress.skipped_in_a_row += 1
    has_exploded = math.isfinite(result.loss) and result.loss > progress.exploded_above
    found = f"its loss is {result.loss:g} and its gradient's norm {result.grad_norm:g}"
    if has_exploded:
        found = f"its loss is {result.loss:g}, where {progress.usual_loss:.3g} is usual"
    channel.log(
        "warning",
        f"Step {progress.step} was skipped: {found}. The student is as it was before; {progress.skipped} skipped so "
        "far.",
        "diverged" if has_exploded else "bad-numbers",
    )
    if progress.skipped_in_a_row >= BAD_STEPS_IN_A_ROW:
        raise BadNumbers(
            f"{BAD_STEPS_IN_A_ROW} steps in a row gave a loss far above the usual "
            f"{progress.usual_loss:.3g} ({result.loss:.3g} in step {progress.step})."
            if has_exploded
            else f"{BAD_STEPS_IN_A_ROW} steps in a row gave a loss or a gradient that is not a number (up to step "
            f"{progress.step}).",
            "The training has diverged; more steps would not help.",
            "Start a new run with a smaller --learning_rate, or with --precision fp32; with --cache_dir it takes the "
            "teacher's records from where they are.",
        )


class _Pace:
    """Reporter of the training's progress and speed."""

    def __init__(self, progress: Progress, total_steps: int, channel: Channel, writer: CheckpointWriter) -> None:
        self._progress = progress
        self._total_steps = total_steps
        self._channel = channel
        self._writer = writer
        self._steps, self._seconds = 0, 0.0

    def begin(self) -> None:
        self._began = time.monotonic()
        self._away = self._seconds_away()

    def end(self, result: StepResult, learning_rate: float) -> None:
        progress = self._progress
        seconds = time.monotonic() - self._began - (self._seconds_away() - self._away)
        progress.seconds += seconds
        self._steps += 1
        self._seconds += seconds
        self._channel.write(
            "metric",
            step=progress.step,
            total_steps=self._total_steps,
            loss=result.loss,
            ce=result.ce,
            kd=result.kd,
            learning_rate=learning_rate,
            grad_norm=result.grad_norm,
            tokens_per_second=result.tokens / max(seconds, 1e-9),
        )
        rate = self._steps / max(self._seconds, 1e-9)
        at_end = progress.step == self._total_steps
        self._channel.progress(
            progress.step, self._total_steps, "steps", rate=rate, seconds=0 if at_end else PROGRESS_SECONDS
        )

    def _seconds_away(self) -> float:
        """Seconds so far in which no step computed: pauses, and waits for a checkpoint."""
        return self._channel.paused_seconds + self._writer.waited_seconds
