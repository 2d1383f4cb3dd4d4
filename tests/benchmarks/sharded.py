"""How much memory does each rank of a training take, with a whole student in each and with a part?

    python -m tests.benchmarks.sharded --folder FOLDER [--model pythia-160m] [--ranks 2] [--flags "--precision bf16"]

Whole runs of a few steps. Told are the highest anonymous memory of each rank's process in the student's phase, sampled
every 5 ms, and what the plan said of it. The student is random numbers in the shape of a model of
:mod:`tests.benchmarks.predicted_memory`; about 3 GB of disk are used.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import time
from pathlib import Path
from typing import Any

from engine.machine.process_memory import memory_of_tree
from tests.benchmarks.predicted_memory import make_model
from tests.end_to_end import program
from tests.end_to_end.test_ranks import rank_process


def one_run(folder: Path, ranks: int, words: list[object]) -> dict[str, Any]:
    """Train; return predicted bytes of a rank, the peak of each, and seconds of a step."""
    shutil.rmtree(folder, ignore_errors=True)
    peaks = dict.fromkeys(range(ranks), 0)
    pids: dict[int, int] = {}
    looked = 0.0
    with program.start(*words, "--output_dir", folder) as started:
        while started.poll() is None:
            if time.monotonic() - looked > 0.5:
                looked = time.monotonic()
                pids = {rank: pid for rank in peaks if (pid := rank_process(folder, "student", rank, ranks))}
            for rank, pid in pids.items():
                peaks[rank] = max(peaks[rank], memory_of_tree(pid))
            time.sleep(0.005)
        if started.returncode:
            raise SystemExit(started.communicate()[1])
    events = program.events(folder)
    predicted = next(event for event in events if event["kind"] == "plan")["predicted"]["student"]
    result = json.loads((folder / "phases" / "student.json").read_text())
    return {
        "predicted": predicted["peak_bytes"] // ranks,
        "parts": {name: size // ranks for name, size in predicted["parts"].items()},
        "peaks": peaks,
        "step": result["working_seconds"] / result["steps"],
    }


def main() -> None:
    """Run both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--model", default="pythia-160m")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--flags", default="", help="more flags of the run")
    parser.add_argument("--only", choices=["whole", "sharded"])
    asked = parser.parse_args()
    student = make_model(asked.model, asked.folder)
    teacher = student if asked.model.startswith("qwen2") else make_model("neox-29m", asked.folder)
    words: list[object] = [
        "--teacher", teacher, "--student", student, "--data", program.write_texts(asked.folder / "texts", 60),
        "--cache_dir", asked.folder / "records", "--device", "cpu", "--precision", "fp32", "--threads", asked.ranks,
        "--sequence_length", 128, "--teacher_batch", 4, "--student_batch", 2, "--gradient_accumulation", asked.ranks,
        "--steps", 3, "--evaluations", 1, "--optimizer", "adamw", "--no_gradient_checkpointing", "--no_keep_memory",
        "--memory_budget", "16GB", "--processes", asked.ranks, *shlex.split(asked.flags),
    ]  # fmt: skip
    for name, flag in (("whole", "--no_student_sharded"), ("sharded", "--student_sharded")):
        if asked.only in (None, name):
            found = one_run(asked.folder / name, asked.ranks, [*words, flag])
            each = ", ".join(f"{peak / 2**20:,.0f}" for peak in found["peaks"].values())
            parts = ", ".join(f"{part} {size / 2**20:,.0f}" for part, size in found["parts"].items() if size)
            print(
                f"{name}: each rank {each} MiB, predicted {found['predicted'] / 2**20:,.0f} ({parts}); "
                f"{found['step']:.1f} s a step",
                flush=True,
            )


if __name__ == "__main__":
    main()
