"""Folders that are nearly a model: the message names the cause, and its advice is gone by."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import subprocess
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.errors import ModelError
from engine.model_files.spec import fingerprint, read_spec
from engine.model_files.vocabulary import read_vocabulary
from engine.model_files.wrapped_names import check_not_wrapped
from engine.models.fit import check_fit
from engine.models.load import load_causal_lm
from tests.tiny import tiny_model

INDEX = "model.safetensors.index.json"
SHARDED = {"shard_bytes": 40_000}


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model("llama", **SHARDED), tmp_path / "sharded")


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model("llama"), tmp_path / "whole")


def refused(folder: Path | str) -> str:
    with pytest.raises(ModelError) as caught:
        read_spec(folder)
    return caught.value.paragraph()


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_index(folder: Path, change: Any) -> None:
    index = json.loads((folder / INDEX).read_text())
    edit(folder / INDEX, weight_map={name: change(file) for name, file in index["weight_map"].items()})


def test_two_sets_of_weights_are_refused_however_they_lie_there(sharded: Path) -> None:
    other = tiny_model("llama", seed=1) / "model.safetensors"
    shutil.copy(other, sharded / "model.safetensors")
    assert "two sets of weights" in refused(sharded)
    (sharded / INDEX).rename(sharded / "kept.json")
    assert "two sets of weights" in refused(sharded), "shards whose index is gone are a set too"
    (sharded / "kept.json").rename(sharded / INDEX)
    (sharded / "model.safetensors").unlink()  # the advice
    assert fingerprint(read_spec(sharded)) == fingerprint(read_spec(tiny_model("llama")))


def test_an_index_whose_files_are_all_gone_hides_no_whole_model(sharded: Path) -> None:
    for file in sharded.glob("model-*"):
        file.unlink()
    shutil.copy(tiny_model("llama") / "model.safetensors", sharded)
    assert fingerprint(read_spec(sharded)) == fingerprint(read_spec(tiny_model("llama")))


def test_an_index_of_one_file_is_the_same_as_none(whole: Path) -> None:
    names = load_file(whole / "model.safetensors")
    (whole / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "model.safetensors")}))
    assert fingerprint(read_spec(whole)) == fingerprint(read_spec(tiny_model("llama")))


def run_advice(message: str, *, in_this_process: bool = False) -> None:
    """Do as a message says: the command's words in a shell, or its program here, where torch is imported already."""
    command = message[message.index("cd ") :]
    if in_this_process:
        first, folder, then, _, *options, program = shlex.split(command)
        assert (first, then, options[-1]) == ("cd", "&&", "-c")
        with contextlib.chdir(folder), warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # the program's end closes its files
            exec(program, {})
        return
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_shards_without_an_index_are_named_and_the_command_makes_one(sharded: Path) -> None:
    named = sharded.rename(sharded.parent / "a b's")
    (named / INDEX).unlink()
    message = refused(named)
    assert "weight files (model-00001-of-" in message
    run_advice(message)
    assert fingerprint(read_spec(named)) == fingerprint(read_spec(tiny_model("llama")))
    load_causal_lm(named, dtype=torch.float32)


def test_a_stale_index_is_told_from_a_download_that_did_not_end(sharded: Path) -> None:
    change_index(sharded, lambda file: file.replace("-of-", "-of-9"))
    message = refused(sharded)
    assert "names files that are not here, but" in message
    assert "others are: model-00001-of-" in message
    run_advice(message)
    assert fingerprint(read_spec(sharded)) == fingerprint(read_spec(tiny_model("llama")))


def test_a_shard_that_is_missing_is_a_download_that_did_not_end(sharded: Path) -> None:
    max(sharded.glob("model-*")).unlink()
    message = refused(sharded)
    assert "1 are missing" in message
    assert "The download did not end" in message


def test_an_index_may_name_files_from_the_folder_itself(sharded: Path) -> None:
    change_index(sharded, lambda file: f"./{file}")
    assert fingerprint(read_spec(sharded)) == fingerprint(read_spec(tiny_model("llama")))
    load_causal_lm(sharded, dtype=torch.float32)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 17077\n"
INSTEAD = {
    "Git LFS": (POINTER, "Git LFS pointer"),
    "git-annex": ("/annex/objects/SHA256E-s17077--4d7a.json", "git-annex pointer"),
    "a login page": ("\n<!DOCTYPE html>\n<html><body>Log in</body></html>", "web page"),
}


@pytest.mark.parametrize(("text", "told"), INSTEAD.values(), ids=INSTEAD)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_what_stands_there_instead_of_a_file_is_named(whole: Path, name: str, text: str, told: str) -> None:
    (whole / name).write_text(text + " " * 60)
    with pytest.raises(ModelError, match=told) as caught:
        read_vocabulary(read_spec(whole).path)
    assert str(whole / name) in caught.value.paragraph()
    assert caught.value.todo


@pytest.mark.parametrize("name", ["merges.txt", "chat_template.jinja"])
def test_a_pointer_is_no_text_of_a_tokenizer(whole: Path, name: str) -> None:
    if name == "merges.txt":
        vocabulary = json.loads((whole / "tokenizer.json").read_text())["model"]["vocab"]
        (whole / "vocab.json").write_text(json.dumps(vocabulary))
        (whole / "tokenizer.json").unlink()
    (whole / name).write_text(POINTER)
    with pytest.raises(ModelError, match="Git LFS pointer"):
        read_vocabulary(whole)


@pytest.mark.parametrize(
    ("places", "best"),
    [
        (["snapshots/abc"], "snapshots/abc"),
        (["checkpoint-4", "checkpoint-12"], "checkpoint-12"),
        (["model"], "model"),
        (["run/checkpoints/step-00000009", "run/checkpoints/step-00000010"], "run/checkpoints/step-00000010"),
    ],
)
def test_a_folder_above_a_model_names_the_model(tmp_path: Path, places: list[str], best: str) -> None:
    for place in places:
        shutil.copytree(tiny_model("llama"), tmp_path / "above" / place)
    message = refused(tmp_path / "above")
    advice = message.split("Try ")[1].removesuffix(".")
    assert advice == str(tmp_path / "above" / best)
    read_spec(advice)


def test_a_folder_that_hides_a_cached_model_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me" / "big").mkdir(parents=True)
    message = refused("me/big")
    assert "is empty" in message
    assert "hides the model me/big" in message
    snapshot = shutil.copytree(tiny_model("llama"), tmp_path / "hub" / "models--me--big" / "snapshots" / "abc")
    message = refused("me/big")
    assert "hides the model me/big in the Hugging Face cache. Remove or rename the folder" in message
    assert str(snapshot) in message
    (tmp_path / "me" / "big").rmdir()
    assert read_spec("me/big").path == snapshot


def pack(folder: Path, *, suffix: str = "weight", scales: str = "scales", biases: bool = True) -> None:
    """Store the linear weights as MLX and GPTQ do: whole numbers, and their scales beside them."""
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        stem, _, last = name.rpartition(".")
        if tensor.dim() == 2 and last == "weight":
            tensors[f"{stem}.{suffix}"] = torch.zeros(tensor.shape[0], 4, dtype=torch.int32)
            tensors[f"{stem}.{scales}"] = torch.ones(tensor.shape[0], 1)
            if biases:
                tensors[f"{stem}.biases"] = torch.ones(tensor.shape[0], 1)
        else:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors")


def test_an_mlx_model_is_named_right_with_and_without_its_settings(whole: Path) -> None:
    pack(whole)
    assert "already quantised (MLX's form)" in refused(whole)
    edit(whole / "config.json", quantization={"group_size": 64, "bits": 4})
    assert "already quantised (MLX, 4 bits)" in refused(whole)


@pytest.mark.parametrize(
    ("suffix", "scales"), [("qweight", "scales"), ("weight", "SCB"), ("weight_packed", "weight_scale")]
)
def test_whole_numbers_beside_their_scales_are_quantised_weights(whole: Path, suffix: str, scales: str) -> None:
    pack(whole, suffix=suffix, scales=scales, biases=False)
    assert "already quantised (" in refused(whole)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("which", ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight", ""])
def test_quantised_weights_without_scales_are_named_so(whole: Path, which: str, dtype: torch.dtype) -> None:
    weights = load_file(whole / "model.safetensors")
    weights = {
        name: value.to(dtype) if value.dim() == 2 and which in name else value for name, value in weights.items()
    }
    save_file(weights, whole / "model.safetensors", metadata={"format": "pt"})
    assert "without scales" in refused(whole)


def test_the_model_that_a_quantised_one_was_made_from_is_named(whole: Path) -> None:
    edit(whole / "config.json", quantization_config={"quant_method": "aqlm"}, _name_or_path="someone/big")
    assert "Use the model they were made from (someone/big)" in refused(whole)


def test_a_broken_gguf_file_is_named_and_of_two_one_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "model-Q4_K_M.gguf").write_bytes(b"GGUF")
    assert "damaged GGUF header" in refused(tmp_path)
    assert "damaged GGUF header" in refused(tmp_path / "model-Q4_K_M.gguf")
    (tmp_path / "model-Q8_0.gguf").write_bytes(b"GGUF")
    assert "holds 2 GGUF files" in refused(tmp_path)


WRAPPED = {
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "DataParallel": lambda name: f"module.{name}",
    "both": lambda name: f"module._orig_mod.{name}",
    "FSDP": lambda name: f"_fsdp_wrapped_module.{name}",
    "FSDP of each layer": lambda name: re.sub(r"(layers\.\d+)", r"\1._fsdp_wrapped_module", name),
    "checkpointing": lambda name: re.sub(r"(layers\.\d+)", r"\1._checkpoint_wrapped_module", name),
    "torch.compile of the list": lambda name: name.replace("layers.", "layers._orig_mod."),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("kind", ["whole", "sharded"])
def test_names_of_a_wrapper_are_refused_from_the_header_and_the_command_corrects_them(
    tmp_path: Path, wrap: Any, kind: str
) -> None:
    folder = shutil.copytree(tiny_model("llama", **(SHARDED if kind == "sharded" else {})), tmp_path / "a b's")
    for file in folder.glob("*.safetensors"):
        save_file({wrap(name): tensor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    if kind == "sharded":
        index = json.loads((folder / INDEX).read_text())
        edit(folder / INDEX, weight_map={wrap(name): file for name, file in index["weight_map"].items()})
    message = refused(folder)
    assert "names of a wrapper" in message
    run_advice(message, in_this_process=wrap is not WRAPPED["torch.compile"])  # a new one takes seconds to import torch
    assert fingerprint(read_spec(folder)) == fingerprint(read_spec(tiny_model("llama")))


def test_a_part_of_a_model_that_is_called_module_is_no_wrapper() -> None:
    check_not_wrapped(Path("somewhere"), ["model.embed.weight", "module.gate.weight", "model.0.module.weight"])
    check_not_wrapped(Path("somewhere"), [])


def test_weights_under_a_longer_name_are_told(whole: Path) -> None:
    weights = load_file(whole / "model.safetensors")
    save_file({f"student.{name}": tensor for name, tensor in weights.items()}, whole / "model.safetensors")
    with pytest.raises(ModelError) as caught:
        check_fit(whole)
    assert "longer names: student.model.embed_tokens.weight for model.embed_tokens.weight" in caught.value.paragraph()


NEARLY = {
    "renamed": ("weights.safetensors", "must be called model.safetensors"),
    "a browser's copy": ("model (1).safetensors", "must be called model.safetensors"),
    "another case": ("Model.safetensors", "must be called model.safetensors"),
    "a browser's download": ("model.safetensors.crdownload", "the download did not end"),
    "a part": ("model.safetensors.part", "the download did not end"),
    "the hub's own": ("model.safetensors.incomplete", "the download did not end"),
    "Mistral's own names": ("consolidated.safetensors", "There is consolidated.safetensors"),
}


@pytest.mark.parametrize(("name", "told"), NEARLY.values(), ids=NEARLY)
def test_weights_under_nearly_the_right_name_are_named(whole: Path, name: str, told: str) -> None:
    (whole / "model.safetensors").rename(whole / name)
    message = refused(whole)
    assert name in message
    assert told in message
    if "must be called" in told:
        done = subprocess.run(message[message.index("mv ") :], shell=True, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        read_spec(whole)


@pytest.mark.parametrize("kind", ["whole", "sharded", "config"])
def test_a_link_to_nowhere_is_named_with_the_place_that_it_leads_to(tmp_path: Path, kind: str) -> None:
    folder = shutil.copytree(tiny_model("llama", **(SHARDED if kind == "sharded" else {})), tmp_path / "snapshot")
    file = folder / "config.json" if kind == "config" else min(folder.glob("*.safetensors"))
    file.unlink()
    file.symlink_to("../../blobs/1a2b")
    assert f"{file} is a link to ../../blobs/1a2b, which is not there" in refused(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize(("content", "told"), [(b"", "is empty"), (b"\0" * 5000, "begins with zeros")])
def test_a_file_that_was_never_written_whole_is_told_as_that(whole: Path, name: str, content: bytes, told: str) -> None:
    (whole / name).write_bytes(content)
    assert f"{name} {told}" in refused(whole)


def test_an_index_that_leaves_a_shard_out_is_refused_and_the_command_makes_it_again(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    last = max(index["weight_map"].values())
    edit(sharded / INDEX, weight_map={name: file for name, file in index["weight_map"].items() if file != last})
    message = refused(sharded)
    assert f"leaves out 1 of the weight files beside it: {last}" in message
    run_advice(message)
    assert fingerprint(read_spec(sharded)) == fingerprint(read_spec(tiny_model("llama", **SHARDED)))


@pytest.mark.parametrize("name", ["model.zip", "model.tar.gz", "notes.txt"])
def test_a_file_that_is_no_model_leads_to_no_folder_that_is_none(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK")
    message = refused(tmp_path / name)
    assert ("Unpack it" in message) == (name != "notes.txt")
    assert "Try" not in message
    assert f"Try {tiny_model('llama')}" in refused(tiny_model("llama") / "config.json")
