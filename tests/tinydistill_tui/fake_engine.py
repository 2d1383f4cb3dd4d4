"""A stand-in for the supervisor: holds the run's lock, writes events, obeys ``control``, and prints to standard output.

Run as ``python -m tests.tinydistill_tui.fake_engine RUN_DIR``. It prints on purpose: a detached engine whose standard
output was the dead terminal would die of it.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from engine.channel.events import EventWriter, Tail
from engine.run.folder import Run


def main(path: Path) -> None:
    run = Run(path, {})
    with run.lock():
        events, control = EventWriter(run.events_path), Tail(run.control_path, from_end=True)
        resumed = run.events_path.stat().st_size > 0
        events.write("run_resumed" if resumed else "run_started", name=run.name, pid=os.getpid(), version="fake")
        events.write("phase_started", phase="student")
        paused = False
        for step in range(1, 100_000):
            sys.stdout.write(f"step {step}\n")
            sys.stdout.flush()
            for line in control.read():
                command = line["command"]
                events.write("control", command=command, by=line["by"], accepted=True)
                if command == "stop":
                    events.write("control", state="stopping")
                    events.write("checkpoint", phase="student", path="checkpoints/step-1", step=step, bytes=1000)
                    events.write("run_finished", status="stopped", exit_code=130)
                    return
                paused = command == "pause"
                if paused:
                    events.write("control", state="pausing")
                events.write("control", state="paused" if paused else "running")
            if not paused:
                events.write(
                    "metric", phase="student", step=step, total_steps=100_000, loss=3 - step / 1e5, ce=3.0, kd=2.0
                )
                events.write(
                    "progress", phase="student", done=step, total=100_000, unit="steps", rate=10.0, eta_seconds=100.0
                )
                events.write("log", level="info", message=f"step number {step} is done")
            events.write("memory", phase="student", bytes=2**30 + step, peak_bytes=2**30 + step, budget_bytes=2**31)
            time.sleep(0.1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
