from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.errors import BadNumbers, DiskFull
from engine.models.load import load_causal_lm
from engine.student.export import export_student, model_card
from tests.tiny import ARCHITECTURES, tiny_model, tiny_tokenizer

FIGURES = {"holdout_loss": 3.25, "perplexity": 25.79, "kl_to_teacher": 0.5, "top1_agreement": 0.625, "ece": 0.03}


def export(folder: Path, model: object | None = None, dtype: torch.dtype = torch.float32) -> None:
    model = model or load_causal_lm(tiny_model("llama"), dtype=torch.float32)
    export_student(model, tiny_tokenizer(), folder, "# card\n", dtype=dtype)  # type: ignore[arg-type]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_folder_loads_with_transformers_and_says_the_same(tmp_path: Path, architecture: str) -> None:
    model = load_causal_lm(tiny_model(architecture), dtype=torch.float32)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = model(ids).logits
    export(tmp_path / "student", model)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "student")
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, expected, rtol=0, atol=0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    assert tokenizer("a small model").input_ids == tiny_tokenizer()("a small model").input_ids
    assert (tmp_path / "student" / "README.md").read_text() == "# card\n"
    assert again.config.use_cache


def test_nothing_is_drawn_on_the_screen(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export(tmp_path / "student")
    assert capfd.readouterr() == ("", "")


def test_weights_are_stored_in_the_format_asked_for(tmp_path: Path) -> None:
    export(tmp_path / "student", dtype=torch.bfloat16)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "student", dtype="auto").dtype == torch.bfloat16


def test_older_folder_is_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "student"
    export(folder)
    (folder / "left-over.txt").write_text("old")
    (tmp_path / ".student.99.tmp").mkdir()  # of a kill
    export(folder)
    assert [entry.name for entry in tmp_path.iterdir()] == ["student"]
    assert not (folder / "left-over.txt").exists()


def test_student_with_a_nan_is_never_written(tmp_path: Path) -> None:
    model = load_causal_lm(tiny_model("llama"), dtype=torch.float32)
    with torch.no_grad():
        next(model.parameters())[3, 3] = float("nan")
    with pytest.raises(BadNumbers, match="embed"):
        export(tmp_path / "student", model)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("site", ["weights", "card"])
def test_full_disk_leaves_the_student_that_was_there(
    tmp_path: Path, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "student"
    export(folder)
    before = {entry.name: entry.read_bytes() for entry in folder.iterdir()}

    def full(*args: object, **kwargs: object) -> None:
        if site == "weights":  # safetensors tells of a full disk in words only
            from safetensors import SafetensorError

            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        raise OSError(errno.ENOSPC, "No space left on device")

    target = "safetensors.torch.serialize_file" if site == "weights" else "pathlib.Path.write_text"
    monkeypatch.setattr(target, full)
    with pytest.raises(DiskFull, match=r"takes some [\d,]+ bytes, [\d,]+ are free"):
        export(folder)
    monkeypatch.undo()
    assert {entry.name: entry.read_bytes() for entry in folder.iterdir()} == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["student"]


def test_card_tells_teacher_data_figures_and_settings() -> None:
    card = model_card(
        name="notes-run",
        teacher="big-model",
        student="layers 0, 2 of its teacher",
        data="notes/",
        figures={"teacher": FIGURES, "before": FIGURES, "after": FIGURES},
        settings={"temperature": 1.0, "steps": None},
        version="1.2",
    )
    assert card.startswith("---\nlibrary_name: transformers\n")
    for text in ("# notes-run", "**big-model**", "notes/", "| after | 3.2500 | 25.79 | 0.5000 | 62.5% | 0.0300 |"):
        assert text in card
    assert "| `temperature` | 1.0 |" in card
    assert "`steps`" not in card
