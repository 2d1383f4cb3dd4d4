"""Phase 2 of a run: the student learns from the records, is measured before and after, and is written."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any

from engine.channel.channel import Channel
from engine.data.tokens import TokenFile
from engine.disk.files import write_atomic
from engine.errors import RankLost
from engine.jobs import TrainJob
from engine.model_files.spec import ModelSpec, read_spec
from engine.models.load import load_tokenizer
from engine.models.memory import return_memory
from engine.phases.cut import is_cut, repair_student
from engine.phases.device import device_peak_bytes, prepare_torch
from engine.phases.lesson import Lesson
from engine.phases.student_result import (
    card_of,
    figures_of,
    holdout_bytes,
    samples_of,
    told_of_trained,
    training_is_kept,
    with_bits,
    write_student,
)
from engine.phases.teacher import open_store
from engine.ranks import ALONE, Rank
from engine.run.folder import Run
from engine.run.inputs import check_unchanged
from engine.student.batches import Source
from engine.student.generate import holdout_prompts, writing_speed
from engine.student.learn import Learned, next_logits_of
from engine.student.learner import Learner
from engine.student.sharded import ShardedWorld
from engine.student.verdict import gap_of
from engine.student.world import LIMIT_SECONDS, ONE_PROCESS, STREAMED_LIMIT_SECONDS, World
from engine.talk.speed import keep_speed


def run_student(run: Run, job: TrainJob, channel: Channel) -> None:
    """Train, write ``student/`` and enter the job's result."""
    rank = Rank.of_phase(os.environ)
    if rank == ALONE:
        _run(run, job, channel, ONE_PROCESS)
        return
    try:
        seconds = STREAMED_LIMIT_SECONDS if job.student_layer_by_layer else LIMIT_SECONDS
        world = (ShardedWorld if job.student_sharded else World).join(rank, os.environ, seconds)
        _run(run, job, channel, world)
        world.leave()
    except RankLost:
        channel.safe_point()  # the other ranks were asked to stop too
        raise


def _run(run: Run, job: TrainJob, channel: Channel, world: World) -> None:
    prepare_torch(job)
    hosts = len(set(world.gathered(socket.gethostname())))
    spec = _with_whole_weights(run, job, channel, world)
    compares = job.compare == "labels"
    with TokenFile(run.tokens_path) as tokens, open_store(run, job, tokens.vocab_size, channel) as store:
        lesson = Lesson(run, job, spec, tokens, Source(tokens, store), channel, world)
        learner, learned = lesson.learned(holdout_prompts(tokens), run.checkpoints_path)
        result: dict[str, Any] = {}
        with world.apart() if compares else contextlib.nullcontext():
            if lesson.is_first:
                result = _written(lesson, learner, learned) | {"world": {"ranks": world.rank.world, "hosts": hosts}}
        if compares:
            del learner  # two students are never in memory together
            return_memory()
            labels = lesson.on_labels()
        if not lesson.is_first:
            return
        if compares:
            result["compare"] = {"labels": with_bits(labels, _holdout_bytes(lesson))}
            write_atomic(run.student_path / "README.md", card_of(run, spec.path, result))
    channel.write("evaluation", which="result", gap_closed=gap_of(result))
    run.finish_phase(job.name, result)


def _written(lesson: Lesson, learner: Learner, learned: Learned) -> dict[str, Any]:
    """Write the student; return the figures of its training."""
    run, job, spec, tokens = lesson.run, lesson.job, lesson.spec, lesson.tokens
    prompts = holdout_prompts(tokens)
    with training_is_kept():
        tokenizer = load_tokenizer(spec.path, trust_remote_code=spec.trust_remote_code)
        result = {
            **figures_of(learned, lesson.chance(), holdout_bytes(tokens, tokenizer), job.seed),
            "samples": samples_of(run, tokenizer, prompts, learned, tokens.end_ids),
            **_told(learned),
            "device_peak_bytes": device_peak_bytes(lesson.device),
            **told_of_trained(learner, spec, job),
        }
        if prompts and not (job.student_layer_by_layer or lesson.world.is_sharded):
            speed = writing_speed(next_logits_of(learner), prompts[0], vocab_size=tokens.vocab_size)
            keep_speed(run.path, "after", speed)
        write_student(run, job, spec, learner, result, tokens, lesson.channel)
    return result


def _holdout_bytes(lesson: Lesson) -> int:
    tokenizer = load_tokenizer(lesson.spec.path, trust_remote_code=lesson.spec.trust_remote_code)
    return holdout_bytes(lesson.tokens, tokenizer)


def _with_whole_weights(run: Run, job: TrainJob, channel: Channel, world: World) -> ModelSpec:
    """The model that the student begins as, on each rank; rank 0 repairs a damaged one while the others wait."""
    with world.apart():
        spec = first_student(run, job, channel) if world.rank.number == 0 else None
    return spec or first_student(run, job, channel)


def _told(learned: Learned) -> dict[str, Any]:
    """The training's figures as the report has them."""
    return {
        "tokens": learned.tokens,
        "tokens_per_second": learned.tokens_per_second,
        "working_seconds": learned.seconds,
        "steps": learned.steps,
        "skipped_steps": learned.skipped,
        "best_step": learned.best_step,
    }


def first_student(run: Run, job: TrainJob, channel: Channel) -> ModelSpec:
    """Describe the model that the student begins as; a damaged one is cut from the teacher again.

    Raises:
        ModelError: it is not the model that the run was prepared with.
    """
    from engine.phases.prepare import student_spec, teacher_spec

    if (spec := student_spec(job)) is not None:
        check_unchanged(run, "student", spec)
        return spec
    if not is_cut(run, job):
        teacher = teacher_spec(job)
        check_unchanged(run, "teacher", teacher)
        repair_student(run, teacher, channel)
    return read_spec(run.initial_student_path, trust_remote_code=job.trust_remote_code)
