"""``tiny-distill``: the whole of TinyDistill without a screen.

Also what ``tinydistill-tui --no-tui`` runs. It plans, starts the run's supervisor, and shows its events; the run itself
happens in processes that this one only watches.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from engine import launch, supervisor
from engine.cli import arguments
from engine.cli.progress import BarView, JsonView, LineView, View, follow, wants_lines
from engine.config import RunConfig
from engine.errors import Stopped, TinyDistillError
from engine.events import Tail
from engine.run import Run

DESCRIPTION = "Make a small language model from a big one, in two phases that never share memory."


def main(words: Sequence[str] | None = None) -> int:
    """Entry point of ``tiny-distill``."""
    return guarded(sys.argv[1:] if words is None else words, _main)


def guarded(words: Sequence[str], body: Callable[[Sequence[str]], int]) -> int:
    """Run a program's body; whatever it raises ends as one paragraph on standard error and a promised exit code."""
    try:
        return body(words)
    except TinyDistillError as error:
        if "--debug" in words:
            traceback.print_exc()
        sys.stderr.write(error.paragraph().rstrip() + "\n")
        return error.exit_code
    except KeyboardInterrupt:  # outside of a run, which hears Ctrl-C itself and stops in order
        sys.stderr.write("\nStopped.\n")
        return Stopped.exit_code
    except BrokenPipeError:  # whoever read our output has gone; nothing is left to say, and nobody to say it to
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 4
    except Exception as error:  # the edge of the process
        if "--debug" in words:
            traceback.print_exc()
        sys.stderr.write(
            f"Something unexpected happened: {type(error).__name__}: {error}. "
            "This is a defect of the program. Run again with --debug to see where.\n"
        )
        return 4


def _main(words: Sequence[str]) -> int:
    typed, front_end = arguments.parse(words, program="tiny-distill", description=DESCRIPTION)
    return run_headless(launch.config_from(typed), front_end)


def run_headless(config: RunConfig, front_end: arguments.FrontEnd) -> int:
    """Do what a request asks for, without a screen; returns the exit code."""
    if config.dry_run:
        from engine.cli.plan_table import show_plan

        return show_plan(config)
    run = launch.resume_run(config) if config.resume else launch.new_run(config)
    if config.resume and launch.is_finished(run):
        return _already_finished(run, config)
    return watch_run(run, config, front_end)


def watch_run(run: Run, config: RunConfig, front_end: arguments.FrontEnd) -> int:
    """Start the run's supervisor, show its events until it ends, and then the result."""
    view = _view(config, front_end, run)
    tail = Tail(run.events_path, from_end=True)
    with _ctrl_c(run, config) as environment:
        process = supervisor.start(run.path, tied=True, environment=environment)
        code = follow(run, view, alive=lambda: process.poll() is None, tail=tail)
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(timeout=30) if code == 4 else (process.wait(timeout=30), code)[1]
    if code == 0:
        if not config.json_events:
            _show_end(run)
        return 0
    if code == Stopped.exit_code:
        sys.stderr.write(f"Stopped; everything so far is kept. Go on: {supervisor.resume_command(run)}\n")
        return code
    raise launch.ended(run, code)


def attach(run: Run, config: RunConfig, front_end: arguments.FrontEnd) -> int:
    """Show a run that is going, from its first event on; leaving it changes nothing."""
    try:
        code = follow(run, _view(config, front_end, run), alive=run.is_live, tail=Tail(run.events_path))
    except KeyboardInterrupt:
        sys.stderr.write(f"\nThe run goes on. Watch it again: tinydistill-tui --attach {run.path}\n")
        return 0
    if code == 0 and not config.json_events:
        _show_end(run)
    return code


def _view(config: RunConfig, front_end: arguments.FrontEnd, run: Run) -> View:
    if config.json_events:
        return JsonView()
    reason = wants_lines(front_end.plain)
    if reason is None:
        return BarView()
    print(f"Run {run.path} (lines of text {reason})", flush=True)
    return LineView()


@contextlib.contextmanager
def _ctrl_c(run: Run, config: RunConfig) -> Iterator[dict[str, str]]:
    """Ctrl-C once stops the run in order; a second one leaves at once, and the run still stops in order.

    Yields:
        The environment for the supervisor, as it was before any front end touched it.
    """
    asked = 0

    def heard(number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked += 1
        if asked > 1:
            sys.stderr.write("\nLeaving; the run stops by itself after its current step.\n")
            os._exit(Stopped.exit_code)
        supervisor.request(run.path, "stop", by=signal.Signals(number).name)
        if not config.json_events:
            sys.stderr.write("\nStopping after the current step; press Ctrl-C again to leave at once.\n")

    before = {number: signal.signal(number, heard) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield dict(os.environ)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _already_finished(run: Run, config: RunConfig) -> int:
    if config.json_events:
        print(json.dumps({"time": run.info["created"], "kind": "log", "level": "info", "message": "already finished"}))
        return 0
    print(f"The run in {run.path} is finished already; there is nothing left to do.")
    _show_end(run)
    return 0


def _show_end(run: Run) -> None:
    if not run.report_json.exists():
        print(f"Done as far as asked (--until {run.settings.until}). Go on: {supervisor.resume_command(run)}")
        return
    from engine.cli.result_table import show_result

    report: dict[str, Any] = json.loads(run.report_json.read_text(encoding="utf-8"))
    show_result(report, Path(run.path))


if __name__ == "__main__":
    sys.exit(main())
