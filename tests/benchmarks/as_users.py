"""How long do TinyDistill and its rivals take, each as its users run it, from the command to the student on the disk?

    pip install -e '.[bench]'
    python -m tests.benchmarks.as_users --out as_users.json [--smollm2 FOLDER] [--rounds 3] [--pairs demo smollm2-1 …]

*ours* is the command ``tiny-distill``, with whatever the planner chooses beside what all sides share. *trl* is TRL's
GKDTrainer (teacher fixed, forward KL, so that it does what the others do), *loop* the loop that many write by hand
(both models of transformers, full logits, ``kl_div``, torch's AdamW), *tune* the same loop on labels with no teacher.
Each runs in a process of its own, in the environment that this script is started in: no side gets an allocator, thread
or format setting. All see the same packed rows and learn with the same batch, learning rate, warm-up and number of
epochs in fp32; rivals neither evaluate nor write checkpoints, and recompute no activations. Rounds alternate. The
result has the seconds from the start of the process to the student on the disk, those of training alone (of *ours*, of
its two phases), processor seconds, the share of the system in them, and the highest anonymous memory of the process
tree. The hold-out loss is taken afterwards, by one function for all.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from engine.machine import hardware
from engine.machine.process_memory import PeakMemory
from engine.model_files.demo import DEMO_TEACHER
from engine.model_files.spec import read_spec

SIDES = ("ours", "trl", "loop", "tune")
WARMUP, SEED = 0.05, 0


@dataclass(frozen=True)
class Pair:
    """Two models and how the one learns from the other; ``layers`` are the teacher's that the student begins with."""

    name: str
    teacher: str
    layers: int
    rows: int
    batch: int
    learning_rate: float
    epochs: int
    length: int = 128


DEMO = Pair("demo", str(DEMO_TEACHER), 2, rows=400, batch=16, learning_rate=1e-3, epochs=3)
SMOLLM2 = Pair("smollm2-1", "", 15, rows=64, batch=8, learning_rate=1e-4, epochs=1)
PAIRS = {pair.name: pair for pair in (DEMO, SMOLLM2, replace(SMOLLM2, name="smollm2-3", epochs=3))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smollm2", default=os.environ.get("SMOLLM2"), help="a folder with SmolLM2-135M")
    parser.add_argument("--pairs", nargs="+", choices=sorted(PAIRS), default=sorted(PAIRS))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=["fp32", "planner"], default="fp32", help="of ours; rivals are in fp32")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--side", choices=[*SIDES, "judge"], help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--pair", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        pair = Pair(**arguments.pair)
        told = {"trl": _trl, "loop": _loop, "tune": _tune, "judge": _judge}[arguments.side](arguments.work, pair)
        print("\n" + json.dumps(told))
        return
    machine = hardware.detect()
    whole: dict[str, Any] = {
        "question": (__doc__ or "").splitlines()[0],
        "machine": {"processor": machine.cpu_name, "cores": machine.cores, "features": machine.cpu_features},
        "date": time.strftime("%Y-%m-%d"),
        "precision_of_ours": arguments.precision,
        "results": {},
    }
    for name in arguments.pairs:
        pair = PAIRS[name] if PAIRS[name].teacher else replace(PAIRS[name], teacher=arguments.smollm2 or "")
        if not pair.teacher:
            print(f"{name}: left out, as no folder was given with --smollm2")
            continue
        for rounds in _compare(pair, arguments):
            # Rounds take an hour: those that were done are there, whatever becomes of the next.
            whole["results"][name] = {
                "pair": {**asdict(pair), "teacher": Path(pair.teacher).name},
                "summary": {side: _summary(rounds[side]) for side in arguments.sides if rounds[side]},
                "rounds": rounds,
            }
            if arguments.out:
                arguments.out.write_text(json.dumps(whole, indent=1) + "\n")
        _tell(pair, whole["results"][name]["summary"])


def _compare(pair: Pair, arguments: argparse.Namespace) -> Iterator[dict[str, list[dict[str, float]]]]:
    """Yield the measurements of each side so far, after each one."""
    rounds: dict[str, list[dict[str, float]]] = {side: [] for side in arguments.sides}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        _prepare(work, pair)
        for number in range(arguments.rounds):
            for side in arguments.sides if number % 2 == 0 else arguments.sides[::-1]:
                rounds[side].append(_measure(side, work, pair, arguments.precision))
                yield rounds


def _tell(pair: Pair, summary: dict[str, dict[str, dict[str, float]]]) -> None:
    print(f"{pair.name}: {pair.rows} rows of {pair.length}, batch {pair.batch}, {pair.epochs} epochs")
    for side, figures in summary.items():
        print(
            f"  {side:5} {_told(figures['seconds'])} s, training {_told(figures['training_seconds'])} s, "
            f"{figures['processor_seconds']['median']:.0f} s of a processor "
            f"({figures['system_share']['median']:.0%} the system's), "
            f"{figures['peak_bytes']['median'] / 2**20:,.0f} MiB, hold-out loss {figures['holdout_loss']['median']:.3f}"
        )


def _summary(rounds: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    return {
        key: {
            "median": statistics.median(one[key] for one in rounds),
            "lowest": min(one[key] for one in rounds),
            "highest": max(one[key] for one in rounds),
        }
        for key in rounds[0]
    }


def _told(figures: dict[str, float]) -> str:
    return f"{figures['median']:.0f} ({figures['lowest']:.0f} to {figures['highest']:.0f})"


def _measure(side: str, work: Path, pair: Pair, precision: str) -> dict[str, float]:
    """One side once, from the start of its process to its end."""
    student = work / "result"
    shutil.rmtree(student, ignore_errors=True)
    shutil.rmtree(work / "run", ignore_errors=True)
    command = _ours(work, pair, precision) if side == "ours" else _program(side, work, pair)
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with (work / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        with PeakMemory(process.pid) as peak:
            code = process.wait()
        seconds = time.monotonic() - began
    if code != 0:
        raise SystemExit(f"{side} ended with {code}:\n{(work / 'log').read_text()[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    if side == "ours":
        phases = [event for event in _events(work / "run") if event["kind"] == "phase_finished"]
        training = sum(event["seconds"] for event in phases if event["phase"] != "prepare")
        (work / "run" / "student").rename(student)
    else:
        training = json.loads((work / "log").read_text().splitlines()[-1])["training_seconds"]
    judged = subprocess.run(_program("judge", work, pair), stdout=subprocess.PIPE, text=True, check=True)
    return {
        "seconds": seconds,
        "training_seconds": training,
        "processor_seconds": user + system,
        "system_share": system / max(1e-9, user + system),
        "peak_bytes": peak.peak_bytes,
        "holdout_loss": json.loads(judged.stdout.splitlines()[-1])["holdout_loss"],
    }


def _events(run: Path) -> Iterator[dict[str, Any]]:
    for line in (run / "events.jsonl").read_text().splitlines():
        yield json.loads(line)


def _program(side: str, work: Path, pair: Pair) -> list[str]:
    flags = ["--side", side, "--work", str(work), "--pair", json.dumps(asdict(pair))]
    return [sys.executable, "-m", "tests.benchmarks.as_users", *flags]


def _ours(work: Path, pair: Pair, precision: str, *more: str) -> list[str]:
    flags = {
        "teacher": pair.teacher,
        "student": work / "student",
        "data": "python-docs",
        "samples": pair.rows,
        "sequence_length": pair.length,
        "student_batch": pair.batch,
        "gradient_accumulation": 1,
        "epochs": pair.epochs,
        "learning_rate": pair.learning_rate,
        "warmup": WARMUP,
        "seed": SEED,
        "output_dir": work / "run",
        **({"precision": precision} if precision != "planner" else {}),
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-c", "from engine.cli.distill import main; raise SystemExit(main())", *words, *more]


def _prepare(work: Path, pair: Pair) -> None:
    """The student's first weights, and the rows: those that the command makes of the same flags."""
    from engine.models.derive import derive_student

    derive_student(read_spec(Path(pair.teacher)), pair.layers, work / "student")
    subprocess.run(_ours(work, pair, "fp32", "--until", "prepare"), check=True, stdout=subprocess.DEVNULL)
    shutil.copyfile(work / "run" / "tokens.h5", work / "tokens.h5")


def _batches(work: Path, pair: Pair) -> list[list[int]]:
    """Numbers of rows, shuffled again in each epoch."""
    from engine.data.tokens import TokenFile

    with TokenFile(work / "tokens.h5") as tokens:
        count = tokens.num_rows("train")
    shuffled = random.Random(SEED)
    rows = [row for _ in range(pair.epochs) for row in shuffled.sample(range(count), count)]
    return [rows[start : start + pair.batch] for start in range(0, len(rows), pair.batch)]


def _read(work: Path, rows: list[int], split: Any = "train") -> dict[str, Any]:
    import torch

    from engine.data.tokens import TokenFile

    with TokenFile(work / "tokens.h5") as tokens:
        found = tokens.rows(split, rows)
    ids = torch.from_numpy(found.tokens).long()
    inside = torch.arange(ids.shape[1]) < torch.from_numpy(found.lengths)[:, None]
    labels = torch.where(torch.from_numpy(found.scored), ids, -100)
    return {"input_ids": ids, "attention_mask": inside.long(), "labels": labels}


def _trl(work: Path, pair: Pair) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    batches = _batches(work, pair)
    trainer = GKDTrainer(
        model=AutoModelForCausalLM.from_pretrained(work / "student", dtype="float32"),
        teacher_model=AutoModelForCausalLM.from_pretrained(pair.teacher, dtype="float32"),
        args=GKDConfig(
            output_dir=str(work / "trl"),
            lmbda=0.0,
            beta=0.0,
            temperature=1.0,
            per_device_train_batch_size=pair.batch,
            num_train_epochs=pair.epochs,
            learning_rate=pair.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=math.ceil(WARMUP * len(batches)),
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        data_collator=lambda examples: _read(work, [example["row"] for example in examples]),
        train_dataset=Dataset.from_dict({"row": sorted({row for batch in batches for row in batch})}),
        processing_class=AutoTokenizer.from_pretrained(work / "student"),
    )
    began = time.monotonic()
    trainer.train()
    seconds = time.monotonic() - began
    trainer.save_model(str(work / "result"))
    return {"training_seconds": seconds}


def _loop(work: Path, pair: Pair) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    teacher = AutoModelForCausalLM.from_pretrained(pair.teacher, dtype="float32").eval()

    def loss(model: Any, batch: dict[str, Any]) -> Any:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            target = teacher(**inputs).logits[:, :-1].log_softmax(-1)
        log_probs = model(**inputs).logits[:, :-1].log_softmax(-1)
        scored = batch["labels"][:, 1:] != -100
        return torch.nn.functional.kl_div(log_probs[scored], target[scored], log_target=True, reduction="batchmean")

    return _train(work, pair, loss)


def _tune(work: Path, pair: Pair) -> dict[str, Any]:
    return _train(work, pair, lambda model, batch: model(**batch).loss)


def _train(work: Path, pair: Pair, loss: Any) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

    model = AutoModelForCausalLM.from_pretrained(work / "student", dtype="float32").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=pair.learning_rate)
    batches = _batches(work, pair)
    schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(WARMUP * len(batches)), len(batches))
    began = time.monotonic()
    for rows in batches:
        loss(model, _read(work, rows)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    seconds = time.monotonic() - began
    model.save_pretrained(work / "result")
    return {"training_seconds": seconds}


def _judge(work: Path, pair: Pair) -> dict[str, Any]:
    """The hold-out loss of the student that a side left: mean cross-entropy of the scored tokens, in nats."""
    import torch
    from transformers import AutoModelForCausalLM

    from engine.data.tokens import TokenFile

    model = AutoModelForCausalLM.from_pretrained(work / "result", dtype="float32").eval()
    with TokenFile(work / "tokens.h5") as tokens:
        count = tokens.num_rows("holdout")
    total = scored = 0.0
    with torch.no_grad():
        for row in range(count):
            batch = _read(work, [row], "holdout")
            labels = batch["labels"][:, 1:].flatten()
            logits = model(batch["input_ids"]).logits[:, :-1].flatten(0, 1)
            total += float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"))
            scored += float((labels != -100).sum())
    return {"holdout_loss": total / max(1.0, scored)}


if __name__ == "__main__":
    main()
