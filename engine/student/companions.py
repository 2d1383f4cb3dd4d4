"""Files in the student's folder other than its weights, made from the files of its initial model.

The tokenizer's files and the licence are copied byte for byte: files that the library writes open only in its newest
releases. config.json keeps its content, and names rotary positions and dtype with the keys of transformers 4 and of
transformers 5, so that both build the same model. generation_config.json is copied if it is valid; contradictory
settings are removed, and the tokens that end the student's answers are added, as generation would not stop without
them. Ids of special tokens that the embedding has no row for are replaced. Knows nothing of weights and training.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import GenerationConfig, PretrainedConfig

from engine.model_files.headers import read_json
from engine.model_files.vocabulary import Vocabulary, read_vocabulary
from engine.models.derive import companions

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"

# Classes of a tokenizer that transformers 4 does not have.
_NEW_CLASSES = ("TokenizersBackend", "SentencePieceBackend", "PythonBackend")
# Order of a generation configuration's settings: those that others need come first.
_FIRST = ("bos_token_id", "eos_token_id", "pad_token_id", "do_sample", "num_beams", "return_dict_in_generate")
# The names of rotary positions before transformers 5, in the families that had names of their own.
_OLD_NAMES = {
    "gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
    "gpt_neox_japanese": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
}
_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Kinds of rotary positions that transformers 4 has; a newer one (Gemma 4's) makes a newer model.
_OLD_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
# Phi-3's class in transformers 4 takes these three and no other.
_PHI3_SCALING = ("type", "short_factor", "long_factor")


def write_companions(
    source: Path, folder: Path, config: PretrainedConfig, dtype: torch.dtype, end_ids: Collection[int] = ()
) -> list[str]:
    """Write config.json, the tokenizer's files, generation_config.json and the licence into the student's folder.

    Args:
        source: the folder of the model that the student began as.
        folder: the student's, which is there.
        config: as transformers reads the source's config.json.
        dtype: that the weights are stored in.
        end_ids: tokens with which an answer or a text of the training data ends.

    Returns:
        Notes for the user, as sentences.
    """
    for file in companions(source):
        shutil.copyfile(file, folder / file.name)
    written = compatible_config(read_json(source / CONFIG), config, dtype)
    rows = written.get("vocab_size")
    written, notes = _with_known_ids(written, rows, source / CONFIG, lambda: read_vocabulary(source))
    _write_settings(folder / CONFIG, written)
    generation = folder / GENERATION_CONFIG
    notes += _pass_on_generation_config(source / GENERATION_CONFIG, generation)
    if generation.is_file():
        raw = read_json(generation)
        kept, told = _with_known_ids(raw, rows, source / GENERATION_CONFIG, lambda: read_vocabulary(source))
        notes += told
        if told:
            _write_settings(generation, kept)
    _end_with(end_ids, generation, written)
    return notes


def _with_known_ids(
    settings: Mapping[str, Any], rows: object, file: Path, vocabulary: Callable[[], Vocabulary]
) -> tuple[dict[str, Any], list[str]]:
    """Settings whose special tokens have rows in the embedding, and notes about those that had none.

    Generation would never stop at such a token, and programs that look up its row fail.

    Args:
        settings: of a configuration.
        rows: of the embedding; nothing is changed where this is no number.
        file: that the settings are from.
        vocabulary: reads the tokenizer, whose own token takes the place of an id without a row.
    """
    if not isinstance(rows, int):
        return dict(settings), []
    kept, notes = dict(settings), []
    for key in _SPECIAL_IDS:
        given = settings.get(key)
        named = _ids(given)
        known = [number for number in named if 0 <= number < rows]
        if known == named:
            continue
        own = {"bos_token_id": vocabulary().bos_id, "eos_token_id": vocabulary().eos_id}.get(key)
        instead = known or ([own] if own is not None and own < rows else [])
        kept[key] = instead if isinstance(given, list) and len(instead) > 1 else instead[0] if instead else None
        notes.append(
            f"{file} says {key} = {given}, and the model has {rows:,} tokens: the student's {file.name} says "
            f"{'null' if kept[key] is None else kept[key]}."
        )
    return kept, notes


def compatible_config(raw: Mapping[str, Any], config: PretrainedConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Return a config.json that transformers 4 and 5 read as the same model.

    Args:
        raw: the config.json that came in; what it says stays.
        config: the same, as this transformers reads it. Values that ``raw`` leaves to a default are spelled out, since
            defaults differ between releases.
        dtype: that the weights are stored in.
    """
    known: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    own = {key: value for key, value in known.items() if key not in PretrainedConfig().to_dict()}
    name = str(dtype).removeprefix("torch.")
    told = {"dtype": name, "torch_dtype": name, "use_cache": True}
    if isinstance(known.get("tie_word_embeddings"), bool):
        told["tie_word_embeddings"] = known["tie_word_embeddings"]
    written = {**own, **raw, **told}
    written.pop("_name_or_path", None)  # a folder of this machine
    for key, value in _old_rope(str(raw.get("model_type")), config).items():
        written.setdefault(key, value)
    # Where this transformers would read the old names as something else, they stay out.
    return written if _same_rope(written, config) else {**own, **raw, **told}


def _old_rope(model_type: str, config: PretrainedConfig) -> dict[str, Any]:
    """Rotary positions in the words of transformers 4; nothing where there are none, or none that it had."""
    parameters = getattr(config, "rope_parameters", None)
    if not isinstance(parameters, dict) or not parameters:
        return {}
    if "rope_theta" in parameters:
        names = _OLD_NAMES.get(model_type, {})
        old = {
            names.get(key, key): parameters[key] for key in ("rope_theta", "partial_rotary_factor") if key in parameters
        }
        return {**old, **_old_scaling(model_type, parameters, config)}
    whole, local = parameters.get("full_attention"), parameters.get("sliding_attention")
    if not isinstance(whole, dict) or not isinstance(local, dict):
        return {}
    if whole.get("rope_type", "default") not in _OLD_TYPES:
        return {}
    old = {"rope_theta": whole.get("rope_theta"), **_old_scaling(model_type, whole, config)}
    if local.get("rope_theta") != whole.get("rope_theta"):
        old["rope_local_base_freq"] = local.get("rope_theta")
    return old


def _old_scaling(model_type: str, parameters: Mapping[str, Any], config: PretrainedConfig) -> dict[str, Any]:
    if parameters.get("rope_type", "default") == "default":
        return {"rope_scaling": None}
    scaling = {key: value for key, value in parameters.items() if key not in ("rope_theta", "partial_rotary_factor")}
    if model_type != "phi3":
        return {"rope_scaling": scaling}
    original = scaling.get(
        "original_max_position_embeddings", getattr(config, "original_max_position_embeddings", None)
    )
    scaling["type"] = scaling["rope_type"]
    return {
        "rope_scaling": {key: scaling.get(key) for key in _PHI3_SCALING},
        "original_max_position_embeddings": original,
    }


def _same_rope(written: Mapping[str, Any], config: PretrainedConfig) -> bool:
    with contextlib.suppress(TypeError, ValueError, KeyError, AttributeError):
        again = type(config).from_dict(_with_infinities(json.loads(json.dumps(written))))
        wanted = getattr(config, "rope_parameters", None)
        return bool(_plain(getattr(again, "rope_parameters", None)) == _plain(wanted))
    return False


def _with_infinities(value: Any) -> Any:
    """Numbers for ``{"__float__": "Infinity"}``, transformers' form of those that JSON does not have (Mamba 2's)."""
    if isinstance(value, list):
        return [_with_infinities(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"__float__"} and isinstance(value["__float__"], str):
        return float(value["__float__"])
    return {key: _with_infinities(entry) for key, entry in value.items()}


def _plain(parameters: Any) -> Any:
    """Rotary parameters without keys that repeat another one."""
    if not isinstance(parameters, dict):
        return parameters
    return {key: _plain(value) for key, value in parameters.items() if key not in ("type", "partial_rotary_factor")} | {
        "partial_rotary_factor": parameters.get("partial_rotary_factor", 1.0)
    }


def valid_generation_settings(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a generation configuration that do not contradict each other, in their original order."""
    kept: dict[str, Any] = {}
    if _is_valid(raw):
        return dict(raw)
    order = [key for key in _FIRST if key in raw] + [key for key in raw if key not in _FIRST]
    for key in order:
        if _is_valid({**kept, key: raw[key]}):
            kept[key] = raw[key]
    return {key: value for key, value in raw.items() if key in kept}


def _is_valid(settings: Mapping[str, Any]) -> bool:
    try:
        GenerationConfig.from_dict(json.loads(json.dumps(settings))).validate(strict=True)
    except (ValueError, TypeError, AttributeError, KeyError):
        return False
    return True


def _pass_on_generation_config(source: Path, target: Path) -> list[str]:
    target.unlink(missing_ok=True)
    if not source.is_file():
        return []
    try:
        raw = json.loads(source.read_bytes())
    except (ValueError, RecursionError):
        raw = None
    if not isinstance(raw, dict):
        return [f"{source} is not a JSON object: the student has none, and generates as config.json says."]
    kept = valid_generation_settings(raw)
    dropped = [key for key in raw if key not in kept]
    if not dropped:
        shutil.copyfile(source, target)
        return []
    _write_settings(target, kept)
    told = ", ".join(f"{key} = {raw[key]!r}" for key in dropped)
    return [f"The student's {GENERATION_CONFIG} is without {told}: transformers refuses {source} with it."]


def _end_with(end_ids: Collection[int], path: Path, config: Mapping[str, Any]) -> None:
    """Add the tokens that end an answer to generation_config.json; ``config`` is the student's config.json."""
    written = read_json(path) if path.is_file() else None
    # Where there is no file, transformers generates as config.json says.
    named = _ids((config if written is None else written).get("eos_token_id"))
    ends = [*named, *sorted(set(end_ids) - set(named))]
    if ends == named:
        return
    if written is None:
        others = {name: config.get(name) for name in ("bos_token_id", "pad_token_id")}
        written = {name: number for name, number in others.items() if isinstance(number, int)}
    written["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    _write_settings(path, written)


def _write_settings(path: Path, settings: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _ids(value: object) -> list[int]:
    return [number for number in (value if isinstance(value, list) else [value]) if isinstance(number, int)]


def versions_told(folder: Path) -> str:
    """Return the releases of transformers that open the student, for its card."""
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    is_new = settings.get("tokenizer_class") in _NEW_CLASSES or isinstance(settings.get("extra_special_tokens"), list)
    need = "need transformers 5, with which they were written" if is_new else "open in transformers 4 and 5"
    return (
        f"Written with transformers {transformers.__version__}. config.json is in the words of transformers 4.57 and "
        f"of transformers 5. The tokenizer's files were passed on unchanged, and {need}."
    )
