"""Phase 2 of a run: the student learns from the records, is measured before and after, and is written."""

from __future__ import annotations

import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from engine.channel.channel import Channel
from engine.channel.events import EventWriter
from engine.config import RunConfig
from engine.data.tokens import TokenFile
from engine.disk.files import write_atomic
from engine.errors import (
    ModelError,
    RankLost,
)
from engine.machine.device import Device
from engine.machine.gpu_check import gpu_of
from engine.models.load import check_numbers, load_causal_lm, load_tokenizer
from engine.models.load_in_place import in_memory, load_in_place
from engine.models.memory import return_memory
from engine.models.spec import read_spec
from engine.phases.cut import is_cut, mend_student
from engine.phases.device import device_peak_bytes, prepare_torch
from engine.phases.student_memory import StudentSaver
from engine.phases.student_result import (
    card_of,
    figures_of,
    holdout_bytes,
    samples_of,
    told_of_adapter,
    training_is_kept,
    with_bits,
    write_student,
)
from engine.phases.teacher import open_store
from engine.planner.adapters import adapter_shape
from engine.planner.footprint import context_bytes_on, student_reads_ahead
from engine.planner.models import FROM_TEACHER
from engine.planner.phase_settings import StudentSetting
from engine.planner.shape import shape_of
from engine.planner.sizes import head_chunk_tokens
from engine.planner.workload import EVALUATION_ROWS, MOST_EVALUATIONS
from engine.ranks import ALONE, Rank
from engine.run import Run
from engine.student.adapter import LowRankAdapter
from engine.student.batches import Source
from engine.student.checkpoint import Checkpoints
from engine.student.generate import SampleLimits, holdout_prompts
from engine.student.judge import Unigram, chance_sums
from engine.student.learn import Learned, learn
from engine.student.learner import Learner
from engine.student.loss import Objective
from engine.student.mapped import weights_in_files
from engine.student.optimizer import AdamW
from engine.student.order import Order
from engine.student.schedule import Schedule
from engine.student.sharded import ShardedLearner, ShardedWorld, fill
from engine.student.step import LossScale
from engine.student.train import Training
from engine.student.world import World
from engine.verdict import gap_of

_STREAMED_TOKENS = 8

if TYPE_CHECKING:
    pass


def run_student(run: Run, channel: Channel) -> None:
    """Train, write ``student/`` and enter the phase's result."""
    settings = run.settings
    rank = Rank.of_phase(os.environ)
    if rank == ALONE:
        _run(run, settings, channel, None)
        return
    try:
        world = (ShardedWorld if settings.student_sharded else World).join(rank, os.environ)
        _run(run, settings, channel, world)
        world.leave()
    except RankLost:
        channel.safe_point()  # the other ranks were asked to stop too
        raise


def _run(run: Run, settings: RunConfig, channel: Channel, world: World | None) -> None:
    device, _ = prepare_torch(settings)
    is_first = world is None or world.rank.number == 0
    hosts = 1 if world is None else len(set(world.gathered(socket.gethostname())))
    if world is not None and not is_first:
        world.wait()  # rank 0 repairs a damaged one
    folder = student_folder(run, settings, channel)
    if world is not None and is_first:
        world.wait()
    with TokenFile(run.tokens_path) as tokens, open_store(run, settings, tokens.vocab_size, channel) as store:
        source = Source(tokens, store)
        prompts = holdout_prompts(tokens)
        learner, learned = _learned(
            run, settings, folder, source, tokens, prompts, run.checkpoints_path, channel, world
        )
        if not is_first:
            del learner
            if settings.compare == "labels":
                _on_labels(run, settings, folder, source, tokens, 0, channel, world)
            return
        chance = chance_sums(source, Unigram.of(tokens), micro_batch=settings.student_batch or 1, eos_id=tokens.eos_id)
        with training_is_kept():
            tokenizer = load_tokenizer(folder, trust_remote_code=settings.trust_remote_code)
            num_bytes = holdout_bytes(tokens, tokenizer)
            result = {
                **figures_of(learned, chance, num_bytes, settings.seed),
                "samples": samples_of(run, tokenizer, prompts, learned, tokens.end_ids),
                "tokens": learned.tokens,
                "tokens_per_second": learned.tokens_per_second,
                "working_seconds": learned.seconds,
                "steps": learned.steps,
                "skipped_steps": learned.skipped,
                "best_step": learned.best_step,
                "device_peak_bytes": device_peak_bytes(device),
                "world": {"ranks": 1 if world is None else world.rank.world, "hosts": hosts},
            }
            if isinstance(adapter := learner.trainable, LowRankAdapter):
                result["adapter"] = told_of_adapter(adapter, folder, settings)
            write_student(run, settings, folder, learner, result, tokens.end_ids, channel)
        if settings.compare == "labels":
            del learner, adapter  # two students are never in memory together
            return_memory()
            labels = _on_labels(run, settings, folder, source, tokens, num_bytes, channel, world)
            result["compare"] = {"labels": labels}
            write_atomic(run.student_path / "README.md", card_of(run, settings, folder, result))
    channel.write("evaluation", which="result", gap_closed=gap_of(result))
    run.finish_phase("student", result)


def _learned(
    run: Run,
    settings: RunConfig,
    folder: Path,
    source: Source,
    tokens: TokenFile,
    prompts: list[list[int]],
    checkpoints_path: Path,
    channel: Channel,
    world: World | None,
) -> tuple[Learner, Learned]:
    """Train a student from its first weights in ``folder``; the returned one is the best."""
    device, dtype = prepare_torch(settings)
    torch.manual_seed(settings.seed)
    scratch = run.path / "scratch" if settings.cpu_offload and Device.of(str(device)).is_host else None
    if world is not None and scratch is not None:
        scratch = scratch / f"rank-{world.rank.number}"
    if settings.student_layer_by_layer:
        learner: Learner = _streamed(settings, folder, device, dtype, scratch, channel)
    elif isinstance(world, ShardedWorld):
        # Whole it lies in files, which are no memory of the process.
        model = _load(settings, folder, device, dtype, _whole_in_files(run, world))
        check_numbers(model, folder)
        learner = ShardedLearner(
            model, dtype=dtype, gradient_checkpointing=bool(settings.gradient_checkpointing), world=world
        )
    else:
        model = _load(settings, folder, device, dtype, scratch)
        check_numbers(model, folder)
        learner = Learner(
            model,
            dtype=dtype,
            gradient_checkpointing=bool(settings.gradient_checkpointing),
            trainable=_adapter(settings, model, device, scratch) if settings.lora_rank else None,
        )
    if world is not None:
        torch.manual_seed(settings.seed + world.rank.number)  # other rows, other dropout
    if settings.packing and not learner.can_be_cut:
        channel.log(
            "info",
            f"{type(learner.model).__name__} cannot be cut between the documents of a row: it reads them one by one, "
            "which takes longer. With --packing off each row has one document.",
            "documents-one-by-one",
        )
    where = Device.of(str(device))
    with channel.saving_memory(StudentSaver.of(settings, learner, folder, where=where)):
        learned = learn(
            replace(_training(settings, learner, source, tokens, scratch=scratch, where=where), world=world),
            Checkpoints(
                checkpoints_path,
                keep=settings.keep_checkpoints,
                on_problem=lambda told: channel.log("warning", told, "damaged-checkpoint"),
            ),
            prompts=prompts,
            end_ids=tokens.end_ids,
            eos_id=tokens.eos_id,
            limits=_limits(settings, tokens),
            seed=settings.seed,
            loss_scale=LossScale.of(dtype),
            channel=channel,
        )
    if isinstance(world, ShardedWorld):
        tensors = world.whole(learner.trainable.tensors(), dict(learner.trainable.parameters()))
        if world.rank.number:
            world.hand_over(tensors)
        else:
            model = _load(settings, folder, device, dtype, _whole_in_files(run, world))
            fill(model, tensors)
            learner = Learner(model, dtype=dtype, gradient_checkpointing=False)
    return learner, learned


def _whole_in_files(run: Run, world: World) -> Path:
    """Where the whole student lies while a rank does not have it in memory."""
    return run.path / "scratch" / f"whole-{world.rank.number}"


def _streamed(
    settings: RunConfig,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    scratch: Path | None,
    channel: Channel,
) -> Learner:
    from engine.models.stream import StreamedTeacher
    from engine.student.streamed import StreamedLearner

    where = Device.of(str(device))
    shape = shape_of(read_spec(folder, trust_remote_code=settings.trust_remote_code))
    context = 0 if where.is_host else context_bytes_on(gpu_of(str(device)))
    is_roomy = student_reads_ahead(
        shape,
        StudentSetting.of(settings, where),
        (settings.memory_budget or 2**62) - context,
        settings.ram_budget or 2**62,
    )
    try:
        base = StreamedTeacher(
            folder,
            dtype=dtype,
            device=device,
            trust_remote_code=settings.trust_remote_code,
            quantization=settings.student_quantization,
            weight_bytes=None if is_roomy else 0,
        )
    except ModelError as error:  # its words are for a teacher
        todo = error.todo.replace("--layer_by_layer", "--student_layer_by_layer")
        todo = todo.replace("this teacher", "this student")
        raise ModelError(error.what, error.why, todo) from error
    if base.note:
        channel.log("info", base.note, "streaming-rounds")
    tokens = (settings.student_batch or 1) * (settings.gradient_accumulation or 1) * (settings.sequence_length or 1)
    adapter = _adapter(settings, base.model, device, scratch)
    return StreamedLearner(base, dtype=dtype, trainable=adapter, wave_tokens=tokens)


def _adapter(settings: RunConfig, model: PreTrainedModel, device: torch.device, scratch: Path | None) -> LowRankAdapter:
    place = None if scratch is None else weights_in_files(scratch)
    return LowRankAdapter(model, adapter_shape(settings), device=device, seed=settings.seed, new_tensor=place)


def _limits(settings: RunConfig, tokens: TokenFile) -> SampleLimits:
    """How long samples may be: each token of a streamed student is a pass over all its layers, from the disk."""
    limits = SampleLimits.of(tokens)
    return replace(limits, tokens=min(limits.tokens, _STREAMED_TOKENS)) if settings.student_layer_by_layer else limits


class _Beside(EventWriter):
    """Events of the comparison training, marked so that its metrics are not mistaken for the student's."""

    def write(self, kind: str, **fields: Any) -> None:
        """Write the event; steps are left out, and evaluations carry another name."""
        if kind == "metric":
            return
        if kind == "evaluation":
            fields["which"] = f"labels_{fields['which']}"
        super().write(kind, **fields)


def _on_labels(
    run: Run,
    settings: RunConfig,
    folder: Path,
    source: Source,
    tokens: TokenFile,
    num_bytes: int,
    channel: Channel,
    world: World | None,
) -> dict[str, Any]:
    """Train the same student on labels only, with the same steps and tokens; return its metrics."""
    channel.log("info", "The same student is trained on labels alone, to compare.", "compare")
    is_first = world is None or world.rank.number == 0
    if is_first:
        channel = channel.beside(_Beside(run.events_path, phase="student", log_path=run.log_path))
    path = run.path / "checkpoints-labels"
    alone = settings.model_copy(update={"kd_weight": 0.0, "keep_checkpoints": 1})
    _, learned = _learned(run, alone, folder, source, tokens, [], path, channel, world)
    if is_first:
        shutil.rmtree(path, ignore_errors=True)
    return with_bits(learned.student_after, num_bytes)


def _load(
    settings: RunConfig, folder: Path, device: torch.device, dtype: torch.dtype, scratch: Path | None
) -> PreTrainedModel:
    """Load the student, each weight directly to its place: the GPU, a file in ``scratch``, or memory.

    Trained weights are kept in float32, so that small steps are not rounded away. Frozen ones are only multiplied, so
    they are kept in the format of the products, or quantised.
    """
    trust_remote_code = settings.trust_remote_code
    if settings.student_quantization != "none":
        from engine.models.load_quantized import load_quantized

        return load_quantized(
            folder, settings.student_quantization, dtype=dtype, device=device, trust_remote_code=trust_remote_code
        )
    dtype = dtype if settings.lora_rank else torch.float32
    if not Device.of(str(device)).is_host:
        return load_causal_lm(folder, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    place = in_memory if scratch is None else weights_in_files(scratch)
    return load_in_place(folder, dtype=dtype, new_tensor=place, trust_remote_code=trust_remote_code)


def student_folder(run: Run, settings: RunConfig, channel: Channel) -> Path:
    """Return the folder of the initial weights; a damaged one is cut from the teacher again."""
    if settings.student != FROM_TEACHER:
        return read_spec(str(settings.student), trust_remote_code=settings.trust_remote_code).path
    if not is_cut(run, settings):
        from engine.phases.prepare import teacher_spec

        mend_student(run, settings, teacher_spec(settings), channel)
    return run.initial_student_path


def _training(
    settings: RunConfig, learner: Learner, source: Source, tokens: TokenFile, *, scratch: Path | None, where: Device
) -> Training:
    order = Order.plan(
        num_rows=tokens.num_rows("train"),
        micro_batch=settings.student_batch or 1,
        gradient_accumulation=settings.gradient_accumulation or 1,
        seed=settings.seed,
        epochs=settings.epochs,
        steps=settings.steps,
    )
    return Training(
        learner=learner,
        optimizer=AdamW(
            learner.trainable.parameters(),
            weight_decay=settings.weight_decay,
            bits=8 if settings.optimizer == "adamw-8bit" else 32,
            offload=bool(settings.cpu_offload),
            scratch=scratch,
        ),
        source=source,
        order=order,
        schedule=Schedule(
            peak=settings.learning_rate or 1e-4,
            total_steps=order.total_steps,
            warmup=settings.warmup,
            kind=settings.schedule,
        ),
        objective=Objective(
            vocab_size=tokens.vocab_size,
            target=settings.target,
            kd_weight=settings.kd_weight,
            temperature=settings.temperature,
        ),
        clip_norm=settings.clip_norm,
        chunk_tokens=head_chunk_tokens(learner.model.get_input_embeddings().weight.shape[0], device=where),
        checkpoint_every=settings.checkpoint_every or order.total_steps,
        evaluation_rows=EVALUATION_ROWS,
        evaluations=settings.evaluations or MOST_EVALUATIONS,
        lean=settings.optimizer
        == "adamw-8bit",  # a run that saves memory on optimizer states saves it on gradients too
    )
