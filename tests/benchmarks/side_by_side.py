"""How long do TinyDistill and TRL's GKDTrainer take to the same student, and how much memory?

    pip install -e '.[bench]'
    python -m tests.benchmarks.side_by_side [--teacher FOLDER --layers 4] --out side_by_side.json

The teacher is fixed, the loss is the forward KL (``lmbda=0``, ``beta=0``), and both sides see the same rows in the same
order, batch, learning rate, schedule, AdamW, clipping and number of steps, in float32, without gradient checkpointing.
GKDTrainer runs teacher and student in every step. TinyDistill scores once, in a process of its own, and then trains
from records of 12 ids; both of its processes are timed, and its peak is the larger one. Clocks start when the imports
are done and end with the last step; anonymous memory is looked at every 5 ms. The hold-out loss is taken afterwards, by
the same function for both. Each side runs once for each number of epochs, one after the other; on a machine that does
other things too, processor seconds are the steadier figure.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from engine.models.demo import DEMO_TEACHER
from tests.benchmarks.student_step import _Peak

RECORD_SIZE, SEED, WARMUP = 12, 0, 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, default=DEMO_TEACHER)
    parser.add_argument("--layers", type=int, default=2, help="of the teacher's, which the student begins with")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=["trl", "teacher", "student"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        import torch
        import transformers

        torch.set_num_threads(arguments.threads)
        side = {"trl": _trl, "teacher": _teacher, "student": _student}[arguments.side]
        found = side(arguments) | {"versions": {"torch": torch.__version__, "transformers": transformers.__version__}}
        print("\n" + json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as folder:
        arguments.work = Path(folder)
        _prepare(arguments)
        results = [_both(arguments, epochs) for epochs in arguments.epochs]
    for result in results:
        print(f"{result['epochs']} epochs:")
        print(f"  {_words('GKDTrainer', result['trl'])}")
        print(f"  {_words('TinyDistill', result['ours'])}")
        print(
            f"  TinyDistill takes {result['time_ratio']:.2f} of the time ({result['processor_ratio']:.2f} by processor "
            f"time) and {result['memory_ratio']:.2f} of the memory"
        )
    if arguments.out:
        settings = {key: str(value) for key, value in vars(arguments).items() if key not in ("out", "work", "side")}
        settings["teacher"] = arguments.teacher.name
        whole = {
            "question": (__doc__ or "").splitlines()[0],
            "settings": settings,
            "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
            "date": time.strftime("%Y-%m-%d"),
            "results": results,
        }
        arguments.out.write_text(json.dumps(whole, indent=1) + "\n")


def _words(name: str, side: dict[str, Any]) -> str:
    return (
        f"{name} {side['seconds']:.0f} s ({side['processor_seconds']:.0f} s of a processor), "
        f"{side['peak_bytes'] / 2**20:,.0f} MiB, hold-out loss {side['holdout_loss']:.3f}"
    )


def _both(arguments: argparse.Namespace, epochs: int) -> dict[str, Any]:
    trl = _run("trl", arguments, epochs)
    teacher, student = _run("teacher", arguments, epochs), _run("student", arguments, epochs)
    ours = {
        "seconds": teacher["seconds"] + student["seconds"],
        "processor_seconds": teacher["processor_seconds"] + student["processor_seconds"],
        "peak_bytes": max(teacher["peak_bytes"], student["peak_bytes"]),
        "holdout_loss": student["holdout_loss"],
        "phases": {"teacher": teacher, "student": student},
    }
    return {
        "epochs": epochs,
        "trl": trl,
        "ours": ours,
        "time_ratio": ours["seconds"] / trl["seconds"],
        "processor_ratio": ours["processor_seconds"] / trl["processor_seconds"],
        "memory_ratio": ours["peak_bytes"] / trl["peak_bytes"],
    }


def _run(side: str, arguments: argparse.Namespace, epochs: int) -> dict[str, Any]:
    flags = [
        *["--teacher", arguments.teacher, "--layers", arguments.layers, "--batch", arguments.batch],
        *["--learning-rate", arguments.learning_rate, "--threads", arguments.threads, "--work", arguments.work],
        *["--epochs", epochs, "--side", side],
    ]
    command = [sys.executable, "-m", "tests.benchmarks.side_by_side", *map(str, flags)]
    # What a run sets for its phases, and so for both sides here: large blocks go back when they are freed.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20), "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _prepare(arguments: argparse.Namespace) -> None:
    from engine.data.prepare import prepare
    from engine.data.sources import open_source
    from engine.events import EventWriter
    from engine.models.derive import derive_student
    from engine.models.spec import read_spec
    from engine.phase_control import PhaseControl

    prepare(
        source=open_source("python-docs", text_field=None, split="train"),
        teacher=read_spec(str(arguments.teacher)),
        student=None,
        sequence_length=arguments.length,
        samples=arguments.rows,
        holdout=0.1,
        packing=True,
        out=arguments.work / "tokens.h5",
        events=EventWriter(arguments.work / "events.jsonl"),
        control=PhaseControl.inert(),
    )
    derive_student(arguments.teacher, arguments.layers, arguments.work / "student")


def _order(arguments: argparse.Namespace, num_rows: int) -> Any:
    from engine.student.order import Order

    return Order.plan(
        num_rows=num_rows,
        micro_batch=arguments.batch,
        gradient_accumulation=1,
        seed=SEED,
        epochs=arguments.epochs[0],
    )


def _trl(arguments: argparse.Namespace) -> dict[str, Any]:
    """GKDTrainer with a collator that makes batches of our rows, read in our order."""
    import torch
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    from engine.data.tokens import TokenFile
    from engine.models.load import load_causal_lm, load_tokenizer
    from engine.student.optimizer import BETAS, EPSILON

    tokens = TokenFile(arguments.work / "tokens.h5")
    order = _order(arguments, tokens.num_rows("train"))
    in_order = [row for step in range(order.total_steps) for rows in order.micro_batches(step) for row in rows]

    class InOrder(GKDTrainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(in_order)

    def collate(examples: list[dict[str, int]]) -> dict[str, Any]:
        rows = tokens.rows("train", [example["row"] for example in examples])
        ids = torch.from_numpy(rows.tokens)
        inside = torch.arange(ids.shape[1]) < torch.from_numpy(rows.lengths)[:, None]
        labels = torch.where(torch.from_numpy(rows.scored), ids, -100)
        return {"input_ids": ids, "attention_mask": inside.long(), "labels": labels}

    clock = _Clock()
    student = load_causal_lm(arguments.work / "student", dtype=torch.float32)
    trainer = InOrder(
        model=student,
        teacher_model=load_causal_lm(arguments.teacher, dtype=torch.float32),
        args=GKDConfig(
            output_dir=str(arguments.work / "trl"),
            lmbda=0.0,
            beta=0.0,
            temperature=1.0,
            per_device_train_batch_size=arguments.batch,
            num_train_epochs=1,  # the epochs are in the list of rows
            learning_rate=arguments.learning_rate,
            lr_scheduler_type="cosine_with_min_lr",
            lr_scheduler_kwargs={"min_lr_rate": 0.1},
            warmup_steps=math.ceil(WARMUP * order.total_steps),
            weight_decay=0.01,
            adam_beta1=BETAS[0],
            adam_beta2=BETAS[1],
            adam_epsilon=EPSILON,
            max_grad_norm=1.0,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            seed=SEED,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        ),
        data_collator=collate,
        train_dataset=Dataset.from_dict({"row": in_order}),
        processing_class=load_tokenizer(arguments.work / "student"),
    )
    trainer.train()
    return clock.stop() | {"steps": trainer.state.global_step, "holdout_loss": _holdout_loss(student, tokens)}


def _teacher(arguments: argparse.Namespace) -> dict[str, Any]:
    """Phase 1, as a run does it; the rows to measure with are left out, as GKDTrainer does not read them either."""
    import shutil

    import torch

    from engine.events import EventWriter
    from engine.models.load import ResidentTeacher
    from engine.models.spec import read_spec
    from engine.phase_control import PhaseControl
    from engine.planner.sizes import head_chunk_tokens, wave_tokens
    from engine.teacher.score import score

    shutil.rmtree(arguments.work / "cache", ignore_errors=True)
    tokens, store = _opened(arguments, writable=True)
    spec = read_spec(str(arguments.teacher))
    clock = _Clock()
    with store:
        score(
            teacher=ResidentTeacher(arguments.teacher, dtype=torch.float32),
            tokens=tokens,
            store=store,
            splits=["train"],
            micro_batch=arguments.batch,
            wave_tokens=wave_tokens(spec.hidden_size, arguments.batch * tokens.sequence_length, layer_by_layer=False),
            chunk_tokens=head_chunk_tokens(spec.vocab_size),
            record_size=RECORD_SIZE,
            temperature=1.0,
            seed=SEED,
            events=EventWriter(arguments.work / "events.jsonl"),
            control=PhaseControl.inert(),
        )
        found = clock.stop()
        return found | {"bytes_per_token": store.num_bytes / store.num_tokens}


def _student(arguments: argparse.Namespace) -> dict[str, Any]:
    """Phase 2's steps; looks at the hold-out and checkpoints are left out, as in the other side."""
    import torch

    from engine.models.load import load_causal_lm
    from engine.planner.sizes import head_chunk_tokens
    from engine.student.batches import Prefetch, Source
    from engine.student.learner import Learner
    from engine.student.loss import Objective
    from engine.student.optimizer import AdamW
    from engine.student.schedule import Schedule
    from engine.student.step import LossScale, train_step

    tokens, store = _opened(arguments, writable=False)
    order = _order(arguments, tokens.num_rows("train"))
    clock = _Clock()
    model = load_causal_lm(arguments.work / "student", dtype=torch.float32).train()
    learner = Learner(model, dtype=torch.float32, gradient_checkpointing=False)
    optimizer = AdamW(model.named_parameters(), weight_decay=0.01, bits=32)
    schedule = Schedule(arguments.learning_rate, order.total_steps, WARMUP)
    with store, Prefetch(Source(tokens, store), order, 0) as ahead:
        for step in range(order.total_steps):
            train_step(
                learner,
                ahead.step(),
                optimizer,
                objective=Objective(tokens.vocab_size, "unbiased", 1.0, 1.0),
                learning_rate=schedule.learning_rate(step),
                clip_norm=1.0,
                chunk_tokens=head_chunk_tokens(tokens.vocab_size),
                loss_scale=LossScale(),
            )
    return clock.stop() | {"steps": order.total_steps, "holdout_loss": _holdout_loss(model, tokens)}


def _opened(arguments: argparse.Namespace, *, writable: bool) -> tuple[Any, Any]:
    from engine.cache.store import CacheIdentity, CacheStore
    from engine.data.tokens import TokenFile

    tokens = TokenFile(arguments.work / "tokens.h5")
    identity = CacheIdentity("t", "t", "", 1.0, RECORD_SIZE, tokens.vocab_size, SEED, "fp32", "none")
    return tokens, CacheStore.open(arguments.work / "cache", identity, writable=writable)


def _holdout_loss(model: Any, tokens: Any) -> float:
    """Mean cross-entropy to the labels of the hold-out rows, nats a token."""
    import torch

    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for index in range(tokens.num_rows("holdout")):
            rows = tokens.rows("holdout", [index])
            ids, scored = torch.from_numpy(rows.tokens), torch.from_numpy(rows.scored)[0, 1:]
            log_probs = model(input_ids=ids).logits[0, :-1, : tokens.vocab_size].double().log_softmax(-1)
            total -= float(log_probs.gather(1, ids[0, 1:, None])[scored].sum())
            count += int(scored.sum())
    return total / count


class _Clock:
    """Wall time, processor time and the peak of anonymous memory from here on."""

    def __init__(self) -> None:
        self._peak = _Peak()
        self._began, self._worked = time.perf_counter(), time.process_time()

    def stop(self) -> dict[str, Any]:
        return {
            "seconds": time.perf_counter() - self._began,
            "processor_seconds": time.process_time() - self._worked,
            "peak_bytes": self._peak.highest,
        }


if __name__ == "__main__":
    main()
