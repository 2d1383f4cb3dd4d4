"""Invalid requests are refused at once: the message, the exit code, and no files left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.cli.distill import main
from engine.errors import FolderError
from engine.machine import gpu_check, hardware
from engine.machine.hardware import Gpu
from engine.planner import plan
from engine.planner.measure import cautious_rates
from engine.run import launch
from engine.run.folder import Run
from engine.settings.config import RunConfig
from tests.end_to_end.program import QUICK, run, write_texts
from tests.tiny import tiny_model

TEXTS = Path(__file__).with_name("error_texts.md")
"""The message of each case, word for word. After a change: ``WRITE_ERROR_TEXTS=1 pytest`` this file, read the diff."""


GPU = Gpu(0, "RTX 3050", 4 * 2**30, 3 * 2**30, "470.1", "8.6", uuid="GPU-aaa")


def said(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    assert captured.out == ""
    return code, captured.err


@pytest.fixture(scope="module", autouse=True)
def _made_once() -> None:
    """The models, before anything that is printed counts."""
    tiny_model("llama")
    tiny_model("llama", num_layers=2)


@pytest.fixture
def models(tmp_path: Path) -> list[object]:
    return [
        "--teacher",
        tiny_model("llama"),
        "--student",
        tiny_model("llama", num_layers=2),
        "--output_dir",
        tmp_path / "run",
    ]


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans with cautious figures: measuring takes seconds, in which nothing is asked here."""
    monkeypatch.setattr(launch, "machine_rates", lambda **_: cautious_rates("cpu", 1))


def changed_model(folder: Path, **changes: Any) -> Path:
    """A copy of the small model whose config.json says something else."""
    shutil.copytree(tiny_model("llama"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def other_tokenizer(folder: Path) -> Path:
    shutil.copytree(tiny_model("llama", num_layers=2), folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[40:42]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def without(folder: Path, pattern: str) -> Path:
    for path in folder.glob(pattern):
        path.unlink()
    return folder


def written(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def pickled(folder: Path) -> Path:
    without(changed_model(folder), "*.safetensors")
    written(folder / "pytorch_model.bin", b"\x80\x04")
    return folder


def cut_short(folder: Path) -> Path:
    weights = changed_model(folder) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:50_000])
    return folder


def t5(folder: Path) -> Path:
    return changed_model(folder, model_type="t5", architectures=["T5ForConditionalGeneration"], is_encoder_decoder=True)


BERT = {"model_type": "bert", "architectures": ["BertForMaskedLM"]}
DECODING_BERT = {"model_type": "bert", "architectures": ["BertLMHeadModel"]}
OWN_CODE = {"model_type": "frobnicate", "auto_map": {"AutoModelForCausalLM": "frobnicate.Model"}}
CASES: dict[str, Callable[[Path], list[object]]] = {
    "nothing is asked": lambda folder: [],
    "a missing teacher": lambda folder: ["--teacher", folder / "nowhere"],
    "a missing student": lambda folder: ["--student", folder / "nowhere"],
    "an id that is not in the cache": lambda folder: ["--teacher", "EleutherAI/pythia-70m"],
    "a file for a model": lambda folder: ["--teacher", written(folder / "weights.gguf", b"GGUF")],
    "an encoder": lambda folder: ["--teacher", changed_model(folder / "bert", **BERT)],
    "an encoder with a head for words": lambda folder: ["--teacher", changed_model(folder / "bert", **DECODING_BERT)],
    "an encoder and a decoder": lambda folder: ["--teacher", t5(folder / "t5")],
    "a model of an unknown kind": lambda folder: ["--teacher", changed_model(folder / "m", model_type="frobnicate")],
    "a model with code of its own": lambda folder: ["--teacher", changed_model(folder / "m", **OWN_CODE)],
    "pickled weights": lambda folder: ["--teacher", pickled(folder / "m")],
    "weights that are cut short": lambda folder: ["--teacher", cut_short(folder / "m")],
    "a width that is not the weights'": lambda folder: ["--teacher", changed_model(folder / "m", hidden_size=48)],
    "more layers than there are": lambda folder: ["--teacher", changed_model(folder / "m", num_hidden_layers=9)],
    "heads that are no number": lambda folder: ["--teacher", changed_model(folder / "m", num_attention_heads="two")],
    "no tokenizer": lambda folder: ["--teacher", without(changed_model(folder / "m"), "tokenizer*")],
    "another tokenizer": lambda folder: ["--student", other_tokenizer(folder / "m")],
    "from-teacher as the teacher": lambda folder: ["--teacher", "from-teacher"],
    "layers of a student that has its own": lambda folder: ["--student_layers", 2],
    "more layers than the teacher has": lambda folder: ["--student", "from-teacher", "--student_layers", 9],
    "data that are not there": lambda folder: ["--data", folder / "nowhere"],
    "an empty folder": lambda folder: ["--data", (folder / "empty").mkdir() or folder / "empty"],
    "an empty file": lambda folder: ["--data", written(folder / "a.txt", "")],
    "no usable text": lambda folder: ["--data", written(folder / "a.jsonl", '{"text": "broken\n5\n')],
    "pictures": lambda folder: ["--data", written(folder / "photos" / "a.png", b"\x89PNG").parent],
    "a packed file": lambda folder: ["--data", written(folder / "a.txt.gz", b"\x1f\x8b")],
    "a packed file under another name": lambda folder: ["--data", written(folder / "a.txt", b"\x1f\x8b\x08\0\0")],
    "a PDF under another name": lambda folder: ["--data", written(folder / "a.md", b"%PDF-1.7\n1 0 obj")],
    "an archive": lambda folder: ["--data", written(folder / "a.tar.gz", b"\x1f\x8b")],
    "a file in Cyrillic": lambda folder: ["--data", written(folder / "a.csv", "text\nснег\nлёд\n".encode("cp1251"))],
    "a split that is not there": lambda folder: [
        *("--data_split", "test"),
        *("--data", written(folder / "photos" / "a.md", b"words").parent),
    ],
    "hardly any text among the rows": lambda folder: [
        "--data",
        written(folder / "a.jsonl", '{"text": "Some words."}\n' * 60 + '{"text": 5}\n' * 70),
    ],
    "a wrong text field": lambda folder: ["--data", write_texts(folder / "data"), "--text_field", "body"],
    "an unclear text field": lambda folder: ["--data", written(folder / "a.csv", "title,words\nOn tea,Tea is hot\n")],
    "fields without text": lambda folder: ["--data", written(folder / "a.jsonl", '{"n": 1}\n')],
    "a row that is too long": lambda folder: ["--sequence_length", 4096],
    "no samples": lambda folder: ["--samples", 0],
    "a value that is none": lambda folder: ["--samples"],
    "several wrong values": lambda folder: ["--samples", "many", "--holdout", 0.9, "--target", "best"],
    "a number without end": lambda folder: ["--clip_norm", "inf"],
    "a size that is none": lambda folder: ["--memory_budget", "lots"],
    "a name that is empty": lambda folder: ["--output_dir", ""],
    "epochs and steps": lambda folder: ["--epochs", 2, "--steps", 5],
    "the demo with a teacher": lambda folder: ["--demo"],
    "a format for GPUs": lambda folder: ["--precision", "fp16"],
    "a device that is none": lambda folder: ["--device", "tpu"],
    "a profile that is not there": lambda folder: ["--profile", "unknown"],
    "flags that are not there": lambda folder: ["--sampels", 1, "--lr", "1e-3", "--frobnicate", "--samples", 0],
    "a value without a flag": lambda folder: ["more"],
    "a folder that holds something else": lambda folder: [
        "--output_dir",
        written(folder / "thesis" / "thesis.tex", "mine").parent,
    ],
    "a folder below a file": lambda folder: ["--output_dir", written(folder / "a.txt", "mine") / "run"],
    "a cache in a file": lambda folder: ["--cache_dir", written(folder / "a.txt", "mine")],
    "resuming where there is no run": lambda folder: ["--resume"],
}


@pytest.mark.usefixtures("machine_is_measured")
@pytest.mark.parametrize("case", CASES)
def test_what_is_said_when_it_cannot_be_done(capsys, tmp_path, monkeypatch, case):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "files").mkdir()
    words = [str(word) for word in CASES[case](tmp_path / "files")]
    for flag, value in (
        ("--teacher", tiny_model("llama")),
        ("--student", tiny_model("llama", num_layers=2)),
        ("--output_dir", tmp_path / "run"),
    ):
        if flag not in words and words:
            words += [flag, str(value)]
    before = sorted(tmp_path.rglob("*"))
    code, told = said(capsys, *words)
    assert code == 2, told
    assert sorted(tmp_path.rglob("*")) == before, "something half-made is left behind"
    for path, name in (
        (sys.executable, "PYTHON"),
        (tmp_path / "files", "FILES"),
        (tmp_path, "HERE"),
        (tiny_model("llama"), "TEACHER"),
        (tiny_model("llama", num_layers=2), "STUDENT"),
    ):
        told = told.replace(str(path), name)
    told = re.sub(r"llama-4x32\S*", "TEACHER", told)
    texts = _texts()
    if os.environ.get("WRITE_ERROR_TEXTS"):
        texts[case] = told
        TEXTS.write_text(_HEAD + "".join(f"\n## {name}\n\n{texts[name]}" for name in CASES if name in texts), "utf-8")
    assert told == texts.get(case), f"not as it stands under {case!r} in {TEXTS.name}"


_HEAD = "# Messages of requests that cannot be met\n"


def _texts() -> dict[str, str]:
    if not TEXTS.exists():
        return {}
    entries = TEXTS.read_text("utf-8").removeprefix(_HEAD).split("\n## ")[1:]
    return {name: text for name, _, text in (entry.partition("\n\n") for entry in entries)}


def test_every_text_that_is_kept_belongs_to_a_case():
    assert set(_texts()) == set(CASES)


def test_a_budget_that_is_too_small_is_refused_with_what_would_fit(capsys, models, tmp_path, unmeasured):
    code, told = said(capsys, *models, "--memory_budget", "50MB")
    assert code == 3
    assert "MiB" in told
    assert "--memory_budget" in told
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("machine_is_measured")
def test_a_dry_run_shows_the_plan_and_makes_nothing(capsys, models, tmp_path):
    assert main([*map(str, models), "--dry_run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["kind"] == "plan"
    assert plan["predicted"]["teacher"]["peak_bytes"] > 0
    assert {"field", "value", "by", "reason"} == set(plan["choices"][0])
    assert not (tmp_path / "run").exists()


def test_a_dry_run_says_what_the_run_would_say(capsys, models, tmp_path):
    written(tmp_path / "run" / "thesis.tex", "mine")
    code, told = said(capsys, *models, "--dry_run")
    assert code == 2
    assert "not empty" in told


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_a_gpu_that_torch_cannot_use_is_refused_by_a_dry_run_too(capsys, models, tmp_path, monkeypatch, device):
    monkeypatch.setattr(hardware, "find_gpus", lambda: ((GPU,), ""))
    monkeypatch.setattr(gpu_check, "torch_version", lambda: "2.13.0+cpu")
    code, told = said(capsys, *models, "--dry_run", "--device", device)
    assert code == 2
    assert "RTX 3050 cannot be used" in told
    assert "2.13.0+cpu" in told
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_gpu_that_torch_cannot_use_leaves_the_cpu_and_the_reason(capsys, models, monkeypatch):
    monkeypatch.setattr(hardware, "find_gpus", lambda: ((GPU,), ""))
    monkeypatch.setattr(gpu_check, "torch_version", lambda: "2.13.0")
    monkeypatch.setattr(sys.modules["engine.planner.place"], "torch_version", lambda: "2.13.0")
    monkeypatch.setattr(gpu_check, "_probe", lambda uuid: gpu_check.GpuAnswer("the driver is too old"))
    assert main([*map(str, models), "--dry_run", "--json"]) == 0
    choices = {choice["field"]: choice for choice in json.loads(capsys.readouterr().out)["choices"]}
    assert choices["device"]["value"] == "cpu"
    assert choices["device"]["reason"] == "the RTX 3050 cannot be used: the driver is too old"


def test_a_folder_that_cannot_be_written_is_refused(capsys, models, tmp_path, monkeypatch):
    """Permissions do not hold back the tests' user everywhere, so the system's answer is given here."""
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    code, told = said(capsys, *models)
    assert code == 2
    assert f"{tmp_path} cannot be written. Choose another --output_dir." in told
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that takes no folder")
def test_a_file_system_that_takes_no_folder_is_told(tmp_path):
    config = RunConfig(teacher=str(tiny_model("llama")), student="from-teacher", output_dir=tmp_path / "run")
    with pytest.raises(FolderError, match="cannot be written"):
        Run.create(Path("/proc/tinydistill/run"), config, plan(config))


def test_a_run_whose_request_was_wrong_goes_with_all_that_is_in_it_and_one_that_did_something_stays(tmp_path):
    config = RunConfig(teacher=str(tiny_model("llama")), student="from-teacher", output_dir=tmp_path / "run")
    for code, done, stays in ((4, False, True), (2, True, True), (2, False, False)):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        made = Run.create(tmp_path / "run", config, plan(config))
        made.events_path.write_text("")
        made.log_path.write_text("")
        made.lock_path.write_text("")
        if done:
            made.finish_phase("prepare", {})
        launch.ended(made, code)
        assert (tmp_path / "run").exists() == stays


@pytest.mark.slow
def test_what_only_the_first_phase_finds_leaves_nothing_either(models, tmp_path):
    """Weights that do not fill the model: found before the text is read, and the run's folder goes again."""
    folder = changed_model(tmp_path / "m", num_key_value_heads=2)
    (tmp_path / "run").mkdir()
    done = run(*models, "--teacher", folder, "--data", write_texts(tmp_path / "data"), *QUICK)
    assert done.returncode == 2, done.stderr
    assert "k_proj.weight is (16, 32) in the files and (32, 32) in the model" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "run").iterdir()) == [], "the folder was there before and is left, empty as it was"
