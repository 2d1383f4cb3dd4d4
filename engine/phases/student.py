"""Phase 2 of a run: the student learns from the records, is measured before and after, and is written."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from engine.config import SETTINGS, RunConfig
from engine.data.chat_template import PLAIN_TEMPLATE
from engine.data.tokens import TokenFile
from engine.disk.files import NO_ROOM, write_atomic
from engine.errors import (
    BadNumbers,
    DiskFull,
    ModelError,
    OutOfMemory,
    RankLost,
    RunFailed,
    Stopped,
    TinyDistillError,
)
from engine.events import EventWriter
from engine.machine.device import Device
from engine.machine.gpu_check import gpu_of
from engine.models.load import check_numbers, first_sentence, load_causal_lm, load_tokenizer
from engine.models.load_in_place import in_memory, load_in_place
from engine.models.memory import return_memory
from engine.models.spec import read_spec
from engine.out_of_memory import is_out_of_memory
from engine.phase_control import PhaseControl
from engine.phases.cut import CUT, is_cut, mend_student
from engine.phases.device import device_peak_bytes, prepare_torch
from engine.phases.teacher import open_store
from engine.planner.adapters import adapter_shape, targets_of
from engine.planner.footprint import StudentSetting, context_bytes_on, student_footprint, student_reads_ahead
from engine.planner.models import FROM_TEACHER
from engine.planner.shape import shape_of
from engine.planner.sizes import head_chunk_tokens
from engine.planner.workload import EVALUATION_ROWS, MOST_EVALUATIONS
from engine.ranks import ALONE, Rank
from engine.relief import Relief
from engine.run import Run
from engine.student.adapter import LowRankAdapter
from engine.student.batches import Source
from engine.student.checkpoint import Checkpoints
from engine.student.companions import versions_told
from engine.student.evaluate import Metrics
from engine.student.export import export_student, model_card, stored_dtype
from engine.student.generate import SampleLimits, holdout_prompts
from engine.student.judge import Unigram, bits_per_byte, chance_sums, intervals
from engine.student.learn import Learned, learn
from engine.student.learner import Learner
from engine.student.loss import Objective
from engine.student.mapped import weights_in_files
from engine.student.optimizer import AdamW
from engine.student.order import Order
from engine.student.schedule import Schedule
from engine.student.step import LossScale
from engine.student.train import Training
from engine.student.world import World
from engine.verdict import adapter_in_words, details, gap_of, headline
from engine.version import __version__

_STREAMED_TOKENS = 8

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase


def run_student(run: Run, events: EventWriter, control: PhaseControl) -> None:
    """Train, write ``student/`` and enter the phase's result."""
    settings = run.settings
    rank = Rank.of_phase(os.environ)
    if rank == ALONE:
        _run(run, settings, events, control, None)
        return
    try:
        world = World.join(rank, os.environ)
        _run(run, settings, events, control, world)
        world.leave()
    except RankLost:
        control.safe_point()  # the other ranks were asked to stop too
        raise


def _run(run: Run, settings: RunConfig, events: EventWriter, control: PhaseControl, world: World | None) -> None:
    device, _ = prepare_torch(settings)
    is_first = world is None or world.rank.number == 0
    hosts = 1 if world is None else len(set(world.gathered(socket.gethostname())))
    if world is not None and not is_first:
        world.wait()  # rank 0 repairs a damaged one
    folder = student_folder(run, settings, events)
    if world is not None and is_first:
        world.wait()
    with TokenFile(run.tokens_path) as tokens, open_store(run, settings, tokens.vocab_size, events) as store:
        source = Source(tokens, store)
        prompts = holdout_prompts(tokens)
        learner, learned = _learned(
            run, settings, folder, source, tokens, prompts, run.checkpoints_path, events, control, world
        )
        if not is_first:
            del learner
            if settings.compare == "labels":
                _on_labels(run, settings, folder, source, tokens, 0, events, control, world)
            return
        chance = chance_sums(source, Unigram.of(tokens), micro_batch=settings.student_batch or 1, eos_id=tokens.eos_id)
        with _training_is_kept():
            tokenizer = load_tokenizer(folder, trust_remote_code=settings.trust_remote_code)
            num_bytes = _holdout_bytes(tokens, tokenizer)
            result = {
                **_figures(learned, chance, num_bytes, settings.seed),
                "samples": _samples(run, tokenizer, prompts, learned, tokens.end_ids),
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
                result["adapter"] = _told_of_adapter(adapter, folder, settings)
            _export(run, settings, folder, learner, result, tokens.end_ids, events)
        if settings.compare == "labels":
            del learner, adapter  # two students are never in memory together
            return_memory()
            labels = _on_labels(run, settings, folder, source, tokens, num_bytes, events, control, world)
            result["compare"] = {"labels": labels}
            write_atomic(run.student_path / "README.md", _card(run, settings, folder, result))
    events.write("evaluation", which="result", gap_closed=gap_of(result))
    run.finish_phase("student", result)


def _learned(
    run: Run,
    settings: RunConfig,
    folder: Path,
    source: Source,
    tokens: TokenFile,
    prompts: list[list[int]],
    checkpoints_path: Path,
    events: EventWriter,
    control: PhaseControl,
    world: World | None,
) -> tuple[Learner, Learned]:
    """Train a student from its first weights in ``folder``; the returned one is the best."""
    device, dtype = prepare_torch(settings)
    torch.manual_seed(settings.seed)
    scratch = run.path / "scratch" if settings.cpu_offload and Device.of(str(device)).is_host else None
    if world is not None and scratch is not None:
        scratch = scratch / f"rank-{world.rank.number}"
    if settings.student_layer_by_layer:
        learner: Learner = _streamed(settings, folder, device, dtype, scratch, events)
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
        events.log(
            "info",
            f"{type(learner.model).__name__} cannot be cut between the documents of a row: each goes through it by "
            "itself, which takes longer. With --packing off there is one document in a row.",
            "documents-one-by-one",
        )
    where = Device.of(str(device))
    learned = learn(
        replace(_training(settings, learner, source, tokens, scratch=scratch, where=where), world=world),
        Checkpoints(
            checkpoints_path,
            keep=settings.keep_checkpoints,
            on_problem=lambda told: events.log("warning", told, "damaged-checkpoint"),
        ),
        prompts=prompts,
        end_ids=tokens.end_ids,
        eos_id=tokens.eos_id,
        limits=_limits(settings, tokens),
        seed=settings.seed,
        loss_scale=LossScale.of(dtype),
        events=events,
        control=control,
        relief=Relief(StudentSaver.of(settings, learner, folder, where=where), events),
    )
    return learner, learned


def _streamed(
    settings: RunConfig,
    folder: Path,
    device: torch.device,
    dtype: torch.dtype,
    scratch: Path | None,
    events: EventWriter,
) -> Learner:
    from engine.models.stream import StreamedTeacher
    from engine.student.streamed import StreamedLearner

    where = Device.of(str(device))
    shape = shape_of(read_spec(folder, trust_remote_code=settings.trust_remote_code))
    context = 0 if where.is_host else context_bytes_on(gpu_of(str(device)))
    is_roomy = student_reads_ahead(
        shape,
        _setting(settings, where),
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
        events.log("info", base.note, "streaming-rounds")
    tokens = (settings.student_batch or 1) * (settings.gradient_accumulation or 1) * (settings.sequence_length or 1)
    adapter = _adapter(settings, base.model, device, scratch)
    return StreamedLearner(base, dtype=dtype, trainable=adapter, wave_tokens=tokens)


def _adapter(settings: RunConfig, model: PreTrainedModel, device: torch.device, scratch: Path | None) -> LowRankAdapter:
    place = None if scratch is None else weights_in_files(scratch)
    return LowRankAdapter(model, adapter_shape(settings), device=device, seed=settings.seed, new_tensor=place)


def _told_of_adapter(adapter: LowRankAdapter, folder: Path, settings: RunConfig) -> dict[str, Any]:
    """The report's entry about an adapter."""
    trained = adapter.num_parameters
    whole = shape_of(read_spec(folder, trust_remote_code=settings.trust_remote_code)).parameters
    return {
        "rank": adapter.shape.rank,
        "alpha": adapter.shape.alpha,
        "targets": sorted({linear.kind for linear in adapter.linears}),
        "trained_parameters": trained,
        "share": trained / whole,
    }


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
    events: EventWriter,
    control: PhaseControl,
    world: World | None,
) -> dict[str, Any]:
    """Train the same student on labels only, with the same steps and tokens; return its metrics."""
    events.log("info", "The same student is trained on labels alone, to compare.", "compare")
    is_first = world is None or world.rank.number == 0
    beside = _Beside(run.events_path, phase="student", log_path=run.log_path) if is_first else events
    path = run.path / "checkpoints-labels"
    alone = settings.model_copy(update={"kd_weight": 0.0, "keep_checkpoints": 1})
    _, learned = _learned(run, alone, folder, source, tokens, [], path, beside, control, world)
    if is_first:
        shutil.rmtree(path, ignore_errors=True)
    return _with_bits(learned.student_after, num_bytes)


def _figures(learned: Learned, chance: NDArray[np.float64], num_bytes: int, seed: int) -> dict[str, Any]:
    """The report's figures: three models, chance, and how sure they are."""
    tables = {**learned.documents, "chance": chance}
    scored, loss = float(chance[:, 0].sum()), float(chance[:, 1].sum())
    found = {
        "teacher": _with_bits(learned.teacher, num_bytes),
        "student_before": _with_bits(learned.student_before, num_bytes),
        "student_after": _with_bits(learned.student_after, num_bytes),
        "intervals": intervals(tables, seed=seed),
    }
    if scored:
        mean = loss / scored
        found["chance"] = {"holdout_loss": mean, "bits_per_byte": bits_per_byte(mean, int(scored), num_bytes)}
    return found


def _with_bits(metrics: Metrics, num_bytes: int) -> dict[str, Any]:
    return {
        **metrics.as_dict(),
        "calibration": metrics.calibration,
        "bits_per_byte": bits_per_byte(metrics.holdout_loss, metrics.tokens, num_bytes),
    }


def _holdout_bytes(tokens: TokenFile, tokenizer: PreTrainedTokenizerBase) -> int:
    """Bytes of text, in UTF-8, that the scored hold-out tokens stand for."""
    total, num_rows = 0, tokens.num_rows("holdout")
    for start in range(0, num_rows, 64):
        rows = tokens.rows("holdout", range(start, min(start + 64, num_rows)))
        for ids, scored in zip(rows.tokens, rows.scored, strict=True):
            total += len(str(tokenizer.decode(ids[scored].tolist(), skip_special_tokens=True)).encode())
    return total


def _export(
    run: Run,
    settings: RunConfig,
    folder: Path,
    learner: Learner,
    result: dict[str, Any],
    end_ids: Collection[int],
    events: EventWriter,
) -> None:
    """Write ``student/``, with a card that tells the result."""
    stored = stored_dtype(read_spec(folder, trust_remote_code=settings.trust_remote_code).dtype)
    card = _card(run, settings, folder, result)
    adapter = learner.trainable if isinstance(learner.trainable, LowRankAdapter) else None
    for note in export_student(
        learner.model,
        folder,
        run.student_path,
        card,
        dtype=stored,
        end_ids=end_ids,
        adapter=adapter,
        base=_without_folders(str(folder if settings.student == FROM_TEACHER else settings.student)),
        trust_remote_code=settings.trust_remote_code,
    ):
        events.log("warning", note, "student-files")
    if (run.result("prepare") or {}).get("data", {}).get("plain_template"):
        # The form that the conversations were written in, so that a chat with the student is written alike.
        write_atomic(run.student_path / "chat_template.jinja", PLAIN_TEMPLATE)


def _card(run: Run, settings: RunConfig, folder: Path, result: dict[str, Any]) -> str:
    judged = {**result, "gap_closed": gap_of(result)}
    return model_card(
        name=run.name,
        teacher=_without_folders(str(settings.teacher)),
        student=_beginning(run, settings),
        data=_without_folders(str(settings.data)),
        figures={
            "teacher": result["teacher"],
            "before": result["student_before"],
            "after": result["student_after"],
        },
        settings=_to_publish(settings),
        version=__version__,
        opens=versions_told(folder),
        verdict=" ".join([headline(judged), *details(judged)]),
        adapter=adapter_in_words(result["adapter"]) if result.get("adapter") else "",
    )


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


@contextlib.contextmanager
def _training_is_kept() -> Iterator[None]:
    """Add to errors after the training that the training is kept and the run can be resumed."""
    try:
        yield
    except (Stopped, OutOfMemory, DiskFull, BadNumbers, RankLost, MemoryError):
        raise  # say it themselves, or are answered with less memory
    except Exception as error:
        if is_out_of_memory(error) or (isinstance(error, OSError) and error.errno in NO_ROOM):
            raise  # the phase says how much room is needed
        said = error if isinstance(error, TinyDistillError) else None
        raise RunFailed(
            f"The training is done and kept, and the student could not be written: "
            f"{said.what if said else f'{type(error).__name__}: {first_sentence(error)}'}",
            said.why if said else "",
            "",
        ) from error


def _to_publish(settings: RunConfig) -> dict[str, Any]:
    """Return the settings for the student's model card, without paths: a card may be published."""
    chosen = settings.model_dump(mode="json", by_alias=True)
    names = {name: _without_folders(chosen[name]) for name in ("teacher", "student", "data") if chosen[name]}
    kept = {name: value for name, value in chosen.items() if SETTINGS[name].group not in ("command", "run")}
    return {**kept, **names}


def _without_folders(name: str) -> str:
    """A file or folder by its last name; the id of a model or dataset as it is."""
    return Path(name).name if Path(name).expanduser().exists() else name


@dataclass(frozen=True)
class StudentSaver:
    """Memory relief of the student; on a GPU main memory is short, of which the student holds little."""

    learner: Learner
    saved_bytes: int
    growth_bytes: int = 0

    @classmethod
    def of(cls, settings: RunConfig, learner: Learner, folder: Path, *, where: Device) -> StudentSaver:
        """For this student: what it saves is the difference of two predictions."""
        shape = shape_of(read_spec(folder, trust_remote_code=settings.trust_remote_code))
        setting = _setting(settings, where)
        if setting.layer_by_layer:  # one layer in memory instead of two
            without, with_it = (
                student_footprint(shape, replace(setting, reads_ahead=ahead)) for ahead in (True, False)
            )
        else:
            without, with_it = (
                student_footprint(shape, replace(setting, checkpointing=checkpointing))
                for checkpointing in (False, True)
            )
        return cls(learner, max(0, without.ram_bytes - with_it.ram_bytes))

    def save_memory(self, on: bool) -> str:
        """See :class:`engine.relief.Saver`."""
        return_memory()
        return self.learner.save_memory(on) if Device.of(str(self.learner.device)).is_host else ""


def _setting(settings: RunConfig, where: Device) -> StudentSetting:
    """The settings that the phase's memory depends on."""
    return StudentSetting(
        batch=settings.student_batch or 1,
        accumulation=settings.gradient_accumulation or 1,
        sequence_length=settings.sequence_length or 1,
        precision=settings.precision or "fp32",
        checkpointing=bool(settings.gradient_checkpointing),
        optimizer=settings.optimizer or "adamw",
        cpu_offload=bool(settings.cpu_offload) and bool(settings.student_layer_by_layer),
        device=where,
        packing=settings.packing,
        rank=settings.lora_rank or 0,
        targets=targets_of(settings),
        quantization=settings.student_quantization,
        layer_by_layer=bool(settings.student_layer_by_layer),
        ranks=settings.processes,
    )


def student_folder(run: Run, settings: RunConfig, events: EventWriter) -> Path:
    """Return the folder of the initial weights; a damaged one is cut from the teacher again."""
    if settings.student != FROM_TEACHER:
        return read_spec(str(settings.student), trust_remote_code=settings.trust_remote_code).path
    if not is_cut(run, settings):
        from engine.phases.prepare import teacher_spec

        mend_student(run, settings, teacher_spec(settings), events)
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


def _beginning(run: Run, settings: RunConfig) -> str:
    if settings.student != FROM_TEACHER:
        return f"**{Path(str(settings.student)).name}**"
    kept = (run.result(CUT) or {}).get("kept") or []
    width = (run.result(CUT) or {}).get("width")
    narrow = f" narrowed to {width['neurons']:,} neurons and {width['kv_heads']} key-value heads" if width else ""
    return f"layers {', '.join(map(str, kept))} of its teacher{narrow}, with the teacher's embedding and head"


def _samples(
    run: Run, tokenizer: Any, prompts: list[list[int]], learned: Learned, end_ids: Collection[int]
) -> list[dict[str, str | None]]:
    """Prompts with what each model went on with; the teacher's are there when it was loaded in this run.

    A text that did not end by itself has three dots behind it.
    """
    path = run.phases_path / "teacher-samples.json"
    teacher_texts: list[Any] = json.loads(path.read_text()) if path.exists() else [None] * len(prompts)

    def told(ids: list[int] | None) -> str | None:
        if ids is None:
            return None
        ended = bool(ids) and ids[-1] in end_ids
        return tokenizer.decode(ids[:-1]) if ended else f"{tokenizer.decode(ids)} …"

    texts = zip(teacher_texts, learned.before_texts, learned.after_texts, strict=True)
    names = ("teacher", "before", "after")
    return [
        {"prompt": tokenizer.decode(prompt), **{name: told(ids) for name, ids in zip(names, row, strict=True)}}
        for prompt, row in zip(prompts, texts, strict=True)
    ]
