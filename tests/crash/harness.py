"""Kill a whole run anywhere, resume it, and compare: ``python -m tests.crash.harness --kills 200``.

A run is tiny and real: supervisor, three phases, report. Each kill starts a run of its own, ends a process of it with
SIGKILL (the phase, the supervisor, both, or both with the power: what was not flushed is lost), resumes to the end, and
compares the bytes of tokens, cache and student and the figures of the report with an undisturbed run.

Where it is killed: at every named commit point that a run passes (between any two steps of the protocols), then at
random moments. Processes are forked from this one, which has imported everything: a new interpreter would import torch
for seconds before each kill. Nothing else is replaced, but that a supervisor looks more often at its phase, that a wave
of the teacher is small (so that there are several shards), and that flushing is noted instead of done: a kill loses
nothing that was written, and a power cut everything that was not noted. ``--new-interpreters 10`` adds kills of the
programs as they are started by a user, with a comparison of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from engine.channel.events import EventWriter, read_events
from engine.disk import fault
from engine.model_files.spec import read_spec
from engine.phase_kinds import PHASES
from engine.phases import process as phase
from engine.planner import plan
from engine.run import phase_watch, preloaded, supervisor
from engine.run.folder import Run
from engine.settings.config import RunConfig
from tests.crash.disk import MODES, Disk
from tests.end_to_end import program
from tests.end_to_end.program import write_texts
from tests.forks import share_nothing_with_children
from tests.tiny import tiny_model

Target = Literal["phase", "supervisor", "both", "power", "disk", "folder"]
ROLES = ("supervisor", *PHASES)
FIGURES = ("teacher", "student_before", "student_after", "gap_closed", "cache", "samples")
_WAVE_TOKENS = 320
_PATIENCE_SECONDS = 120.0


@dataclass(frozen=True)
class Kill:
    """Where a run is killed.

    Attributes:
        target: the processes that are killed; with ``disk`` none is, but the disk is full once at the commit point;
            with ``folder`` none is, but the run's folder is deleted.
        role: the process that passes the commit point; any at a random moment.
        point: commit point and how often it was passed, ``shard-renamed:2``; None at a random moment. A folder is
            deleted between the protocols, after an event: ``metric:2``.
        moment: share of a run's time, where there is no point.
        seed: of the state that a power cut leaves.
    """

    target: Target
    role: str
    point: str | None
    moment: float
    seed: int

    def __str__(self) -> str:
        where = f"{self.role} at {self.point}" if self.point else f"at {self.moment:.0%} of the run"
        return f"{self.target} killed, {where}"


class Harness:
    """A template of a run, an undisturbed run, and the means to kill others.

    Args:
        scratch: a folder for all of them.
        settings: of the run, beside those of :func:`make_template`.

    Attributes:
        points: (role, ``name:count``) that an untouched run passes, in order.
        seconds: what an untouched run takes.
        expected: what has to come out, by name.
    """

    def __init__(self, scratch: Path, settings: Mapping[str, Any] | None = None) -> None:
        self.scratch = scratch
        self.points: list[tuple[str, str]] = []
        _import_everything(with_adapter="lora_rank" in (settings or {}))
        self.template = make_template(scratch, settings or {})
        folder = self.new_run()
        began = time.monotonic()
        life = Life(folder, count_to=scratch / "points")
        assert life.wait() == 0, "\n".join(
            log.read_text()[-3000:] for log in (folder.parent / "log", folder / "run.log")
        )
        self.seconds = time.monotonic() - began
        self.points = [
            (role, f"{name}:{count}")
            for role in ROLES
            if (scratch / "points" / role).exists()
            for name, passed in json.loads((scratch / "points" / role).read_text()).items()
            for count in range(1, passed + 1)
        ]
        self.expected = outcome(folder)
        shutil.rmtree(folder.parent)

    def new_run(self) -> Path:
        """A copy of the template, as if just planned."""
        # A name of its own: forked children make runs here too.
        folder = Path(tempfile.mkdtemp(prefix="run-", dir=self.scratch)) / "run"
        shutil.copytree(self.template, folder)
        return folder

    def differences(self, kill: Kill) -> list[str] | None:
        """Kill a run, resume it to its end, and say what differs; None when it ended before it could be killed."""
        folder = self.new_run()
        notes = folder.parent / "notes"
        disk = Disk(folder, notes) if kill.target == "power" else None
        life = Life(folder, kill=kill, notes=notes if disk else None)
        if kill.point is None:
            life.kill_after(kill.moment * self.seconds)
        code = life.wait()
        if kill.point is None and not life.killed:
            shutil.rmtree(folder.parent)
            return None
        if kill.point is not None and not (folder.parent / "killed").exists():
            return [f"{kill.point} was not passed"]
        if disk is not None:
            _wait_for_orphans(folder)
            after = folder.parent / "after"
            disk.after_power_loss(after, MODES[kill.seed % len(MODES)], kill.seed)
            shutil.rmtree(folder)
            after.rename(folder)
        if code != 0:
            code = Life(folder).wait()
        said = [f"ended with {code}: {_last_error(folder)}"] if code != 0 else []
        said += differing(outcome(folder), self.expected)
        said += [f"{left} was left behind" for left in leftovers(folder)]
        if not said:
            shutil.rmtree(folder.parent)
        return said

    def half_done(self) -> Path:
        """A run that was killed in its training: rows, records, a checkpoint or two are there."""
        kept = self.scratch / "half" / "run"
        if not kept.exists():
            folder = self.new_run()
            code = Life(folder, kill=Kill("both", "student", "checkpoint-renamed:3", 0.0, 0)).wait()
            assert code == -signal.SIGKILL
            _wait_for_orphans(folder)
            folder.parent.rename(kept.parent)
        # A name of its own: forked children make runs here too.
        folder = Path(tempfile.mkdtemp(prefix="run-", dir=self.scratch)) / "run"
        shutil.copytree(kept, folder)
        return folder

    def at_points(self, chance: random.Random) -> Iterator[Kill]:
        """A kill at each commit point, the phase or the supervisor and now and then the power with it."""
        for number, (role, point) in enumerate(self.points):
            alone: Target = "supervisor" if role == "supervisor" else "phase"
            yield Kill("power" if number % 2 else alone, role, point, 0.0, chance.randrange(10**6))

    def at_random(self, chance: random.Random) -> Iterator[Kill]:
        """Kills at random moments, for ever."""
        targets: tuple[Target, ...] = ("phase", "supervisor", "both", "power")
        while True:
            yield Kill(chance.choice(targets), "any", None, chance.uniform(0.02, 0.98), chance.randrange(10**6))


class Programs:
    """Kills of the programs as a user starts them: new interpreters, nothing replaced.

    Attributes:
        expected: what has to come out; its waves are larger than those of :class:`Harness`.
    """

    def __init__(self, harness: Harness) -> None:
        self._harness = harness
        folder = harness.new_run()
        began = time.monotonic()
        assert supervisor.start(folder).wait() == 0, (folder / "run.log").read_text()[-3000:]
        self.seconds = time.monotonic() - began
        self.expected = outcome(folder)

    def differences(self, target: Target, moment: float) -> list[str] | None:
        """Kill a run, resume it from the command line, and say what differs; None when it was over by then."""
        folder = self._harness.new_run()
        process = supervisor.start(folder)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=moment * self.seconds)
            return None
        phases = psutil.Process(process.pid).children()
        for victim in phases if target != "supervisor" else []:
            victim.kill()
        if target == "phase":
            said = [(folder / "run.log").read_text()[-500:]] if process.wait() else []
        else:
            process.kill()
            process.wait()
            resumed = program.run("--resume", "--output_dir", folder)
            said = [resumed.stderr] if resumed.returncode else []
        return said + differing(outcome(folder), self.expected) + leftovers(folder)


class Life:
    """One life of a run: a forked supervisor that sees it through, unless it is killed."""

    def __init__(
        self, folder: Path, *, kill: Kill | None = None, notes: Path | None = None, count_to: Path | None = None
    ) -> None:
        self.killed = False
        self._kill = kill
        self.pid = os.fork()
        if self.pid == 0:
            _as_process(folder.parent / "log", lambda: _supervise(folder, kill, notes, count_to))

    def kill_after(self, seconds: float) -> None:
        """SIGKILL to whom the kill is meant for, after so long; nothing when there is none any more."""
        assert self._kill is not None
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self._ended():
                return
            time.sleep(min(0.01, max(0.0, until - time.monotonic())))
        with contextlib.suppress(psutil.Error):
            phases = psutil.Process(self.pid).children()
            victims = [*phases, psutil.Process(self.pid)]
            if self._kill.target == "phase":
                victims = phases
            elif self._kill.target == "supervisor":
                victims = victims[-1:]
            for victim in victims:
                if not self._ended() and victim.status() != psutil.STATUS_ZOMBIE:
                    victim.kill()
                    self.killed = True

    def _ended(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def wait(self) -> int:
        """Its exit code, or minus the signal that ended it."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not self._ended():
            assert time.monotonic() < deadline, f"process {self.pid} hangs"
            time.sleep(0.01)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


class ForkedPhase:
    """The part of ``subprocess.Popen`` that the supervisor needs, for a phase that is forked."""

    def __init__(self, command: list[str], *, kill: Kill | None, count_to: Path | None, **how: Any) -> None:
        role, folder, parent = _words_of_phase(command)
        self._with_supervisor = kill is not None and kill.target in ("both", "power")
        self._mark = Path(folder).parent / "killed"
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.environ.clear()
            os.environ.update(how["env"])
            _arm(role, kill, count_to, self._mark)
            _as_process(None, lambda: _counted(phase.main([role, folder, parent]), role, count_to))

    def poll(self) -> int | None:
        """As ``Popen.poll``; goes down with its phase when that was killed by a power cut."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
                if self.returncode == -signal.SIGKILL and self._with_supervisor:
                    os.kill(os.getpid(), signal.SIGKILL)
        return self.returncode

    def wait(self) -> int:
        """As ``Popen.wait``."""
        while self.poll() is None:
            time.sleep(0.002)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """As ``Popen.send_signal``."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """As ``Popen.kill``."""
        self.send_signal(signal.SIGKILL)


def make_template(scratch: Path, settings: Mapping[str, Any]) -> Path:
    """The folder of a planned run, with models and text beside it."""
    config = RunConfig.parse(
        {
            "teacher": str(tiny_model("llama", num_layers=2)),
            "student": "from-teacher",
            "student_layers": 1,
            "data": str(write_texts(scratch / "data", 16)),
            "sequence_length": 32,
            "samples": 20,
            "holdout": 0.2,
            "teacher_batch": 2,
            "student_batch": 2,
            "gradient_accumulation": 2,
            "steps": 6,
            "checkpoint_every": 2,
            "keep_checkpoints": 1,
            "evaluations": 5,  # more than the planner takes for so few steps: the best step is kept on the way too
            "learning_rate": 1e-2,
            "precision": "fp32",
            "threads": 1,
            "output_dir": str(scratch / "template" / "run"),
            **settings,
        }
    )
    planned = plan(config)  # without measuring the machine: nothing that is compared depends on it
    assert config.output_dir is not None
    return Run.create(config.output_dir, config, planned).path


def outcome(folder: Path) -> dict[str, str]:
    """Return all that has to be the same after any kill: hashes of files, and the report's figures."""
    found = {}
    for path in sorted([folder / "tokens.h5", *(folder / "cache").rglob("*"), *(folder / "student").rglob("*")]):
        if path.is_file() and path.name not in ("lock", "in-use"):
            found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    if (folder / "report.json").exists():
        report = json.loads((folder / "report.json").read_text())
        found |= {f"report: {key}": json.dumps(report[key]) for key in FIGURES}
    return found


def differing(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """Return the differences in words."""
    names = sorted(found.keys() | expected.keys())
    return [f"{name} differs" for name in names if found.get(name) != expected.get(name)]


def leftovers(folder: Path) -> list[str]:
    """Temporary files that were not removed."""
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.name.endswith((".tmp", ".bad"))]


def _import_everything(*, with_adapter: bool) -> None:
    share_nothing_with_children()
    import torch

    import engine.phases.prepare
    import engine.phases.student
    import engine.phases.teacher  # noqa: F401
    from engine.models.derive import derive_student
    from engine.models.load import load_causal_lm, load_tokenizer

    if with_adapter:  # 900 modules: more than two seconds of each life of a run that trains one
        import peft  # noqa: F401

    torch.set_num_threads(1)
    folder = tiny_model("llama", num_layers=2)
    load_causal_lm(folder, dtype=torch.float32)
    load_tokenizer(folder)
    with tempfile.TemporaryDirectory() as aside:
        derive_student(read_spec(folder), 1, Path(aside) / "student")
    gc.collect()
    gc.freeze()  # each child would look through all that was imported, and copy it, whenever it returns memory


def _supervise(folder: Path, kill: Kill | None, notes: Path | None, count_to: Path | None) -> int:
    import engine.phases.teacher

    pending = [kill]

    def start(command: list[str], **how: Any) -> ForkedPhase:
        first = pending[0]
        if first is not None and first.point is not None and first.role == _words_of_phase(command)[0]:
            pending[0] = None  # the phase that continues after it is left alone
        return ForkedPhase(command, kill=first, count_to=count_to, **how)

    subprocess.Popen = start  # type: ignore[misc,assignment]
    # Each phase is forked from here; how a run does it by itself is tried in tests/end_to_end/test_preloaded.py.
    preloaded.is_worth_it = lambda *_: False  # type: ignore[assignment]
    is_deleted = kill is not None and kill.target == "folder"
    phase_watch._POLL_SECONDS = 2.0 if is_deleted else 0.02  # a phase without its folder has time to continue
    small = functools.partial(_small_wave, engine.phases.teacher.wave_tokens)
    engine.phases.teacher.wave_tokens = small
    os.fsync = Disk(folder, notes).fsync if notes else _no_flush  # type: ignore[assignment]
    _arm("supervisor", kill, count_to, folder.parent / "killed")
    return _counted(supervisor.Supervisor(Run.open(folder)).supervise(), "supervisor", count_to)


def _words_of_phase(command: list[str]) -> list[str]:
    """Phase, run folder and supervisor, out of the command that starts a phase."""
    return command[command.index("engine.phases.process") + 1 :]


def _small_wave(wave_tokens: Any, *args: Any, **kwargs: Any) -> int:
    return min(_WAVE_TOKENS, wave_tokens(*args, **kwargs))


def _no_flush(descriptor: int) -> None:
    """A kill loses nothing that was written."""


def _arm(role: str, kill: Kill | None, count_to: Path | None, mark: Path) -> None:
    """Let this process be killed at its commit point, and leave a mark; or only count what it passes."""
    fault._passed.clear()
    os.environ.pop("TINYDISTILL_CRASH_AT", None)
    os.environ.pop("TINYDISTILL_ENOSPC_AT", None)
    if count_to is not None:
        os.environ["TINYDISTILL_CRASH_AT"] = "nowhere:1"
    elif kill is not None and kill.point is not None and kill.role == role and kill.target == "disk":
        os.environ["TINYDISTILL_ENOSPC_AT"] = kill.point
    elif kill is not None and kill.point is not None and kill.role == role and kill.target == "folder":
        _delete_after(kill.point, mark)
    elif kill is not None and kill.point is not None and kill.role == role:
        os.environ["TINYDISTILL_CRASH_AT"] = kill.point
        real = os.kill

        def marked(pid: int, number: int) -> None:
            if pid == os.getpid():
                mark.touch()
            real(pid, number)

        os.kill = marked


def _delete_after(point: str, mark: Path) -> None:
    """Let this process delete the run's folder after an event, and continue."""
    real, passed = EventWriter.write, Counter[str]()

    def write(self: EventWriter, kind: str, **fields: Any) -> None:
        real(self, kind, **fields)
        passed[kind] += 1
        if point == f"{kind}:{passed[kind]}":
            shutil.rmtree(mark.with_name("run"))
            mark.touch()

    EventWriter.write = write  # type: ignore[method-assign]


def _counted(code: int, role: str, count_to: Path | None) -> int:
    if count_to is not None:
        count_to.mkdir(exist_ok=True)
        (count_to / role).write_text(json.dumps(fault._passed))
    return code


def _as_process(log: Path | None, work: Any) -> None:
    """Be a process of one's own in a forked child; never returns."""
    code = 70
    try:
        if log is not None:
            os.setsid()
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
        code = work()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _wait_for_orphans(folder: Path) -> None:
    """With the power everything is gone; a phase that was not killed itself is on its way out."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while Run(folder, {}).is_live() and time.monotonic() < deadline:
        time.sleep(0.01)


def _last_error(folder: Path) -> str:
    errors = [event for event in read_events(folder / "events.jsonl") if event["kind"] == "error"]
    return str(errors[-1]["what"]) if errors else (folder.parent / "log").read_text()[-500:]


def main(words: list[str] | None = None) -> int:
    """Kill, compare, and say what came of it; 0 when every student was the same."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--new-interpreters", type=int, default=0, help="kills of programs that were not forked")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the summary here")
    options = parser.parse_args(words)
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="tinydistill-crash-") as scratch:
        os.environ["XDG_CACHE_HOME"] = str(Path(scratch) / "xdg")
        harness = Harness(Path(scratch))
        print(f"An untouched run takes {harness.seconds:.1f} s and passes {len(harness.points)} commit points.")
        kills = [*harness.at_points(chance)]
        if len(kills) > options.kills:
            kills = [kills[place * len(kills) // options.kills] for place in range(options.kills)]
        more = harness.at_random(chance)
        done = identical = 0
        by: Counter[str] = Counter()
        wrong: list[str] = []
        began = time.monotonic()
        while done < options.kills:
            kill = kills.pop(0) if kills else next(more)
            said = harness.differences(kill)
            if said is None:
                continue
            done += 1
            by[f"{kill.target}, {'commit point' if kill.point else 'random moment'}"] += 1
            if said:
                wrong.append(f"{kill}: {'; '.join(said)}")
                print(wrong[-1], flush=True)
            else:
                identical += 1
            if done % 20 == 0 or done == options.kills:
                print(f"{done} kills, {identical} identical students, {time.monotonic() - began:.0f} s", flush=True)
        programs = Programs(harness) if options.new_interpreters else None
        targets: tuple[Target, ...] = ("phase", "supervisor", "both")
        new = new_identical = 0
        while programs is not None and new < options.new_interpreters:
            target, moment = targets[new % 3], chance.uniform(0.05, 0.95)
            said = programs.differences(target, moment)
            if said is None:
                continue
            new += 1
            new_identical += not said
            if said:
                wrong.append(f"{target} killed, at {moment:.0%} of a run in new interpreters: {'; '.join(said)}")
                print(wrong[-1], flush=True)
    summary = {
        "kills": done,
        "identical": identical,
        "new_interpreters": {"kills": new, "identical": new_identical},
        "by": dict(sorted(by.items())),
        "commit_points": len(harness.points),
        "seed": options.seed,
        "wrong": wrong,
    }
    print(json.dumps(summary, indent=1))
    if options.json:
        options.json.write_text(json.dumps(summary, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.exit(main())
