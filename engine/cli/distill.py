"""``tiny-distill``: TinyDistill without the wizard.

``tinydistill-tui --no-tui`` runs it too. It plans, starts the run's supervisor, and shows its events; the run itself
happens in other processes.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shlex
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from engine.channel.events import Event, Tail
from engine.channel.last_word import LastWord
from engine.cli import arguments, streams
from engine.cli.progress import BarView, JsonView, LineView, View, follow, wants_lines
from engine.data.left_out import MostlyLeftOut
from engine.disk import places
from engine.errors import Problem, RequestError, SettingsError, Stopped, TinyDistillError
from engine.machine import compute, system
from engine.run import control as run_control
from engine.run import launch, supervisor
from engine.run.folder import Run
from engine.run.launched import Launch, tell_end
from engine.settings.command import how_to_continue, resume_command
from engine.settings.config import RunConfig

DESCRIPTION = "Distil a small language model from a large one, in two phases that never share memory."


def main(words: Sequence[str] | None = None) -> int:
    """Entry point of ``tiny-distill``."""
    return guarded(sys.argv[1:] if words is None else words, _main)


def guarded(words: Sequence[str], body: Callable[[Sequence[str]], int]) -> int:
    """Run a program's body; exceptions become one paragraph on standard error and a documented exit code."""
    streams.make_fit()
    compute.let_threads_sleep()
    try:
        if not {"-h", "--help", "--version"} & {*words}:
            system.require()
        code = body(words)
        streams.flush()
        return code
    except TinyDistillError as error:
        if "--debug" in words:
            traceback.print_exc()
        _tell(error.paragraph().rstrip() + "\n")
        return error.exit_code
    except KeyboardInterrupt:  # outside of a run, which handles Ctrl-C itself
        _tell("\nStopped.\n")
        return Stopped.exit_code
    except SystemExit:  # after --help and --version
        with contextlib.suppress(BrokenPipeError):
            streams.flush()
            raise
        streams.silence()
        return 0
    except BrokenPipeError:  # the reader has gone (``| head -1``), with as much as it wanted
        streams.silence()
        return 0
    except Exception as error:  # the edge of the process
        if "--debug" in words:
            traceback.print_exc()
        _tell(_unexpected(error))
        return 4


def _unexpected(error: Exception) -> str:
    if (
        isinstance(error, OSError) and error.errno is not None
    ):  # not a defect of the program: a disk, a limit, a permission
        where = f" of {error.filename}" if error.filename else ""
        return f"The system says {os.strerror(error.errno).lower()}{where}. Fix that, then try again.\n"
    return (
        f"Something unexpected happened: {type(error).__name__}: {error}. "
        "This is a defect of the program. Run again with --debug to see where.\n"
    )


def _main(words: Sequence[str]) -> int:
    typed, front_end = arguments.parse(words, program="tiny-distill", description=DESCRIPTION)
    config = launch.config_from(typed)
    several = Launch.of(os.environ)
    if several is None or config.dry_run:
        return run_headless(config, front_end)
    return _as_rank(several, config, front_end)


def _as_rank(several: Launch, config: RunConfig, front_end: arguments.FrontEnd) -> int:
    """Be one of the processes that a launcher has started: rank 0 does the run, the others help and end as it does."""
    world = several.rank.world
    if config.output_dir is None:
        raise RequestError(
            "--output_dir is not given.",
            f"The {world} processes meet in the run's folder, which every machine has to see.",
            "Add --output_dir FOLDER.",
        )
    if config.processes not in (1, world):
        accepted = f"{world} processes were started; leave this out"
        raise SettingsError([Problem("processes", config.processes, accepted)])
    folder = Path(os.path.abspath(config.output_dir.expanduser()))
    if several.rank.number:
        from engine.run.agent import Agent

        return Agent(folder, several).serve()
    code = 4
    try:
        code = run_headless(config.with_values({"processes": world}), front_end)
    except TinyDistillError as error:
        code = error.exit_code
        raise
    finally:
        if (folder / "run.json").exists():
            tell_end(folder, several, code)
    return code


def run_headless(config: RunConfig, front_end: arguments.FrontEnd) -> int:
    """Execute a request without the wizard; return the exit code."""
    with _signals(_interrupt):
        return _run_headless(config, front_end)


def _run_headless(config: RunConfig, front_end: arguments.FrontEnd) -> int:
    if note := places.nothing_is_kept():
        _tell(f"Note: {note}\n")
    if config.dry_run:
        from engine.cli.plan_table import show_plan

        return show_plan(config)
    try:
        run = launch.resume_run(config) if config.resume else launch.new_run(config)
    except MostlyLeftOut as error:
        if not _goes_on(error, config):
            raise
        return run_headless(config.with_values({"allow_losses": True}), front_end)
    if config.resume and launch.is_finished(run):
        return _already_finished(run, config)
    return watch_run(run, config, front_end)


def watch_run(run: Run, config: RunConfig, front_end: arguments.FrontEnd) -> int:
    """Start the run's supervisor, show its events until it ends, and then the result."""
    view = _Lasting(lambda: _view(config, front_end, run), run)
    tail = Tail(run.events_path, from_end=True)
    word = LastWord()
    with _stopping(run, config) as started:
        process = supervisor.start(run.path, tied=True, last_word=word)
        started.append(process)
        code = follow(view, alive=lambda: process.poll() is None, tail=tail)
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(timeout=30) if code == 4 else (process.wait(timeout=30), code)[1]
    said = word.said()
    if code == 0:
        if not config.json_events:
            view.then(lambda: _show_end(run))
        return 0
    if code == Stopped.exit_code:
        _tell(f"Stopped. {how_to_continue(run.path)}\n")
        return code
    error = launch.failure(run, code, said)
    if launch.asks_for_losses(run) and _goes_on(error, config):
        run.change({"allow_losses": True})
        return watch_run(run, config, front_end)
    raise launch.ended(run, code, said)


def _goes_on(error: TinyDistillError, config: RunConfig) -> bool:
    """Ask whether to continue without most of the text, if the terminal is interactive."""
    if config.json_events or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    sys.stderr.write(f"{error.what} {error.why}\nContinue without the documents that are left out? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def attach(run: Run, config: RunConfig, front_end: arguments.FrontEnd) -> int:
    """Show an active run, from its first event on; leaving does not affect it."""
    try:
        code = follow(_view(config, front_end, run), alive=run.is_live, tail=Tail(run.events_path))
    except KeyboardInterrupt:
        sys.stderr.write(f"\nThe run continues. Watch it again: tinydistill-tui --attach {run.path}\n")
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


class _Lasting:
    """A view whose output may end before the run does, which continues without it.

    A reader closes (``| head -1``), the disk of a log is full, or the terminal is gone that ``nohup`` was started in.
    """

    def __init__(self, make: Callable[[], View], run: Run) -> None:
        self._run = run
        self._view: View | None = None
        self._is_lost = False
        self.then(lambda: setattr(self, "_view", make()))

    def show(self, event: Event) -> None:
        """Take one event."""
        if self._view is not None:
            self.then(functools.partial(self._view.show, event))

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._view is not None:
            self.then(self._view.close)

    def then(self, action: Callable[[], None]) -> None:
        """Write something more, while the output takes it."""
        if self._is_lost:
            return
        try:
            action()
            streams.flush()
        except OSError as error:
            self._is_lost, self._view = True, None
            streams.silence()
            if not isinstance(error, BrokenPipeError):
                reason = (error.strerror or str(error)).lower()
                lines = self._run.log_path
                _tell(f"The output takes no more lines: {reason}. The run continues; its lines are in {lines}.\n")


@contextlib.contextmanager
def _stopping(run: Run, config: RunConfig) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Stop the run after its current step at the first Ctrl-C or other signal to end; leave at once at the second.

    Yields:
        To be filled with the supervisor's process: it is signalled where its folder takes no request.
    """
    started: list[subprocess.Popen[bytes]] = []
    asked = 0

    def heard(number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked += 1
        if asked > 1:
            _tell("\nLeaving; the run stops after its current step.\n")
            os._exit(Stopped.exit_code)
        try:
            run_control.request(run.path, "stop", by=signal.Signals(number).name)
        except OSError:  # a full or read-only disk
            for process in started:
                process.terminate()
        if not config.json_events:
            _tell("\nStopping after the current step; press Ctrl-C again to leave at once.\n")

    with _signals(heard):
        yield started


@contextlib.contextmanager
def _signals(heard: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle all signals that request an end, except those that the parent process set to be ignored (nohup)."""
    numbers = [
        number
        for number in run_control.STOPPING_SIGNALS
        if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN
    ]
    before = {number: signal.signal(number, heard) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _tell(text: str) -> None:
    """Write to standard error, which may be a terminal that is gone."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(text)
        sys.stderr.flush()


def _already_finished(run: Run, config: RunConfig) -> int:
    if config.json_events:
        print(json.dumps({"time": run.info["created"], "kind": "log", "level": "info", "message": "already finished"}))
        return 0
    print(f"The run in {run.path} is already finished; there is nothing to do.")
    _show_end(run)
    return 0


def _show_end(run: Run) -> None:
    if not run.report_json.exists():
        scored = run.result("teacher") or {}
        share = scored.get("share")
        part = f", share {share['rank'] + 1} of {share['world']} alone" if share else ""
        print(f"Done up to --until {run.settings.until}{part}. Continue: {resume_command(run.path)}")
        if scored.get("cut") and not share:
            line = f"tiny-distill --records_from {shlex.quote(str(run.path))} --student_layers N"
            print(f"Train a student of another depth from the same records: {line}")
        return
    from engine.cli.result_table import show_result

    report: dict[str, Any] = json.loads(run.report_json.read_text(encoding="utf-8"))
    show_result(report, Path(run.path))


if __name__ == "__main__":
    sys.exit(main())
