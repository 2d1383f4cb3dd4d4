"""Phase 2 of a run: the student learns from the records, is measured before and after, and is written."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from engine.config import SETTINGS, RunConfig
from engine.data.chat_template import PLAIN_TEMPLATE
from engine.data.tokens import TokenFile
from engine.errors import BadNumbers, DiskFull, OutOfMemory, RunFailed, Stopped, TinyDistillError
from engine.events import EventWriter
from engine.files import write_atomic
from engine.models.load import check_numbers, first_sentence, load_causal_lm, load_tokenizer
from engine.models.load_in_place import in_memory, load_in_place
from engine.models.memory import return_memory
from engine.models.packed import can_be_cut
from engine.models.spec import read_spec
from engine.out_of_memory import is_out_of_memory
from engine.phase_control import PhaseControl
from engine.phases.cut import CUT, is_cut, mend_student
from engine.phases.device import device_peak_bytes, prepare_torch
from engine.phases.teacher import open_store
from engine.planner.footprint import StudentSetting, student_footprint
from engine.planner.models import FROM_TEACHER
from engine.planner.shape import shape_of
from engine.planner.sizes import head_chunk_tokens
from engine.relief import Relief
from engine.report import gap_closed
from engine.run import Run
from engine.student.batches import Source
from engine.student.checkpoint import Checkpoints
from engine.student.companions import versions_told
from engine.student.export import export_student, model_card, stored_dtype
from engine.student.generate import holdout_prompts
from engine.student.learn import Learned, learn
from engine.student.learner import Learner
from engine.student.loss import Objective
from engine.student.mapped import weights_in_files
from engine.student.optimizer import AdamW
from engine.student.order import Order
from engine.student.schedule import Schedule
from engine.student.step import LossScale
from engine.student.train import Training
from engine.version import __version__

_EVALUATION_ROWS = 64  # of the hold-out, at the looks during training; before and after, all of it counts


def run_student(run: Run, events: EventWriter, control: PhaseControl) -> None:
    """Train, write ``student/`` and enter the phase's result."""
    settings = run.settings
    device, dtype = prepare_torch(settings)
    torch.manual_seed(settings.seed)
    folder = student_folder(run, settings, events)
    with TokenFile(run.tokens_path) as tokens, open_store(run, settings, tokens.vocab_size, events) as store:
        scratch = run.path / "scratch" if settings.cpu_offload and device.type == "cpu" else None
        model = _load(folder, device, scratch, trust_remote_code=settings.trust_remote_code)
        check_numbers(model, folder)
        learner = Learner(model, dtype=dtype, gradient_checkpointing=bool(settings.gradient_checkpointing))
        if settings.packing and not can_be_cut(model):
            events.log(
                "info",
                f"{type(model).__name__} cannot be cut between the documents of a row: each goes through it by itself, "
                "which takes longer. With --packing off there is one document in a row.",
                "documents-one-by-one",
            )
        training = _training(
            settings, learner, Source(tokens, store), tokens, scratch=scratch, on_gpu=device.type == "cuda"
        )
        prompts = holdout_prompts(tokens)
        learned = learn(
            training,
            Checkpoints(
                run.checkpoints_path,
                keep=settings.keep_checkpoints,
                on_problem=lambda told: events.log("warning", told, "damaged-checkpoint"),
            ),
            prompts=prompts,
            end_ids=tokens.end_ids,
            seed=settings.seed,
            loss_scale=LossScale.of(dtype),
            events=events,
            control=control,
            relief=Relief(StudentSaver.of(settings, learner, folder, on_gpu=device.type == "cuda"), events),
        )
    figures = {
        "teacher": learned.teacher.as_dict(),
        "student_before": learned.student_before.as_dict(),
        "student_after": learned.student_after.as_dict(),
    }
    with _training_is_kept():
        tokenizer = load_tokenizer(folder, trust_remote_code=settings.trust_remote_code)
        card = model_card(
            name=run.name,
            teacher=_without_folders(str(settings.teacher)),
            student=_beginning(run, settings),
            data=_without_folders(str(settings.data)),
            figures={
                "teacher": figures["teacher"],
                "before": figures["student_before"],
                "after": figures["student_after"],
            },
            settings=_to_publish(settings),
            version=__version__,
            opens=versions_told(folder),
        )
        stored = stored_dtype(read_spec(folder, trust_remote_code=settings.trust_remote_code).dtype)
        for note in export_student(model, folder, run.student_path, card, dtype=stored):
            events.log("warning", note, "student-files")
        if (run.result("prepare") or {}).get("data", {}).get("plain_template"):
            # The form that the conversations were written in, so that a chat with the student is written alike.
            write_atomic(run.student_path / "chat_template.jinja", PLAIN_TEMPLATE)
    result = {
        **figures,
        "samples": _samples(run, tokenizer, prompts, learned),
        "tokens": learned.tokens,
        "tokens_per_second": learned.tokens_per_second,
        "working_seconds": learned.seconds,
        "steps": learned.steps,
        "skipped_steps": learned.skipped,
        "best_step": learned.best_step,
        "device_peak_bytes": device_peak_bytes(device),
    }
    events.write("evaluation", which="result", gap_closed=gap_closed(result))
    run.finish_phase("student", result)


def _load(folder: Path, device: torch.device, scratch: Path | None, *, trust_remote_code: bool) -> PreTrainedModel:
    """The student in float32, each weight read to where it stays: the GPU, a file in ``scratch``, or memory."""
    if device.type != "cpu":
        return load_causal_lm(folder, dtype=torch.float32, device=device, trust_remote_code=trust_remote_code)
    place = in_memory if scratch is None else weights_in_files(scratch)
    return load_in_place(folder, dtype=torch.float32, new_tensor=place, trust_remote_code=trust_remote_code)


@contextlib.contextmanager
def _training_is_kept() -> Iterator[None]:
    """Say of what goes wrong after the training that the training is not lost, and let the phase offer to go on."""
    try:
        yield
    except (Stopped, OutOfMemory, DiskFull, BadNumbers, MemoryError):
        raise  # say it themselves, or are answered with less memory
    except Exception as error:
        if is_out_of_memory(error):
            raise
        said = error if isinstance(error, TinyDistillError) else None
        raise RunFailed(
            f"The training is done and kept, and the student could not be written: "
            f"{said.what if said else f'{type(error).__name__}: {first_sentence(error)}'}",
            said.why if said else "",
            "",
        ) from error


def _to_publish(settings: RunConfig) -> dict[str, Any]:
    """The settings as the student's card shows them: a card is given away, and where things lie here is nobody's."""
    chosen = settings.model_dump(mode="json", by_alias=True)
    names = {name: _without_folders(chosen[name]) for name in ("teacher", "student", "data") if chosen[name]}
    kept = {name: value for name, value in chosen.items() if SETTINGS[name].group not in ("command", "run")}
    return {**kept, **names}


def _without_folders(name: str) -> str:
    """A file or folder by its last name; the id of a model or dataset as it is."""
    return Path(name).name if Path(name).expanduser().exists() else name


@dataclass(frozen=True)
class StudentSaver:
    """The student as somebody who can do with less memory; on a GPU what is short is main memory, which it has not."""

    learner: Learner
    saved_bytes: int
    growth_bytes: int = 0

    @classmethod
    def of(cls, settings: RunConfig, learner: Learner, folder: Path, *, on_gpu: bool) -> StudentSaver:
        """For this student: what it saves is the difference of two predictions."""
        shape = shape_of(read_spec(folder, trust_remote_code=settings.trust_remote_code))
        without, with_it = (
            student_footprint(
                shape,
                StudentSetting(
                    batch=settings.student_batch or 1,
                    accumulation=settings.gradient_accumulation or 1,
                    sequence_length=settings.sequence_length or 1,
                    precision=settings.precision or "fp32",
                    checkpointing=checkpointing,
                    optimizer=settings.optimizer or "adamw",
                    on_gpu=on_gpu,
                    packing=settings.packing,
                ),
            )
            for checkpointing in (False, True)
        )
        return cls(learner, max(0, without.ram_bytes - with_it.ram_bytes))

    def save_memory(self, on: bool) -> str:
        """See :class:`engine.relief.Saver`."""
        return_memory()
        return self.learner.save_memory(on) if self.learner.device.type == "cpu" else ""


def student_folder(run: Run, settings: RunConfig, events: EventWriter) -> Path:
    """The folder with the weights that training begins with; cut from the teacher again where it is damaged."""
    if settings.student != FROM_TEACHER:
        return read_spec(str(settings.student), trust_remote_code=settings.trust_remote_code).path
    if not is_cut(run, settings):
        from engine.phases.prepare import teacher_spec

        mend_student(run, settings, teacher_spec(settings), events)
    return run.initial_student_path


def _training(
    settings: RunConfig, learner: Learner, source: Source, tokens: TokenFile, *, scratch: Path | None, on_gpu: bool
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
            learner.model.named_parameters(),
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
        chunk_tokens=head_chunk_tokens(learner.model.get_input_embeddings().weight.shape[0], on_gpu=on_gpu),
        checkpoint_every=settings.checkpoint_every or order.total_steps,
        evaluation_rows=_EVALUATION_ROWS,
        lean=settings.optimizer == "adamw-8bit",  # whoever saves on the moments saves on the gradients too
    )


def _beginning(run: Run, settings: RunConfig) -> str:
    if settings.student != FROM_TEACHER:
        return f"**{Path(str(settings.student)).name}**"
    kept = (run.result(CUT) or {}).get("kept") or []
    return f"layers {', '.join(map(str, kept))} of its teacher, with the teacher's embedding and head"


def _samples(run: Run, tokenizer: Any, prompts: list[list[int]], learned: Learned) -> list[dict[str, str | None]]:
    """Prompts with what each model went on with; the teacher's are there when it was loaded in this run."""
    path = run.phases_path / "teacher-samples.json"
    teacher_texts: list[Any] = json.loads(path.read_text()) if path.exists() else [None] * len(prompts)
    texts = zip(prompts, teacher_texts, learned.before_texts, learned.after_texts, strict=True)
    return [
        {
            name: None if ids is None else tokenizer.decode(ids)
            for name, ids in zip(("prompt", "teacher", "before", "after"), row, strict=True)
        }
        for row in texts
    ]
