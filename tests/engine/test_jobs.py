"""Jobs: complete, kept in ``run.json``, replaced by smaller ones, and made for runs that were planned without them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.channel.events import EventWriter, read_events
from engine.errors import EXIT_OUT_OF_MEMORY, EXIT_RECORDS_MISSING, CorruptState, RequestError, SettingsError
from engine.jobs import Job, ScoreJob, TrainJob, backed_off, jobs_from_json, jobs_to_json, last_of
from engine.phase_kinds import KINDS
from engine.run.control import RunControl
from engine.run.folder import FORMAT, Run
from engine.run.launch import resume_run
from engine.run.phase_watch import Ending
from engine.run.walk import Walk, jobs_asked
from engine.settings.config import SETTINGS, RunConfig
from tests.engine.run.test_folder import make_run
from tests.jobs import complete, jobs
from tests.tiny import tiny_model

OF_A_JOB = {"kind", "name", "vocab_size", "head_chunk_tokens"}
"""Values of a job that are no settings."""


def test_there_is_a_job_of_each_kind_in_order():
    assert [job.kind for job in jobs(complete())] == [*KINDS]
    assert [job.name for job in jobs(complete())] == [*KINDS]


def test_a_value_of_a_job_has_the_name_of_its_setting():
    for job in jobs(complete()):
        assert type(job).model_fields.keys() - OF_A_JOB <= SETTINGS.keys()


def test_nothing_that_the_planner_decides_is_open_in_a_job():
    left_out_by_users = {
        *("text_field", "samples", "student_layers", "cache_dir", "epochs", "steps", "lora_alpha", "lora_targets")
    }
    for job in jobs(complete()):
        for name in type(job).model_fields.keys() - OF_A_JOB - left_out_by_users:
            with pytest.raises(ValueError, match=name):
                job.changed({name: None})


@pytest.mark.parametrize("name", ["sequence_length", "memory_budget", "lora_rank", "student_batch", "device"])
def test_a_list_of_settings_that_are_not_complete_is_refused(name: str):
    with pytest.raises(ValueError, match=name):
        jobs(complete(**{name: None}))


def test_jobs_come_out_of_json_as_they_went_in():
    made = jobs(complete(student="from-teacher", student_layers="0,3", cache_dir="records", text_field="text"))
    assert jobs_from_json(json.loads(json.dumps(jobs_to_json(made)))) == made


def test_a_smaller_job_is_followed_by_jobs_with_the_same_value_and_earlier_ones_stay():
    prepare, score, train = jobs(complete(keep_memory=True, teacher_batch=4, cpu_offload=False))
    again, larger = score.changed({"name": "again"}), score.changed({"name": "larger", "teacher_batch": 8})
    found = backed_off([prepare, score, train, again, larger], "teacher", [("teacher_batch", 4, 2)])
    assert [getattr(job, "teacher_batch", None) for job in found] == [None, 2, None, 2, 8]
    found = backed_off([prepare, score, train, again], "student", [("cpu_offload", False, True)])
    assert [getattr(job, "cpu_offload", None) for job in found] == [None, False, True, True]
    found = backed_off([prepare, score, train], "prepare", [("keep_memory", True, False)])
    assert [job.keep_memory for job in found] == [False] * 3


def test_a_run_keeps_its_jobs_and_a_smaller_one_takes_the_place_of_a_job(tmp_path: Path):
    run = make_run(tmp_path / "run", student_batch=4)
    assert Run.open(run.path).jobs == run.jobs == jobs(complete(seed=3, student_batch=4))
    changes = [("student_batch", 4, 2), ("gradient_accumulation", 1, 2)]
    run.back_off("student", "out of memory", changes)
    opened = Run.open(run.path)
    training = last_of(opened.jobs, TrainJob)
    assert (training.student_batch, training.gradient_accumulation) == (2, 2)
    assert (opened.settings.student_batch, opened.settings.gradient_accumulation) == (2, 2)
    assert opened.jobs[:2] == run.jobs[:2]
    assert [entry["phase"] for entry in opened.info["backed_off"]] == ["student"]


def test_a_resumed_run_has_the_new_values_in_its_jobs(tmp_path: Path):
    run = make_run(tmp_path / "run", epochs=1)
    resume_run(resuming(run, epochs=3, threads=2, keep_checkpoints=5))
    prepare, score, train = Run.open(run.path).jobs
    assert (prepare.threads, score.threads, train.threads) == (2, 2, 2)
    assert isinstance(train, TrainJob)
    assert (train.epochs, train.steps, train.keep_checkpoints) == (3, None, 5)
    resume_run(resuming(run, steps=30))
    train = last_of(Run.open(run.path).jobs, TrainJob)
    assert (train.epochs, train.steps) == (None, 30)


@pytest.mark.parametrize(
    ("architecture", "settings", "words"),
    [
        ("llama", {"lora_rank": 8, "lora_alpha": 8.0}, "an adapter is small"),
        ("gemma2", {}, "only a plain head is divided"),
        ("gemma2", {"processes": 2}, "only a plain head is divided"),
        ("llama", {}, None),
    ],
)
def test_a_resumed_run_divides_no_student_that_a_plan_would_not_divide(
    tmp_path: Path, architecture: str, settings: dict[str, Any], words: str | None
):
    run = make_run(tmp_path / "run", student=str(tiny_model(architecture, num_layers=2)), **settings)
    asked = resuming(run, processes=2, student_sharded=True)
    if words is None:
        resume_run(asked)
        assert last_of(Run.open(run.path).jobs, TrainJob).student_sharded
        return
    with pytest.raises(SettingsError, match=words):
        resume_run(asked)
    assert not last_of(Run.open(run.path).jobs, TrainJob).student_sharded
    resume_run(resuming(run, processes=2))


def test_a_run_that_is_no_share_is_not_resumed_with_the_variables_of_one(tmp_path: Path, monkeypatch):
    run = make_run(tmp_path / "run")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RequestError, match="ask for a share"):
        resume_run(resuming(run))
    monkeypatch.delenv("RANK")
    resume_run(resuming(run))


def resuming(run: Run, **values: Any) -> RunConfig:
    return RunConfig.parse({"output_dir": str(run.path), "resume": True, **values})


@pytest.mark.parametrize("ends", [{"epochs": None, "steps": None}, {"epochs": 1, "steps": 1}])
def test_a_training_ends_after_epochs_or_after_steps(ends: dict[str, Any]):
    with pytest.raises(ValueError, match="one of them alone"):
        last_of(jobs(complete()), TrainJob).changed(ends)


@pytest.mark.parametrize(("until", "expected"), [(None, 3), ("teacher", 2), ("prepare", 1)])
def test_a_run_is_asked_for_the_jobs_up_to_a_kind(tmp_path: Path, until: str | None, expected: int):
    run = make_run(tmp_path / "run", until=until)
    assert [job.name for job in jobs_asked(run)] == [*KINDS][:expected]


def test_settings_that_a_user_has_changed_by_hand_reach_the_jobs(tmp_path: Path):
    run = make_run(tmp_path / "run")
    info = json.loads(run.run_json.read_text())
    info["settings"] |= {"student_batch": 8, "threads": 3}
    del info["checksum"]
    run.run_json.write_text(json.dumps(info))
    opened = Run.open(run.path)
    assert [job.threads for job in opened.jobs] == [3, 3, 3]
    assert last_of(opened.jobs, TrainJob).student_batch == 8


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "a-new-kind"},
        {"a_new_value": 1},
        {"student_batch": "many"},
    ],
)
def test_jobs_of_a_later_version_are_refused_in_words(tmp_path: Path, change: dict[str, Any]):
    run = make_run(tmp_path / "run")
    run.info["jobs"][-1] |= change
    run.save()
    with pytest.raises(CorruptState, match="is not of a kind that this version") as refusal:
        _ = Run.open(run.path).jobs
    assert refusal.value.todo == "Use the version that made the run."


@pytest.mark.parametrize("found", [[], None, {}, "jobs", [1], [{}]])
def test_jobs_that_are_none_are_refused_in_words(tmp_path: Path, found: object):
    run = make_run(tmp_path / "run")
    run.info["jobs"] = found
    with pytest.raises(CorruptState):
        _ = run.jobs


def test_a_job_that_a_run_does_not_have_is_refused_in_words(tmp_path: Path):
    with pytest.raises(CorruptState):
        make_run(tmp_path / "run").job("no-such-job")


def make_old(run: Run, **more: Any) -> None:
    """Turn a run's folder into one of the version without jobs."""
    del run.info["jobs"]
    run.info |= {"format": 1, **more}
    run.run_json.write_text(json.dumps(run.info, default=str))


def test_a_run_that_was_planned_without_jobs_gets_them_from_its_settings(tmp_path: Path):
    teacher = tiny_model("llama")
    run = make_run(tmp_path / "run", teacher=str(teacher), teacher_batch=4, layer_by_layer=True)
    before = run.jobs
    make_old(run)
    old = Run.open(run.path)
    assert old.is_old
    scoring = last_of(old.jobs, ScoreJob)
    assert scoring.teacher_batch == 4
    assert scoring.layer_by_layer
    assert scoring.vocab_size == json.loads((teacher / "config.json").read_text())["vocab_size"]
    assert old.jobs[0] == before[0]
    assert old.jobs[2] == before[2]
    assert json.loads(run.run_json.read_text())["format"] == 1, "it was only read"
    old.save()
    info = json.loads(run.run_json.read_text())
    assert info["format"] == FORMAT
    assert jobs_from_json(info["jobs"]) == old.jobs


def test_a_run_that_had_backed_off_without_jobs_keeps_its_chunks(tmp_path: Path):
    run = make_run(tmp_path / "run", teacher=str(tiny_model("llama")))
    make_old(run, head_chunk_tokens=64)
    old = Run.open(run.path)
    assert last_of(old.jobs, ScoreJob).head_chunk_tokens == 64
    old.save()
    assert "head_chunk_tokens" not in json.loads(run.run_json.read_text())


def test_settings_that_an_old_run_did_not_have_are_what_it_worked_with(tmp_path: Path):
    run = make_run(tmp_path / "run", teacher=str(tmp_path / "gone"))
    kept = ("teacher", "student", "data", "sequence_length", "seed", "epochs", "student_batch")
    run.info["settings"] = {name: run.info["settings"][name] for name in kept}
    make_old(run)
    training = last_of(Run.open(run.path).jobs, TrainJob)
    assert training.lora_rank == 0
    assert training.gradient_accumulation == 1
    assert training.precision == "fp32"


def test_an_old_run_that_is_resumed_has_jobs_with_the_new_values(tmp_path: Path):
    run = make_run(tmp_path / "run", teacher=str(tiny_model("llama")))
    make_old(run)
    resume_run(resuming(run, epochs=4))
    info = json.loads(run.run_json.read_text())
    assert info["format"] == FORMAT
    assert last_of(jobs_from_json(info["jobs"]), TrainJob).epochs == 4


def test_a_run_without_jobs_and_without_enough_settings_is_refused_in_words(tmp_path: Path):
    run = make_run(tmp_path / "run")
    run.info["settings"]["data"] = None
    make_old(run)
    with pytest.raises(CorruptState, match="is not of a kind that this version"):
        _ = Run.open(run.path).jobs


def rounds(run: Run) -> None:
    """Let a run score and train twice, as a list of more jobs is all that this takes."""
    prepare, score, train = run.jobs
    more = [score.changed({"name": "teacher-2"}), train.changed({"name": "student-2"})]
    run.info["jobs"] = jobs_to_json([prepare, score, train, *more])


def test_a_longer_list_is_walked_and_each_job_backs_off_for_itself(tmp_path: Path):
    run = make_run(tmp_path / "run", teacher_batch=1, student_batch=4)
    rounds(run)
    events, done = EventWriter(run.events_path), []

    def ends(job: Job) -> Ending:
        if job.name == "student-2" and len(done) == 4:
            done.append("")
            return Ending(EXIT_OUT_OF_MEMORY)
        done.append(job.name)
        run.finish_phase(job.name, {})
        return Ending(0)

    Walk(run, events, RunControl(run.control_path, events), ends).go()
    assert done == ["prepare", "teacher", "student", "teacher-2", "", "student-2"]
    batches = {job.name: job.student_batch for job in run.jobs if isinstance(job, TrainJob)}
    assert batches == {"student": 4, "student-2": 2}
    told = [event for event in read_events(run.events_path) if event["kind"] == "back_off"]
    assert {event["phase"] for event in told} == {"student-2"}


def test_records_that_are_missing_are_made_by_the_scoring_before(tmp_path: Path):
    run = make_run(tmp_path / "run")
    rounds(run)
    events, done = EventWriter(run.events_path), []

    def ends(job: Job) -> Ending:
        done.append(job.name)
        if done.count("student-2") == 1 and job.name == "student-2":
            return Ending(EXIT_RECORDS_MISSING)
        run.finish_phase(job.name, {})
        return Ending(0)

    Walk(run, events, RunControl(run.control_path, events), ends).go()
    assert done == ["prepare", "teacher", "student", "teacher-2", "student-2", "teacher-2", "student-2"]
