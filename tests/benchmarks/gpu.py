"""Does it keep its promises on a GPU? For a machine that has one; says so and ends with 0 where there is none.

    python -m tests.benchmarks.gpu [--folder FOLDER] [--json gpu.json] [--only KIND ...] [--minutes 4]
    python -m tests.benchmarks.gpu --device cpu --only parity    # the script itself, without a GPU

Each step is a process of its own with a time limit, and the JSON is written after each: a step that fails or hangs
costs nothing of the others, and one that is in the file already is left out when the command is given again.

*probe*: what torch says of the GPU, as the planner asks it. *parity*: the demo's teacher scores on the GPU, whole and
streamed, in fp32, bf16 and nf4; some rows are scored again on the CPU and compared, and the streamed records with the
whole teacher's. *student*: some steps of each kind (plain, 8-bit, lean, offloaded, bf16), from the first one's
records where the format is the same, with the memory that the whole process took there, CUDA context included, beside
what was planned. *memory*: tests/benchmarks/low_memory.py with 2 and 4 GB, to which the allocator is held; its models
are random, in Pythia's shapes, and take about 9 GB on the disk.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engine.cache.record import Records
from engine.cache.store import CacheStore
from engine.data.tokens import SPLITS, TokenFile
from engine.machine import hardware
from engine.model_files.demo import DEMO_TEACHER
from engine.phases.rescore import rescore
from engine.run.folder import Run, versions
from tests.benchmarks import low_memory

ROWS_COMPARED = 16
KINDS = ("probe", "parity", "student", "memory")


@dataclass(frozen=True)
class Way:
    """One way of scoring, and how far its records may be from the CPU's.

    Attributes:
        least_shared: mean mass that both records of a position have on the same ids.
        most_apart: mean difference of the label's log-probability, in nats.
        same_as: a way whose records have to be the same (of ``LEAST_SAME`` of the positions).
    """

    name: str
    settings: dict[str, Any]
    least_shared: float
    most_apart: float
    same_as: str = ""


# In fp32 only the order of sums differs. Half precision rounds each product to 1 part in 256, on both sides: records in
# bf16 and in fp32 of one CPU share 0.86 of their mass, with labels 0.010 nats apart (the demo's teacher).
WAYS = (
    Way("whole, fp32", {"precision": "fp32", "layer_by_layer": False}, 0.99, 1e-3),
    Way("streamed, fp32", {"precision": "fp32", "layer_by_layer": True}, 0.99, 1e-3, "whole, fp32"),
    Way(
        "streamed, moved out",
        {"precision": "fp32", "layer_by_layer": True, "cpu_offload": True},
        0.99,
        1e-3,
        "whole, fp32",
    ),
    Way("streamed, bf16", {"precision": "bf16", "layer_by_layer": True}, 0.8, 5e-2),
    Way("whole, fp16", {"precision": "fp16", "layer_by_layer": False}, 0.9, 1e-2),
    Way("whole, int8", {"precision": "fp32", "layer_by_layer": False, "quantization": "int8"}, 0.99, 1e-2),
    Way("whole, nf4", {"precision": "fp32", "layer_by_layer": False, "quantization": "nf4"}, 0.99, 1e-2),
    Way(
        "streamed, nf4",
        {"precision": "fp32", "layer_by_layer": True, "quantization": "nf4"},
        0.99,
        1e-2,
        "whole, nf4",
    ),
)
# Kinds of a student's step; all begin with the same student and see the same rows.
STUDENTS: dict[str, dict[str, Any]] = {
    "plain": {"optimizer": "adamw", "student_batch": 4, "gradient_accumulation": 2},
    "plain, fp16": {"optimizer": "adamw", "student_batch": 4, "gradient_accumulation": 2, "precision": "fp16"},
    "plain, bf16": {"optimizer": "adamw", "student_batch": 4, "gradient_accumulation": 2, "precision": "bf16"},
    "checkpointed": {
        "optimizer": "adamw",
        "student_batch": 8,
        "gradient_accumulation": 1,
        "gradient_checkpointing": True,
    },
    "8-bit": {"optimizer": "adamw-8bit", "student_batch": 4, "gradient_accumulation": 2},
    "8-bit, offloaded": {
        "optimizer": "adamw-8bit",
        "student_batch": 4,
        "gradient_accumulation": 2,
        "cpu_offload": True,
    },
    "lean": {"optimizer": "adamw-8bit", "student_batch": 8, "gradient_accumulation": 1},
    "lean, offloaded": {"optimizer": "adamw-8bit", "student_batch": 8, "gradient_accumulation": 1, "cpu_offload": True},
    "adapter": {"lora_rank": 8, "student_batch": 8, "gradient_accumulation": 1},
    "adapter, streamed": {
        "lora_rank": 8,
        "student_layer_by_layer": True,
        "student_batch": 8,
        "gradient_accumulation": 1,
    },
    "adapter, nf4": {
        "lora_rank": 8,
        "student_quantization": "nf4",
        "student_batch": 8,
        "gradient_accumulation": 1,
    },
}
# Sums on a GPU may be added in any order, and a draw on the edge of two ids then differs.
LEAST_SAME = 0.999
STEPS = 20
# Hold-out losses after the steps that differ by more than this are of another training (nats).
MOST_LOSS_APART = 0.05
# A lean step clips tensor by tensor and moves only the embedding's rows that it reads: 0.12 apart on a CPU. An adapter
# learns less in so few steps.
MOST_LEAN_APART, MOST_ADAPTER_APART = 0.2, 1.5


@dataclass
class Results:
    """Results so far, written after each step.

    Attributes:
        names: steps whose names have none of these words are left out; None leaves out none.
        rows: by the step's name.
    """

    path: Path | None
    device: str
    names: list[str] | None = None
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path | None, device: str, names: list[str] | None) -> Results:
        """Those of an earlier call on the same device, where the file has them."""
        before: dict[str, Any] = {}
        if path is not None and path.is_file():
            before = json.loads(path.read_text())
        return cls(path, device, names, before.get("rows", {}) if before.get("device") == device else {})

    def step(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """Do a step, unless it is in the file and was kept; print and write what came out."""
        is_wanted = self.names is None or any(word in name for word in self.names)
        if not is_wanted or self.rows.get(name, {}).get("kept"):
            return
        began = time.monotonic()
        try:
            row = work()
        except subprocess.TimeoutExpired as late:
            row = {"kept": False, "problem": f"it took longer than {late.timeout:.0f} s"}
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            row = {"kept": False, "problem": f"{type(error).__name__}: {error}"}
        self.rows[name] = {**row, "seconds": round(time.monotonic() - began, 1)}
        print(f"{name:30} {json.dumps(self.rows[name])}{'' if row['kept'] else '   NOT KEPT'}", flush=True)
        if self.path is not None:
            gpus = [asdict(gpu) for gpu in hardware.find_gpus()[0]]
            content = {"device": self.device, "gpus": gpus, "versions": versions(), "date": time.strftime("%Y-%m-%d")}
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text(json.dumps({**content, "rows": self.rows}, indent=1) + "\n")
            temporary.replace(self.path)


def main(words: list[str] | None = None) -> int:
    """Run it; 1 when a promise was not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=low_memory._usual_folder(), help="for models and runs")
    parser.add_argument("--json", type=Path, help="write the results here, after each step; continue where it ends")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--only", nargs="*", choices=KINDS, default=list(KINDS), help="steps of these kinds")
    parser.add_argument("--names", nargs="*", help="of these, those whose names have one of these words")
    parser.add_argument("--minutes", type=float, default=4.0, help="limit of each step; of memory six times that")
    parser.add_argument("--rescore", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.rescore is not None:
        return _rescore(arguments.rescore)
    gpus, why_none = hardware.find_gpus()
    if arguments.device != "cpu" and not gpus:
        print(f"There is no GPU here ({why_none}): nothing was measured.")
        return 0
    folder, device, seconds = arguments.folder, arguments.device, 60 * arguments.minutes
    folder.mkdir(parents=True, exist_ok=True)
    results = Results.of(arguments.json, device, arguments.names)
    if "probe" in arguments.only and device != "cpu":
        results.step("probe", lambda: _probe(seconds))
    texts = _texts(folder / "gpu-texts.txt")
    if "parity" in arguments.only:
        for way in WAYS:
            results.step(f"parity: {way.name}", lambda way=way: _parity(way, folder, texts, device, seconds))
    if "student" in arguments.only:
        for name, settings in STUDENTS.items():
            results.step(
                f"student: {name}",
                lambda name=name, settings=settings: _student(
                    folder / f"gpu-student-{name}", texts, device, settings, results.rows.get("student: plain"), seconds
                ),
            )
        shutil.rmtree(folder / "gpu-student-plain", ignore_errors=True)
    if "memory" in arguments.only:
        for budget in ("2GB", "4GB"):
            results.step(f"memory: {budget}", lambda budget=budget: _memory(folder, device, budget, 6 * seconds))
    return int(not all(row["kept"] for row in results.rows.values()))


def _limited(command: list[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """Run a command and all that it starts; none of it is left when the time is over."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        try:
            out, err = child.communicate(timeout=seconds)
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, child.returncode, out, err)


def _probe(seconds: float) -> dict[str, Any]:
    done = _limited([sys.executable, "-m", "engine.machine.gpu_probe"], seconds)
    answer = json.loads(done.stdout.splitlines()[-1])
    return {**answer, "kept": not answer["why_not"]}


def _texts(path: Path) -> Path:
    """Some 300,000 characters of Python's own documentation: little to prepare."""
    if not path.exists():
        from pydoc_data.topics import topics

        path.write_text("\n\n".join(topics[name] for name in sorted(topics))[:300_000], encoding="utf-8")
    return path


def _distil(run: Path, texts: Path, device: str, settings: dict[str, Any], seconds: float) -> Run:
    shutil.rmtree(run, ignore_errors=True)
    command = [sys.executable, "-m", "engine.cli.distill", "--plain"]
    values: dict[str, Any] = {"teacher": DEMO_TEACHER, "student": "from-teacher", "student_layers": 2, "data": texts}
    values |= {"output_dir": run, "device": device, "sequence_length": 128, "samples": 256, "teacher_batch": 4}
    if "records_from" in settings:
        values = {name: values[name] for name in ("output_dir", "device", "student", "student_layers")}
    for name, value in (values | settings).items():
        command.append(f"--no_{name}" if value is False else f"--{name}")
        if not isinstance(value, bool):
            command.append(str(value))
    done = _limited(command, seconds)
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stderr.strip()[-500:]}")
    return Run.open(run)


def _parity(way: Way, folder: Path, texts: Path, device: str, seconds: float) -> dict[str, Any]:
    began = time.monotonic()
    run = _distil(_place(folder, way.name), texts, device, {**way.settings, "until": "teacher"}, seconds)
    left = max(1.0, seconds - (time.monotonic() - began))
    compared = _limited([sys.executable, "-m", "tests.benchmarks.gpu", "--rescore", str(run.path)], left)
    found = json.loads(compared.stdout.splitlines()[-1])
    row = {**found, **_memory_of(run, "teacher", device)}
    row["kept"] = found["shared"] >= way.least_shared and found["apart"] <= way.most_apart
    if way.same_as and (other := _place(folder, way.same_as)).exists():
        row["same"] = _same_share(run, Run.open(other))
        row["kept"] &= row["same"] >= LEAST_SAME
    return row


def _place(folder: Path, name: str) -> Path:
    return folder / f"gpu-{name.replace(', ', '-').replace(' ', '-')}"


def _same_share(one: Run, other: Run) -> float:
    """Share of the positions of two runs over one text whose records have the same ids, in the same order."""
    same: list[np.ndarray] = []
    with TokenFile(one.tokens_path) as tokens:
        for split in SPLITS:
            records = [_records(run, tokens.hashes(split)) for run in (one, other)]
            same.append((records[0].ids == records[1].ids).all(1))
    return float(np.concatenate(same).mean())


def _records(run: Run, hashes: Sequence[bytes]) -> Records:
    with CacheStore.look(run.cache_path) as store:
        return store.fetch(hashes)


def _rescore(run: Path) -> int:
    """Score some rows again, on the CPU with the whole teacher, and print how far the records are from that."""
    with CacheStore.look(Run.open(run).cache_path) as store:
        found = rescore(store, ROWS_COMPARED, None, device="cpu")
    print(json.dumps({"tokens": found.tokens, "shared": found.overlap, "apart": found.label_difference}))
    return 0


def _student(
    run: Path,
    texts: Path,
    device: str,
    settings: dict[str, Any],
    plain: dict[str, Any] | None,
    seconds: float,
) -> dict[str, Any]:
    values = {"precision": "fp32", "steps": STEPS, "learning_rate": 1e-3, **settings}
    records = run.with_name("gpu-student-plain")
    if run != records and records.is_dir() and values["precision"] == "fp32":  # as the records
        values["records_from"] = records
    done = _distil(run, texts, device, values, seconds)
    result = done.result("student") or {}
    loss = float(result["student_after"]["holdout_loss"])
    row = {
        "holdout_loss": loss,
        "loss_before": result["student_before"]["holdout_loss"],
        "tokens_per_second": round(result["tokens_per_second"], 1),
        "backed_off": len(done.info.get("backed_off", [])),
        **_memory_of(done, "student", device),
    }
    most_apart = MOST_ADAPTER_APART if "lora_rank" in settings else MOST_LOSS_APART
    most_apart = MOST_LEAN_APART if "lean" in run.name else most_apart
    is_learned = math.isfinite(loss) and loss < row["loss_before"]
    is_same = plain is None or "holdout_loss" not in plain or abs(loss - plain["holdout_loss"]) < most_apart
    row["kept"] = is_learned and not row["backed_off"] and is_same
    if run != records:
        shutil.rmtree(run, ignore_errors=True)
    return row


def _memory_of(run: Run, phase: str, device: str) -> dict[str, Any]:
    """GPU memory that the phase's process took and that was planned, both with the context."""
    if device == "cpu":
        return {"device_bytes": None, "planned_bytes": None}
    planned = run.info["predicted"][phase]["peak_bytes"]
    return {"device_bytes": (run.result(phase) or {}).get("device_peak_bytes"), "planned_bytes": planned}


def _memory(folder: Path, device: str, budget: str, seconds: float) -> dict[str, Any]:
    table = folder / f"gpu-memory-{budget}.json"
    command = [sys.executable, "-m", "tests.benchmarks.low_memory", "--folder", str(folder), "--device", device]
    done = _limited([*command, "--budget", budget, "--no-depths", "--json", str(table), "--go-on"], seconds)
    rows = json.loads(table.read_text())["rows"] if table.is_file() else []
    return {"exit_code": done.returncode, "rows": rows, "kept": done.returncode == 0}


if __name__ == "__main__":
    sys.exit(main())
