"""The student opens in transformers 4.57 and in the oldest supported 5.x, with the same ids and the same logits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from engine.model_files.spec import read_spec
from engine.models.load import load_causal_lm, load_tokenizer
from engine.models.meta import read_config
from engine.student.export import export_student
from tests.other_transformers import ask, other_transformers
from tests.tiny import VOCAB_SIZE, tiny_tokenizer, tiny_tokenizer_folder

pytestmark = pytest.mark.slow

TEXT = " river  stone\n\tlamp 42 ünï"
IDS = list(range(2, 50))
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONGROPE = {"type": "longrope", "short_factor": [1.0, 1.1], "long_factor": [2.0, 3.0]}
SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, another base": ("llama", {"rope_theta": 1e6, "tie_word_embeddings": True}),
    "llama, padded": ("llama", {"vocab_size": VOCAB_SIZE + 24, "rope_theta": 5e5}),
    "llama, linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 2e4}),
    "llama, linear in older words": ("llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    "llama, dynamic": ("llama", {"rope_scaling": DYNAMIC, "max_position_embeddings": 32}),
    "llama, yarn": ("llama", {"rope_scaling": YARN, "rope_theta": 1e6}),
    "llama, llama3": ("llama", {"rope_scaling": LLAMA3, "rope_theta": 5e5}),
    "llama, wide heads": ("llama", {"head_dim": 16, "attention_bias": True}),
    "qwen2": ("qwen2", {"rope_theta": 1e6, "tie_word_embeddings": True, "vocab_size": VOCAB_SIZE + 24}),
    "qwen2, yarn": ("qwen2", {"rope_scaling": YARN}),
    "qwen2, sliding": ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"rope_theta": 1e6, "head_dim": 16}),
    "mistral": ("mistral", {"rope_theta": 1e6, "sliding_window": None}),
    "mistral, sliding": ("mistral", {"sliding_window": 8}),
    "gemma2": ("gemma2", {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16}),
    "gemma3": ("gemma3_text", {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16}),
    "gemma3, linear": (
        "gemma3_text",
        {
            "head_dim": 16,
            "sliding_window": 8,
            "query_pre_attn_scalar": 16,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "rope_theta": 2e6,
            "rope_local_base_freq": 2e4,
            "num_hidden_layers": 6,
        },
    ),
    "phi3": ("phi3", {"rope_theta": 2e4, "resid_pdrop": 0.0, "embd_pdrop": 0.0}),
    "phi3, partial": ("phi3", {"partial_rotary_factor": 0.5, "resid_pdrop": 0.0}),
    "phi3, longrope": (
        "phi3",
        {"rope_scaling": LONGROPE, "original_max_position_embeddings": 32, "hidden_size": 16, "resid_pdrop": 0.0},
    ),
    "phi, partial": ("phi", {"partial_rotary_factor": 0.5, "rope_theta": 3e4}),
    "stablelm, partial": ("stablelm", {"partial_rotary_factor": 0.25, "rope_theta": 3e4}),
    "gpt_neox": ("gpt_neox", {"rotary_pct": 0.25, "rotary_emb_base": 30_000, "tie_word_embeddings": False}),
    "gpt_neox, whole": ("gpt_neox", {"rotary_pct": 1.0, "rotary_emb_base": 10_000}),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "opt": ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "smollm3": ("smollm3", {"rope_theta": 2e6, "no_rope_layer_interval": 2}),
    "olmo2": ("olmo2", {"rope_theta": 5e5}),
    "glm, partial": ("glm", {"partial_rotary_factor": 0.5, "head_dim": 8}),
    "granite": ("granite", {"rope_theta": 3e4, "embedding_multiplier": 2.0, "logits_scaling": 3.0}),
    "cohere": ("cohere", {"rope_theta": 3e4}),
    "starcoder2": ("starcoder2", {"rope_theta": 3e4, "residual_dropout": 0.0, "embedding_dropout": 0.0}),
}  # fmt: skip

MAKE = """
import json, sys, torch
from pathlib import Path
from transformers import AutoConfig, AutoModelForCausalLM
out, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
for number, (kind, values) in enumerate(cases):
    torch.manual_seed(number)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **values)).save_pretrained(out / str(number))
"""

READ = """
import json, sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer
from safetensors.torch import save_file
out, folders, ids, text = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4]
logits, tokens = {}, {}
for folder in folders:
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        logits[folder] = model.eval()(torch.tensor([ids])).logits[0].contiguous()
    if sys.argv[5] == "with tokenizer":
        tokens[folder] = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
save_file(logits, out)
print(json.dumps(tokens))
"""


def write_old_tokenizer(folder: Path) -> None:
    """The tokenizer's files as transformers 4 writes them."""
    shutil.copyfile(tiny_tokenizer_folder() / "tokenizer.json", folder / "tokenizer.json")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": ["<|pad|>"],
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|pad|>",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


def exported(source: Path, folder: Path) -> torch.Tensor:
    """Export what is loaded from a folder, and return its logits here.

    Attention is computed in the one way that all releases have; which one they choose differs (Gemma 2).
    """
    model = load_causal_lm(source, dtype=torch.float32)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        logits = model(torch.tensor([IDS])).logits[0].clone()
    export_student(model, read_spec(source), folder, "# card\n")
    return logits


def values_of(kind: str, values: dict[str, Any]) -> dict[str, Any]:
    return {**({} if kind == "gpt2" else SIZES), **{k: SIZES[k] for k in ("vocab_size", "bos_token_id")}, **values}


@pytest.fixture(scope="module")
def old_sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each case as transformers 4.57 writes it."""
    out = tmp_path_factory.mktemp("old")
    cases = [[kind, values_of(kind, values)] for kind, values in CASES.values()]
    ask(other_transformers("4.57.3"), MAKE, out, json.dumps(cases))
    for number in range(len(cases)):
        write_old_tokenizer(out / str(number))
    return {name: out / str(number) for number, name in enumerate(CASES)}


@pytest.fixture(scope="module")
def new_sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each case as this transformers writes it."""
    out = tmp_path_factory.mktemp("new")
    for number, (kind, values) in enumerate(CASES.values()):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)
            config = AutoConfig.for_model(kind, **json.loads(json.dumps(values_of(kind, values))))
            AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(out / str(number))
        tiny_tokenizer().save_pretrained(out / str(number))
    return {name: out / str(number) for number, name in enumerate(CASES)}


@pytest.mark.parametrize("written_by", ["transformers 4", "transformers 5"])
@pytest.mark.parametrize("version", ["4.57.3", "5.20.0"])
def test_every_reader_computes_the_same(
    tmp_path: Path, version: str, written_by: str, request: pytest.FixtureRequest
) -> None:
    from safetensors.torch import load_file

    is_old = written_by == "transformers 4"
    sources = request.getfixturevalue("old_sources" if is_old else "new_sources")
    students = {name: tmp_path / f"s{number}" for number, name in enumerate(sources)}
    here = {name: exported(source, students[name]) for name, source in sources.items()}
    opens_tokenizer = is_old or version != "4.57.3"
    tokens = json.loads(
        ask(
            other_transformers(version),
            READ,
            *(tmp_path / "logits", json.dumps([str(folder) for folder in students.values()]), json.dumps(IDS), TEXT),
            "with tokenizer" if opens_tokenizer else "without",
        )
    )
    there = load_file(tmp_path / "logits")
    wrong = {}
    for name, folder in students.items():
        difference = (there[str(folder)] - here[name]).abs().max().item() / here[name].abs().max().item()
        if difference > 1e-5:
            wrong[name] = difference
        if opens_tokenizer:
            assert tokens[str(folder)] == tiny_tokenizer()(TEXT)["input_ids"], name
    assert not wrong


def test_files_that_came_in_are_passed_on_and_read_the_same_here(
    tmp_path: Path, old_sources: dict[str, Path], new_sources: dict[str, Path]
) -> None:
    for number, source in enumerate((*old_sources.values(), *new_sources.values())):
        folder = tmp_path / str(number)
        logits = exported(source, folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            assert (folder / name).read_bytes() == (source / name).read_bytes()
        again = load_causal_lm(folder, dtype=torch.float32)
        again.set_attn_implementation("eager")
        with torch.no_grad():
            assert torch.equal(again(torch.tensor([IDS])).logits[0], logits)
        assert load_tokenizer(folder)(TEXT)["input_ids"] == tiny_tokenizer()(TEXT)["input_ids"]
        assert described(source).items() <= described(folder).items()
        assert read_spec(folder).vocab_size == read_spec(source).vocab_size


def described(folder: Path) -> dict[str, Any]:
    """A configuration as it is read, without what an export may change."""
    may_change = {"dtype", "use_cache", "transformers_version", "_name_or_path"}
    told = read_config(folder).to_dict()
    ids = {key for key in ("bos_token_id", "eos_token_id", "pad_token_id") if isinstance(told.get(key), int)}
    may_change |= {key for key in ids if told[key] >= told["vocab_size"]}  # the embedding has no row for it
    return {key: json.dumps(value, sort_keys=True) for key, value in told.items() if key not in may_change}
