"""Loading a whole model and its tokenizer.

The weights come from safetensors or GGUF files only: a pickle can run any code. A model whose files do not fill all of
its weights is refused, because transformers would make the rest up at random and only log it. Knows nothing of records
or training.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from engine.errors import ModelError
from engine.machine.out_of_memory import is_out_of_memory, tells_out_of_memory
from engine.machine.products import use_products
from engine.machine.torch_device import kind_of
from engine.model_files.vocabulary import read_chat_template
from engine.model_files.weight_files import is_decoded, model_of
from engine.models.checkpoint import Checkpoint
from engine.models.faithful import load_faithful
from engine.models.meta import causal_lm_class, leave_weights_alone, read_config

UNUSABLE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    ArithmeticError,
    ImportError,
    StrictDataclassError,
)
"""Exceptions of transformers for a folder that is not a model, or whose config.json is invalid."""


def load_tokenizer(
    folder: Path, *, trust_remote_code: bool = False, on_note: Callable[[str], None] | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer in a model's folder, which reads text as its tokenizer.json says; nothing is downloaded.

    Args:
        folder: the model's.
        trust_remote_code: whether a tokenizer may bring code.
        on_note: called where transformers' own choice of a class would have read text otherwise.

    Raises:
        ModelError: there is none that transformers can load, or none that keeps to tokenizer.json.
    """
    try:
        with quiet():
            tokenizer, note = load_faithful(
                lambda: AutoTokenizer.from_pretrained(
                    folder, local_files_only=True, trust_remote_code=trust_remote_code
                ),
                folder,
            )
        if not tokenizer.chat_template:  # transformers reads chat_template.json for processors of pictures alone
            tokenizer.chat_template = read_chat_template(folder)
        if note and on_note is not None:
            on_note(note)
        return tokenizer
    except ModelError:
        raise
    except Exception as error:  # the tokenizers library raises no narrower one for a file that it cannot read
        raise ModelError(
            f"The tokenizer in {folder} cannot be loaded.",
            first_sentence(error),
            "Download or save the tokenizer again.",
        ) from error


def load_causal_lm(
    folder: Path, *, dtype: torch.dtype, device: torch.device | str = "cpu", trust_remote_code: bool = False
) -> PreTrainedModel:
    """A causal language model in evaluation mode, all weights from the folder's files.

    The model is always built in main memory, where weights that are stored in ``dtype`` are mapped pages of the file,
    and moved from there one parameter after the other. transformers' own ``device_map`` needs accelerate, and takes
    the whole model's size from the device's allocator at once. Quantised weights are dequantised one by one.

    Args:
        folder: as written by ``save_pretrained``.
        dtype: that the weights are converted to, tensor by tensor.
        device: where they go.
        trust_remote_code: whether code out of the folder may run.

    Raises:
        ModelError: transformers does not know the model, or the files do not fill it.
        MemoryError: there was no room for a weight while it was converted.
    """
    weights = _read_plainly(folder, dtype) if is_decoded(folder) else None
    model = _load_in_main_memory(folder, dtype, trust_remote_code, weights)
    use_products(model)
    return model if kind_of(torch.device(device)).is_host else model.to(device)


# Errors of file systems or limits when transformers maps all shards at once: the file system cannot map files (some
# FUSE and network file systems, folders shared with a virtual machine), or a process may have fewer open.
_NOT_MAPPED = re.compile(r"\(?os error (1|13|19|22|24|38|95)\b|Errno 24\]")


def cannot_be_mapped(error: BaseException) -> bool:
    """Whether a model could not be loaded because its files cannot be mapped into memory, or not all at once."""
    return _NOT_MAPPED.search(str(error)) is not None


def _load_in_main_memory(
    folder: Path, dtype: torch.dtype, trust_remote_code: bool, weights: dict[str, Tensor] | None = None
) -> PreTrainedModel:
    try:
        with quiet():
            given: dict[str, Any] = {
                "dtype": dtype,
                "generation_config": GenerationConfig(),  # the file's is not needed, and one that is invalid raises
                "ignore_mismatched_sizes": True,  # told below, in one sentence
                "output_loading_info": True,
            }
            config = read_config(folder, trust_remote_code=trust_remote_code)
            if weights is None:
                model, loading = AutoModelForCausalLM.from_pretrained(
                    folder,
                    config=config,
                    use_safetensors=True,
                    local_files_only=True,
                    trust_remote_code=trust_remote_code,
                    **given,
                )
            else:  # transformers takes weights in place of a folder, never both
                kind = causal_lm_class(config, trust_remote_code=trust_remote_code)
                model, loading = kind.from_pretrained(None, config=config, state_dict=weights, **given)
    except (*UNUSABLE, RuntimeError) as error:
        if weights is None and cannot_be_mapped(error):
            model = None  # read plainly below, when this error has let go of the files
        elif is_out_of_memory(error):
            raise  # says nothing of the model
        else:
            swallowed = _conversion_errors(error)
            if tells_out_of_memory(swallowed):
                raise MemoryError(f"a weight of {folder} could not be converted") from error
            raise ModelError(
                f"The model in {folder} cannot be loaded.",
                first_sentence(error),
                "Choose a causal language model that this version of transformers knows.",
            ) from error
    if model is None:
        return _load_in_main_memory(folder, dtype, trust_remote_code, _read_plainly(folder, dtype))
    unfilled = sorted({*loading["missing_keys"], *(name for name, *_shapes in loading["mismatched_keys"])})
    if unfilled:
        raise ModelError(
            f"The files of {model_of(folder)} do not hold {unfilled[0]} in the shape that its configuration asks for"
            + (f", nor {len(unfilled) - 1} more tensors." if len(unfilled) > 1 else "."),
            f"{type(model).__name__} would start with random weights there.",
            "Download or save the model again.",
        )
    leave_weights_alone(model)
    return model.eval()


def _read_plainly(folder: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """All weights of a folder in memory of this process's own; no file is mapped or stays open.

    They are as they are stored, and matrices that had to be dequantised in ``dtype``: none is there twice.
    """
    checkpoint, is_elsewhere = Checkpoint(folder), is_decoded(folder)
    try:
        weights = {}
        for name, info in checkpoint.tensors.items():
            is_matrix = is_elsewhere and len(info.shape) > 1 and checkpoint.dtype(name).is_floating_point
            weights[name] = torch.empty(info.shape, dtype=dtype if is_matrix else checkpoint.dtype(name))
            checkpoint.read(name, weights[name])
        return weights
    finally:
        checkpoint.close()


def _conversion_errors(error: BaseException) -> str:
    """Return the reason of a failed conversion of weights, from the first error.

    transformers catches every exception there, keeps its text, and raises another one that is not chained to it
    (``core_model_loading.log_conversion_errors`` in 5.20 to 5.24). The texts are still in the frame that raised. This
    can go when transformers chains the errors.
    """
    for frame, _line in traceback.walk_tb(error.__traceback__):
        found = getattr(frame.f_locals.get("loading_info"), "conversion_errors", None)
        if found:
            return "\n".join(map(str, dict(found).values()))
    return ""


@contextmanager
def quiet() -> Iterator[None]:
    """Loading draws a bar and a report on standard error, where a screen may be; what matters of it is raised here."""
    shown, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shown:
            transformers_logging.enable_progress_bar()


def first_sentence(error: Exception) -> str:
    """The first line of what a library said (with the second, where that is announced), as a sentence."""
    if isinstance(error, KeyError) and len(error.args) == 1:
        return f"the name {error.args[0]!r} is unknown."  # its text is the name alone
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = " ".join(lines[:2]) if lines and lines[0].endswith(":") else lines[0] if lines else type(error).__name__
    return said.rstrip(".") + "."
