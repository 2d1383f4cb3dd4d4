"""Export of the student as a Hugging Face folder: weights, config, tokenizer and a model card, written atomically.

:func:`rehearse_export` tests all parts that need no weights before the teacher starts.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from engine.disk.fault import commit_point
from engine.disk.files import fsync_file, fsync_folder, no_room
from engine.errors import BadNumbers, FolderError, ModelError
from engine.model_files.spec import ModelSpec
from engine.models.load import UNUSABLE, first_sentence, quiet
from engine.models.meta import read_config
from engine.student.adapter import LowRankAdapter
from engine.student.adapter_file import ADAPTER, write_adapter, write_merged
from engine.student.companions import write_companions
from engine.student.rounding import round_parameters

_PIECE_ELEMENTS = 1 << 20
_FULL = ("os error 28", "os error 122", "No space left", "Disk quota exceeded")


def export_student(
    model: PreTrainedModel,
    source: ModelSpec,
    folder: Path,
    card: str,
    *,
    end_ids: Collection[int] = (),
    adapter: LowRankAdapter | None = None,
    base: str = "",
) -> list[str]:
    """Write ``folder`` for ``AutoModelForCausalLM`` and ``AutoTokenizer``; an existing one is replaced.

    The weights are stored in the format of the model that the student began as.

    Args:
        model: the student; its weights are converted in place.
        source: the model that it began as, whose tokenizer and configuration are passed on.
        folder: created, or replaced once the new one is complete.
        card: the text of its README.md.
        end_ids: tokens with which an answer or a text of the training data ends; generation stops at them.
        adapter: what was trained, where that is not the model itself. Its folder goes into the student's, and the
            student's weights are those of ``source`` with the adapter merged in, each in the format it is stored in.
        base: the name of the adapter's base model, for its configuration.

    Returns:
        Remarks for the user, as sentences; without those of :func:`rehearse_export`, which has reported them.

    Raises:
        BadNumbers: a weight is NaN or infinite; no file is written.
        DiskFull: no room; an existing folder is unchanged.
    """
    _check_finite(model.named_parameters() if adapter is None else adapter.parameters())
    temporary = _aside(folder)
    config = model.config
    model.config.use_cache = True  # it was off for training
    model.generation_config = GenerationConfig()  # the source's is passed on; writing one that is invalid raises
    dtype = stored_dtype(source)
    needed_bytes = sum(p.numel() for p in model.parameters()) * dtype.itemsize
    if adapter is not None:
        needed_bytes = source.file_bytes + 4 * adapter.num_parameters
    notes: list[str] = []
    with _told(temporary, folder, needed_bytes=needed_bytes):
        temporary.mkdir()  # here, as save_pretrained makes the run's folder again if it was deleted
        if adapter is None:
            round_parameters(model, dtype)
            model.to(dtype).save_pretrained(temporary)
        else:
            write_merged(adapter, source, temporary / "model.safetensors")
            notes += write_adapter(adapter, model, temporary / ADAPTER, base=base, source=source.path)
            fsync_folder(temporary / ADAPTER)
        write_companions(source.path, temporary, config, dtype, end_ids)
        for entry in temporary.glob("*.safetensors"):  # written for their owner alone, whatever the umask
            shutil.copymode(temporary / "config.json", entry)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        _publish(temporary, folder)
    commit_point("student-durable")
    return notes


def _check_finite(parameters: Iterable[tuple[str, Tensor]]) -> None:
    for name, parameter in parameters:
        if not _is_finite(parameter):
            raise BadNumbers(
                f"The student's weight {name} holds NaN or infinity.",
                "Such a student is useless, so it was not written.",
                "Start a new run with a smaller --learning_rate.",
            )


def _publish(temporary: Path, folder: Path) -> None:
    """Give a whole folder its name; an existing one goes aside first."""
    commit_point("student-written")
    for entry in temporary.rglob("*"):
        if entry.is_file():
            fsync_file(entry)
    fsync_folder(temporary)
    commit_point("student-synced")
    old = folder.with_name(f".{folder.name}.old.tmp")
    if folder.exists():
        folder.rename(old)
        commit_point("student-old-aside")
    temporary.rename(folder)
    commit_point("student-renamed")
    fsync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def stored_dtype(source: ModelSpec) -> torch.dtype:
    """The format in which a student's weights are stored: that of the model that it began as, if it is a float's."""
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(source.dtype, torch.float32)


def rehearse_export(source: ModelSpec, folder: Path) -> list[str]:
    """Write a student without its weights next to ``folder``, load it, and remove it.

    Args:
        source: the model that the student will begin as.
        folder: the student's, which need not exist.

    Returns:
        Notes about settings of the source that the student's files will not have.

    Raises:
        ModelError: transformers cannot write or load the student's files.
        FolderError: the student's folder cannot be made there.
    """
    if folder.exists() and not folder.is_dir():
        raise FolderError(f"{folder} is not a folder.", "The student is written there.", "Remove it.")
    temporary = _aside(folder)
    try:
        with quiet():
            config: PretrainedConfig = read_config(source.path, trust_remote_code=source.trust_remote_code)
            temporary.mkdir()  # as above
            config.save_pretrained(temporary)
            notes = write_companions(source.path, temporary, config, stored_dtype(source))
            AutoConfig.from_pretrained(temporary, local_files_only=True, trust_remote_code=source.trust_remote_code)
        return notes
    except PermissionError as error:
        raise FolderError(
            f"The student cannot be written to {folder} ({error.strerror}).", "", "Choose another --output_dir."
        ) from error
    except UNUSABLE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's, not the model's
        raise ModelError(
            f"A student that begins as {source.path} could not be written in the end: {first_sentence(error)}",
            "The program tests this before the teacher starts.",
            "Download or save the model again.",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _aside(folder: Path) -> Path:
    """Return the temporary folder of a student; remains of a killed process are removed."""
    for left_behind in folder.parent.glob(f".{folder.name}.*.tmp"):
        shutil.rmtree(left_behind, ignore_errors=True)
    return folder.with_name(f".{folder.name}.{os.getpid()}.tmp")


def _is_finite(tensor: Tensor) -> bool:
    # In pieces: isfinite() makes a copy and two masks, which for an embedding is more than a training step holds.
    return all(bool(piece.isfinite().all()) for piece in tensor.detach().flatten().split(_PIECE_ELEMENTS))


def _errno_in(text: str) -> int:
    """Return the system's number in an error of safetensors, which has it in its text alone."""
    return errno.EDQUOT if any(words in text for words in ("os error 122", "Disk quota")) else errno.ENOSPC


@contextlib.contextmanager
def _told(temporary: Path, folder: Path, *, needed_bytes: int) -> Iterator[None]:
    shows_bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # it would be drawn over a screen, or into a script's output
    try:
        yield
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if any(words in str(error) for words in _FULL):
            free = shutil.disk_usage(folder.parent).free
            what = f"There was no room to write the student to {folder}: it takes some {needed_bytes:,} bytes, "
            told = error if isinstance(error, OSError) else OSError(_errno_in(str(error)), str(error))
            raise no_room(f"{what}{free:,} are free.", told, kept="the training is done and kept") from error
        raise
    finally:
        if shows_bar:
            transformers_logging.enable_progress_bar()
