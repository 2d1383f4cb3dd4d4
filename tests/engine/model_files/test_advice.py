"""The commands that a message about a model gives work as written, in a shell that knows no other Python."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.errors import ModelError
from engine.model_files.spec import read_spec
from engine.model_files.vocabulary import read_vocabulary
from engine.models.load import load_causal_lm
from tests.tiny import tiny_model, tiny_tokenizer_folder

NAME = "a b's"  # a folder as people name them


def do_as_told(message: str, **environment: str) -> None:
    """Run the command in a message. It ends the message, or a remark in brackets follows."""
    command = message[message.index(sys.executable) :].removesuffix(" (then copy the tokenizer's files there).")
    with tempfile.TemporaryDirectory() as current:
        (Path(current) / "random.py").write_text("raise SystemExit('a file of the current folder was run')")
        done = subprocess.run(
            ["/bin/bash", "-c", command],
            capture_output=True,
            text=True,
            cwd=current,
            env={"PATH": "/nowhere", **environment},
        )
    assert done.returncode == 0, done.stderr


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        read_spec(folder)
    return caught.value.paragraph()


@pytest.mark.slow
def test_pickles_are_converted(tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model("llama"), tmp_path / NAME)
    torch.save(load_causal_lm(folder, dtype=torch.float32).state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    do_as_told(refused(folder))
    assert read_spec(folder).num_layers == 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's
@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("LoHaConfig", {"target_modules": ["q_proj", "down_proj"], "init_weights": False}),
        ("LoraConfig", {"target_modules": ["q_proj"], "use_dora": True, "init_lora_weights": False,
                        "task_type": "CAUSAL_LM"}),
    ],
    ids=["another kind", "DoRA"],
)  # fmt: skip
def test_adapters_of_other_kinds_are_merged_by_peft(kind: str, values: dict[str, Any], tmp_path: Path) -> None:
    import peft  # takes two seconds, which collecting the quick tests need not pay

    settings = getattr(peft, kind)(r=4, **values)
    settings.base_model_name_or_path = str(tiny_model("llama"))
    model = peft.get_peft_model(load_causal_lm(tiny_model("llama"), dtype=torch.float32), settings)
    folder = tmp_path / NAME
    model.save_pretrained(folder)
    do_as_told(refused(folder))
    merged = tmp_path / f"{NAME}-merged"
    assert read_spec(merged).num_layers == 4
    ids = torch.arange(2, 40)[None]
    with torch.no_grad():
        expected, found = model(ids).logits, load_causal_lm(merged, dtype=torch.float32)(ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow  # installs two packages
def test_a_sentencepiece_model_is_converted(tmp_path: Path) -> None:
    library = str(tmp_path / "library")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", library, "sentencepiece", "protobuf"]
    if subprocess.run(install, check=False).returncode:
        pytest.skip("sentencepiece cannot be installed here")
    folder = shutil.copytree(tiny_model("llama"), tmp_path / NAME)
    for path in tiny_tokenizer_folder().iterdir():
        (folder / path.name).unlink(missing_ok=True)
    train = """
import pydoc_data.topics as t, sentencepiece as s
lines = iter("\\n".join(t.topics.values()).split("\\n"))
with open("tokenizer.model", "wb") as file:
    s.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=file, vocab_size=400, model_type="bpe", byte_fallback=True
    )
"""
    known = {"PYTHONPATH": library, "PIP_TARGET": library}
    subprocess.run([sys.executable, "-c", train], env=known, cwd=folder, check=True, capture_output=True)
    with pytest.raises(ModelError, match=r"exists only as tokenizer\.model") as caught:
        read_vocabulary(folder)
    do_as_told(caught.value.paragraph(), **known)
    assert read_vocabulary(folder).size == 400
