"""LoRA adapters as peft saves them, merged into their base model tensor by tensor as it is read.

An adapter's folder holds two small matrices for each weight that it changes: the weight becomes ``W + scale · B A``
(Hu et al. 2021, https://arxiv.org/abs/2106.09685, section 4.1). Whole weights that an adapter brings along
(``modules_to_save``, biases) take the place of the base model's. Reads headers at first, and rows of the matrices when
a weight's rows are asked for; a merged copy is never stored. None of peft's code runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import ModelError, shown_value
from engine.model_files.headers import DTYPES, NUMPY_FLOATS, ReadBytes, TensorInfo, read_json, read_safetensors_file
from engine.model_files.python_line import path_literal, python_line
from engine.model_files.wrapper import text_tensors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KIND = "adapter"
"""Of the folders that stand for a base model with an adapter."""

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_WHOLE = ("model.safetensors", "model.safetensors.index.json")
_EMBEDDINGS = re.compile(r"(^|\.)(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings)\.weight$")
_HEAD = "lm_head.weight"
_MATRICES = re.compile(r"(.+)\.lora_(embedding_)?([AB])(?:\.default)?(?:\.weight)?")
_CONV1D = re.compile(r"\.(c_attn|c_proj|c_fc|q_attn)\.weight$")
_CONV1D_TYPES = ("gpt2", "openai-gpt", "decision_transformer", "imagegpt")
# Rows whose product is made together, at multiples of this: a row is the same whichever others are asked for.
_ROWS = 64

# Settings of adapter_config.json with which the two matrices alone do not give the weights: how they are named.
_REFUSED: dict[str, str] = {
    "use_dora": "DoRA, which scales the merged weights by magnitudes",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "alora_invocation_tokens": "aLoRA, which acts only behind its invocation tokens",
    "arrow_config": "Arrow, which chooses between adapters",
    "kasa_config": "KaSA, which changes the base model's weights",
    "layer_replication": "layer replication",
    "lora_bias": "biases on its matrices (lora_bias)",
    "megatron_config": "Megatron's layers",
    "target_parameters": "parameters that are no modules (target_parameters)",
    "trainable_token_indices": "single rows of the embedding (trainable_token_indices)",
    "ensure_weight_tying": "ensure_weight_tying",
}
# These begin from changed base weights: the matrices alone do not define the model.
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


class BaseMissing(ModelError):
    """The base model of an adapter is not on this machine.

    Attributes:
        base: its Hugging Face id or path, as the adapter names it.
        folder: of the adapter.
    """

    def __init__(self, folder: Path, base: str, reason: ModelError) -> None:
        merged = folder.resolve().parent
        super().__init__(
            f"The adapter in {folder} changes the model {shown_value(base)}, which cannot be used.",
            f"{reason.what} {reason.why}".strip(),
            # A student's folder holds its adapter too, which names a base of another machine or folder.
            f"Name {merged} instead: it is the same model, with an adapter merged in."
            if (merged / "config.json").is_file()
            else f"{reason.todo} The base's place stands in {folder / CONFIG} as base_model_name_or_path.",
        )
        self.base = base
        self.folder = folder


class AdapterCircle(ModelError):
    """An adapter is its own base model, or that of its base."""


@dataclass(frozen=True)
class Adapter:
    """An adapter, described.

    Attributes:
        folder: that holds it.
        base: its base model, as adapter_config.json names it.
        config: its adapter_config.json.
    """

    folder: Path
    base: str
    config: Mapping[str, Any]

    @property
    def files(self) -> list[Path]:
        """Its two files."""
        return [self.folder / CONFIG, self.folder / WEIGHTS]


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model of its own."""
    return (folder / CONFIG).is_file() and not any((folder / name).is_file() for name in _WHOLE)


def read_adapter(folder: Path) -> Adapter:
    """Describe an adapter's folder.

    Raises:
        ModelError: it is an adapter that cannot be merged, or a file is missing or damaged.
    """
    path = folder / CONFIG
    config = read_json(path)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ModelError(
            f"{folder} holds an adapter of the type {shown_value(kind)}." if kind else f"{path} names no peft_type.",
            "Only LoRA adapters can be merged into their base model here.",
            _merge_with_peft(folder),
        )
    task = config.get("task_type")
    if task not in (None, "CAUSAL_LM"):
        raise ModelError(
            f"The adapter in {folder} is for the task {shown_value(task)}.",
            "Only causal language models can be used.",
            "Choose an adapter whose task_type is CAUSAL_LM.",
        )
    for key, named in _REFUSED.items():
        if config.get(key) and not (key == "target_parameters" and _are_weights(config[key])):
            raise _not_merged(folder, named)
    begun = config.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(_CHANGE_THE_BASE):
        raise _not_merged(folder, f"a start from changed base weights (init_lora_weights: {shown_value(begun)})")
    if not (folder / WEIGHTS).is_file():
        pickled = any(folder.glob("adapter_model.bin"))
        raise ModelError(
            f"{folder} has no {WEIGHTS}.",
            "Its weights are a pickle (adapter_model.bin), which can run any code when it is opened."
            if pickled
            else "The download did not end, or files were removed.",
            "Load it with peft and save it again with save_pretrained."
            if pickled
            else "Download or save the adapter again.",
        )
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"{path} does not name the base model.",
            "An adapter is a change to another model's weights.",
            "Write that model's folder or Hugging Face id into base_model_name_or_path.",
        )
    if config.get("revision") not in (None, "", "main"):
        raise ModelError(
            f"The adapter in {folder} changes the revision {shown_value(config['revision'])} of {base}.",
            "Models are looked up by their main revision.",
            "Download that revision into a folder, and write the folder into base_model_name_or_path.",
        )
    return Adapter(folder, base, config)


def find_base(adapter: Adapter, resolve: Callable[[str], Path]) -> Path:
    """The folder of an adapter's base model.

    Args:
        adapter: whose base is wanted.
        resolve: the folder of a path or id; nothing is downloaded.

    Raises:
        BaseMissing: it is not on this machine, or cannot be read.
        AdapterCircle: the adapter is its own base, perhaps by way of others.
    """
    beside = adapter.folder / adapter.base
    try:
        base = resolve(adapter.base)
    except AdapterCircle:
        raise
    except ModelError as error:
        # A relative path is often meant from the adapter's own folder: they were saved side by side.
        if Path(adapter.base).is_absolute() or not beside.is_dir():
            raise BaseMissing(adapter.folder, adapter.base, error) from error
        base = resolve(str(beside))
    if (base / "config.json").is_file():
        return base
    no_model = ModelError(f"{base} has no config.json.", "", "The base of an adapter has to be a model.")
    raise BaseMissing(adapter.folder, adapter.base, no_model)


def plain_config(adapter: Adapter, base: Path, tensors: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """The config.json of the merged model.

    Args:
        adapter: the change.
        base: folder of the base model.
        tensors: of the base model.

    Raises:
        ModelError: the adapter does not fit the base model.
    """
    config = read_json(base / "config.json")
    merged = merged_tensors(adapter, tensors, config)
    embedding = next((info for name, info in merged.items() if _EMBEDDINGS.search(name)), None)
    if embedding is not None and "vocab_size" in config:
        config["vocab_size"] = embedding.shape[0]  # tokens may have been added
    if _HEAD in merged and _HEAD not in tensors:
        config["tie_word_embeddings"] = False
    return config


def merged_tensors(
    adapter: Adapter, base: Mapping[str, TensorInfo], config: Mapping[str, Any]
) -> dict[str, TensorInfo]:
    """The tensors of the base model with the adapter's changes.

    Args:
        adapter: the change.
        base: tensors of the base model.
        config: of the base model.

    Raises:
        ModelError: the adapter changes what the base model does not have, or has other shapes.
    """
    stored = _of_the_model(adapter)
    pairs: dict[tuple[str, bool], dict[str, TensorInfo]] = {}
    whole: dict[str, TensorInfo] = {}
    for name, info in stored.items():
        match = _MATRICES.fullmatch(name)
        if match is not None:
            pairs.setdefault((f"{match[1]}.weight", match[2] is not None), {})[match[3]] = info
        elif ".lora_" in name or "token_adapter" in name:
            raise _not_merged(adapter.folder, f"a tensor {shown_value(name)}")
        else:
            whole[name] = info
    if not pairs and not whole:
        raise ModelError(f"{adapter.folder / WEIGHTS} holds no tensors.", "", "Download or save the adapter again.")
    found = dict(base)
    head_is_embedding = _HEAD not in base and config.get("tie_word_embeddings") is not False
    embedding = next((name for name in base if _EMBEDDINGS.search(name)), None)
    for name, info in whole.items():
        found[_name_in(found, name, embedding, head_is_embedding, adapter)] = _replaced(name, info, found, adapter)
    for (name, is_embedding), matrices in pairs.items():
        if set(matrices) != {"A", "B"}:
            raise ModelError(
                f"{adapter.folder / WEIGHTS} holds one of the two matrices of {name}.",
                "The file is damaged.",
                "Download or save the adapter again.",
            )
        target = _name_in(found, name, embedding, head_is_embedding, adapter)
        weight = found.get(target) or base[embedding or target]
        is_turned = is_embedding or (config.get("model_type") in _CONV1D_TYPES and bool(_CONV1D.search(name)))
        found[target] = _merged(name, weight, matrices["A"], matrices["B"], adapter, is_turned)
    if (
        head_is_embedding
        and embedding is not None
        and _HEAD not in found
        and _is_apart(adapter, base, found, embedding)
    ):
        found[_HEAD] = base[embedding]
    return found


def _is_apart(
    adapter: Adapter, base: Mapping[str, TensorInfo], found: Mapping[str, TensorInfo], embedding: str
) -> bool:
    """Whether the adapter changes an embedding without the head that was the same.

    peft's own forward pass leaves the head as it was then. With added rows the two stay one (save_embedding_layers).
    """
    old, new = base[embedding], found[embedding]
    if new is old or new.shape != old.shape:
        return False
    saved = adapter.config.get("modules_to_save") or []
    return isinstance(new.decoder, MergedRows) or any(f".{name}." in f".{embedding}" for name in saved)


def _of_the_model(adapter: Adapter) -> dict[str, TensorInfo]:
    """The adapter's tensors by the names of the base model's modules."""
    stored = read_safetensors_file(adapter.folder / WEIGHTS)
    found = {}
    for name, info in stored.items():
        plain = name.removeprefix("base_model.model.").replace(".modules_to_save.default.", ".")
        found[plain.replace(".base_layer.", ".")] = info
    # An adapter of a wrapper for pictures names the text model's modules as the wrapper does.
    is_wrapped = any("language_model." in name or "text_model." in name for name in found)
    return text_tensors(found) if is_wrapped else found


def _name_in(tensors: Mapping[str, TensorInfo], name: str, embedding: str | None, tied: bool, adapter: Adapter) -> str:
    """The name of a changed weight in the base model's files, which may leave out the outer module's name."""
    if name in tensors or (name == _HEAD and tied and embedding is not None):
        return name
    inner = name.partition(".")[2]
    if inner in tensors:
        return inner
    raise ModelError(
        f"The adapter in {adapter.folder} changes {shown_value(name)}, which its base model {adapter.base} does not "
        "have.",
        "It was made for another model.",
        "Check base_model_name_or_path in adapter_config.json.",
    )


def _replaced(name: str, info: TensorInfo, tensors: Mapping[str, TensorInfo], adapter: Adapter) -> TensorInfo:
    """A whole weight that the adapter brings along."""
    old = tensors.get(name)
    is_table = bool(_EMBEDDINGS.search(name)) or name == _HEAD
    fits = old is None or old.shape == info.shape or (is_table and old.shape[1:] == info.shape[1:])
    if info.dtype not in DTYPES.values() or not fits:
        raise _does_not_fit(adapter, name, f"{info.shape} of {info.dtype}", "" if old is None else str(old.shape))
    return info


def _merged(
    name: str, weight: TensorInfo, a: TensorInfo, b: TensorInfo, adapter: Adapter, is_turned: bool
) -> TensorInfo:
    ours = (a.shape[-1], b.shape[0]) if is_turned else (b.shape[0], a.shape[-1])
    fits = len(a.shape) == len(b.shape) == 2 and 0 < a.shape[0] == b.shape[1] and ours == weight.shape
    if not fits or not {a.dtype, b.dtype} <= {*DTYPES.values()}:
        change = f"{b.shape} times {a.shape}" + (f" of {a.dtype}" if fits else "")
        raise _does_not_fit(adapter, name, change, str(weight.shape))
    decoder = MergedRows(weight, a, b, _scale(adapter, name, a.shape[0]), is_turned)
    return replace(weight, decoder=decoder, made_of=(*weight.made_of, a, b))


def _scale(adapter: Adapter, name: str, rank: int) -> float:
    """The factor of the product, as peft has it: ``alpha / r``, or ``alpha / √r`` with rslora.

    Source: peft, ``tuners/lora/layer.py``, ``update_layer``; patterns: ``utils/other.py``, ``get_pattern_key``.
    """
    module = name.removesuffix(".weight")
    alpha = adapter.config.get("lora_alpha", 8)
    for pattern, value in (adapter.config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ModelError(
            f"{adapter.folder / CONFIG} says lora_alpha = {shown_value(alpha)}.",
            "It must be a number.",
            "Download or save the adapter again.",
        )
    return alpha / math.sqrt(rank) if adapter.config.get("use_rslora") else alpha / rank


@dataclass(frozen=True, eq=False)
class MergedRows:
    """A :class:`engine.model_files.headers.Decoder` of a weight with its change.

    Args:
        weight: of the base model, plain or decoded.
        a: [rank, columns]; [rank, rows] where turned.
        b: [rows, rank]; [columns, rank] where turned.
        scale: of the product.
        is_turned: the weight is stored as the product's transpose (Conv1D, embeddings).
    """

    weight: TensorInfo
    a: TensorInfo
    b: TensorInfo
    scale: float
    is_turned: bool

    @property
    def name(self) -> str:
        """The base weight's format, and the change."""
        stored = self.weight.dtype if self.weight.decoder is None else self.weight.decoder.name
        return f"{stored} + {self.scale:.9g} LoRA"

    @property
    def step(self) -> int:
        """Numbers of the rows whose change is made together, and no fewer than the base weight's step."""
        rows = _ROWS * self.weight.shape[1]
        base = 1 if self.weight.decoder is None else self.weight.decoder.step
        return -(-base // rows) * rows

    def values(self, read: ReadBytes, first: int, count: int) -> NDArray[np.float32]:
        """Numbers ``first`` to ``first + count`` in the flat order."""
        import numpy as np

        columns = self.weight.shape[1]
        begin, end = first // columns, -(-(first + count) // columns)
        # Copied: what a decoder gives may be its own.
        found = np.array(_values(self.weight, read, first, count), dtype=np.float32)
        change = self._change(read, begin, end).reshape(-1)
        found += change[first - begin * columns : first - begin * columns + count]
        return found

    def _change(self, read: ReadBytes, begin: int, end: int) -> NDArray[np.float32]:
        """Rows of the scaled product: float32 [end - begin, columns]."""
        import numpy as np

        left, right = (self.a, self.b) if self.is_turned else (self.b, self.a)
        rank = self.a.shape[0]
        across = _values(right, read, 0, right.numel).reshape(right.shape)
        across = np.ascontiguousarray(across.T) if self.is_turned else across  # [rank, columns]
        low, high = begin // _ROWS * _ROWS, min(-(-end // _ROWS) * _ROWS, self.weight.shape[0])
        if self.is_turned:
            down = np.ascontiguousarray(_values(left, read, 0, left.numel).reshape(left.shape)[:, low:high].T)
        else:
            down = _values(left, read, low * rank, (high - low) * rank).reshape(high - low, rank)
        blocks = [down[start : start + _ROWS] @ across for start in range(0, high - low, _ROWS)]
        product: NDArray[np.float32] = np.concatenate(blocks)[begin - low : end - low]
        return product * np.float32(self.scale)


def _values(info: TensorInfo, read: ReadBytes, first: int, count: int) -> NDArray[np.float32]:
    """Numbers of a tensor, plain or decoded, as float32, flat."""
    import numpy as np

    if info.decoder is not None:
        return info.decoder.values(read, first, count)
    kind = np.dtype(NUMPY_FLOATS[info.dtype])
    values: NDArray[Any] = read(info.file, info.offset + first * kind.itemsize, count * kind.itemsize).view(kind)
    if info.dtype == "bfloat16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)


def _are_weights(target_parameters: object) -> bool:
    """Whether each is the weight of a module, as ``engine.student.adapter_file`` writes some."""
    return isinstance(target_parameters, list) and all(str(name).endswith(".weight") for name in target_parameters)


def _not_merged(folder: Path, named: str) -> ModelError:
    return ModelError(
        f"The adapter in {folder} uses {named}.",
        "Such an adapter cannot be merged tensor by tensor here.",
        _merge_with_peft(folder),
    )


def _does_not_fit(adapter: Adapter, name: str, ours: str, theirs: str) -> ModelError:
    return ModelError(
        f"The adapter in {adapter.folder} changes {shown_value(name)} by {ours}, and the weight in {adapter.base} is "
        f"{theirs or 'missing'}.",
        "It was made for another model.",
        "Check base_model_name_or_path in adapter_config.json.",
    )


def _merge_with_peft(folder: Path) -> str:
    code = (
        "from peft import AutoPeftModelForCausalLM as M; "
        f"M.from_pretrained({path_literal(folder)}).merge_and_unload()"
        f".save_pretrained({path_literal(f'{folder}-merged')})"
    )
    return (
        f"Merge it once with peft, and name the new folder: {python_line(code)} "
        "(then copy the tokenizer's files there)."
    )
