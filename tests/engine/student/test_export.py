from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from engine.errors import BadNumbers, DiskFull, FolderError, ModelError
from engine.model_files.spec import read_spec
from engine.models.load import load_causal_lm
from engine.student.companions import versions_told
from engine.student.export import export_student, rehearse_export
from tests.tiny import ARCHITECTURES, tiny_model, tiny_tokenizer


def export(folder: Path, model: object | None = None, dtype: str | None = None, source: Path | None = None) -> None:
    model = model or load_causal_lm(tiny_model("llama"), dtype=torch.float32)
    spec = read_spec(source or tiny_model("llama"))
    export_student(model, replace(spec, dtype=dtype or spec.dtype), folder, "# card\n")  # type: ignore[arg-type]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_folder_loads_with_transformers_and_says_the_same(tmp_path: Path, architecture: str) -> None:
    model = load_causal_lm(tiny_model(architecture), dtype=torch.float32)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = model(ids).logits
    export(tmp_path / "student", model, source=tiny_model(architecture))
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


def test_weights_are_stored_in_the_format_of_the_model_that_the_student_began_as(tmp_path: Path) -> None:
    export(tmp_path / "student", dtype="bfloat16")
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


def source_with(tmp_path: Path, **files: object) -> Path:
    """A source of a student with other JSON files: a name with _ for the dot, and what is in it."""
    folder = shutil.copytree(tiny_model("llama"), tmp_path / "source")
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{name}.json").write_text(text)
    return folder


def test_tokenizer_files_are_passed_on_byte_for_byte(tmp_path: Path) -> None:
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["<|pad|>"], "x": 1}
    source = source_with(tmp_path, tokenizer_config=settings, special_tokens_map={"pad_token": "<|pad|>"})
    (source / "LICENSE").write_text("do what you like")
    (source / "notes.txt").write_text("private")
    export(tmp_path / "student", source=source)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "LICENSE"):
        assert (tmp_path / "student" / name).read_bytes() == (source / name).read_bytes()
    assert not (tmp_path / "student" / "notes.txt").exists()


def test_config_names_rope_and_dtype_in_old_words_and_in_new_ones(tmp_path: Path) -> None:
    raw = json.loads((tiny_model("llama") / "config.json").read_text())
    raw.pop("rope_parameters", None)
    source = source_with(tmp_path, config={**raw, "rope_theta": 1e6, "torch_dtype": "float32", "of_the_person": [1]})
    export(tmp_path / "student", load_causal_lm(source, dtype=torch.float32), "bfloat16", source)
    written = json.loads((tmp_path / "student" / "config.json").read_text())
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"] == 1e6
    assert written["dtype"] == written["torch_dtype"] == "bfloat16"
    assert written["of_the_person"] == [1]
    assert written["tie_word_embeddings"] is False
    assert "_name_or_path" not in written


GENERATION = {
    "valid": ({"do_sample": True, "temperature": 0.7, "eos_token_id": [0, 2]}, set()),
    "sampling without do_sample": ({"temperature": 0.7, "top_p": 0.9, "eos_token_id": 0}, {"temperature", "top_p"}),
    "two answers without sampling": ({"num_return_sequences": 2, "max_length": 50}, {"num_return_sequences"}),
    "two beams, two answers": ({"num_beams": 2, "num_return_sequences": 2}, set()),
    "no beams": ({"early_stopping": True, "length_penalty": 2.0, "num_beams": 1}, {"early_stopping", "length_penalty"}),
    "no length at all": ({"max_new_tokens": 0, "pad_token_id": 1}, {"max_new_tokens"}),
    "a word of tomorrow": ({"eos_token_id": 0, "of_tomorrow": {"a": 1}}, set()),
    "wrong type": ({"max_new_tokens": "many", "eos_token_id": 0}, {"max_new_tokens"}),
}


@pytest.mark.parametrize(("raw", "dropped"), GENERATION.values(), ids=GENERATION)
def test_generation_settings_are_kept_where_they_go_together(
    tmp_path: Path, raw: dict[str, object], dropped: set[str]
) -> None:
    source = source_with(tmp_path, generation_config=raw)
    notes = rehearse_export(read_spec(source), tmp_path / "student")
    export(tmp_path / "student", load_causal_lm(source, dtype=torch.float32), source=source)
    written = (tmp_path / "student" / "generation_config.json").read_text()
    assert json.loads(written) == {key: value for key, value in raw.items() if key not in dropped}
    assert [key for key in sorted(dropped) if f"{key} = " not in " ".join(notes)] == []
    if not dropped:
        assert notes == []
        assert written == (source / "generation_config.json").read_text()
    GenerationConfig.from_pretrained(tmp_path / "student").validate(strict=True)


# End tokens of generation_config.json (None: there is none) and of config.json, those that the student learned to end
# with, and those that the export has to name; None: no file is needed.
ENDS: dict[str, tuple[dict[str, object] | None, object, set[int], object]] = {
    "the end of a turn is another token": ({"eos_token_id": 0, "do_sample": True}, 0, {0, 5}, [0, 5]),
    "one that is named": ({"eos_token_id": [0, 5], "top_k": 3, "do_sample": True}, 0, {5}, [0, 5]),
    "several": ({"eos_token_id": [3]}, 3, {7, 5, 3}, [3, 5, 7]),
    "none is named": ({"max_length": 64}, 0, {0}, 0),
    "no file, and config.json says it": (None, 0, {0}, None),
    "no file, and config.json says another": (None, 0, {4}, [0, 4]),
    "no file, and config.json says nothing": (None, None, {4, 9}, [4, 9]),
    "nothing was learned": ({"eos_token_id": 3}, 0, set(), 3),
}


@pytest.mark.parametrize(("generation", "end", "learned", "wanted"), ENDS.values(), ids=ENDS)
def test_generation_stops_where_the_student_learned_to_end(
    tmp_path: Path, generation: dict[str, object] | None, end: object, learned: set[int], wanted: object
) -> None:
    raw = json.loads((tiny_model("llama") / "config.json").read_text())
    source = source_with(tmp_path, config={**raw, "eos_token_id": end})
    (source / "generation_config.json").unlink(missing_ok=True)
    if generation is not None:
        (source / "generation_config.json").write_text(json.dumps(generation))
    model = load_causal_lm(source, dtype=torch.float32)
    export_student(model, read_spec(source), tmp_path / "student", "# card\n", end_ids=learned)
    path = tmp_path / "student" / "generation_config.json"
    assert (json.loads(path.read_text())["eos_token_id"] if path.exists() else None) == wanted
    others = {key: value for key, value in (generation or {}).items() if key != "eos_token_id"}
    assert not others or others.items() <= json.loads(path.read_text()).items()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "student").generation_config.eos_token_id
    assert learned <= set(again if isinstance(again, list) else [again])


# Ids of special tokens in config.json and generation_config.json, where the model has 320 tokens and the tokenizer
# ends a text with 0, and those that the student has to name.
WITHOUT_ROW: dict[str, tuple[dict[str, object], dict[str, object], dict[str, object], dict[str, object]]] = {
    "the end": ({"eos_token_id": 9999}, {"eos_token_id": 0}, {"eos_token_id": 0}, {"eos_token_id": 0}),
    "one of several ends": (
        *({"eos_token_id": [9999, 3]}, {"eos_token_id": [5, 320, 3]}),
        *({"eos_token_id": 3}, {"eos_token_id": [5, 3]}),
    ),
    "below 0": ({"eos_token_id": -1}, {"eos_token_id": -1}, {"eos_token_id": 0}, {"eos_token_id": 0}),
    "padding": ({"pad_token_id": 500}, {"pad_token_id": 319}, {"pad_token_id": None}, {"pad_token_id": 319}),
    "the begin": ({"bos_token_id": 320}, {"bos_token_id": 320}, {"bos_token_id": 0}, {"bos_token_id": 0}),
}


@pytest.mark.parametrize(("config", "generation", "wanted", "generates"), WITHOUT_ROW.values(), ids=WITHOUT_ROW)
def test_special_tokens_that_the_model_has_no_row_for_are_replaced_and_told_once(
    tmp_path: Path,
    config: dict[str, object],
    generation: dict[str, object],
    wanted: dict[str, object],
    generates: dict[str, object],
) -> None:
    raw = json.loads((tiny_model("llama") / "config.json").read_text())
    source = source_with(tmp_path, config={**raw, **config}, generation_config=generation)
    notes = rehearse_export(read_spec(source), tmp_path / "student")
    assert len(notes) == (config != wanted) + (generation != generates)
    assert all(f"says {key} = {value}" in " ".join(notes) for key, value in config.items())
    model = load_causal_lm(source, dtype=torch.float32)
    assert export_student(model, read_spec(source), tmp_path / "student", "# card\n", end_ids=[7]) == []
    written = json.loads((tmp_path / "student" / "config.json").read_text())
    assert {key: written[key] for key in wanted} == wanted
    ends = [*_listed(generates.get("eos_token_id")), 7]
    generates = {**generates, "eos_token_id": ends if len(ends) > 1 else 7}
    written = json.loads((tmp_path / "student" / "generation_config.json").read_text())
    assert {key: written[key] for key in generates} == generates


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [] if value is None else [value]


def test_a_generation_config_that_is_not_json_is_left_out_and_told(tmp_path: Path) -> None:
    source = source_with(tmp_path, generation_config="{")
    export(tmp_path / "student", load_causal_lm(source, dtype=torch.float32), source=source)
    assert not (tmp_path / "student" / "generation_config.json").exists()
    assert "not a JSON object" in rehearse_export(read_spec(source), tmp_path / "student")[0]


def test_a_rehearsal_leaves_nothing_behind_and_touches_no_student(tmp_path: Path) -> None:
    export(tmp_path / "student")
    before = {entry.name: entry.read_bytes() for entry in (tmp_path / "student").iterdir()}
    rehearse_export(read_spec(tiny_model("llama")), tmp_path / "student")
    assert {entry.name: entry.read_bytes() for entry in (tmp_path / "student").iterdir()} == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["student"]


def test_a_rehearsal_finds_what_would_fail_in_the_end(tmp_path: Path) -> None:
    (tmp_path / "student").write_text("a file")
    with pytest.raises(FolderError, match="is not a folder"):
        rehearse_export(read_spec(tiny_model("llama")), tmp_path / "student")
    raw = json.loads((tiny_model("llama") / "config.json").read_text())
    source = source_with(tmp_path, config={**raw, "num_attention_heads": 5})
    with pytest.raises(ModelError, match=r"could not be written in the end|cannot be used"):
        rehearse_export(read_spec(source), tmp_path / "other")


def test_the_card_tells_which_releases_open_the_student(tmp_path: Path) -> None:
    assert "need transformers 5" in versions_told(tiny_model("llama"))
    source = source_with(tmp_path, tokenizer_config={"tokenizer_class": "GPT2TokenizerFast"})
    assert "open in transformers 4 and 5" in versions_told(source)
