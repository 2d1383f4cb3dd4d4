"""Tasks of lm-eval: reading and refusing their files, and the result of a model in one."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.cli import eval as command
from engine.errors import DataError
from engine.models.load import load_causal_lm, load_tokenizer
from engine.student import harness
from tests.tiny import tiny_model

TASK = """
task: tiny_facts
dataset_path: json
dataset_kwargs:
  data_files:
    test: facts.jsonl
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


def write_task(folder: Path, text: str = TASK, name: str = "facts.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    rows = [{"question": f"We left on {day}", "choices": [" early", " late"], "answer": day % 2} for day in range(7)]
    (folder / "facts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_data_beside_the_task_is_found_from_anywhere_and_other_paths_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (elsewhere := tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(elsewhere)
    path = write_task(tmp_path)
    assert harness.read_task(path)["dataset_kwargs"]["data_files"] == {"test": str(tmp_path / "facts.jsonl")}
    (elsewhere / "facts.jsonl").write_text("{}\n")  # as lm-eval itself: the current folder's
    assert harness.read_task(path)["dataset_kwargs"]["data_files"] == {"test": "facts.jsonl"}
    for files in ("none.jsonl", ["none.jsonl", "https://example.org/a.jsonl"]):
        assert harness._found_files(files, tmp_path) == files


def test_included_files_are_merged_and_the_files_own_values_win(tmp_path: Path) -> None:
    write_task(tmp_path)
    child = write_task(tmp_path, "include: facts.yaml\ntask: child\n", "child.yaml")
    found = harness.read_task(child)
    assert (found["task"], found["output_type"]) == ("child", "multiple_choice")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("process_docs: !function code.change\n" + TASK, "would run Python code"),
        ("include: below.yaml\ntask: above\n", "would run Python code"),
        ("include: facts.yaml\ntask: itself\n", "includes itself"),
        ("- a\n- b\n", "is not a task"),
        ("group: several\n", "has no name under"),
        ("task: [a, b]\n", "has no name under"),
        ("task: {\n", "cannot be read"),
        ("task: !!python/object/apply:os.system ['touch gone']\n", "cannot be read"),
        ("include: no-such.yaml\ntask: a\n", "cannot be read"),
    ],
)
def test_files_that_are_no_task_are_refused_and_run_nothing(tmp_path: Path, text: str, told: str) -> None:
    path = write_task(tmp_path, text)
    (tmp_path / "below.yaml").write_text("doc_to_text: !function code.change\n")
    (tmp_path / "code.py").write_text("open('gone', 'w').close()\n")
    with pytest.raises(DataError) as caught:
        harness.read_task(path)
    assert told in caught.value.what + caught.value.why
    assert not Path("gone").exists()


def test_without_the_package_its_install_line_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert command.main([str(tiny_model("llama", num_layers=2)), "--tasks", "arc_easy"]) == 2
    told = capsys.readouterr().err
    assert "expected some of next-word, cloze, continuation" in told
    assert harness.INSTALL in told


@pytest.mark.parametrize(
    ("values", "figures"),
    [
        ({"alias": "a", "sample_len": 3, "acc,none": 0.9, "acc_stderr,none": 0.1}, {"acc": [0.9, 0.704, 1.0]}),
        ({"acc,none": 0.05, "acc_stderr,none": 0.1}, {"acc": [0.05, 0.0, 0.246]}),
        ({"bits_per_byte,none": 0.9, "bits_per_byte_stderr,none": "N/A"}, {"bits_per_byte": [0.9, 0.9, 0.9]}),
        ({"perplexity,none": 9.0, "perplexity_stderr,none": 1.0}, {"perplexity": [9.0, 7.04, 10.96]}),
        ({"exact_match,strict": 0.5, "exact_match_stderr,strict": 0.0}, {"exact_match (strict)": [0.5, 0.5, 0.5]}),
    ],
)
def test_figures_have_the_intervals_of_their_standard_errors(values: Any, figures: Any) -> None:
    found = harness._figures(values)
    assert found.keys() == figures.keys()
    for name, expected in figures.items():
        assert found[name] == pytest.approx(expected)


@pytest.mark.slow
def test_model_is_asked_a_task_of_a_file(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval", exc_type=ImportError)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    path = write_task(tmp_path)
    folder = tiny_model("llama", num_layers=2)
    assert command.main([str(folder), "--tasks", str(path), "--questions", "5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["figures"] == {}
    assert found["tasks"]["tiny_facts"]["questions"] == 5
    mean, low, high = found["tasks"]["tiny_facts"]["metrics"]["acc"]
    assert 0 <= low <= mean <= high <= 1
    # The same by hand: the likelier of the two answers.
    model = load_causal_lm(folder, dtype=torch.float32, trust_remote_code=False)
    encode = load_tokenizer(folder, trust_remote_code=False)
    right = 0
    for row in [json.loads(line) for line in (tmp_path / "facts.jsonl").read_text().splitlines()][:5]:
        sums = []
        for choice in row["choices"]:
            begin = len(encode(row["question"])["input_ids"])
            ids = torch.tensor([encode(row["question"] + choice)["input_ids"]])
            with torch.no_grad():
                scores = model(ids).logits[0, begin - 1 : -1].log_softmax(1)
            sums.append(float(scores.gather(1, ids[0, begin:, None]).sum()))
        right += sums.index(max(sums)) == row["answer"]
    assert mean == pytest.approx(right / 5)
    assert command.main([str(folder), "--tasks", "no_such_task"]) == 2
    assert "lm-eval has no task of this name" in capsys.readouterr().err
