"""How much faster do two ranks of one thread score than one rank of one thread?

    python -m tests.benchmarks.ranks                          the demo's teacher
    python -m tests.benchmarks.ranks --teacher FOLDER --data FILE --rounds 3

Whole runs with ``--until teacher``, one and two processes in turn. Told are the tokens per second of the scoring alone
(without starts and loading), which need two quiet cores; the same per second of processor time of the rank that took
most of it, which other programs disturb less; and the processor seconds of the whole phase.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from engine.machine import hardware
from tests.end_to_end import program


def one_run(folder: Path, processes: int, words: list[object]) -> dict[str, Any]:
    """Score everything; return the phase's figures."""
    done = program.run(
        *words, "--until", "teacher", "--device", "cpu", "--threads", processes, "--processes", processes,
        "--output_dir", folder, timeout=3600,
    )  # fmt: skip
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    result = json.loads((folder / "phases" / "teacher.json").read_text())
    finished = [e for e in program.events(folder) if e["kind"] == "phase_finished" and e["phase"] == "teacher"][-1]
    ranks = [json.loads(path.read_text()) for path in sorted((folder / "phases").glob("teacher-rank-*.json"))]
    longest = max(rank["processor_seconds"] for rank in ranks or [result])
    return {
        "tokens_per_second": result["tokens_per_second"],
        "tokens_per_processor_second": result["tokens"] / longest,
        "seconds": finished["seconds"],
        "processor_seconds": finished["user_seconds"] + finished["system_seconds"],
        "peak_bytes": finished["peak_bytes"],
    }


def main() -> None:
    """Run both in turn and print the rates and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", help="a folder; the demo's teacher when not given")
    parser.add_argument("--data", help="the text, for --teacher")
    parser.add_argument("--samples", type=int, default=400, help="rows to score")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    words: list[object] = ["--samples", asked.samples, "--precision", "fp32"]
    if asked.teacher:
        words += ["--teacher", asked.teacher, "--student", asked.teacher, "--data", asked.data]
    else:
        words += ["--demo"]
    found: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(asked.rounds):
            for processes in found:
                found[processes].append(one_run(Path(scratch) / f"{number}-{processes}", processes, words))
    medians: dict[str, dict[int, float]] = {"tokens_per_second": {}, "tokens_per_processor_second": {}}
    for processes, runs in found.items():
        rates = sorted(run["tokens_per_second"] for run in runs)
        for name, of_name in medians.items():
            of_name[processes] = statistics.median(run[name] for run in runs)
        by_clock, by_processor = (of_name[processes] for of_name in medians.values())
        told = {name: statistics.median(run[name] for run in runs) for name in ("seconds", "processor_seconds")}
        peak = max(run["peak_bytes"] for run in runs)
        print(
            f"{processes} rank(s): {by_clock:,.0f} tokens/s ({rates[0]:,.0f} to {rates[-1]:,.0f}), "
            f"{by_processor:,.0f} a second of processor time, "
            f"the phase {told['seconds']:.1f} s, {told['processor_seconds']:.1f} s of processor time, "
            f"peak {peak / 2**20:,.0f} MiB"
        )
    by_clock, by_processor = (of_name[2] / of_name[1] for of_name in medians.values())
    print(
        f"ratio {by_clock:.2f}, by processor time {by_processor:.2f}, on {hardware.processor()[0]}, "
        f"{hardware.usable_cores()} cores"
    )


if __name__ == "__main__":
    main()
