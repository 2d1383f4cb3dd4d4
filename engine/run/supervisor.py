"""The supervisor: one small process that sees a run through.

It holds the run's lock, hears requests, walks through the jobs (:mod:`engine.run.walk`), each in a process of its own
(:mod:`engine.run.phase_watch`), and writes how the run ended. It is detached from whatever started it, so a closed
terminal or a killed wizard changes nothing. It knows nothing of models or tensors, and never imports torch.

Run as ``python -m engine.run.supervisor RUN_DIR [--tied]``: tied, it stops in order when the process that started it
ends.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.channel import last_word
from engine.channel.events import EventWriter
from engine.channel.last_word import VARIABLE, LastWord
from engine.disk import file_lock
from engine.disk.runs import announced
from engine.errors import RunFailed, Stopped, TinyDistillError
from engine.machine import hardware, safe_child, system
from engine.run import report
from engine.run.control import RunControl
from engine.run.folder import Run, unwritable
from engine.run.launched import Launch
from engine.run.phase_start import PhaseStarter
from engine.run.phase_watch import PhaseWatch
from engine.run.walk import Walk, jobs_asked
from engine.settings.command import how_to_continue, resume_command
from engine.version import __version__


def start(
    path: Path,
    *,
    tied: bool = False,
    environment: Mapping[str, str] | None = None,
    last_word: LastWord | None = None,
) -> subprocess.Popen[bytes]:
    """Start a supervisor for the run in ``path``, detached from this terminal and session.

    Args:
        path: the run's folder, with its ``run.json``.
        tied: stop the run in order when the calling process ends.
        environment: instead of this process's own.
        last_word: hears why the run ended, where the disk takes no word of it.

    Raises:
        FolderError: the folder cannot be written.
        RunFailed: the system starts no more processes.
    """
    system.require()
    command = safe_child.command("engine.run.supervisor", str(path), *(["--tied"] if tied else []))
    try:
        opened = (path / "run.log").open("ab")
    except OSError as error:
        raise unwritable(path, error) from error
    environment = safe_child.environment(environment)
    environment.pop(VARIABLE, None)
    if last_word is not None:
        environment[VARIABLE] = str(last_word.writing)
    try:
        with opened as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                close_fds=True,
                pass_fds=() if last_word is None else (last_word.writing,),
                env=environment,
            )
    except OSError as error:
        raise RunFailed(
            f"The run could not be started ({error.strerror or error}).",
            "",
            f"Free some memory or end other processes, then: {resume_command(path)}",
        ) from error
    finally:
        if last_word is not None:
            last_word.started()


@dataclass(frozen=True)
class Supervisor:
    """Sees one run through; :meth:`supervise` returns its exit code.

    Attributes:
        run: the run.
        tied_to: the process with which the run ends; None for a run of its own.
    """

    run: Run
    tied_to: int | None = None

    def supervise(self) -> int:
        """Hold the run's lock until the run is done, has failed or was stopped.

        Raises:
            FolderError: another supervisor holds the run.
        """
        run, launch = self.run, Launch.of(os.environ)
        with run.lock() as lock, announced(run.path):
            resumed = run.events_path.exists() and run.events_path.stat().st_size > 0
            events = run.event_writer()
            control = RunControl(run.control_path, events, tied_to=self.tied_to)
            control.listen()
            events.write(
                "run_resumed" if resumed else "run_started",
                version=__version__,
                name=run.name,
                pid=os.getpid(),
                host=socket.gethostname(),
                boot_id=hardware.boot_id(),
            )
            if run.without_locks:
                events.log("warning", file_lock.no_locks(run.path), "no-locks")
            events.write("plan", choices=run.info["choices"], predicted=run.info["predicted"])
            starter = PhaseStarter(run, events, control, launch=launch, lock=lock)
            status, code = self._see_through(events, control, starter)
            events.write("run_finished", status=status, exit_code=code)
            return code

    def _see_through(self, events: EventWriter, control: RunControl, starter: PhaseStarter) -> tuple[str, int]:
        run = self.run
        try:
            if run.is_old:
                run.save()
            for file in run.damaged_results([job.name for job in run.jobs]):
                events.log("warning", f"{file} is damaged: the phase runs again.", "damaged-result")
            starter.preload(jobs_asked(run))
            Walk(run, events, control, PhaseWatch(run, events, control, starter).run_job).go()
            run.sweep()
            if run.result("student") is not None:
                report.write(run)
        except Stopped:
            return "stopped", Stopped.exit_code
        except TinyDistillError as error:
            said = run.vanished() or error
            if said.what:
                events.write("error", what=said.what, why=said.why, todo=said.todo)
            return "failed", said.exit_code
        except Exception as error:  # the edge of the process: nothing may end without a word
            if (gone := run.vanished()) is not None:
                events.write("error", what=gone.what, why=gone.why, todo=gone.todo)
                return "failed", gone.exit_code
            events.text(traceback.format_exc())
            events.write(
                "error",
                what=f"The supervisor met something unexpected: {type(error).__name__}: {error}.",
                why="This is a defect of the program; the traceback is in run.log.",
                todo=how_to_continue(run.path),
            )
            return "failed", 4
        finally:
            starter.end()
        return "done", 0


def main(arguments: list[str] | None = None) -> int:
    """Entry point of ``python -m engine.run.supervisor``."""
    words = sys.argv[1:] if arguments is None else arguments
    tied = "--tied" in words
    folder = Path(next(word for word in words if word != "--tied"))
    try:
        said: TinyDistillError
        return Supervisor(Run.open(folder), tied_to=os.getppid() if tied else None).supervise()
    except TinyDistillError as error:
        said = error
    except OSError as error:  # the lock or the events cannot be opened; nothing was begun
        said = unwritable(folder, error)
    except Exception as error:  # the edge of the process: nothing may end without a word
        traceback.print_exc()
        said = RunFailed(
            f"The supervisor met something unexpected: {type(error).__name__}: {error}.",
            "This is a defect of the program; the traceback is in run.log.",
            how_to_continue(folder),
        )
    last_word.say({"what": said.what, "why": said.why, "todo": said.todo})
    sys.stderr.write(said.paragraph() + "\n")
    return said.exit_code


if __name__ == "__main__":
    sys.exit(main())
