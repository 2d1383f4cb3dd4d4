"""plan() as its users see it, on real tiny models."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.cli import arguments
from engine.errors import DoesNotFit, SettingsError
from engine.machine.hardware import Gpu
from engine.model_files.demo import DEMO_TEACHER
from engine.planner import PARTS, Plan, plan
from engine.planner import models as planner_models
from engine.planner.demo import DEMO_SETTINGS
from engine.planner.footprint import _WORKSPACES, context_bytes_on
from engine.planner.reasons import NOT_CHOICES
from engine.planner.summary import cautions
from engine.settings.config import RunConfig
from tests.benchmarks.predicted_memory import SHAPES, make_model
from tests.engine.data.small_data import write_chats
from tests.engine.planner.machines import BIG_GPU, GIB, MIB, RATES, computer
from tests.tiny import MAX_POSITIONS, tiny_model

MAY_STAY_OPEN = {
    "lora_alpha",
    "lora_targets",
    "text_field",
    "samples",
    "steps",
    "epochs",
    "student_layers",
    "cache_dir",
    "until",
    "profile",
}


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "notes.txt"
    file.write_text("A small model learns from what a large model would have said. " * 5_000)
    return file


def _plan(text: Path, *, hardware: Any = None, strict: bool = False, **values: Any) -> Plan:
    asked = {"teacher": str(tiny_model("llama")), "student": "from-teacher", "data": str(text), **values}
    config = RunConfig.parse({name: value for name, value in asked.items() if value is not None})
    return plan(config, hardware=hardware or computer(), machine=RATES, strict=strict)


def test_every_setting_is_resolved_and_has_a_reason(text: Path) -> None:
    planned = _plan(text)
    assert {choice.field for choice in planned.choices} == set(RunConfig.model_fields) - NOT_CHOICES
    for choice in planned.choices:
        assert choice.reason, choice.field
        assert choice.value is not None or choice.field in MAY_STAY_OPEN, choice.field
        assert getattr(planned.settings, choice.field) == choice.value
    assert RunConfig.parse(planned.settings.model_dump()) == planned.settings


def test_a_text_that_is_small_for_the_student_is_told_in_numbers_before_the_run(text: Path, tmp_path: Path) -> None:
    few = tmp_path / "few.txt"
    few.write_text("A small model learns from what a large one would have said. " * 20)
    chats = write_chats(tmp_path / "chats.jsonl", count=30)
    for data, given in ((few, {}), (few, {"samples": 4}), (chats, {})):
        planned = _plan(data, teacher=str(DEMO_TEACHER), **given)
        assert planned.little_text is not None
        told = re.search(r"^([\d,]+) tokens are few .* at least about (\S+) tokens\.", planned.little_text)
        assert told is not None
        tokens, wanted = told.groups()
        assert 0 < int(tokens.replace(",", "")) < 1_000
        assert wanted
        assert planned.little_text in cautions(planned)
    assert _plan(text, teacher=str(DEMO_TEACHER)).little_text is None
    assert _plan(few, teacher=str(DEMO_TEACHER), until="teacher").little_text is None


def test_what_the_machine_decides_is_told_with_numbers(text: Path) -> None:
    reasons = {choice.field: choice.reason for choice in _plan(text).choices}
    numbered = (
        "student_layers samples record_size learning_rate teacher_batch student_batch gradient_accumulation "
        "gradient_checkpointing layer_by_layer optimizer memory_budget ram_budget threads checkpoint_every evaluations "
        "steps"
    )
    for field in numbered.split():
        assert re.search(r"\d", reasons[field]), (field, reasons[field])


def test_what_the_person_set_is_never_changed(text: Path) -> None:
    values = {
        "sequence_length": 48,
        "teacher_batch": 3,
        "student_batch": 5,
        "gradient_accumulation": 7,
        "gradient_checkpointing": True,
        "layer_by_layer": True,
        "precision": "bf16",
        "optimizer": "adamw-8bit",
        "memory_budget": 1,
        "ram_budget": 2,
        "device": "cpu",
        "threads": 1,
        "learning_rate": 0.5,
        "epochs": 3,
        "checkpoint_every": 11,
        "output_dir": Path("somewhere"),
        "student_layers": 3,
        "samples": 17,
    }
    planned = _plan(text, **values)
    by_user = {choice.field: choice.value for choice in planned.choices if choice.by == "user"}
    assert by_user.items() >= values.items()
    assert planned.misfit is not None
    for name, value in values.items():
        assert getattr(planned.settings, name) == value


def test_predictions_have_parts_that_sum_up(text: Path) -> None:
    planned = _plan(text)
    assert list(planned.predicted) == ["teacher", "student"]
    for phase in planned.predicted.values():
        assert tuple(phase.parts) == PARTS
        assert sum(phase.parts.values()) == phase.peak_bytes == phase.ram_bytes
        assert phase.seconds > 0 < phase.seconds_error
    assert planned.disk_bytes > 0
    assert planned.total_steps is not None


@pytest.mark.parametrize(("until", "phases"), [("teacher", ["teacher"]), ("prepare", [])])
def test_a_run_that_ends_early_predicts_only_what_it_does(text: Path, until: str, phases: list[str]) -> None:
    assert list(_plan(text, until=until).predicted) == phases


def test_steps_are_counted_from_rows_and_epochs(text: Path) -> None:
    planned = _plan(text, sequence_length=64, samples=100, student_batch=4, gradient_accumulation=2, epochs=3)
    assert planned.total_steps == 38  # 300 rows, 8 at a time
    counted = _plan(text, sequence_length=64, student_batch=4, steps=9)
    assert counted.total_steps == 9
    assert (counted.settings.steps, counted.settings.epochs) == (9, None)


def test_half_of_the_layers_make_the_student_unless_told(text: Path) -> None:
    assert _plan(text).settings.student_layers == 2
    assert _plan(text, student_layers=1).settings.student_layers == 1
    named = _plan(text, student_layers=[0, 3])
    assert named.settings.student_layers == "0,3"
    assert named.predicted == _plan(text, student_layers=2).predicted
    assert _plan(text, student=str(tiny_model("llama", num_layers=2, seed=1))).settings.student_layers is None


def test_a_request_that_contradicts_the_models_is_refused(text: Path) -> None:
    with pytest.raises(SettingsError, match="4 layers to take from"):
        _plan(text, student_layers=9)
    with pytest.raises(SettingsError, match="4 layers to take from, 0 to 3"):
        _plan(text, student_layers="0,4")
    with pytest.raises(SettingsError, match=f"no more than {MAX_POSITIONS} tokens"):
        _plan(text, sequence_length=MAX_POSITIONS + 1)
    with pytest.raises(SettingsError, match="--student"):
        _plan(text, student=None)


def test_rows_are_no_longer_than_the_models_read(text: Path) -> None:
    assert _plan(text).settings.sequence_length == MAX_POSITIONS


def test_too_little_memory_is_refused_with_numbers_and_what_would_fit(text: Path) -> None:
    with pytest.raises(DoesNotFit) as caught:
        _plan(text, memory_budget=100 * MIB, strict=True)
    assert caught.value.exit_code == 3
    assert "the budget is 100 MiB" in caught.value.what
    enough = re.search(r"--memory_budget (\d+MB)", caught.value.todo)
    assert enough is not None
    assert _plan(text, memory_budget=enough[1], strict=True).misfit is None


@pytest.mark.parametrize(
    ("budget", "values"),
    [
        (560 * MIB, {"student_batch": 64, "sequence_length": 128}),
        (420 * MIB, {"student_batch": 64, "gradient_accumulation": 2, "sequence_length": 128}),
        (400 * MIB, {"student_batch": 32, "sequence_length": 128, "gradient_checkpointing": False}),
        (400 * MIB, {"teacher_batch": 256, "sequence_length": 128}),
    ],
)
def test_the_nearest_setting_that_is_told_fits(text: Path, budget: int, values: dict[str, Any]) -> None:
    wide = str(tiny_model("llama", hidden_size=512))
    planned = _plan(text, teacher=wide, memory_budget=budget, **values)
    assert planned.misfit is not None
    told = re.search(r"It fits with (--.+?) \(", planned.misfit.todo)
    assert told is not None, planned.misfit.todo
    typed, _ = arguments.parse(told[1].split(), program="test", description="")
    assert _plan(text, teacher=wide, **{**values, "memory_budget": budget, **typed}, strict=True).misfit is None


@pytest.mark.parametrize("budget", [150, 330, 350, 380, 420, 500, 600])
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"cpu_offload": False},
        {"optimizer": "adamw", "gradient_checkpointing": False},
        {"gradient_accumulation": 8, "optimizer": "adamw-8bit"},
        {"student_batch": 16, "gradient_accumulation": 4, "cpu_offload": False, "layer_by_layer": False},
        {"student_layers": 4, "sequence_length": 128, "teacher_batch": 64},
        {"quantization": "int8", "layer_by_layer": False},
    ],
    ids=lambda values: "-".join(values) or "nothing",
)
def test_everything_that_a_refusal_names_really_fits(text: Path, budget: int, values: dict[str, Any]) -> None:
    wide = str(tiny_model("llama", hidden_size=512))
    misfit = _plan(text, teacher=wide, memory_budget=budget * MIB, **values).misfit
    if misfit is None:
        return
    assert misfit.remedies
    for remedy in misfit.remedies:
        changed = {**values, "memory_budget": budget * MIB, **remedy}
        assert _plan(text, teacher=wide, **changed, strict=True).misfit is None, misfit.todo


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize(
    "budgets",
    [
        {"ram_budget": 350 * MIB},
        {"memory_budget": 350 * MIB, "ram_budget": 360 * MIB},
        {"memory_budget": 350 * MIB, "ram_budget": 40 * GIB},
        {"memory_budget": 40 * GIB, "ram_budget": 350 * MIB},
        {"ram_budget": 100 * MIB},
    ],
    ids=lambda budgets: "-".join(f"{name}={size // MIB}" for name, size in budgets.items()),
)
def test_each_remedy_raises_the_budgets_that_hold_it_back(text: Path, budgets: dict[str, int], device: str) -> None:
    wide = str(tiny_model("llama", hidden_size=512))
    asked: dict[str, Any] = {"teacher": wide, "device": device, "student_batch": 64, "optimizer": "adamw", **budgets}
    hardware = computer(64 * GIB, gpus=(replace(BIG_GPU, index=0),) if device != "cpu" else ())
    misfit = _plan(text, hardware=hardware, **asked).misfit
    if device == "cpu":
        assert misfit is not None
    for remedy in misfit.remedies if misfit is not None else ():
        assert _plan(text, hardware=hardware, **{**asked, **remedy}).misfit is None, remedy


def test_a_refusal_says_which_model_is_too_large(text: Path) -> None:
    teacher, student = str(tiny_model("llama", hidden_size=1024)), str(tiny_model("llama", hidden_size=64))
    misfit = _plan(text, teacher=teacher, student=student, memory_budget=280 * MIB).misfit
    assert misfit is not None
    assert "choose a smaller teacher, or" in misfit.todo
    misfit = _plan(text, memory_budget=100 * MIB).misfit
    assert misfit is not None
    assert "another machine, as Python and torch alone need more" in misfit.todo


def test_a_tokenizer_that_the_budget_does_not_hold_is_refused(text: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"teacher": str(_of_many_ids(tmp_path)), "until": "teacher", "layer_by_layer": True}
    found = _plan(text, **asked)
    assert found.misfit is None
    assert found.prepare_seconds > 2, "an import of torch and more"
    scoring = found.predicted["teacher"].peak_bytes
    assert found.prepare_bytes > scoring, "else this test shows nothing"
    misfit = _plan(text, **asked, memory_budget=(found.prepare_bytes + scoring) // 2).misfit
    assert misfit is not None
    assert "The prepare phase needs" in misfit.what
    assert "100 k ids" in misfit.why
    for remedy in misfit.remedies:
        assert _plan(text, **{**asked, **remedy}, strict=True).misfit is None


def _of_many_ids(folder: Path) -> Path:
    """A model of many ids that is narrow, so that its tokenizer takes most of the memory."""
    name = "narrow-100k"
    values = {"hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8, "num_attention_heads": 1}
    SHAPES[name] = ("llama", {**values, "num_key_value_heads": 1, "vocab_size": 100_000})
    return make_model(name, folder)


def test_a_full_disk_is_refused_with_the_samples_that_fit(text: Path) -> None:
    with pytest.raises(DoesNotFit, match="of disk"):
        _plan(text, hardware=computer(disk_bytes=2 * MIB), strict=True)


def test_less_memory_takes_savings_one_after_another(text: Path) -> None:
    wide = str(tiny_model("llama", hidden_size=512))
    seen = []
    for budget in (16 * GIB, 700 * MIB, 500 * MIB, 420 * MIB):
        settings = _plan(text, teacher=wide, memory_budget=budget, sequence_length=128).settings
        seen.append((settings.gradient_checkpointing, settings.optimizer == "adamw-8bit"))
    assert seen[0] == (False, False)
    assert sum(seen[-1]) >= sum(seen[1]) >= sum(seen[0])


def test_the_demo_needs_nothing_named_and_stays_a_demo() -> None:
    planned = plan(RunConfig(demo=True), hardware=computer(), machine=RATES)
    settings = planned.settings
    assert settings.demo
    assert settings.data == "python-docs"
    assert settings.student == "from-teacher"
    assert (Path(str(settings.teacher)) / "config.json").is_file()
    assert {choice.by for choice in planned.choices} == {"planner"}
    own = plan(RunConfig(demo=True, student_batch=2, epochs=1), hardware=computer(), machine=RATES).settings
    assert (own.student_batch, own.epochs, own.steps) == (2, 1, None)


def test_every_reason_of_the_demo_says_something_of_its_own() -> None:
    choices = plan(RunConfig(demo=True), hardware=computer(), machine=RATES).choices
    reasons = [choice.reason for choice in choices if choice.field in DEMO_SETTINGS]
    assert all(reasons)
    assert len(set(reasons)) == len(reasons)
    assert sum(any(letter.isdigit() for letter in reason) for reason in reasons) > len(reasons) / 2
    assert not [reason for reason in reasons if "minute" in reason]  # how long it takes is in the plan's figures


@pytest.mark.parametrize(("own_text", "named"), [(True, False), (True, True), (False, True)])
def test_the_demos_teacher_with_other_text_is_told_before_the_start(text: Path, own_text: bool, named: bool) -> None:
    asked = {"data": str(text)} if own_text else {}
    asked |= {"teacher": str(DEMO_TEACHER), "student": "from-teacher"} if named else {"demo": True}
    told = cautions(plan(RunConfig(**asked), hardware=computer(), machine=RATES))
    assert bool(told) is own_text
    assert all("knows Python's documentation only" in sentence for sentence in told)


def test_rows_of_the_text_do_not_depend_on_how_many_are_taken(text: Path) -> None:
    rows = [_plan(text, sequence_length=128, samples=samples).text_rows for samples in (None, 1, 10_000)]
    assert rows[0] is not None
    assert len(set(rows)) == 1


def _cached(cache: Path, name: str, source: Path) -> None:
    snapshot = cache / f"models--{name.replace('/', '--')}" / "snapshots" / "1"
    shutil.copytree(source, snapshot)


def test_recommended_takes_the_largest_cached_model_that_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    recommended = RunConfig(use_recommended=True)
    planned = plan(recommended, hardware=computer(), machine=RATES)
    assert planned.settings.teacher == str(planner_models.DEMO_TEACHER)
    assert planned.settings.data == "python-docs"

    _cached(tmp_path, "some/small", tiny_model("llama"))
    _cached(tmp_path, "some/larger", tiny_model("llama", hidden_size=64))
    broken = tmp_path / "models--some--broken" / "snapshots" / "1"
    broken.mkdir(parents=True)
    (broken / "config.json").write_text("{}")
    planned = plan(recommended, hardware=computer(), machine=RATES)
    assert planned.settings.teacher == "some/larger"
    assert "2 models" in next(choice.reason for choice in planned.choices if choice.field == "teacher")


def test_on_a_gpu_memory_and_main_memory_are_told_apart(text: Path) -> None:
    planned = _plan(text, hardware=computer(gpus=(BIG_GPU,)), device="cuda:1")
    assert planned.settings.precision == "bf16"
    reasons = {choice.field: choice.reason for choice in planned.choices}
    assert not [field for field, reason in reasons.items() if "on a CPU" in reason or "all cores;" in reason]
    for phase in planned.predicted.values():
        assert phase.parts["other"] == _WORKSPACES + context_bytes_on(BIG_GPU), "the driver's context is in it"
        assert sum(phase.parts.values()) == phase.peak_bytes
        assert phase.ram_bytes != phase.peak_bytes


def _on_a_gpu_with(text: Path, budget: str, **values: Any) -> Plan:
    gpu = replace(BIG_GPU, context_bytes=700 * MIB)
    return _plan(text, hardware=computer(gpus=(gpu,)), device="cuda:1", memory_budget=budget, **values)


def test_a_budget_that_the_driver_fills_is_told_as_that(text: Path) -> None:
    planned = _on_a_gpu_with(text, "400MB")
    assert planned.misfit is not None
    assert "the driver 764 MiB" in planned.misfit.why
    assert "Python" not in planned.misfit.why
    assert "--device cpu" in planned.misfit.todo
    told = [choice.reason for choice in planned.choices if "fits" in choice.reason or " -" in choice.reason]
    assert not [reason for reason in told if "of -" in reason or "that fits" in reason or "teacher fits" in reason]


def test_more_rows_are_called_no_faster_only_where_they_fit(text: Path) -> None:
    """Twice the rows have to fit beside the driver's context."""
    budgets = [f"{size}MB" for size in range(860, 1100, 15)]
    for planned in (_on_a_gpu_with(text, budget, teacher=str(planner_models.DEMO_TEACHER)) for budget in budgets):
        if planned.misfit is not None:
            continue
        reason = next(choice.reason for choice in planned.choices if choice.field == "student_batch")
        batch = planned.settings.student_batch
        assert batch is not None
        double = {"student_batch": 2 * batch, "gradient_accumulation": planned.settings.gradient_accumulation}
        kept = {name: getattr(planned.settings, name) for name in ("optimizer", "gradient_checkpointing", "lora_rank")}
        kept |= {"sequence_length": planned.settings.sequence_length, "cpu_offload": planned.settings.cpu_offload}
        kept |= {"student_layers": planned.settings.student_layers}
        more = _on_a_gpu_with(
            text, str(planned.settings.memory_budget), teacher=str(planner_models.DEMO_TEACHER), **double, **kept
        )
        assert ("hardly faster" in reason) <= (more.misfit is None), (batch, reason)


TURING = Gpu(0, "GTX 1650", 4 * GIB, 3 * GIB, "580.65", "7.5", good_formats=("bf16", "fp16"))


@pytest.mark.parametrize(
    ("gpu", "fp16_rate", "expected"),
    [
        (TURING, 6e12, "fp16"),
        (TURING, 3.5e12, "fp32"),  # hardly faster
        (replace(TURING, good_formats=("bf16",)), 6e12, "fp32"),  # its products were wrong
        (replace(TURING, good_formats=()), 6e12, "fp32"),  # not tried
        (replace(TURING, capability="8.6"), 6e12, "bf16"),
        (replace(TURING, capability="8.6", good_formats=("fp16",)), 6e12, "fp32"),  # bf16 is wrong there
        (replace(TURING, capability="", kind="xpu"), 3e12, "bf16"),
        (replace(TURING, capability="", kind="mps", good_formats=()), 3e12, "bf16"),
    ],
)
def test_the_number_format_of_a_gpu(text: Path, gpu: Gpu, fp16_rate: float, expected: str) -> None:
    rates = {"fp32_small": 3e12, "fp32_large": 3e12, "bf16_small": 6e12, "bf16_large": 6e12}
    rates |= {"fp16_small": fp16_rate, "fp16_large": fp16_rate}
    machine = replace(RATES, gemm_flops=rates, device=gpu.device)
    config = RunConfig(
        teacher=str(tiny_model("llama")), student="from-teacher", data=str(text), device=gpu.device, samples=8
    )
    planned = plan(config, hardware=computer(gpus=(gpu,)), machine=machine)
    assert planned.settings.precision == expected
    reason = next(choice.reason for choice in planned.choices if choice.field == "precision")
    assert ("fp32 is used instead" in reason) == (expected == "fp16")


def test_precision_follows_what_was_measured(text: Path) -> None:
    wide = str(tiny_model("llama", hidden_size=512))
    assert _plan(text, teacher=wide).settings.precision == "fp32"
    fast = RATES.__class__(**{**RATES.__dict__, "gemm_flops": {**RATES.gemm_flops, "bf16_large": 1e12}})
    config = RunConfig(teacher=wide, student="from-teacher", data=str(text))
    chosen = plan(config, hardware=computer(), machine=fast)
    assert chosen.settings.precision == "bf16"
    assert "1,000 GFLOP/s" in next(choice.reason for choice in chosen.choices if choice.field == "precision")


@pytest.mark.parametrize(
    ("width", "times_as_fast", "nanoseconds", "expected"),
    [
        (512, 2.0, (0.01, 0.01), "bf16"),
        (512, 1.4, (0.01, 0.01), "fp32"),
        (256, 4.0, (0.3, 0.3), "bf16"),
        (256, 4.0, (0.3, 0.9), "fp32"),
        (64, 5.0, (0.3, 0.9), "fp32"),
    ],
)
def test_half_precision_is_taken_where_whole_layers_are_faster(
    text: Path, width: int, times_as_fast: float, nanoseconds: tuple[float, float], expected: str
) -> None:
    """Narrow models convert much and multiply little: the rest of a layer may take the time that products save."""
    sizes, names = ("small", "large"), ("fp32", "bf16")
    gemm = {f"{name}_{size}": 1e11 * (times_as_fast if name == "bf16" else 1) for name in names for size in sizes}
    moving = {
        f"{work}_{name}_{size}": 1e-9 * each
        for work in ("forward", "learn")
        for name, each in zip(names, nanoseconds, strict=True)
        for size in sizes
    }
    machine = replace(RATES, gemm_flops=gemm, moving_seconds=moving)
    config = RunConfig(teacher=str(tiny_model("llama", hidden_size=width)), student="from-teacher", data=str(text))
    assert plan(config, hardware=computer(), machine=machine).settings.precision == expected


def test_half_precision_is_taken_where_nothing_else_fits_and_it_is_not_too_slow(text: Path) -> None:
    wide = str(tiny_model("llama", num_layers=2, hidden_size=1024))
    asked: dict[str, Any] = {
        "teacher": wide,
        "student": str(tiny_model("llama")),
        "sequence_length": 64,
        "teacher_batch": 1,
    }
    asked |= {"layer_by_layer": True, "cpu_offload": False, "keep_memory": False}
    whole = _plan(text, **asked)
    need = whole.predicted["teacher"].peak_bytes
    squeezed = _plan(text, **asked, memory_budget=need - 60 * MIB)
    assert (whole.settings.precision, squeezed.settings.precision) == ("fp32", "bf16")
    assert squeezed.misfit is None
    assert _plan(text, **asked, memory_budget=need - 60 * MIB, precision="fp32").misfit is not None


def test_a_teacher_that_fits_is_not_streamed(text: Path) -> None:
    deep = str(tiny_model("llama", num_layers=16, hidden_size=512))
    planned = _plan(text, teacher=deep, student=str(tiny_model("llama")))
    assert planned.settings.layer_by_layer is False
    # Its weights are file pages: no anonymous memory, but memory that has to be there.
    whole = planned.predicted["teacher"].peak_bytes
    squeezed = _plan(text, teacher=deep, student=str(tiny_model("llama")), memory_budget=whole + 60 * MIB)
    assert squeezed.settings.layer_by_layer is True


def test_a_new_run_never_gets_the_folder_of_another(
    text: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TINYDISTILL_RUNS", str(tmp_path))
    first = _plan(text).settings.output_dir
    assert first is not None
    assert first.parent == tmp_path
    assert first.name.startswith("notes-")
    first.mkdir()
    assert _plan(text).settings.output_dir == first.with_name(f"{first.name}-2")


def test_planning_loads_neither_torch_nor_transformers(text: Path) -> None:
    program = (
        "import sys, json\n"
        "from engine.settings.config import RunConfig\n"
        "from engine.planner import plan\n"
        f"plan(RunConfig(teacher={str(tiny_model('llama'))!r}, student='from-teacher', data={str(text)!r}))\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "numpy", "h5py"} & set(json.loads(done.stdout))


def test_a_streamed_teacher_reads_nothing_ahead_where_two_layers_do_not_fit(text: Path) -> None:
    wide = str(tiny_model("llama", num_layers=2, hidden_size=1024))
    asked: dict[str, Any] = {"teacher": wide, "student": str(tiny_model("llama")), "layer_by_layer": True}
    asked |= {"sequence_length": 64, "teacher_batch": 1, "precision": "fp32", "keep_memory": False}
    roomy = _plan(text, **asked)
    layer = max(planner_models.describe(wide).layer_parameters) * 4
    need = roomy.predicted["teacher"].peak_bytes
    tight = _plan(text, **asked, memory_budget=need - layer // 2)
    assert tight.misfit is None
    assert tight.predicted["teacher"].peak_bytes == need - layer


def test_what_waits_leaves_memory_only_where_nothing_else_fits(text: Path) -> None:
    model = str(tiny_model("llama", hidden_size=1024))
    asked: dict[str, Any] = {"teacher": model, "student": model, "precision": "fp32", "sequence_length": 64}
    roomy = _plan(text, **asked)
    assert roomy.settings.cpu_offload is False
    least = _plan(text, **asked, cpu_offload=False, memory_budget=1)
    assert least.misfit is not None
    budget = least.predicted["student"].peak_bytes - 8 * MIB
    squeezed = _plan(text, **asked, memory_budget=budget)
    assert squeezed.misfit is None
    assert squeezed.settings.cpu_offload is True
    assert max(phase.peak_bytes for phase in squeezed.predicted.values()) <= budget
    assert _plan(text, **asked, cpu_offload=False, memory_budget=budget).misfit is not None


def test_freed_memory_is_not_kept_where_tensors_are_in_files(text: Path) -> None:
    model = str(tiny_model("llama", hidden_size=1024))
    asked: dict[str, Any] = {"teacher": model, "student": model, "precision": "fp32", "sequence_length": 64}
    for budget in (None, 4 * 2**30):  # with any room: it is tight that there are files at all
        planned = _plan(text, **asked, cpu_offload=True, memory_budget=budget)
        assert planned.settings.keep_memory is False
        reason = next(choice.reason for choice in planned.choices if choice.field == "keep_memory")
        assert reason.endswith("as inactive tensors are in files")
    assert _plan(text, **asked, cpu_offload=True, keep_memory=True).settings.keep_memory is True


def test_freed_memory_is_kept_where_there_is_room_and_no_other_setting_gets_smaller_for_it(text: Path) -> None:
    wide = str(tiny_model("llama", num_layers=4, hidden_size=512))
    roomy = _plan(text, teacher=wide, sequence_length=128)
    reasons = {choice.field: choice.reason for choice in roomy.choices}
    assert roomy.settings.keep_memory is True
    assert reasons["keep_memory"].startswith("roomy: ")
    handed_back = _plan(text, teacher=wide, sequence_length=128, keep_memory=False)
    open_settings = {"keep_memory", "output_dir"}
    assert roomy.settings.model_dump(exclude=open_settings) == handed_back.settings.model_dump(exclude=open_settings)
    extra = {
        name: roomy.predicted[name].peak_bytes - handed_back.predicted[name].peak_bytes for name in roomy.predicted
    }
    assert all(0 < value < 0.2 * handed_back.predicted[name].peak_bytes for name, value in extra.items()), extra
    # A budget that the settings fill leaves no room for free memory.
    budget = max(phase.peak_bytes for phase in handed_back.predicted.values()) * 20 // 19 + MIB
    tight = _plan(text, teacher=wide, sequence_length=128, memory_budget=budget)
    assert tight.settings.keep_memory is False
    assert next(c.reason for c in tight.choices if c.field == "keep_memory").startswith("tight: ")
    asked = _plan(text, teacher=wide, sequence_length=128, memory_budget=budget - 2 * MIB, keep_memory=True)
    assert asked.settings.keep_memory is True
    if asked.misfit is not None:
        assert "--no_keep_memory" in asked.misfit.todo
