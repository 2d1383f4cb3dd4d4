"""Ranks: the processes that do one phase together, and how a process learns which one it is.

The names are torch's: each process has a rank from 0, and the world is how many there are. The supervisor tells its
phases by the variables that torch.distributed reads. A run that was started by hand on one of several machines, or as
a task of a Slurm array, scores a share of its own, by the variables that Slurm or the person has set.

This file knows nothing of torch.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from engine.errors import RequestError
from engine.settings.config import RunConfig

MEETING = "TINYDISTILL_MEETING"
"""Where the ranks of a training meet: an ``init_method`` of torch.distributed."""

LIMIT = "TINYDISTILL_RANK_SECONDS"
"""How long a rank waits for another one, in seconds; set by the person."""

_LONGEST_SECONDS = 86_400
_OF_TORCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")  # a phase gets them from its supervisor alone
_INTERFACE = "GLOO_SOCKET_IFNAME"
VARIABLES = (*_OF_TORCH, MEETING, _INTERFACE)
"""Variables by which the supervisor tells a process its rank."""

_BY_HAND = (("RANK", "WORLD_SIZE"), ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"), ("SLURM_PROCID", "SLURM_NTASKS"))
_LAUNCHER = "TORCHELASTIC_RUN_ID"
_FIRST_OF_ARRAY = "SLURM_ARRAY_TASK_MIN"
_GAP_OF_ARRAY = "SLURM_ARRAY_TASK_STEP"
_OF_JOB = ("SLURM_JOB_ID", "SLURM_JOBID")
_OF_STEP = ("SLURM_STEP_ID", "SLURM_STEPID")  # srun sets them, sbatch and salloc do not
_TASKS_OF_STEP = "SLURM_STEP_NUM_TASKS"


@dataclass(frozen=True)
class Rank:
    """One of the processes that share some work.

    Attributes:
        number: from 0.
        world: how many there are.
    """

    number: int = 0
    world: int = 1

    def has(self, item: int) -> bool:
        """Whether a numbered piece of work is this rank's: they are dealt out in turn."""
        return item % self.world == self.number

    @property
    def result(self) -> str:
        """The name of its result in the run's folder."""
        return f"teacher-rank-{self.number:05d}"

    @classmethod
    def of_phase(cls, environment: Mapping[str, str]) -> Rank:
        """The rank that the supervisor gave to a phase."""
        return cls(int(environment.get("RANK", 0)), int(environment.get("WORLD_SIZE", 1)))


ALONE = Rank()


def all_ranks(world: int) -> list[Rank]:
    """Every rank of a world."""
    return [Rank(number, world) for number in range(world)]


def environment_of(
    rank: Rank, environment: Mapping[str, str], *, local_world: int, meeting: str | None = None
) -> dict[str, str]:
    """The environment of a phase's process: what an outer launcher has set of ranks goes, and this is set instead.

    Args:
        rank: the process's.
        environment: to be changed.
        local_world: processes of this phase on this machine.
        meeting: see :data:`MEETING`.
    """
    # The store of torchrun's own processes would be taken for that of the phases.
    found = {
        name: value
        for name, value in environment.items()
        if name not in (*_OF_TORCH, MEETING) and not name.startswith("TORCHELASTIC_")
    }
    if rank.world == 1:
        return found
    values = (rank.number, rank.world, rank.number % local_world, local_world)
    found |= {name: str(value) for name, value in zip(_OF_TORCH, values, strict=True)}
    if meeting is None:
        return found
    if meeting.startswith(("file:", "tcp://localhost:", "tcp://127.0.0.1:")) and sys.platform.startswith("linux"):
        found.setdefault(_INTERFACE, "lo")  # all are on this machine: no name of it has to be resolved
    return found | {MEETING: meeting}


def threads_each(threads: int, processes: int) -> int:
    """CPU threads of each of the processes that share some."""
    return max(1, threads // max(1, processes))


def share_by_hand(settings: RunConfig, environment: Mapping[str, str]) -> tuple[Rank, str] | None:
    """The share of the rows that a run scores, and the variable that says so; None where it scores them all.

    Only runs that end after scoring and keep their records in a shared folder take a share: the tasks of a Slurm array
    may as well be runs of their own. RANK is set for one purpose only, so another run is refused with it.

    Raises:
        RequestError: the variables contradict each other, or the run is no rank of others and was started as one.
    """
    if _LAUNCHER in environment:  # its ranks do one run together: engine.run.launched
        return None
    shares = settings.until == "teacher" and settings.cache_dir is not None
    for own, all_of_them in _BY_HAND:
        given = [name for name in (own, all_of_them) if environment.get(name, "").strip()]
        if own == "RANK" and shares and len(given) == 1:
            raise _half_given(given[0], {own: all_of_them, all_of_them: own}[given[0]], environment)
        if len(given) < 2 or not (shares or own == "RANK"):
            continue
        if own == "SLURM_PROCID":
            if batch_tasks(environment):
                continue
            all_of_them = _TASKS_OF_STEP if environment.get(_TASKS_OF_STEP, "").strip() else all_of_them
        rank = _read(own, all_of_them, environment)
        if rank.world == 1:
            continue
        if not shares:
            raise RequestError(
                f"{own}={environment[own]} and {all_of_them}={environment[all_of_them]} ask for a share of a run.",
                "A process that is started by hand as one of several can share the scoring, in a common folder of "
                "records.",
                "Add --until teacher --cache_dir FOLDER, or unset both variables; --processes N starts the ranks of a "
                "run on this machine.",
            )
        if settings.processes > 1:
            raise RequestError(
                f"--processes {settings.processes}: this run scores a share already, as {own} says.",
                "One process scores a share.",
                f"Leave out --processes and start more shares, or unset {own}.",
            )
        return rank, own
    return None


def batch_tasks(environment: Mapping[str, str]) -> int:
    """Return the number of tasks of a Slurm job whose batch script this process runs in; 0 in any other process.

    Slurm gives the batch script of a job with several tasks SLURM_PROCID=0 and the number of all tasks, as if it were
    the first of them. Only srun starts tasks, and sets the variables of a step.
    """
    in_job = any(environment.get(name, "").strip() for name in _OF_JOB)
    in_step = any(environment.get(name, "").strip() for name in (*_OF_STEP, _TASKS_OF_STEP))
    tasks = environment.get("SLURM_NTASKS", "").strip()
    if not in_job or in_step or environment.get("SLURM_PROCID", "").strip() not in ("", "0") or not tasks.isdecimal():
        return 0
    return int(tasks)


def _half_given(given: str, missing: str, environment: Mapping[str, str]) -> RequestError:
    return RequestError(
        f"{given}={environment[given]} is set and {missing} is not.",
        "Together they name the share of the rows that this run scores.",
        "Set both variables, or neither.",
    )


def _read(own: str, all_of_them: str, environment: Mapping[str, str]) -> Rank:
    is_array = own == "SLURM_ARRAY_TASK_ID"
    first = environment.get(_FIRST_OF_ARRAY, "0") if is_array else "0"
    gap = environment.get(_GAP_OF_ARRAY, "1") if is_array else "1"
    try:
        place, rest = divmod(int(environment[own]) - int(first), int(gap))
        rank = Rank(-1 if rest else place, int(environment[all_of_them]))
    except (ValueError, ZeroDivisionError):
        rank = Rank(-1, 0)
    if not 0 <= rank.number < rank.world:
        told = {own: environment[own], all_of_them: environment[all_of_them]}
        told |= {_FIRST_OF_ARRAY: first} if is_array else {}
        told |= {_GAP_OF_ARRAY: gap} if gap != "1" else {}
        raise RequestError(
            f"{' and '.join(f'{name}={value}' for name, value in told.items())} do not name a rank.",
            "The tasks of an array that share the scoring are numbered without gaps, such as --array=0-7."
            if is_array
            else "Ranks are counted from 0 and are below the number of all.",
            "Number them so, or leave out --until teacher or --cache_dir: then this is a run of its own."
            if is_array
            else "Set both variables so, or neither.",
        )
    return rank


def limit_seconds(environment: Mapping[str, str]) -> float | None:
    """How long a rank waits for another one, where the person has set it.

    Raises:
        RequestError: it is no number of seconds.
    """
    given = environment.get(LIMIT, "").strip()
    if not given:
        return None
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 1 <= seconds <= _LONGEST_SECONDS:
        raise RequestError(
            f"{LIMIT}={given} is not a valid time for a rank to wait for another one.",
            f"It takes a number of seconds from 1 to {_LONGEST_SECONDS:,}.",
            "Set another one, or unset it.",
        )
    return seconds
