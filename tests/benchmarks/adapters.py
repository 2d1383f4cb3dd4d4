"""How much memory does training an adapter take where the student's own weights are streamed, and how much time?

    python -m tests.benchmarks.adapters [--folder FOLDER] [--json results.json] [--cases 3b-bf16 …] [--speed]

Students of random weights in the shapes of Llama-3.2-3B (28 layers of width 3,072) and Llama-3.1-8B (width 4,096; 4 and
8 of its 32 layers, which show whether the peak grows with depth), with 128,256 ids. An adapter of rank 64 beside every
linear layer, one row of 512 tokens a step, AdamW with 8-bit moments, bf16 products. The adapter and its moments lie in
mapped files, as with ``--cpu_offload``; the run's own code takes the steps, from random records. Each case is a process
of its own in the environment of a phase and in a memory control group with a hard limit (where one can be made), and
its anonymous memory is sampled every 20 ms. ``predicted_bytes`` is the planner's figure for the same settings.

The 70b cases score two rows of 256 tokens by a teacher of Llama-3.1-70B's shape (width 8,192) with 2 and 4 of its 80
layers, as the teacher's phase does within a budget of ``hard_limit_bytes``: hidden states, logits by chunks, records.

``--speed`` times steps of 2,048 tokens of a smaller student by turns: in memory with all activations, in memory with
activations that are computed again, and streamed, which computes them again, too. The adapters are compared. It
computes in the format that the planner takes on such a processor: bf16 with instructions for it, else fp32.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.machine import hardware
from engine.run.folder import versions
from engine.run.phase_environment import environment_for
from tests.benchmarks.low_memory import Memory
from tests.jobs import train_job
from tests.memory_cap import CannotCap, MemoryCap

RANK, LENGTH, STEPS, PAIRS = 64, 512, 2, 2
VOCAB_SIZE = 128_256
WAYS = ("resident", "recomputed", "streamed")


@dataclass(frozen=True)
class Student:
    """A shape."""

    hidden: int
    inner: int
    heads: int
    layers: int
    tied: bool
    vocab_size: int = VOCAB_SIZE


TEACHERS = {
    "70b-2": Student(8192, 28_672, 64, 2, tied=False),
    "70b-4": Student(8192, 28_672, 64, 4, tied=False),
}
STUDENTS = {
    **TEACHERS,
    "3b": Student(3072, 8192, 24, 28, tied=True),
    "8b-4": Student(4096, 14_336, 32, 4, tied=False),
    "8b-8": Student(4096, 14_336, 32, 8, tied=False),
    "small": Student(1024, 2816, 16, 12, tied=True, vocab_size=32_000),
}
# The student, its quantization, and the hard limit of the control group.
CASES = {
    "3b-bf16": ("3b", "none", 3 * 10**9),
    "3b-nf4": ("3b", "nf4", 3 * 10**9),
    "8b-4-bf16": ("8b-4", "none", 5 * 10**9),
    "8b-8-bf16": ("8b-8", "none", 5 * 10**9),
    "8b-4-nf4": ("8b-4", "nf4", 5 * 10**9),
    "70b-2-bf16": ("70b-2", "none", 5 * 10**9),
    "70b-2-nf4": ("70b-2", "nf4", 5 * 10**9 // 2),
    "70b-4-bf16": ("70b-4", "none", 5 * 10**9),
    "70b-4-nf4": ("70b-4", "nf4", 5 * 10**9 // 2),
}


def main(words: list[str] | None = None) -> int:
    """Run it; 1 where a case did not end well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "tinydistill-adapters")
    parser.add_argument("--json", type=Path, help="write the results here, each as soon as it is there")
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of each case")
    parser.add_argument("--speed", action="store_true", help="only compare the time of steps")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.child:
        name, quantization, way = arguments.child
        told = (
            _score(folder / name, quantization, int(way))
            if name in TEACHERS
            else _child(folder, name, quantization, way, arguments.steps)
        )
        print(json.dumps(told))
        return 0
    found: dict[str, Any] = {}
    if arguments.json is not None and arguments.json.is_file():
        found = json.loads(arguments.json.read_text())
    if arguments.speed:
        found["speed"] = _speed(folder)
        _write(arguments.json, found, folder)
        return 0
    for case in arguments.cases:
        name, quantization, limit = CASES[case]
        make_student(STUDENTS[name], folder / name)
        way = str(limit) if name in TEACHERS else "streamed"
        found[case] = _run(folder, name, quantization, way, limit, arguments.steps)
        _write(arguments.json, found, folder)
        print(case, json.dumps(found[case]))
        if name not in (CASES[later][0] for later in arguments.cases[arguments.cases.index(case) + 1 :]):
            shutil.rmtree(folder / name)  # each takes some GB
    return int(any(found[case]["exit_code"] for case in arguments.cases))


def _write(path: Path | None, found: dict[str, Any], folder: Path) -> None:
    if path is None:
        return
    machine = hardware.detect(folder)
    found["machine"] = {"cores": machine.cores, "instruction_sets": machine.cpu_features}
    found["settings"] = {"rank": RANK, "length": LENGTH, "vocab_size": VOCAB_SIZE}
    found["versions"], found["date"] = versions(), time.strftime("%Y-%m-%d")
    path.write_text(json.dumps(found, indent=1) + "\n")


def _run(folder: Path, name: str, quantization: str, way: str, limit: int, steps: int = STEPS) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.adapters", "--folder", str(folder), "--steps", str(steps)]
    command += ["--child", name, quantization, way]
    try:
        cap = MemoryCap.make(limit)
    except CannotCap:
        cap = None
    log = folder / f"{name}.log"
    # A run keeps freed memory where there is room; the large shapes are for where there is none.
    job = train_job(keep_memory=name == "small", threads=os.cpu_count() or 1)
    with Memory() as memory:
        code = memory.watch(command, cap.enter if cap else None, log, environment_for(job))
    told = json.loads(log.read_text().splitlines()[-1]) if code == 0 else {}
    found = {
        "exit_code": code,
        "anonymous_bytes": memory.anonymous_bytes,
        "hard_limit_bytes": limit if cap else None,
        **told,
    }
    if cap:
        cap.close()
    return found


def make_student(student: Student, folder: Path) -> None:
    """Write a model folder of random bf16 weights, a piece at a time."""
    import torch
    from transformers import LlamaConfig

    from engine.disk.tensor_file import write_pieces

    if (folder / "config.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    width = student.hidden // student.heads
    described: list[tuple[str, torch.dtype, tuple[int, ...]]] = []

    def add(name: str, *shape: int) -> None:
        described.append((name, torch.bfloat16, shape))

    add("model.embed_tokens.weight", student.vocab_size, student.hidden)
    for index in range(student.layers):
        stem = f"model.layers.{index}."
        add(stem + "input_layernorm.weight", student.hidden)
        add(stem + "post_attention_layernorm.weight", student.hidden)
        for kind, rows in (("q", student.hidden), ("k", 8 * width), ("v", 8 * width), ("o", student.hidden)):
            add(f"{stem}self_attn.{kind}_proj.weight", rows, student.hidden)
        add(stem + "mlp.gate_proj.weight", student.inner, student.hidden)
        add(stem + "mlp.up_proj.weight", student.inner, student.hidden)
        add(stem + "mlp.down_proj.weight", student.hidden, student.inner)
    add("model.norm.weight", student.hidden)
    if not student.tied:
        add("lm_head.weight", student.vocab_size, student.hidden)
    block = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()

    def pieces() -> Iterator[torch.Tensor]:
        for _, _, shape in described:
            count = math.prod(shape)
            if len(shape) == 1:
                yield torch.ones(shape, dtype=torch.bfloat16)
                continue
            for first in range(0, count, len(block)):
                yield block[: min(len(block), count - first)]

    (folder / "model.safetensors").unlink(missing_ok=True)
    write_pieces(folder / "model.safetensors", described, pieces())
    LlamaConfig(
        vocab_size=student.vocab_size,
        hidden_size=student.hidden,
        intermediate_size=student.inner,
        num_hidden_layers=student.layers,
        num_attention_heads=student.heads,
        num_key_value_heads=8,
        head_dim=width,
        tie_word_embeddings=student.tied,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)


def _child(folder: Path, name: str, quantization: Any, way: str, steps: int) -> dict[str, Any]:
    import torch

    from engine.machine.device import CPU
    from engine.model_files.adapter_shape import AdapterShape
    from engine.models.load_in_place import in_memory, load_in_place
    from engine.models.memory import return_memory
    from engine.models.streaming.teacher import StreamedTeacher
    from engine.planner.footprint import student_footprint
    from engine.planner.models import describe
    from engine.planner.phase_settings import StudentSetting
    from engine.student.adapter import LowRankAdapter
    from engine.student.adapter_step import adapter_step
    from engine.student.learner import Learner
    from engine.student.loss import Objective
    from engine.student.mapped import weights_in_files
    from engine.student.optimizer import AdamW
    from engine.student.step import StepSettings
    from engine.student.streamed import StreamedLearner

    torch.set_num_threads(os.cpu_count() or 1)
    student = STUDENTS[name]
    path = folder / name
    rows = 1 if name != "small" else 4
    is_small, recomputes = name == "small", way != "resident"
    scratch = None if is_small else folder / "scratch"
    device = torch.device("cpu")
    has_bf16 = any("BF16" in feature for feature in hardware.detect(folder).cpu_features)
    dtype = torch.float32 if is_small and not has_bf16 else torch.bfloat16
    place = None if scratch is None else weights_in_files(scratch)
    shape = AdapterShape(RANK, 2.0 * RANK)
    learner: Learner
    if way == "streamed":
        base = StreamedTeacher(path, dtype=dtype, device=device, quantization=quantization, check=False)
        adapter = LowRankAdapter(base.model, shape, device=device, seed=0, new_tensor=place)
        learner = StreamedLearner(base, dtype=dtype, trainable=adapter, wave_tokens=rows * LENGTH)
    else:
        model = load_in_place(path, dtype=dtype, new_tensor=in_memory)
        adapter = LowRankAdapter(model, shape, device=device, seed=0, new_tensor=place)
        model.train()  # as in a run; transformers recomputes activations in this mode alone
        learner = Learner(model, dtype=dtype, gradient_checkpointing=recomputes, trainable=adapter)
    return_memory()
    optimizer = AdamW(adapter.parameters(), weight_decay=0.01, bits=8, scratch=scratch)
    losses, seconds = [], []
    for step in range(steps if not is_small else 4):
        parts = [_part(student.vocab_size, rows, step)]
        began = time.monotonic()
        result = adapter_step(
            learner,
            parts,
            optimizer,
            StepSettings(
                Objective(student.vocab_size, "unbiased", 1.0, 1.0), learning_rate=1e-3, clip_norm=1.0, chunk_tokens=64
            ),
        )
        seconds.append(round(time.monotonic() - began, 2))
        losses.append(result.loss)
    setting = StudentSetting(
        rows,
        1,
        LENGTH,
        "fp32" if dtype == torch.float32 else "bf16",
        checkpointing=recomputes,
        optimizer="adamw-8bit",
        cpu_offload=scratch is not None,
        device=CPU,
        keeps_memory=is_small,
        rank=RANK,
        quantization=quantization,
        layer_by_layer=way == "streamed",
    )
    return {
        "predicted_bytes": student_footprint(describe(str(path)), setting).peak_bytes,
        "trained_parameters": adapter.num_parameters,
        "step_seconds": seconds,
        "losses": losses,
        "checksum": sum(float(tensor.double().abs().sum()) for tensor in adapter.tensors().values()),
    }


def _score(path: Path, quantization: Any, budget: int) -> dict[str, Any]:
    import torch

    from engine.machine.device import CPU
    from engine.models.memory import return_memory
    from engine.models.streaming.teacher import StreamedTeacher, StreamingMemory
    from engine.planner.footprint import reads_ahead, teacher_footprint
    from engine.planner.models import describe
    from engine.planner.phase_settings import TeacherSetting
    from engine.planner.sizes import head_chunk_tokens
    from engine.teacher.head import Scored, records_from_hidden

    torch.set_num_threads(os.cpu_count() or 1)
    shape, rows, length = describe(str(path)), 2, 256
    setting = TeacherSetting(1, length, "bf16", layer_by_layer=True, quantization=quantization, device=CPU)
    setting = replace(setting, total_tokens=rows * length)
    setting = replace(setting, reads_ahead=reads_ahead(shape, setting, budget, budget))
    teacher = StreamedTeacher(
        path,
        dtype=torch.bfloat16,
        device=torch.device("cpu"),
        quantization=quantization,
        memory=StreamingMemory(weight_bytes=None if setting.reads_ahead else 0),
    )
    return_memory()
    began = time.monotonic()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, shape.vocab_size, (rows, length), generator=generator)
    states = teacher.last_hidden_states([row[None] for row in tokens])
    parts = (
        Scored(state[0, :-1], row[1:], torch.rand(length - 1, generator=generator).double())
        for state, row in zip(states, tokens, strict=True)
    )
    records = records_from_hidden(
        parts,
        teacher.logits,
        vocab_size=shape.vocab_size,
        record_size=12,
        temperature=1.0,
        chunk_tokens=head_chunk_tokens(shape.vocab_size),
    )
    return {
        "predicted_bytes": teacher_footprint(shape, setting).peak_bytes,
        "reads_ahead": setting.reads_ahead,
        "scored_tokens": len(records.ids),
        "seconds": round(time.monotonic() - began, 1),
    }


def _part(vocab_size: int, rows: int, step: int) -> Any:
    import torch

    from engine.student.batches import MicroBatch, StepPart
    from engine.student.loss import RecordTensors

    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, vocab_size, (rows, LENGTH), generator=generator)
    positions = torch.arange(rows * LENGTH).view(rows, LENGTH)[:, :-1].flatten()
    labels = tokens[:, 1:].flatten()
    ids = torch.randint(0, vocab_size, (len(labels), 12), generator=generator)
    ids[:, 0] = labels
    ones = torch.ones(len(labels))
    records = RecordTensors(ids, torch.full((len(labels), 12), 1 / 12), ones.long(), 0.5 * ones, ones)
    return StepPart(MicroBatch(tokens, positions, labels, records), len(labels), True)


def _speed(folder: Path) -> dict[str, Any]:
    make_student(STUDENTS["small"], folder / "small")
    rounds = []
    for _ in range(PAIRS):
        found = {way: _run(folder, "small", "none", way, 10**10) for way in WAYS}
        assert len({one["checksum"] for one in found.values()}) == 1, "the same adapter, bit for bit"
        rounds.append(found)
    median = {way: statistics.median(min(found[way]["step_seconds"][1:]) for found in rounds) for way in WAYS}
    told: dict[str, Any] = {
        "tokens_in_a_step": 4 * LENGTH,
        "seconds": median,
        "streamed_speed_over": {way: median[way] / median["streamed"] for way in WAYS[:2]},
    }
    print(json.dumps(told))
    return {**told, "rounds": rounds}


if __name__ == "__main__":
    sys.exit(main())
