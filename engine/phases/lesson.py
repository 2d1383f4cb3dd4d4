"""A student's lesson: the student is loaded as its job says, and learns from rows with their records.

Knows nothing of the report and of the student's files.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from engine.channel.channel import Channel
from engine.channel.events import EventWriter
from engine.data.sample_limits import SampleLimits
from engine.data.tokens import TokenFile
from engine.errors import ModelError
from engine.jobs import TrainJob
from engine.machine.device import Device
from engine.machine.gpu_check import gpu_of
from engine.model_files.spec import ModelSpec
from engine.models.causal import check_causal
from engine.models.finite import check_numbers
from engine.models.load import load_causal_lm
from engine.models.load_in_place import in_memory, load_in_place
from engine.phases.device import prepare_torch
from engine.phases.student_memory import StudentSaver
from engine.planner.adapters import adapter_shape
from engine.planner.defaults import EVALUATION_ROWS
from engine.planner.footprint import context_bytes_on, student_reads_ahead
from engine.planner.phase_settings import StudentSetting
from engine.planner.shape import shape_of
from engine.planner.sizes import head_chunk_tokens
from engine.ranks import ALONE
from engine.run.folder import Run
from engine.student.adapter import LowRankAdapter
from engine.student.batches import Source
from engine.student.checkpoint import Checkpoints
from engine.student.evaluate import Metrics
from engine.student.judge import Unigram, chance_sums
from engine.student.learn import Learned, Prompts, learn
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

_SCRATCH = "scratch"  # a folder in the run's; its files are unnamed, so all ranks use it


@dataclass(frozen=True)
class Lesson:
    """A student's first weights, and the rows that it learns from.

    Attributes:
        run: the run.
        job: the run's, or that of a comparison.
        spec: the model that the student begins as.
        tokens: the rows.
        source: the rows with their records.
        channel: receives the progress.
        world: the ranks that train together.
    """

    run: Run
    job: TrainJob
    spec: ModelSpec
    tokens: TokenFile
    source: Source
    channel: Channel
    world: World

    @property
    def is_first(self) -> bool:
        """Whether this process writes what all ranks have in common."""
        return self.world.rank.number == 0

    @cached_property
    def _machine(self) -> tuple[torch.device, torch.dtype]:
        return prepare_torch(self.job)

    @property
    def device(self) -> torch.device:
        """The compute device."""
        return self._machine[0]

    @property
    def dtype(self) -> torch.dtype:
        """The format of the matrix products."""
        return self._machine[1]

    @property
    def where(self) -> Device:
        """The compute device's kind."""
        return Device.of(str(self.device))

    @property
    def scratch(self) -> Path | None:
        """The folder of weights and optimizer states, in unnamed files; None where they stay in memory."""
        return self.run.path / _SCRATCH if self.job.cpu_offload and self.where.is_host else None

    def chance(self) -> NDArray[np.float64]:
        """Sums for each document of a model that only counts how often each token comes."""
        micro_batch, eos_id = self.job.student_batch, self.tokens.eos_id
        return chance_sums(self.source, Unigram.of(self.tokens), micro_batch=micro_batch, eos_id=eos_id)

    def learned(self, prompts: list[list[int]], checkpoints_path: Path) -> tuple[Learner, Learned]:
        """Train a student from its first weights; the returned one is the best."""
        torch.manual_seed(self.job.seed)
        learner = self._learner()
        if self.world.rank != ALONE:
            torch.manual_seed(self.job.seed + self.world.rank.number)  # other rows, other dropout
        if self.job.packing and not learner.can_be_cut:
            self.channel.log("info", _one_by_one(learner), "documents-one-by-one")
        checkpoints = Checkpoints(
            checkpoints_path,
            keep=self.job.keep_checkpoints,
            on_problem=lambda told: self.channel.log("warning", told, "damaged-checkpoint"),
        )
        with self.channel.saving_memory(StudentSaver.of(self.job, learner, self.spec)):
            found = learn(
                self._training(learner),
                checkpoints,
                Prompts(prompts, self.tokens.end_ids, self.job.seed, _limits(self.job, self.tokens)),
                loss_scale=LossScale.of(self.dtype),
                channel=self.channel,
            )
        return self._whole(learner), found

    def on_labels(self) -> Metrics:
        """Train the same student on labels only, with the same steps and tokens; return its metrics."""
        self.channel.log("info", "The same student is trained on labels alone, to compare.", "compare")
        run, channel = self.run, self.channel
        if self.is_first:
            channel = channel.beside(_Beside(run.events_path, phase=self.job.name, log_path=run.log_path))
        alone = self.job.changed({"kd_weight": 0.0, "keep_checkpoints": 1})
        path = run.path / "checkpoints-labels"
        _, found = replace(self, job=alone, channel=channel).learned([], path)
        if self.is_first:
            shutil.rmtree(path, ignore_errors=True)
        return found.student_after

    def _learner(self) -> Learner:
        """Load the student: streamed, divided among ranks, or whole. Machines may read their disks at other speeds."""
        checkpointing = self.job.gradient_checkpointing
        if isinstance(self.world, ShardedWorld):
            # A whole one is kept in files, which are no memory of the process.
            with self.world.apart():
                model = self._load(self.run.path / _SCRATCH)
            return ShardedLearner(model, dtype=self.dtype, gradient_checkpointing=checkpointing, world=self.world)
        with self.world.apart():
            if self.job.student_layer_by_layer:
                return self._streamed()
            model = self._load(self.scratch)
            adapter = self._adapter(model) if self.job.lora_rank else None
            return Learner(model, dtype=self.dtype, gradient_checkpointing=checkpointing, trainable=adapter)

    def _whole(self, learner: Learner) -> Learner:
        """The whole student, on rank 0; on others, and where it is whole already, the learner as it is."""
        if not isinstance(self.world, ShardedWorld):
            return learner
        tensors = self.world.whole(learner.trainable.tensors(), dict(learner.trainable.parameters()))
        with self.world.apart():
            if self.world.rank.number:
                self.world.hand_over(tensors)
                return learner
            model = self._load(self.run.path / _SCRATCH, check=False)
            fill(model, tensors)
        return Learner(model, dtype=self.dtype, gradient_checkpointing=False)

    def _streamed(self) -> Learner:
        from engine.models.streaming.teacher import StreamedTeacher, StreamingMemory
        from engine.student.streamed import StreamedLearner

        job = self.job
        try:
            base = StreamedTeacher(
                self.spec.path,
                dtype=self.dtype,
                device=self.device,
                trust_remote_code=self.spec.trust_remote_code,
                quantization=job.student_quantization,
                # Only samples ask for the whole head, once after each pass over the layers.
                memory=StreamingMemory(
                    weight_bytes=None if self._reads_ahead() else 0, keeps_head=not self.where.is_host
                ),
            )
        except ModelError as error:  # its words are for a teacher
            todo = error.todo.replace("--layer_by_layer", "--student_layer_by_layer")
            todo = todo.replace("this teacher", "this student")
            raise ModelError(error.what, error.why, todo) from error
        if base.note:
            self.channel.log("info", base.note, "streaming-rounds")
        share = StudentSetting.of(job).of_rank
        tokens = share.batch * share.accumulation * share.sequence_length
        return StreamedLearner(base, dtype=self.dtype, trainable=self._adapter(base.model), wave_tokens=tokens)

    def _reads_ahead(self) -> bool:
        """Whether the budgets leave room for two layers."""
        job = self.job
        context = 0 if self.where.is_host else context_bytes_on(gpu_of(str(self.device)))
        return student_reads_ahead(
            shape_of(self.spec),
            StudentSetting.of(job),
            job.memory_of_each - context,
            job.ram_of_each,
        )

    def _adapter(self, model: PreTrainedModel) -> LowRankAdapter:
        place = None if self.scratch is None else weights_in_files(self.scratch)
        shape = adapter_shape(self.job.lora_rank, self.job.lora_alpha, self.job.lora_targets)
        return LowRankAdapter(model, shape, device=self.device, seed=self.job.seed, new_tensor=place)

    def _load(self, scratch: Path | None, *, check: bool = True) -> PreTrainedModel:
        """Load the student, each weight directly to its place: the GPU, a file in ``scratch``, or memory.

        Trained weights are kept in float32, so that small steps are not rounded away. Frozen ones are only multiplied,
        so they are kept in the format of the products, or quantised.
        """
        model = _loaded(self.job, self.spec, self.device, self.dtype, scratch)
        if check:
            check_numbers(model.named_parameters(), self.spec.path)
            check_causal(model)
        return model

    def _training(self, learner: Learner) -> Training:
        job = self.job
        order = Order.plan(
            num_rows=self.tokens.num_rows("train"),
            micro_batch=job.student_batch,
            gradient_accumulation=job.gradient_accumulation,
            seed=job.seed,
            epochs=job.epochs,
            steps=job.steps,
        )
        return Training(
            learner=learner,
            optimizer=AdamW(
                learner.trainable.parameters(),
                weight_decay=job.weight_decay,
                bits=8 if job.optimizer == "adamw-8bit" else 32,
                offload=job.cpu_offload,
                scratch=self.scratch,
            ),
            source=self.source,
            order=order,
            schedule=Schedule(
                peak=job.learning_rate,
                total_steps=order.total_steps,
                warmup=job.warmup,
                kind=job.schedule,
            ),
            objective=Objective(
                vocab_size=self.tokens.vocab_size,
                target=job.target,
                kd_weight=job.kd_weight,
                temperature=job.temperature,
            ),
            clip_norm=job.clip_norm,
            chunk_tokens=head_chunk_tokens(learner.model.get_input_embeddings().weight.shape[0], device=self.where),
            checkpoint_every=job.checkpoint_every,
            evaluation_rows=EVALUATION_ROWS,
            evaluations=job.evaluations,
            lean=job.optimizer == "adamw-8bit",  # a run that saves memory on optimizer states saves it on gradients too
            world=self.world,
        )


def _one_by_one(learner: Learner) -> str:
    return (
        f"{type(learner.model).__name__} cannot be cut between the documents of a row: it reads them one by one, "
        "which takes longer. With --packing off each row has one document."
    )


def _limits(job: TrainJob, tokens: TokenFile) -> SampleLimits:
    limits = SampleLimits.of(bool(tokens.answer_end_ids))
    return limits.of_streamed_student if job.student_layer_by_layer else limits


class _Beside(EventWriter):
    """Events of the comparison training, marked so that its metrics are not mistaken for the student's."""

    def write(self, kind: str, **fields: Any) -> None:
        """Write the event; steps are left out, and evaluations carry another name."""
        if kind == "metric":
            return
        if kind == "evaluation":
            fields["which"] = f"labels_{fields['which']}"
        super().write(kind, **fields)


def _loaded(
    job: TrainJob, spec: ModelSpec, device: torch.device, dtype: torch.dtype, scratch: Path | None
) -> PreTrainedModel:
    folder, trust_remote_code = spec.path, spec.trust_remote_code
    if job.student_quantization != "none":
        from engine.models.load_quantized import load_quantized

        return load_quantized(
            folder, job.student_quantization, dtype=dtype, device=device, trust_remote_code=trust_remote_code
        )
    dtype = dtype if job.lora_rank else torch.float32
    if not Device.of(str(device)).is_host:
        return load_causal_lm(folder, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    place = in_memory if scratch is None else weights_in_files(scratch)
    return load_in_place(folder, dtype=dtype, new_tensor=place, trust_remote_code=trust_remote_code)
