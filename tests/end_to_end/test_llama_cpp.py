"""llama.cpp reads our GGUF files as transformers reads the folders: logits, tokens, special tokens, chat template.

    pip install xllamacpp && pytest -m slow tests/end_to_end/test_llama_cpp.py

The model that a file has to be is known without llama.cpp and without our reader: the
folder's weights, rounded as the file's type rounds them.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import gelu
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.activations import GELUActivation
from transformers.pytorch_utils import Conv1D

from engine.cli import export
from engine.export import write_gguf
from engine.model_files.demo import DEMO_TEACHER
from engine.model_files.hub import resolve_model
from engine.models.load import load_causal_lm
from tests.end_to_end.program import ROOT
from tests.engine.export.test_gguf_file import _LLAMA3, _SHARED
from tests.engine.export.tokenizers_of import CUTS, byte_level, sentencepiece
from tests.engine.model_files.gguf.test_matrix import CASES, as_stored, folder_of, with_q4_k
from tests.engine.model_files.gguf.test_numbers import CASES as NUMBERS
from tests.engine.model_files.gguf.test_numbers import folder_of as folder_with
from tests.llama_cpp import ask, python_with_llama_cpp
from tests.tiny import VOCAB_SIZE

pytestmark = pytest.mark.slow

IDS = torch.randint(2, VOCAB_SIZE, (40,), generator=torch.Generator().manual_seed(1)).tolist()

# llama.cpp rounds what it multiplies with a matrix to the matrix' own kind: float16, bfloat16, or blocks of 8 bits.
_BLOCKS = {"q8_0": 32, "q4_1": 32, "q4_k": 256}
# transformers with the same rounding is off by as much (within 20 % for all cases and types); sums are taken in another
# order, and ggml's GELU is a table of float16.
_AS_FAR = 1.3


_PLAIN = {"rope_type": "default", "rope_theta": 1e4}
OTHER_SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    **NUMBERS,
    "llama, llama3": ("llama", {"rope_parameters": _LLAMA3}),
    "llama, linear": ("llama", {"rope_parameters": {**_PLAIN, "rope_type": "linear", "factor": 4.0}}),
    "llama, yarn": (
        "llama",
        {"rope_parameters": {**_PLAIN, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
    ),
    "llama, another base": ("llama", {"rope_parameters": {**_PLAIN, "rope_theta": 300.0}}),
    "llama, wide heads": ("llama", {"head_dim": 16, "attention_bias": True}),
    "qwen2, yarn": (
        "qwen2",
        {"rope_parameters": {**_PLAIN, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
    ),
    "qwen3, wide heads": ("qwen3", {"head_dim": 16}),
    "phi3, half of a head": (
        "phi3",
        {"rope_parameters": {**_PLAIN, "partial_rotary_factor": 0.5}, "num_key_value_heads": 2},
    ),
    "gemma, wide heads": ("gemma", {"head_dim": 16}),
    "gpt_neox, all of a head": ("gpt_neox", {"rope_parameters": {**_PLAIN, "partial_rotary_factor": 1.0}}),
}


def as_multiplied(values: torch.Tensor, form: str) -> torch.Tensor:
    """Round values [..., columns] as llama.cpp does before it multiplies them with a matrix of a type."""
    if form not in _BLOCKS:
        return values.to(torch.float16 if form == "f16" else torch.bfloat16).float()
    blocks = values.reshape(-1, _BLOCKS[form] if values.shape[-1] % _BLOCKS[form] == 0 else values.shape[-1])
    step = (blocks.abs().amax(-1, keepdim=True) / 127).clamp_min(1e-30)
    return ((blocks / step).round() * step).reshape(values.shape)


def logits_of(model: Any, form: str, ids: list[int], *, rounds: bool = False) -> NDArray[np.float32]:
    """Logits [ids, vocabulary] of transformers.

    Args:
        model: with the weights that a file holds.
        form: the type of its matrices: f16, bf16, q8_0, q4_1 or q4_k.
        ids: of a text.
        rounds: multiply as llama.cpp does.
    """
    hooks = []
    for module in model.modules():
        if rounds and isinstance(module, (torch.nn.Linear, Conv1D)):
            hooks.append(module.register_forward_pre_hook(lambda _, given: (as_multiplied(given[0], form),)))
        if rounds and isinstance(module, GELUActivation):  # ggml has the approximation only
            hooks.append(module.register_forward_hook(lambda _, given, __: gelu(given[0], approximate="tanh")))
    with torch.no_grad():
        found: NDArray[np.float32] = model.eval()(torch.tensor([ids])).logits[0].float().numpy()
    for hook in hooks:
        hook.remove()
    return found


def excess(found: NDArray[np.float32], model: Any, form: str, ids: list[int], most: float = _AS_FAR) -> str | None:
    """Return how far llama.cpp's log-probabilities are off, where that is farther than its rounding explains.

    Args:
        found: those after the last ids [positions, vocabulary].
        model: with the weights that the file holds.
        form: the type of its matrices.
        ids: of the text.
        most: times the error that rounding explains.
    """
    exact, rounded = (
        torch.from_numpy(logits_of(model, form, ids, rounds=rounds))[-len(found) :].log_softmax(-1).numpy()
        for rounds in (False, True)
    )
    assert found.shape == exact.shape
    theirs, rounding = (float(np.sqrt(np.square(values - exact).mean()) / exact.std()) for values in (found, rounded))
    if theirs <= most * rounding:
        return None
    return f"off by {theirs:.5f} of the logits' spread, where rounding explains {rounding:.5f}"


def stored(folder: Path, form: str) -> Any:
    """The model of a folder, with the weights that a file of this type holds."""
    model = as_stored(load_causal_lm(folder, dtype=torch.float32), form)
    model.set_attn_implementation("eager")
    return model


def far(cases: Iterable[str], folders: list[Path], files: list[Path], form: str) -> dict[str, str]:
    """Those whose logits in llama.cpp are farther from the exact ones than its rounding explains."""
    told = ask([{"file": file, "ids": IDS} for file in files])
    found = {
        case: excess(each["log_probs"], stored(folder, form), form, IDS)
        for case, folder, each in zip(cases, folders, told, strict=True)
    }
    return {case: words for case, words in found.items() if words}


@pytest.mark.parametrize("form", ["f16", "bf16", "q8_0", "q4_k"])
def test_llama_cpp_computes_the_logits_of_the_folder(form: str, tmp_path: Path) -> None:
    folders = [folder_of(case, tmp_path / str(number)) for number, case in enumerate(CASES)]
    files = []
    for folder in folders:
        files.append(folder.with_suffix(".gguf"))
        write_gguf(folder, files[-1], weight_type="f16" if form == "q4_k" else form)
        if form == "q4_k":
            files[-1] = with_q4_k(files[-1], folder.with_suffix(".q4_k.gguf"))
    assert far(CASES, folders, files, form) == {}


@pytest.mark.parametrize("form", ["f16", "q8_0"])
def test_settings_beside_the_usual_are_computed(form: str, tmp_path: Path) -> None:
    folders, files = [], []
    for number, (kind, settings) in enumerate(OTHER_SETTINGS.values()):
        folders.append(folder_with(kind, settings, tmp_path / str(number)))
        files.append(folders[-1].with_suffix(".gguf"))
        write_gguf(folders[-1], files[-1], weight_type=form)
    assert far(OTHER_SETTINGS, folders, files, form) == {}


TEXTS = (
    "A small model, 42 1234 from — records.",
    " it's IT'S we'll 1999's\n\n\n ok\t\tx",
    "  two  spaces   three ",
    "ünï 你好 🙂 é\r\n-- != ...()",
    "<|user|>The end</s> of<|over|>\n it <s> twice",
    "[PAD464] [PAD466] <0x0A> ▁ Ġ",
    "x",
)
CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ '<|user|>' if m.role == 'user' else '' }}{{ m.content }}<|over|>\n"
    "{% endfor %}{% if add_generation_prompt %}answer: {% endif %}"
)
MESSAGES = [{"role": "user", "content": "A small model"}]
TOKENIZERS: dict[str, dict[str, Any]] = {
    **{f"{cut}, a begin token": {"cut": cut, "adds_bos": True} for cut in CUTS},
    **{f"{cut}, none": {"cut": cut, "adds_bos": False} for cut in CUTS},
    "Llama 2": {"adds_space": True},
    "Gemma": {"adds_space": False},
    "without a begin token": {"adds_bos": False},
    "Phi-3": {"strips": True},
}


def with_tokenizer(case: str, folder: Path) -> Path:
    """A tiny llama with a tokenizer, rows more than it has ids, and a chat template that writes the begin token."""
    settings = dict(TOKENIZERS[case])
    made = (
        byte_level(folder, settings.pop("cut"), **settings) if "cut" in settings else sentencepiece(folder, **settings)
    )
    rows = len(AutoTokenizer.from_pretrained(made)) + 9
    ids = {"vocab_size": rows, "bos_token_id": 1, "eos_token_id": [2, 4, 5], "pad_token_id": None}
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **{**_SHARED, **ids})
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(made)
    (made / "chat_template.jinja").write_text(CHAT)
    return made


def test_texts_become_the_same_ids_and_conversations_the_same_prompts(tmp_path: Path) -> None:
    folders = [with_tokenizer(case, tmp_path / f"a phi-3 of {number}") for number, case in enumerate(TOKENIZERS)]
    jobs: list[dict[str, Any]] = []
    for number, folder in enumerate(folders):
        write_gguf(folder, tmp_path / f"{number}.gguf")
        jobs.append({"file": tmp_path / f"{number}.gguf", "texts": TEXTS, "messages": MESSAGES, "ends": [2, 3, 4, 5]})
    for case, folder, told in zip(TOKENIZERS, folders, ask(jobs), strict=True):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        for text, found in zip(TEXTS, told["texts"], strict=True):
            assert found == tokenizer(text).input_ids, (case, text)
        adds_bos = TOKENIZERS[case].get("adds_bos", True)
        assert (told["bos"], told["eos"], told["adds_bos"], told["adds_eos"]) == (1, 2, adds_bos, False), case
        assert told["ends"] == [2, 4, 5], case
        assert told["words"] == len(tokenizer) + 9
        assert told["template"] == CHAT
        prompt = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
        assert told["prompt"] == tokenizer(prompt, add_special_tokens=False).input_ids, case


NEW = 24
QUESTION = [{"role": "user", "content": "What is a list in Python? Answer in two sentences."}]
NUMBERED = "A list, 42 1234 it's\n\n  x"


def real(variable: str) -> Path:
    if not os.environ.get(variable):
        what = "as a folder" if variable == "SMOLLM2" else "as a GGUF file"
        pytest.skip(f"{variable} names SmolLM2-135M-Instruct {what}")
    return Path(os.environ[variable])


def compare(file: Path, model: Any, form: str, tokenizer: Any) -> None:
    """Ask llama.cpp and transformers the same question, with the same weights."""
    prompt = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt).input_ids
    question = {"ids": ids, "new": NEW, "texts": [prompt, NUMBERED], "messages": QUESTION, "most": NEW, "room": 256}
    (told,) = ask([{"file": file, **question}], positions=16)  # each is told with all of 49,152 ids
    assert told["texts"] == [ids, tokenizer(NUMBERED).input_ids]
    assert told["prompt"] == ids
    assert told["template"] == tokenizer.chat_template
    assert (told["bos"], told["eos"], told["adds_bos"]) == (1, 2, False)
    # Of the Q4_1 file, llama.cpp also rounds the sums of a block's activations, to float16.
    assert excess(told["log_probs"], model, form, ids, 2.0 if form == "q4_1" else _AS_FAR) is None
    new = told["new"]
    greedy = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": 2, "pad_token_id": 2}
    expected = model.generate(torch.tensor([ids]), **greedy)[0, len(ids) :].tolist()
    if form == "q4_1":
        # Two tokens are as likely but for llama.cpp's rounding of this type: each one that it chose is the likeliest
        # within what that explains.
        text = [*ids, *new[:-1]]
        exact, rounded = (logits_of(model, form, text, rounds=rounds)[len(ids) - 1 :] for rounds in (False, True))
        behind = exact.max(-1) - exact[np.arange(len(new)), new]
        assert behind.max() <= 4 * np.sqrt(np.square(rounded - exact).mean()), behind
        assert len(new) > NEW // 2
    else:
        assert new == expected
    assert told["answer"] == tokenizer.decode(new).partition("<|im_end|>")[0]


@pytest.mark.parametrize("form", ["f16", "bf16", "q8_0"])
def test_a_real_chat_model_answers_in_llama_cpp_as_in_transformers(form: str, tmp_path: Path) -> None:
    folder, file = real("SMOLLM2"), tmp_path / "model.gguf"
    assert export.main([str(folder), "--format", "gguf", "--type", form, "--out", str(file)]) == 0
    compare(file, stored(folder, form), form, AutoTokenizer.from_pretrained(folder))


def test_a_real_file_is_read_as_llama_cpp_reads_it() -> None:
    file = real("SMOLLM2_GGUF")
    folder = resolve_model(file)
    model = load_causal_lm(folder, dtype=torch.float32)
    compare(file, model, "q4_1", AutoTokenizer.from_pretrained(folder))


def test_the_pages_line_for_python_answers(tmp_path: Path) -> None:
    lines = (ROOT / "docs/from-file-to-ollama.md").read_text(encoding="utf-8").splitlines()
    (line,) = [line.strip() for line in lines if "import xllamacpp" in line]
    file = tmp_path / "run/ollama/model-q8_0.gguf"
    file.parent.mkdir(parents=True)
    write_gguf(DEMO_TEACHER, file, weight_type="q8_0")
    command = line.replace("python", python_with_llama_cpp(), 1)
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) > 3
