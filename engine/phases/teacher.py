"""Phase 1 of a run: the teacher scores the rows whose records are not there yet.

The teacher is loaded only if records are missing: a second student from the same teacher and text starts at once.

Several ranks score waves of their own, each with its own teacher, and leave a result each. Rank 0 also cuts the student
and keeps the samples. Then one process finds no row missing, judges the records and enters the phase's result.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from engine.cache.identity import MANIFEST
from engine.cache.store import CacheIdentity, CacheStore
from engine.channel.channel import Channel
from engine.data.sample_limits import SampleLimits
from engine.data.tokens import SPLITS, TokenFile
from engine.disk.file_lock import no_locks
from engine.disk.files import make_folder, write_atomic
from engine.jobs import RecordsJob, ScoreJob
from engine.machine.gpu_check import gpu_of
from engine.model_files.spec import ModelSpec
from engine.model_files.vocabulary import forget_vocabularies
from engine.phases.cut import CUT, cut_student, is_cut
from engine.phases.prepare import teacher_spec
from engine.phases.quantized import QUANTIZATION, enter_cost, own_loss
from engine.planner.footprint import SPARED, context_bytes_on, reads_ahead, teacher_footprint
from engine.planner.phase_settings import TeacherSetting
from engine.planner.shape import shape_of
from engine.planner.sizes import wave_tokens
from engine.ranks import ALONE, Rank
from engine.run.folder import Run
from engine.run.inputs import check_unchanged, identity_of_model
from engine.student.verdict import doubts
from engine.talk.speed import keep_speed

_JUDGED_ROWS = 16
_STREAMED_TOKENS = 12

if TYPE_CHECKING:
    import torch

    from engine.teacher.score import ScoreSettings, Teacher


def cache_identity(run: Run, job: RecordsJob, vocab_size: int) -> CacheIdentity:
    """Return the identity of this run's records: all settings that could change one of them.

    The teacher was identified when the run was prepared; its folder is not needed once all records exist.
    """
    teacher = ((run.result("prepare") or {}).get("inputs") or {}).get("teacher")
    if teacher is None:
        teacher = identity_of_model(teacher_spec(job))
        forget_vocabularies()
    return CacheIdentity(
        teacher=teacher["weights"],
        tokenizer=teacher["tokenizer"],
        chat_template=teacher["chat template"],
        temperature=job.temperature,
        record_size=job.record_size,
        vocab_size=vocab_size,
        seed=job.seed,
        precision=job.precision,
        quantization=job.quantization,
    )


def open_store(
    run: Run,
    job: RecordsJob,
    vocab_size: int,
    channel: Channel,
    *,
    writable: bool = False,
    rank: Rank = ALONE,
) -> CacheStore:
    """The run's records: in its own folder, or below the shared one under the name of what they belong to.

    A shared folder that is itself a cache, as the one in another run's folder, is used as it is or refused.

    Args:
        run: whose records.
        job: that scores, or reads the records.
        vocab_size: V_eff.
        channel: receives reports of damage; a phase that will write can be stopped while it waits for another run.
        writable: whether records will be added.
        rank: of the process; several ranks write at the same time.
    """
    identity = cache_identity(run, job, vocab_size)
    path = run.cache_path
    if job.cache_dir and not (path / MANIFEST).exists():
        path = path / identity.digest()
    wait = channel.safe_point if writable else None
    # A cache in the run's own folder is known to be the run's; a path in it would be wrong once the folder is moved.
    used_by = run.path if job.cache_dir else None
    number = None if rank == ALONE else rank.number
    store = CacheStore.open(path, identity, writable=writable, used_by=used_by, wait=wait, rank=number)
    if store.without_locks:
        channel.log("warning", no_locks(store.path), "no-locks")
    for problem in store.problems:
        channel.log("warning", problem, "damaged-records")
    return store


def run_teacher(run: Run, job: ScoreJob, channel: Channel) -> None:
    """Score what is missing and enter the job's result, or that of a rank."""
    rank = Rank.of_phase(os.environ)
    with (
        TokenFile(run.tokens_path) as tokens,
        open_store(run, job, tokens.vocab_size, channel, writable=True, rank=rank) as store,
    ):
        missing = sum(len(store.missing(tokens.hashes(s), top1=s == "holdout")) for s in SPLITS)
        figures: dict[str, Any] = {"tokens": 0, "tokens_per_second": None, "seconds": 0.0}
        if missing:
            figures = _score(run, job, tokens, store, channel, rank) or figures
        if rank != ALONE:
            run.finish_phase(rank.result, {**figures, "host": socket.gethostname()})
            return
        if not missing and is_cut(run, job):
            channel.log("info", "Every row has its records already; the teacher is not loaded.", "cache-hit")
        elif not missing:
            said = "Every row has its records already; the teacher is loaded to cut the student from it."
            channel.log("info", said, "cache-hit")
            _only_cut(run, job, tokens, channel)
        scored = _of_ranks(run, job) if not missing else {**figures, "rows_scored": missing}
        _judge(tokens, store, channel)
        more = {"cut": run.result(CUT), "quantization_cost": run.result(QUANTIZATION)}
        run.finish_phase(job.name, {**scored, "cache": cache_figures(store), **more})


def _of_ranks(run: Run, job: ScoreJob) -> dict[str, Any]:
    """The figures of what the ranks have scored, together; of nothing, where there were none."""
    found = [run.result(Rank(number, job.processes).result) for number in range(job.processes)]
    ranks = [result for result in found if result is not None] if job.processes > 1 else []
    tokens = sum(result["tokens"] for result in ranks)
    seconds = max((result["seconds"] for result in ranks), default=0.0)
    working = max((result.get("working_seconds", 0.0) for result in ranks), default=0.0)
    figures = {
        "tokens": tokens,
        "tokens_per_second": tokens / max(working, 1e-9) if tokens else None,
        "seconds": seconds,
        "rows_scored": sum(result.get("rows_scored", 0) for result in ranks),
    }
    if tokens:
        figures["working_seconds"] = working
    if ranks:
        figures["world"] = {"ranks": len(ranks), "hosts": len({result["host"] for result in ranks})}
    return figures


def _judge(tokens: TokenFile, store: CacheStore, channel: Channel) -> None:
    """Warn if the teacher's loss on the text is poor, before a student is trained on it."""
    from engine.student.batches import Source
    from engine.student.evaluate import HoldoutBatches, evaluate_teacher
    from engine.student.judge import Unigram, chance_sums

    source = Source(tokens, store)
    teacher = evaluate_teacher(HoldoutBatches(source, _JUDGED_ROWS))
    if not teacher.tokens:
        return
    sums = chance_sums(source, Unigram.of(tokens), micro_batch=_JUDGED_ROWS, eos_id=tokens.eos_id)
    chance = float(sums[:, 1].sum() / sums[:, 0].sum())
    channel.write("evaluation", which="chance", holdout_loss=chance)
    doubt = doubts(teacher.holdout_loss, chance)
    if doubt is None:
        said = (
            f"The teacher's loss on the hold-out is {teacher.holdout_loss:.2f}, and {chance:.2f} that of a model that "
            "only counts how often each token comes."
        )
        channel.log("info", said, "judged")
        return
    channel.log(
        "warning",
        f"{doubt} A student learns little from such records. Use text of a kind that the teacher knows, or another "
        "teacher; --kd_weight below 1 mixes in the labels.",
        "teacher-doubt",
    )


def cache_figures(store: CacheStore) -> dict[str, Any]:
    """The cache as the report has it."""
    return {
        "tokens": store.num_tokens,
        "bytes": store.num_bytes,
        "bytes_per_token": store.num_bytes / max(1, store.num_tokens),
        "shards": store.num_shards,
    }


def _score(
    run: Run,
    job: ScoreJob,
    tokens: TokenFile,
    store: CacheStore,
    channel: Channel,
    rank: Rank,
) -> dict[str, Any] | None:
    """Score the rank's rows; None if it has nothing to do, and the teacher is not loaded."""
    from engine.phases.device import device_peak_bytes, prepare_torch
    from engine.teacher.score import has_work, score

    device, dtype = prepare_torch(job)
    spec = teacher_spec(job)
    check_unchanged(run, "teacher", spec)
    began, processor_seconds = time.monotonic(), 0.0
    how = _score_settings(job, spec, tokens.sequence_length)
    cuts = rank.number == 0 and not is_cut(run, job)
    if rank != ALONE and not cuts and not has_work(tokens, store, SPLITS, how, rank):
        return None

    def load(of: ScoreJob) -> Any:
        return load_teacher(run, of, spec, device, dtype)

    own = own_loss(run, job, spec, tokens, channel, load) if rank.number == 0 else None
    with contextlib.closing(load(job)) as teacher:
        if job.layer_by_layer and teacher.note:
            channel.log("info", teacher.note, "not-bit-equal")
        if own is not None:
            enter_cost(run, job, tokens, channel, teacher, own)
        if cuts:
            cut_student(run, job, spec, lambda: teacher, tokens, channel)
        if rank.number == 0:
            _keep_samples(run, teacher, tokens, job.seed)
        processor_seconds -= time.process_time()
        with channel.saving_memory(teacher, also="the next waves are half as long"):
            result = score(
                teacher=teacher, tokens=tokens, store=store, splits=SPLITS, settings=how, channel=channel, rank=rank
            )
        processor_seconds += time.process_time()
    return {
        "tokens": result.tokens,
        "seconds": time.monotonic() - began - channel.paused_seconds,
        "tokens_per_second": result.tokens / max(result.seconds, 1e-9),
        "working_seconds": result.seconds,
        "processor_seconds": processor_seconds,
        "rows_scored": result.rows,
        "device_peak_bytes": device_peak_bytes(device),
    }


def _score_settings(job: ScoreJob, spec: ModelSpec, sequence_length: int) -> ScoreSettings:
    from engine.teacher.score import ScoreSettings

    return ScoreSettings(
        micro_batch=job.teacher_batch,
        wave_tokens=wave_tokens(
            spec.hidden_size,
            job.teacher_batch * sequence_length,
            layer_by_layer=job.layer_by_layer,
            device=job.where,
        ),
        chunk_tokens=job.head_chunk_tokens,
        record_size=job.record_size,
        temperature=job.temperature,
        seed=job.seed,
        short_last_waves=not job.layer_by_layer,
    )


def _only_cut(run: Run, job: ScoreJob, tokens: TokenFile, channel: Channel) -> None:
    """Cut the student though nothing has to be scored; the teacher is loaded where something has to be measured."""
    from engine.phases.device import prepare_torch

    device, dtype = prepare_torch(job)
    spec = teacher_spec(job)
    check_unchanged(run, "teacher", spec)
    loaded: list[Any] = []

    def teacher() -> Any:
        loaded.append(load_teacher(run, job, spec, device, dtype))
        return loaded[0]

    try:
        cut_student(run, job, spec, teacher, tokens, channel)
    finally:
        for each in loaded:
            each.close()


def load_teacher(run: Run, job: ScoreJob, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> Any:
    """Load the teacher as planned: whole, or streamed layer by layer.

    Only a streamed teacher has hidden states that wait: ``cpu_offload`` keeps them off the compute device, on a GPU in
    main memory and on the CPU in a file of the run's folder.
    """
    if job.layer_by_layer:
        from engine.models.streaming.teacher import StreamedTeacher, StreamingMemory

        room = _room(job, spec, device)
        return StreamedTeacher(
            spec.path,
            dtype=dtype,
            device=device,
            trust_remote_code=spec.trust_remote_code,
            quantization=job.quantization,
            memory=StreamingMemory(
                weight_bytes=None if room.reads_ahead else 0,
                host_bytes=room.host_bytes,
                hidden_bytes=0 if job.cpu_offload else None,
                spill_folder=run.path if job.where.is_host else None,
            ),
        )
    from engine.models.resident import ResidentTeacher

    return ResidentTeacher(
        spec.path,
        dtype=dtype,
        device=device,
        trust_remote_code=spec.trust_remote_code,
        quantization=job.quantization,
    )


@dataclass(frozen=True)
class _Room:
    """Memory that the budgets leave for a streamed teacher.

    Attributes:
        reads_ahead: whether there is room for two layers.
        host_bytes: main memory that is left over.
    """

    reads_ahead: bool
    host_bytes: int


def _room(job: ScoreJob, spec: ModelSpec, device: torch.device) -> _Room:
    """Return the room in the budgets."""
    shape = shape_of(spec)
    setting = TeacherSetting.of(job)
    context = 0 if setting.device.is_host else context_bytes_on(gpu_of(str(device)))
    is_roomy = reads_ahead(shape, setting, job.memory_of_each - context, job.ram_of_each)
    planned = teacher_footprint(shape, replace(setting, reads_ahead=is_roomy)).ram_bytes
    return _Room(is_roomy, max(0, int(SPARED * job.ram_of_each) - planned))


def _keep_samples(run: Run, teacher: Teacher, tokens: TokenFile, seed: int) -> None:
    """Let the teacher continue a few prompts while it is loaded; the report shows them beside the student's."""
    from engine.models.cached import GrowingRows
    from engine.models.resident import ResidentTeacher
    from engine.student.generate import continuations, holdout_prompts, lengthened, writing_speed

    path = run.phases_path / "teacher-samples.json"
    if path.exists():
        return
    make_folder(run.phases_path, parents=False)

    def whole_rows(ids: torch.Tensor) -> torch.Tensor:
        return teacher.last_hidden_states([lengthened(ids)])[0]

    def last_of_whole_rows(ids: torch.Tensor) -> torch.Tensor:
        return whole_rows(ids)[:, ids.shape[1] - 1]

    limits = SampleLimits.of(bool(tokens.answer_end_ids))
    last = GrowingRows(teacher.model, whole_rows) if isinstance(teacher, ResidentTeacher) else last_of_whole_rows
    # Each token of a streamed teacher is a pass over all its layers, from the disk.
    most = limits.tokens if isinstance(teacher, ResidentTeacher) else min(limits.tokens, _STREAMED_TOKENS)
    prompts = holdout_prompts(tokens)

    def next_logits(ids: torch.Tensor) -> torch.Tensor:
        return teacher.logits(last(ids))

    texts = continuations(
        next_logits,
        prompts,
        vocab_size=tokens.vocab_size,
        end_ids=tokens.end_ids,
        seed=seed,
        max_new_tokens=most,
        max_seconds=limits.seconds,
    )
    write_atomic(path, json.dumps(texts))
    if prompts and isinstance(teacher, ResidentTeacher):
        keep_speed(run.path, "teacher", writing_speed(next_logits, prompts[0], vocab_size=tokens.vocab_size))
