"""How much memory does distilling Pythia-70M from ever larger teachers take: this way, the usual way, and as published?

    python -m tests.benchmarks.low_memory [--folder FOLDER] [--json results.json]
    python -m tests.benchmarks.low_memory --device cuda --budget 2GB --budget 4GB

*ours* is ``tiny-distill`` as a user types it, from text to the finished student, with a memory budget and, on the
CPU, inside a memory control group whose hard limit is 700 MB (where none can be made, the measured peak has to do).
*plain* is the loop that everybody writes: teacher and student together, full logits of both, the KL between them, fp32
AdamW. *trl* is TRL's GKDTrainer on the same fixed texts (``pip install -e '.[bench]'``; left out where it is missing).
The models are random numbers in Pythia's shapes, rows have 128 tokens, a step has 4 rows.

Counted is the whole process tree, sampled every 20 ms: its anonymous memory, which other programs cannot have; and,
since a teacher may lie in mapped pages of its file, which are no anonymous memory, also all pages that it has mapped
(each shared page divided among those who share it). On CUDA what torch's allocator reserved at most is counted instead.

The last part scores with teachers of 6, 24 and 48 layers of one width: the peak must not grow with the depth.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.machine import hardware, process_memory
from engine.run.folder import versions
from engine.settings.config import RunConfig
from tests.benchmarks.pythia import SHAPES, make_pythia
from tests.memory_cap import CannotCap, MemoryCap

STUDENT = "70m"
TEACHERS = ("70m", "160m", "410m", "1.4b")
LENGTH, ROWS, STEPS, SAMPLES = 128, 4, 3, 24
CAP_BYTES = 700 * 10**6
# GB, from the original's README: what it calls traditional, and its own. Its largest row is of 1.3B parameters.
PUBLISHED = {"70m": (2.7, 1.4), "160m": (3.8, 1.6), "410m": (6.3, 1.8), "1.4b": (13.5, 2.2)}
DEPTHS = (6, 24, 48)


def main(words: list[str] | None = None) -> int:
    """Run it; 1 when a run did not end well, or ours is not below the others in every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=_usual_folder(), help="for models (about 11 GB) and runs")
    parser.add_argument("--json", type=Path, help="write the results here, each as soon as it is there")
    parser.add_argument("--go-on", action="store_true", help="leave out what the JSON file has already")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--budget", action="append", help="ours; may be given several times (600MB, on CUDA 2GB and 4GB)"
    )
    parser.add_argument("--teachers", nargs="*", default=list(TEACHERS), choices=TEACHERS)
    parser.add_argument("--sides", nargs="*", default=["ours", "plain", "trl"], choices=["ours", "plain", "trl"])
    parser.add_argument("--no-depths", action="store_true", help="leave out the last part")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.child:
        side, teacher, student = arguments.child
        print(json.dumps(_child(side, Path(teacher), Path(student), arguments.device)))
        return 0

    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    budgets = arguments.budget or (["600MB"] if arguments.device == "cpu" else ["2GB", "4GB"])
    student = make_pythia(STUDENT, folder / f"pythia-{STUDENT}")
    texts = _write_texts(folder / "texts.jsonl")
    results = Results(arguments.json, arguments.go_on)
    for size in arguments.teachers:
        teacher = make_pythia(size, folder / f"pythia-{size}")
        row = results.row(size)
        for side in arguments.sides:
            if side in row or (side == "trl" and importlib.util.find_spec("trl") is None):
                continue
            if side == "ours":
                row[side] = [_ours(teacher, student, texts, folder / "run", arguments.device, one) for one in budgets]
            else:
                row[side] = _usual(side, teacher, student, arguments.device)
            results.write(folder)
        _print_row(row)
    for count in () if arguments.no_depths or arguments.device != "cpu" else DEPTHS:
        depth = results.depths.get(count) or _depth(count, folder)
        results.depths[count] = depth
        results.write(folder)
        print(f"{depth['layers']:3} layers ({_mb(depth['weight_bytes'])}): scored in {_mb(depth['anonymous_bytes'])}")
    rows = [results.rows[size] for size in arguments.teachers]
    return int(not all(map(_is_good, rows)) or not _is_flat(list(results.depths.values())))


class Results:
    """Measurements so far; all take an hour, and a run that was stopped continues from there.

    Args:
        path: of the JSON file; None writes nothing.
        go_on: begin with what the file has.
    """

    def __init__(self, path: Path | None, go_on: bool) -> None:
        self._path = path
        before = json.loads(path.read_text()) if go_on and path is not None and path.is_file() else {}
        self.rows: dict[str, dict[str, Any]] = {row["teacher"]: row for row in before.get("rows", [])}
        self.depths: dict[int, dict[str, Any]] = {depth["layers"]: depth for depth in before.get("depths", [])}

    def row(self, size: str) -> dict[str, Any]:
        """The row of this teacher, with the sides that are there."""
        return self.rows.setdefault(size, {"teacher": size, "student": STUDENT, "published_gb": PUBLISHED[size]})

    def write(self, folder: Path) -> None:
        """Write everything, under another name first."""
        if self._path is None:
            return
        machine = hardware.detect(folder)
        results = {
            "settings": {
                "length": LENGTH, "rows_in_a_step": ROWS, "steps": STEPS, "train_rows": SAMPLES, "cap": CAP_BYTES,
            },
            "rows": [self.rows[size] for size in TEACHERS if size in self.rows],
            "depths": [self.depths[count] for count in sorted(self.depths)],
            "machine": {
                "cores": machine.cores, "instruction_sets": machine.cpu_features, "ram_bytes": machine.ram_bytes,
            },
            "versions": versions(),
            "date": time.strftime("%Y-%m-%d"),
        }  # fmt: skip
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps(results, indent=1) + "\n")
        temporary.replace(self._path)


def _usual_folder() -> Path:
    return Path(tempfile.gettempdir()) / "tinydistill-low-memory"


def _ours(teacher: Path, student: Path, texts: Path, run: Path, device: str, budget: str) -> dict[str, Any]:
    """The whole run, from the command line; the budget is given, all else but the size of a step is the planner's."""
    shutil.rmtree(run, ignore_errors=True)
    command = [sys.executable, "-m", "engine.cli.distill", "--plain"]
    for name, value in {
        "teacher": teacher, "student": student, "data": texts, "output_dir": run, "device": device,
        "sequence_length": LENGTH, "samples": SAMPLES, "steps": STEPS, "memory_budget": budget,
        "student_batch": ROWS, "gradient_accumulation": 1,
    }.items():  # fmt: skip
        command += [f"--{name}", str(value)]
    try:
        cap = MemoryCap.make(CAP_BYTES) if device == "cpu" else None
    except CannotCap:
        cap = None
    began = time.monotonic()
    with Memory() as memory:
        done = memory.watch(command, cap.enter if cap else None, run.parent / "ours.log")
    found: dict[str, Any] = {
        "budget": budget,
        "exit_code": done,
        "seconds": round(time.monotonic() - began, 1),
        "anonymous_bytes": memory.anonymous_bytes,
        "mapped_too_bytes": memory.proportional_bytes,
        "hard_limit_bytes": cap.limit_bytes if cap else None,
        "killed_for_memory": cap.kills if cap else None,
    }
    if cap:
        cap.close()
    if done == 0:
        report = json.loads((run / "report.json").read_text())
        found["phases"] = {
            name: {
                key: phase.get(key) for key in ("predicted_peak_bytes", "peak_bytes", "device_peak_bytes", "seconds")
            }
            for name, phase in report["phases"].items()
        }
        names = ("precision", "layer_by_layer", "teacher_batch", "gradient_checkpointing", "optimizer", "cpu_offload")
        found["choices"] = {one["field"]: one["value"] for one in report["choices"] if one["field"] in names}
        devices = [phase["device_peak_bytes"] or 0 for phase in found["phases"].values()]
        found["device_bytes"] = max(devices) if device != "cpu" else None
    shutil.rmtree(run, ignore_errors=True)
    return found


def _usual(side: str, teacher: Path, student: Path, device: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.low_memory", "--folder", str(teacher.parent)]
    command += ["--device", device, "--child", side, str(teacher), str(student)]
    began = time.monotonic()
    log = teacher.parent / f"{side}.log"
    with Memory() as memory:
        code = memory.watch(command, None, log)
    told = json.loads(log.read_text().splitlines()[-1]) if code == 0 else {}
    return {
        "exit_code": code,
        "seconds": round(time.monotonic() - began, 1),
        "anonymous_bytes": memory.anonymous_bytes,
        "mapped_too_bytes": memory.proportional_bytes,
        **told,
    }


def _child(side: str, teacher_folder: Path, student_folder: Path, device: str) -> dict[str, Any]:
    """The other way, in this process."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    teacher, student = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)
        for folder in (teacher_folder, student_folder)
    )
    vocabulary = student.config.vocab_size
    batches = [torch.randint(0, vocabulary, (ROWS, LENGTH)) for _ in range(STEPS)]
    (_plain if side == "plain" else _trl)(teacher, student, batches, device)
    if not device.startswith("cuda"):
        return {"device_bytes": None}
    from engine.phases.device import device_peak_bytes

    return {"device_bytes": device_peak_bytes(torch.device(device))}


def _plain(teacher: Any, student: Any, batches: list[Any], device: str) -> None:
    import torch
    from torch.nn import functional

    teacher.eval()
    student.train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    for ids in batches:
        ids = ids.to(device)
        with torch.no_grad():
            teacher_logits = teacher(input_ids=ids, use_cache=False).logits[:, :-1]
        student_logits = student(input_ids=ids, use_cache=False).logits[:, :-1]
        kl = functional.kl_div(
            student_logits.log_softmax(-1).flatten(0, 1),
            teacher_logits.log_softmax(-1).flatten(0, 1),
            log_target=True,
            reduction="batchmean",
        )
        cross_entropy = functional.cross_entropy(student_logits.flatten(0, 1), ids[:, 1:].flatten())
        (0.9 * kl + 0.1 * cross_entropy).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _trl(teacher: Any, student: Any, batches: list[Any], device: str) -> None:
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        ids = torch.tensor([row["input_ids"] for row in rows])
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": ids.clone(),
            "prompts": ids[:, :1],
            "prompt_attention_mask": torch.ones_like(ids[:, :1]),
        }

    rows = Dataset.from_dict({"input_ids": torch.cat(batches).tolist()})
    with tempfile.TemporaryDirectory() as output:
        config = GKDConfig(
            output_dir=output, per_device_train_batch_size=ROWS, max_steps=STEPS, lmbda=0.0, beta=0.0, seq_kd=False,
            optim="adamw_torch", report_to="none", save_strategy="no", gradient_checkpointing=False, bf16=False,
            use_cpu=device == "cpu", disable_tqdm=True, learning_rate=1e-4,
        )  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(student.name_or_path)
        GKDTrainer(
            model=student,
            teacher_model=teacher,
            args=config,
            train_dataset=rows,
            data_collator=collate,
            processing_class=tokenizer,
        ).train()


def _depth(layers: int, folder: Path) -> dict[str, Any]:
    """The teacher phase, streamed, with so many layers of width 1,024."""
    from engine.cli.trial import try_phase
    from engine.planner import plan
    from engine.planner.measure import cautious_rates

    model = str(make_pythia("410m", folder / f"depth-{layers}", num_layers=layers))
    config = RunConfig.parse(
        {
            "teacher": model, "student": model, "device": "cpu", "precision": "fp32", "layer_by_layer": True,
            "sequence_length": LENGTH, "teacher_batch": ROWS,
        }
    )  # fmt: skip
    rates = cautious_rates("cpu", hardware.usable_cores())
    trial = try_phase("teacher", plan(config, machine=rates, strict=False), rates, folder)
    size = (folder / f"depth-{layers}" / "model.safetensors").stat().st_size
    return {
        "layers": layers,
        "weight_bytes": size,
        "anonymous_bytes": trial.peak_bytes,
        "predicted_bytes": trial.predicted_bytes,
        "problem": trial.problem,
    }


class Memory:
    """The peaks of a process tree, looked at by a thread."""

    def __init__(self) -> None:
        self.anonymous_bytes = 0
        self.proportional_bytes = 0
        self._pid: int | None = None
        self._done = threading.Event()
        self._threads = [
            threading.Thread(target=self._look, args=(0.02, self._anonymous), daemon=True),
            threading.Thread(target=self._look, args=(0.1, self._proportional), daemon=True),
        ]

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def watch(
        self,
        command: list[str],
        enter: Callable[[], None] | None,
        log: Path,
        environment: dict[str, str] | None = None,
    ) -> int:
        """Run a command to its end, in this process's environment where none is given; returns its exit code."""
        with log.open("wb") as out:
            child = subprocess.Popen(
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                preexec_fn=enter,
                env=environment,
            )
        self._pid = child.pid
        for thread in self._threads:
            thread.start()
        return child.wait()

    def _look(self, seconds: float, sample: Callable[[int], None]) -> None:
        while not self._done.wait(seconds):
            assert self._pid is not None
            sample(self._pid)

    def _anonymous(self, pid: int) -> None:
        self.anonymous_bytes = max(self.anonymous_bytes, process_memory.memory_of_tree(pid))

    def _proportional(self, pid: int) -> None:
        total = 0
        for member in process_memory._tree(pid):
            try:
                with open(f"/proc/{member}/smaps_rollup") as lines:
                    total += next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
            except (OSError, StopIteration):
                continue
        self.proportional_bytes = max(self.proportional_bytes, total)


def _write_texts(path: Path) -> Path:
    """Sixty documents of nonsense, a token for each letter."""
    generator = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz     "
    documents = ("".join(generator.choice(letters) for _ in range(400)) for _ in range(60))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


def _counted(side: dict[str, Any], key: str) -> int:
    """Memory of a side that counts: on a GPU that of the process there, its CUDA context included."""
    return int(side.get("device_bytes") or side[key])


def _is_good(row: dict[str, Any]) -> bool:
    ours = row.get("ours", [])
    others = [row[side] for side in ("plain", "trl") if side in row]
    return all(
        one["exit_code"] == 0
        and not one["killed_for_memory"]
        and _keeps_promise(one, row["published_gb"][1] * 1e9)
        and all(
            other["exit_code"] == 0 and _counted(one, key) < _counted(other, key)
            # With a larger budget the plan rightly takes more rows at a time; the smallest has to take least.
            for other in (others if one is ours[0] else ())
            for key in ("anonymous_bytes", "mapped_too_bytes")
        )
        for one in ours
    )


def _keeps_promise(one: dict[str, Any], published_bytes: float) -> bool:
    """Below the published figure; on a GPU, whose context is not in that figure and differs, within its budget."""
    if one.get("device_bytes") is not None:
        return bool(one["device_bytes"] <= (RunConfig.parse({"memory_budget": one["budget"]}).memory_budget or 0))
    return bool(one["mapped_too_bytes"] < published_bytes)


def _is_flat(depths: list[dict[str, Any]]) -> bool:
    """Whether the peak does not grow with the depth, but for the layers' modules: some MB for each, without weights."""
    if not depths or any(depth["problem"] for depth in depths):
        return not depths
    shallow, deep = depths[0], depths[-1]
    more_layers = deep["layers"] - shallow["layers"]
    return bool(deep["anonymous_bytes"] - shallow["anonymous_bytes"] <= 2 * 2**20 * more_layers)


def _print_row(row: dict[str, Any]) -> None:
    usual, original = row["published_gb"]
    print(f"{row['teacher']} -> {row['student']}   published: traditional {usual} GB, the original {original} GB")
    sides = [(f"ours, {one['budget']}", one) for one in row.get("ours", [])]
    for name, side in [*sides, *((name, row[name]) for name in ("plain", "trl") if name in row)]:
        said = f"{_mb(side['anonymous_bytes'])} anonymous, {_mb(side['mapped_too_bytes'])} with mapped pages"
        if side.get("device_bytes"):
            said += f", {_mb(side['device_bytes'])} on the GPU"
        if side.get("hard_limit_bytes"):
            said += f", inside {_mb(side['hard_limit_bytes'])} ({side['killed_for_memory']} killed)"
        print(f"  {name:14} exit {side['exit_code']}  {said}  {side['seconds']:.0f} s", flush=True)


def _mb(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"


if __name__ == "__main__":
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    assert set(TEACHERS) <= set(SHAPES)
    sys.exit(main())
