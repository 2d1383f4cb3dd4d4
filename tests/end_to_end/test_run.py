"""Whole runs from the command line: what is promised to those who script against it."""

from __future__ import annotations

import itertools
import json
import shlex
import signal
import time
from pathlib import Path

import pytest

from engine.cli.arguments import parse
from engine.cli.distill import main
from engine.run.launch import config_from
from tests.end_to_end.program import QUICK, content, events, run, start, write_texts
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, measured_cache: Path) -> Path:
    """The seed command, verbatim but for the folders and what makes it quick."""
    folder = tmp_path_factory.mktemp("finished")
    done = run(
        *["--teacher", tiny_model("llama"), "--student", tiny_model("llama", num_layers=2, seed=1)],
        *["--samples", 40, "--sequence_length", 64, "--teacher_batch", 1, "--student_batch", 4],
        "--gradient_checkpointing",
        *[
            "--data",
            write_texts(folder / "data", 200),  # six documents or more are held out, so there are intervals
            "--output_dir",
            folder / "run",
            "--precision",
            "fp32",
            "--threads",
            1,
        ],
        XDG_CACHE_HOME=str(measured_cache),
    )
    assert done.returncode == 0, done.stderr
    assert "hold-out" in done.stdout
    assert done.stderr == ""
    return folder / "run"


def test_both_speeds_are_told_before_any_talk(finished):
    (line,) = [line for line in (finished / "next.txt").read_text().splitlines() if line.startswith("It wrote")]
    assert "(its teacher " in line


def test_the_report_has_every_promised_key(finished):
    report = json.loads((finished / "report.json").read_text())
    for who in ("teacher", "student_before", "student_after"):
        assert set(report[who]) >= MEASURES
        assert all(isinstance(report[who][key], float) for key in MEASURES)
    assert {"tokens", "bytes", "bytes_per_token", "shards"} <= set(report["cache"])
    for phase in ("teacher", "student"):
        figures = report["phases"][phase]
        assert {
            "seconds",
            "tokens",
            "tokens_per_second",
            "predicted_peak_bytes",
            "peak_bytes",
            "device_peak_bytes",
            "gemm_share",
            "overhead_seconds",
        } <= set(figures)
        assert 0 < figures["overhead_seconds"] < figures["seconds"]
        assert figures["peak_bytes"] > 50 * 2**20
        assert figures["tokens_per_second"] > 0
    assert report["samples"]
    assert set(report["samples"][0]) == {"prompt", "teacher", "before", "after"}
    assert {"config", "choices", "versions", "hardware", "gap_closed", "cut", "compare"} <= set(report)
    assert report["chance"]["holdout_loss"] > 0 < report["chance"]["bits_per_byte"]
    assert all(report[who]["bits_per_byte"] > 0 for who in ("teacher", "student_before", "student_after"))
    for name in ("holdout_loss", "kl_to_teacher", "top1_agreement"):
        low, high = report["intervals"][name]
        assert low <= report["student_after"][name] <= high, name
    assert report["student_after"]["holdout_loss"] < report["student_before"]["holdout_loss"]
    assert report["hardware"]["ram_bytes"] > 0


PROMISED = {
    "run_started": {"version", "name", "pid", "host", "boot_id"},
    "run_resumed": {"version", "name", "pid", "host", "boot_id"},
    "plan": {"choices", "predicted"},
    "phase_started": {"phase"},
    "phase_finished": {"phase", "seconds", "peak_bytes"},
    "progress": {"phase", "done", "total", "unit", "rate", "eta_seconds"},
    "memory": {"phase", "bytes", "peak_bytes", "budget_bytes", "device_bytes", "system_available_bytes"},
    "metric": {"phase", "step", "total_steps", "loss", "ce", "kd", "learning_rate", "grad_norm", "tokens_per_second"},
    "evaluation": {"phase", "which"},
    "shard": {"phase", "path", "tokens", "bytes"},
    "checkpoint": {"phase", "path", "step", "bytes"},
    "control": set(),  # a command with by and accepted, or a state
    "back_off": {"reason", "field", "from", "to"},
    "log": {"level", "message"},
    "error": {"what", "why", "todo"},
    "run_finished": {"status", "exit_code"},
}
MEASURES = {"holdout_loss", "perplexity", "kl_to_teacher", "top1_agreement", "ece"}
ALWAYS = {
    "run_started",
    "plan",
    "phase_started",
    "phase_finished",
    "progress",
    "memory",
    "metric",
    "evaluation",
    "shard",
}


def test_every_event_is_of_a_promised_kind_and_has_the_promised_fields(finished):
    told = events(finished)
    for event in told:
        assert event["time"] > 1e9
        assert PROMISED[event["kind"]] <= set(event), event
    assert set(PROMISED) - {event["kind"] for event in told} <= {"run_resumed", "control", "back_off", "error"}
    first, plan, last = told[0], told[1], told[-1]
    assert first["kind"] == "run_started"
    assert plan["kind"] == "plan"
    assert all({"field", "value", "by", "reason"} == set(choice) for choice in plan["choices"])
    assert {choice["by"] for choice in plan["choices"]} == {"user", "planner"}
    for phase in ("teacher", "student"):
        predicted = plan["predicted"][phase]
        assert {"peak_bytes", "seconds", "seconds_error", "parts"} <= set(predicted)
        parts = {"weights", "gradients", "optimizer", "activations", "logits", "other"}
        assert set(predicted["parts"]) == parts
    assert plan["predicted"]["disk_bytes"] > 0
    measured = {event["which"]: event for event in told if event["kind"] == "evaluation"}
    for which in ("teacher", "student_before", "student_after"):
        assert set(measured[which]) >= MEASURES
    assert (last["kind"], last["status"], last["exit_code"]) == ("run_finished", "done", 0)


def test_memory_is_told_at_least_every_five_seconds(finished):
    for phase in ("prepare", "teacher", "student"):
        times = [event["time"] for event in events(finished) if event["kind"] == "memory" and event["phase"] == phase]
        assert times
        assert max((after - before for before, after in itertools.pairwise(times)), default=0) < 5


def test_the_student_loads_as_any_other_model(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(finished / "student")
    tokenizer = AutoTokenizer.from_pretrained(finished / "student")
    assert model.config.num_hidden_layers == 2
    assert tokenizer.decode(model.generate(**tokenizer("The", return_tensors="pt"), max_new_tokens=3)[0])


def test_the_students_files_are_as_open_to_others_as_the_rest_of_the_run(finished):
    modes = {path.stat().st_mode & 0o777 for path in finished.rglob("*") if path.is_file()}
    assert modes == {(finished / "run.json").stat().st_mode & 0o777}


def test_the_students_card_does_not_tell_where_things_lie_on_this_machine(finished):
    card = (finished / "student" / "README.md").read_text()
    assert tiny_model("llama").name in card
    for folder in (finished.parent, tiny_model("llama").parent, Path.home()):
        assert str(folder) not in card


def test_a_finished_run_that_is_resumed_says_so(finished, capsys):
    assert main(["--resume", "--output-dir", str(finished)]) == 0
    assert "already finished" in capsys.readouterr().out


def test_resuming_with_other_settings_names_those_that_differ(finished, capsys):
    assert main(["--resume", "--output_dir", str(finished), "--temperature", "2", "--seed", "7"]) == 2
    said = capsys.readouterr().err
    assert "--temperature 2" in said
    assert "--seed 7" in said


def test_another_student_can_have_the_records_of_a_run_that_continues_as_it_is(finished, capsys):
    """The way out was to start a new run, which would have scored all rows again."""
    assert main(["--resume", "--output_dir", str(finished), "--learning_rate", "0.1", "--lora_rank", "4"]) == 2
    said = capsys.readouterr().err
    command = said[said.index("tiny-distill --records_from") :].strip().splitlines()[0].removesuffix(".")
    words = shlex.split(command)[1:]
    typed, _ = parse(words, program="tiny-distill", description="")
    asked = config_from(typed)
    assert (asked.learning_rate, asked.lora_rank) == (0.1, 4)
    assert asked.student == str(tiny_model("llama", num_layers=2, seed=1))
    assert asked.cache_dir == finished / "cache"
    assert main(["--resume", "--output_dir", str(finished), "--seed", "5"]) == 2
    assert "or start a new one" in capsys.readouterr().err, "its records are of another seed"


def test_a_resumed_run_cannot_have_fewer_steps_than_are_done(finished, capsys):
    done = json.loads((finished / "phases/student.json").read_text())["steps"]
    assert main(["--resume", "--output_dir", str(finished), "--steps", str(done - 1)]) == 2
    assert f"{done} steps are done already; give no fewer" in capsys.readouterr().err
    assert json.loads((finished / "phases/student.json").read_text())["steps"] == done, "nothing was taken back"


@pytest.mark.slow
def test_a_run_stopped_in_either_phase_and_resumed_ends_with_the_same_student(finished, tmp_path):
    words = [
        *["--teacher", tiny_model("llama"), "--student", "from-teacher", "--student_layers", 2, "--samples", 200],
        *["--data", write_texts(tmp_path / "data", 300), "--teacher_batch", 2, "--student_batch", 2],
        *["--gradient_accumulation", 2, "--checkpoint_every", 1000, "--learning_rate", "1e-2", "--epochs", 2, *QUICK],
    ]
    whole = run(*words, "--output_dir", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr

    child = start(*words, "--output_dir", tmp_path / "cut", "--json")
    assert child.stdout is not None
    for line in child.stdout:
        if json.loads(line)["kind"] == "metric":
            child.send_signal(signal.SIGINT)
            break
    rest = [json.loads(line) for line in child.stdout]
    assert child.wait() == 130
    assert "tiny-distill --resume --output_dir" in child.communicate()[1]
    assert any(event["kind"] == "control" and event.get("accepted") for event in rest)
    assert any(event.get("state") == "stopping" for event in rest)
    assert (tmp_path / "cut" / "checkpoints").is_dir()
    assert not (tmp_path / "cut" / "report.json").exists()

    resumed = run("--resume", "--output_dir", tmp_path / "cut", "--json")
    assert resumed.returncode == 0, resumed.stderr
    kinds = [json.loads(line)["kind"] for line in resumed.stdout.splitlines()]
    assert kinds[0] == "run_resumed"
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("cut", "whole")]
    for key in ("teacher", "student_before", "student_after", "gap_closed", "cache", "samples"):
        assert reports[0][key] == reports[1][key], key


@pytest.mark.slow
def test_scoring_once_and_training_later_from_a_shared_cache_never_loads_the_teacher_again(tmp_path):
    common = [
        *["--teacher", tiny_model("qwen2"), "--data", write_texts(tmp_path / "data"), *QUICK],
        *["--cache_dir", tmp_path / "shared", "--student", "from-teacher"],
    ]
    few, more = ["--samples", 20], ["--samples", 30]
    first = run(*common, *few, "--output_dir", tmp_path / "a", "--student_layers", 2, "--until", "teacher")
    assert first.returncode == 0, first.stderr
    assert "Done up to --until" in first.stdout
    assert f"--records_from {tmp_path / 'a'} --student_layers N" in first.stdout
    assert not (tmp_path / "a" / "student").exists()
    second = run(*common, *few, "--output_dir", tmp_path / "b", "--student_layers", 3, "--target", "ghost")
    assert second.returncode == 0, second.stderr
    codes = [event.get("code") for event in events(tmp_path / "b")]
    assert "cache-hit" in codes
    third = run(*common, *more, "--output_dir", tmp_path / "c", "--student_layers", 2, "--until", "teacher")
    assert third.returncode == 0, third.stderr
    scored = [json.loads((tmp_path / name / "phases/teacher.json").read_text())["rows_scored"] for name in "abc"]
    assert scored[1] == 0
    assert scored[2] == 10, "only the rows that more samples added"
    assert len(list((tmp_path / "shared").iterdir())) == 1


@pytest.mark.slow
def test_a_stopped_headless_program_leaves_no_process_behind(tmp_path):
    child = start(
        *["--teacher", tiny_model("llama"), "--student", "from-teacher", "--student_layers", 2, "--steps", 100_000],
        *["--data", write_texts(tmp_path / "data"), "--output_dir", tmp_path / "run", *QUICK],
    )
    while not (tmp_path / "run" / "lock").exists() and child.poll() is None:
        time.sleep(0.05)
    time.sleep(1)
    child.kill()
    child.communicate()
    from engine.run.folder import Run

    deadline = time.monotonic() + 120
    while Run.open(tmp_path / "run").is_live() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Run.open(tmp_path / "run").is_live()
    assert events(tmp_path / "run")[-1]["status"] == "stopped"


@pytest.mark.slow
def test_streamed_offloaded_and_accumulated_as_in_the_seed_command(finished, tmp_path):
    """The seed's second command; and a streamed teacher leaves the same records as a resident one, byte for byte."""
    words = [
        *["--teacher", tiny_model("llama"), "--student", tiny_model("llama", num_layers=2, seed=1)],
        *["--samples", 40, "--sequence_length", 64, "--teacher_batch", 1, "--student_batch", 4],
        *["--gradient_checkpointing", "--gradient-accumulation", 8, "--cpu_offload", "--layer-by-layer"],
        *["--data", write_texts(tmp_path / "data", 200), "--output-dir", tmp_path / "run"],
        *["--precision", "fp32", "--threads", 1, "--compare", "labels"],
    ]
    done = run(*words)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    labels = report["compare"]["labels"]
    assert labels["tokens"] == report["student_after"]["tokens"]
    assert labels["holdout_loss"] != report["student_after"]["holdout_loss"]
    assert "on labels alone" in (tmp_path / "run" / "student" / "README.md").read_text()
    steps = [event["step"] for event in events(tmp_path / "run") if event["kind"] == "metric"]
    assert len(steps) == len(set(steps)), "steps of the training that stands beside are not the student's"
    assert not (tmp_path / "run" / "checkpoints-labels").exists()
    streamed, resident = content(tmp_path / "run", ["cache"]), content(finished, ["cache"])
    shards = [name for name in resident if name.endswith(".h5")]
    assert shards
    assert all(streamed[name] == resident[name] for name in shards)
    assert events(tmp_path / "run")[1]["kind"] == "plan"


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantised_teacher_scores_and_its_records_are_its_own(tmp_path, quantization):
    done = run(
        *["--teacher", tiny_model("llama"), "--student", "from-teacher", "--student_layers", 2, *QUICK],
        *["--data", write_texts(tmp_path / "data", 30), "--output_dir", tmp_path / "run", "--steps", 1],
        *["--quantization", quantization],
    )
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "run" / "cache" / "manifest.json").read_text())
    assert manifest["identity"]["quantization"] == quantization
    cost = json.loads((tmp_path / "run" / "report.json").read_text())["quantization_cost"]
    assert 0 < abs(cost["quantized_loss"] - cost["own_loss"]) < (0.1 if quantization == "nf4" else 0.01)
    assert cost["tokens"] > 0
    assert f"In {quantization} the teacher's loss is" in done.stdout
