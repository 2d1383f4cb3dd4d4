"""SmolLM2-135M-Instruct's own GGUF file as the teacher, streamed in 600 MB, against the safetensors made from it.

``SMOLLM2_GGUF=FILE`` names the file; without it these tests are skipped. Where llama.cpp is installed
(``pip install xllamacpp``), a student of half of its layers also answers in it.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from engine.channel.events import EventWriter
from engine.cli import export
from engine.data.tokens import TokenFile
from engine.jobs import TrainJob, last_of
from engine.model_files.gguf.header import read_header
from engine.model_files.hub import resolve_model
from engine.models.load import load_causal_lm
from engine.phases.rescore import AGREEING, Rescored, _compared
from engine.phases.teacher import open_store
from engine.run.folder import Run
from tests.end_to_end import program
from tests.llama_cpp import ask

pytestmark = pytest.mark.slow

ROOM = 600_000_000


@pytest.fixture(scope="module")
def file() -> Path:
    if not os.environ.get("SMOLLM2_GGUF"):
        pytest.skip("SMOLLM2_GGUF=FILE names SmolLM2-135M-Instruct as a GGUF file")
    return Path(os.environ["SMOLLM2_GGUF"])


def run(out: Path, *words: object) -> Run:
    """A run within 600 MB."""
    done = program.run(*words, "--memory_budget", "600MB", "--output_dir", out, timeout=2400)
    assert done.returncode == 0, done.stderr
    peaks = [event["peak_bytes"] for event in program.events(out) if event["kind"] == "memory"]
    assert max(peaks) < ROOM
    return Run.open(out)


def scored(teacher: Path, out: Path) -> Run:
    """A run that has scored some rows of Python's documentation."""
    return run(
        *[out, "--teacher", teacher, "--student", "from-teacher", "--student_layers", 15, "--data", "python-docs"],
        *["--samples", 24, "--sequence_length", 64, "--precision", "fp32", "--layer_by_layer", "--seed", 3],
        *["--until", "teacher"],
    )


@pytest.fixture(scope="module")
def of_the_file(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return scored(file, tmp_path_factory.mktemp("scored") / "gguf")


def compared(first: Run, second: Run) -> Rescored:
    """How far two runs' records are from each other."""
    quiet = EventWriter(Path(os.devnull))
    with (
        TokenFile(first.tokens_path) as tokens,
        open_store(first, last_of(first.jobs, TrainJob), tokens.vocab_size, quiet) as one,
    ):
        return _compared(tokens, one, open_store(second, last_of(second.jobs, TrainJob), tokens.vocab_size, quiet))


def test_the_records_are_those_of_the_safetensors_with_the_same_numbers(
    file: Path, of_the_file: Run, tmp_path: Path
) -> None:
    source, folder = resolve_model(file), tmp_path / "folder"
    load_causal_lm(source, dtype=torch.float32).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(source / name, folder / name)
    found = compared(of_the_file, scored(folder, tmp_path / "safetensors"))
    assert found.tokens > 1_000
    assert (found.same, found.label_difference) == (1.0, 0.0)


def test_the_records_of_the_float16_folder_made_from_the_file_are_near(
    file: Path, of_the_file: Run, tmp_path: Path
) -> None:
    assert export.main([str(file), "--format", "hf", "--out", str(tmp_path / "folder")]) == 0
    found = compared(of_the_file, scored(tmp_path / "folder", tmp_path / "safetensors"))
    # The folder's float16 rounds the file's float32 numbers to 11 bits: a logit moves by about 0.005, and with the
    # probabilities the ids that are drawn move.
    assert found.overlap > AGREEING
    assert found.label_difference < 5e-3


def test_a_student_of_half_of_the_layers_answers_in_llama_cpp(of_the_file: Run, tmp_path: Path) -> None:
    out, question = tmp_path / "student", [{"role": "user", "content": "What is a list in Python?"}]
    run(out, *["--records_from", of_the_file.path, "--student_layers", 15, "--steps", 4, "--precision", "fp32"])
    report = json.loads((out / "report.json").read_text())
    assert report["student_after"]["holdout_loss"] < report["student_before"]["holdout_loss"]
    assert export.main([str(out), "--format", "gguf", "--type", "q8_0", "--out", str(tmp_path / "student.gguf")]) == 0
    (told,) = ask([{"file": tmp_path / "student.gguf", "messages": question, "most": 12, "room": 256}])
    tokenizer = AutoTokenizer.from_pretrained(out / "student")
    prompt = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    assert told["prompt"] == tokenizer(prompt, add_special_tokens=False).input_ids
    assert read_header(tmp_path / "student.gguf").metadata["llama.block_count"] == 15
    assert told["answer"].strip()
