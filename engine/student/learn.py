"""Phase 2 as a whole: measure, train, take the best, measure again, write the student.

Results from before the training (metrics, samples) are stored in the checkpoints, so that a resumed run reports them
too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from engine.channel.channel import Channel
from engine.data.sample_limits import SampleLimits
from engine.errors import BadNumbers
from engine.models.memory import return_memory, return_memory_if_scarce
from engine.student.checkpoint import Checkpoints
from engine.student.evaluate import HoldoutBatches, Metrics, evaluate_teacher
from engine.student.generate import continuations
from engine.student.judge import DocumentSums
from engine.student.learner import Learner
from engine.student.step import LossScale
from engine.student.train import Progress, Training, best_checkpoint, look, measured_best, resume, train


@dataclass(frozen=True)
class Learned:
    """Result of phase 2; the model is the best student.

    Attributes:
        teacher, student_before, student_after: on all hold-out rows.
        documents: sums for each document of the hold-out, of ``teacher``, ``before`` and ``after``; the columns of
            :data:`engine.student.judge.COLUMNS`.
        before_texts, after_texts: token ids of the student's continuation of each prompt.
        tokens: scored tokens learned from.
        seconds: spent in training steps.
        steps: optimizer steps done.
        skipped: of those, skipped because of bad numbers.
        best_step: the step whose student is kept.
    """

    teacher: Metrics
    student_before: Metrics
    student_after: Metrics
    documents: dict[str, NDArray[np.float64]]
    before_texts: list[list[int]]
    after_texts: list[list[int]]
    tokens: int
    seconds: float
    steps: int
    skipped: int
    best_step: int

    @property
    def tokens_per_second(self) -> float:
        """Scored tokens learned in a second of training."""
        return self.tokens / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class Prompts:
    """Prompts that the student continues before and after its training, for the report.

    Attributes:
        ids: token ids of each.
        end_ids: tokens that end a continuation.
        seed: of the draws.
        limits: of length and time.
    """

    ids: list[list[int]]
    end_ids: Collection[int]
    seed: int
    limits: SampleLimits = field(default_factory=SampleLimits)

    def continued_by(self, training: Training) -> list[list[int]]:
        """The student's continuations, on rank 0, which writes the report; none on the others."""
        vocab_size, world = training.objective.vocab_size, training.world
        if world.is_sharded:
            return world.led(next_logits_of(training.learner), lambda ask: self._continued(ask, vocab_size)) or []
        with world.apart():
            return [] if training.rank.number else self._continued(next_logits_of(training.learner), vocab_size)

    def _continued(self, next_logits: Callable[[Tensor], Tensor], vocab_size: int) -> list[list[int]]:
        return continuations(
            next_logits,
            self.ids,
            vocab_size=vocab_size,
            end_ids=self.end_ids,
            seed=self.seed,
            max_new_tokens=self.limits.tokens,
            max_seconds=self.limits.seconds,
        )


def learn(
    training: Training,
    checkpoints: Checkpoints,
    prompts: Prompts,
    *,
    loss_scale: LossScale,
    channel: Channel,
) -> Learned:
    """Run phase 2, or continue it from the newest checkpoint. Afterwards the model in ``training`` is the best student.

    Raises:
        Stopped: the user stopped the run; a checkpoint was written if a step was done.
        BadNumbers: the student's final loss is not a number.
    """
    of_teacher = DocumentSums(training.source.eos_id)
    holdout = HoldoutBatches(training.source, training.order.micro_batch)
    teacher = evaluate_teacher(holdout, documents=of_teacher)
    channel.write("evaluation", which="teacher", **teacher.as_dict())

    progress = resume(training, checkpoints, channel) or _begin(training, prompts, loss_scale, channel)
    train(training, progress, checkpoints, channel)
    best_step = _take_best(training, progress, checkpoints, channel)
    training.optimizer.release()
    return_memory()
    after, after_documents = _measured_after(training, progress, best_step, channel)
    _check_number(after)
    return Learned(
        teacher=teacher,
        student_before=Metrics(**progress.notes["before"]),
        student_after=after,
        documents={
            "teacher": of_teacher.table(),
            # A checkpoint of an older version has none: then no intervals are reported.
            "before": np.array(progress.notes.get("before_documents", [])),
            "after": after_documents,
        },
        before_texts=progress.notes["before_texts"],
        after_texts=prompts.continued_by(training),
        tokens=progress.tokens,
        seconds=progress.seconds,
        steps=progress.step,
        skipped=progress.skipped,
        best_step=best_step,
    )


def _begin(training: Training, prompts: Prompts, loss_scale: LossScale, channel: Channel) -> Progress:
    """Measure the student before its first step; the results are the notes of every checkpoint."""
    of_before = DocumentSums(training.source.eos_id)
    before = _measured(training, "student_before", channel, of_before)
    notes = {
        "before": asdict(before),
        "before_documents": of_before.table().tolist(),
        "before_texts": prompts.continued_by(training),
    }
    return_memory_if_scarce()
    return Progress(loss_scale=loss_scale, notes=notes)


def _take_best(training: Training, progress: Progress, checkpoints: Checkpoints, channel: Channel) -> int:
    """Give the model the weights with the lowest hold-out loss, and return their step."""
    best = best_checkpoint(training, progress, checkpoints)
    if best is None:
        return progress.step
    with training.world.apart():
        best.load_weights(training.learner.trainable.tensors())
    channel.log(
        "info",
        f"The student of step {best.step} is kept: its hold-out loss was the lowest, {progress.best_loss:.4f}.",
        "best-checkpoint",
    )
    return best.step


def _check_number(after: Metrics) -> None:
    if not math.isfinite(after.holdout_loss):
        raise BadNumbers(
            "The student's loss on the hold-out text is not a number.",
            "Such a student is useless, so it was not written.",
            "Start a new run with a smaller --learning_rate.",
        )


def next_logits_of(learner: Learner) -> Callable[[Tensor], Tensor]:
    """A function from ids [rows, length] to the logits of the token that follows, [rows, V]."""
    rows = learner.growing_rows()

    def next_logits(ids: Tensor) -> Tensor:
        with learner.evaluating():
            return learner.head(rows(ids.to(learner.device)))

    return next_logits


def _measured_after(
    training: Training, progress: Progress, best_step: int, channel: Channel
) -> tuple[Metrics, NDArray[np.float64]]:
    """Figures of the best student and of each document: those of its step where that look saw the whole hold-out."""
    if (found := measured_best(progress, best_step)) is None:
        documents = DocumentSums(training.source.eos_id)
        return _measured(training, "student_after", channel, documents), documents.table()
    channel.write("evaluation", which="student_after", **found[0].as_dict())
    return found


def _measured(training: Training, which: str, channel: Channel, documents: DocumentSums) -> Metrics:
    # Before the first step nothing is lost by stopping here, and after the last one everything is in a checkpoint.
    with channel.agreeing(training.world):
        metrics = look(training, on_batch=channel.safe_point, documents=documents)
    channel.write("evaluation", which=which, **metrics.as_dict())
    return metrics
