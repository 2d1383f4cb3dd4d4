"""Where a model's files are: a folder, or a snapshot in the local Hugging Face cache.

Looking up is done by file names alone, without network and without importing anything; :func:`fetch_model` is the
only place that downloads. Layout of the cache: https://huggingface.co/docs/huggingface_hub/guides/manage-cache.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from engine.errors import ModelError, shown_value

# The files that a run reads; a repository may hold the same weights in three formats more.
_WANTED = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model", "*.py")
_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def resolve_model(path_or_id: str | Path) -> Path:
    """The folder of a model that is on this machine; nothing is downloaded.

    Args:
        path_or_id: a folder, or a Hugging Face id such as ``EleutherAI/pythia-410m``.

    Raises:
        ModelError: there is no such folder, and no such model in the local cache.
    """
    text = str(path_or_id)
    try:
        path = Path(text).expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # longer than a name can be, a NUL, nobody's home
        reason = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
        raise ModelError(
            f"There is no folder {shown_value(text)}.", f"{reason}.", "Name a model's folder, or a Hugging Face id."
        ) from None
    if is_folder:
        return path
    if is_file:
        if path.suffix == ".gguf":
            raise ModelError(
                f"{text} is a GGUF file.",
                "GGUF weights cannot be read yet.",
                "Use the safetensors version of the model.",
            )
        raise ModelError(f"{text} is a file, not a model's folder.", "", f"Try {path.parent}.")
    if not is_hub_id(text):
        raise ModelError(
            f"There is no folder {shown_value(text)}.",
            "" if path.parent.is_dir() else f"{path.parent} is not there either.",
            "Name a model's folder, or a Hugging Face id such as EleutherAI/pythia-70m.",
        )
    snapshot = _snapshot(text)
    if snapshot is None:
        raise ModelError(
            f"There is no folder {text}, and no model of that name in the local Hugging Face cache ({hub_cache()}).",
            _what_is_cached(text),
            "Name a model's folder, or let the model be downloaded once while the machine is online.",
        )
    return snapshot


def is_hub_id(text: str) -> bool:
    """Whether it reads like a Hugging Face id: ``name`` or ``owner/name``."""
    return _ID.fullmatch(text) is not None and ".." not in text


def fetch_model(model_id: str) -> Path:
    """The folder of a model, downloaded into the Hugging Face cache where it is not there yet.

    Raises:
        ModelError: it cannot be downloaded: no network, no such model, or no right to it.
    """
    try:
        return resolve_model(model_id)
    except ModelError:
        if not is_hub_id(model_id):
            raise
    from huggingface_hub import snapshot_download  # here, because it is slow to import and rarely needed
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(model_id, allow_patterns=list(_WANTED), cache_dir=hub_cache()))
    except GatedRepoError as error:
        raise ModelError(
            f"{model_id} is only given to people who accepted its terms.",
            "",
            f"Accept them on https://huggingface.co/{model_id}, then run hf auth login.",
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"Hugging Face has no model {model_id}.",
            _what_is_cached(model_id),
            "Check the spelling; for a private model run hf auth login first.",
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"{model_id} cannot be downloaded: Hugging Face does not answer ({type(error).__name__}).",
            _what_is_cached(model_id),
            "Connect the machine, or name a model that is already here.",
        ) from error


def hub_cache() -> Path:
    """The folder of the local Hugging Face cache, where the usual environment variables put it."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or str(Path(cache) / "huggingface")
    try:
        return Path(home).expanduser() / "hub"
    except RuntimeError:  # a user without a home folder has no cache: a name that no folder has
        return Path(os.devnull) / "hub"


def cached_models() -> list[str]:
    """Ids of the models in the local cache that have a config.json, in alphabetical order."""
    folders = hub_cache().glob("models--*")
    names = [folder.name.removeprefix("models--").replace("--", "/", 1) for folder in folders]
    return sorted(name for name in names if _snapshot(name) is not None)


def _snapshot(model_id: str) -> Path | None:
    """The snapshot that ``main`` points to, else the newest one; None where there is none with a config.json."""
    repository = hub_cache() / ("models--" + model_id.replace("/", "--"))
    reference = repository / "refs" / "main"
    snapshots = sorted((repository / "snapshots").glob("*"), key=lambda folder: folder.stat().st_mtime, reverse=True)
    if reference.is_file():
        snapshots.insert(0, repository / "snapshots" / reference.read_text().strip())
    return next((folder for folder in snapshots if (folder / "config.json").is_file()), None)


def _what_is_cached(wanted: str) -> str:
    there = cached_models()
    if not there:
        return "The cache holds no models."
    near = difflib.get_close_matches(wanted, there, n=3) or there[:5]
    return f"The cache holds {len(there)} models, among them {', '.join(near)}."
