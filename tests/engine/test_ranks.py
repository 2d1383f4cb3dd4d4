"""Variables of the environment that make a run one of several: they name a rank, or the run is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import RequestError
from engine.ranks import LIMIT, Rank, limit_seconds, share_by_hand
from engine.run.launched import Launch
from engine.settings.config import RunConfig

SHARING = RunConfig(demo=True, until="teacher", cache_dir=Path("records"))
ALONE = RunConfig(demo=True)
ARRAY = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN")


def of(**variables: str) -> dict[str, str]:
    return variables


def array(*values: str) -> dict[str, str]:
    return dict(zip(ARRAY, values, strict=False))


@pytest.mark.parametrize(
    ("variables", "rank"),
    [
        (of(), None),
        (of(RANK="", WORLD_SIZE=""), None),
        (of(RANK="0", WORLD_SIZE="1"), None),
        (of(RANK="1", WORLD_SIZE="2"), Rank(1, 2)),
        (of(SLURM_PROCID="3", SLURM_NTASKS="4"), Rank(3, 4)),
        (of(SLURM_PROCID="0"), None),  # a batch script that asked for no number of tasks
        (of(SLURM_JOB_ID="7", SLURM_PROCID="0", SLURM_NTASKS="4"), None),  # a batch script: srun starts the tasks
        (of(SLURM_JOB_ID="7", SLURM_NTASKS="4"), None),  # a shell of salloc
        (of(SLURM_JOB_ID="7", SLURM_PROCID="2", SLURM_NTASKS="4"), Rank(2, 4)),
        (of(SLURM_JOB_ID="7", SLURM_STEP_ID="0", SLURM_PROCID="0", SLURM_NTASKS="4"), Rank(0, 4)),
        (of(SLURM_JOBID="7", SLURM_STEPID="0", SLURM_PROCID="1", SLURM_NTASKS="4"), Rank(1, 4)),
        # A step of two tasks in a job of four, and the one step of an interactive shell
        (of(SLURM_JOB_ID="7", SLURM_STEP_NUM_TASKS="2", SLURM_PROCID="1", SLURM_NTASKS="4"), Rank(1, 2)),
        (of(SLURM_JOB_ID="7", SLURM_STEP_NUM_TASKS="1", SLURM_PROCID="0", SLURM_NTASKS="4"), None),
        (array("14", "8", "0") | of(SLURM_ARRAY_TASK_STEP="2"), Rank(7, 8)),
        (array("2", "4", "1") | of(SLURM_JOB_ID="7", SLURM_PROCID="0", SLURM_NTASKS="2"), Rank(1, 4)),
        (array("8", "3", "7"), Rank(1, 3)),
        (of(RANK="0", WORLD_SIZE="2", SLURM_PROCID="1", SLURM_NTASKS="2"), Rank(0, 2)),
        (of(RANK="1", WORLD_SIZE="2", TORCHELASTIC_RUN_ID="x"), None),
    ],
)
def test_a_run_that_may_share_takes_the_share_that_the_variables_name(variables, rank):
    found = share_by_hand(SHARING, variables)
    assert (found and found[0]) == rank


WRONG = [
    of(RANK="2", WORLD_SIZE="2"),
    of(RANK="-1", WORLD_SIZE="2"),
    of(RANK="0", WORLD_SIZE="0"),
    of(RANK="0", WORLD_SIZE="abc"),
    of(RANK="1", WORLD_SIZE="1"),
    of(RANK="1.0", WORLD_SIZE="2"),
    of(RANK="1"),
    of(WORLD_SIZE="2"),
    of(RANK="", WORLD_SIZE="2"),
    of(SLURM_PROCID="0", SLURM_NTASKS="abc"),
    of(SLURM_PROCID="4", SLURM_NTASKS="4"),
    array("5", "3", "1"),
    array("1", "2", "x"),
    array("3", "2", "0") | of(SLURM_ARRAY_TASK_STEP="2"),
    array("0", "2", "0") | of(SLURM_ARRAY_TASK_STEP="0"),
]


@pytest.mark.parametrize("variables", WRONG, ids=str)
def test_variables_that_name_no_rank_are_refused_with_their_names_and_values(variables):
    with pytest.raises(RequestError) as refused:
        share_by_hand(SHARING, variables)
    assert refused.value.exit_code == 2
    assert all(f"{name}={value}" in refused.value.what for name, value in variables.items() if value)


@pytest.mark.parametrize(
    "variables",
    [of(SLURM_PROCID="0", SLURM_NTASKS="abc"), of(SLURM_PROCID="1", SLURM_NTASKS="4"), array("5", "3", "1")],
)
def test_tasks_of_slurm_that_are_runs_of_their_own_are_left_alone(variables):
    assert share_by_hand(ALONE, variables) is None


def test_a_run_that_is_no_rank_of_others_is_refused_where_a_person_made_it_one():
    with pytest.raises(RequestError, match="ask for a share"):
        share_by_hand(ALONE, of(RANK="1", WORLD_SIZE="2"))
    with pytest.raises(RequestError, match="scores a share already"):
        share_by_hand(SHARING.with_values({"processes": 2}), of(RANK="1", WORLD_SIZE="2"))


@pytest.mark.parametrize(
    "changes",
    [
        {"RANK": "2"}, {"RANK": "x"}, {"RANK": "-1"}, {"WORLD_SIZE": "0"}, {"LOCAL_WORLD_SIZE": "0"},
        {"LOCAL_WORLD_SIZE": "3"}, {"LOCAL_WORLD_SIZE": ""}, {"WORLD_SIZE": None},
    ],
)  # fmt: skip
def test_a_launcher_whose_variables_name_no_rank_is_refused(changes):
    right = {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    launch = Launch.of(right)
    assert launch is not None
    assert launch.rank == Rank(0, 2)
    with pytest.raises(RequestError, match="TORCHELASTIC_RUN_ID is set"):
        Launch.of({name: value for name, value in (right | changes).items() if value is not None})


def test_the_limit_is_a_number_of_seconds_or_not_set():
    assert limit_seconds({}) is limit_seconds({LIMIT: ""}) is None
    assert limit_seconds({LIMIT: "5"}) == 5
    for wrong in ("abc", "0", "-1", "nan", "inf", "1e9"):
        with pytest.raises(RequestError, match=f"{LIMIT}={wrong} "):
            limit_seconds({LIMIT: wrong})
