"""Where a model's files are: a folder, or a snapshot in the local Hugging Face cache.

Looking up is done by file names alone, without network and without importing anything; :func:`fetch_model` is the
only place that downloads. Layout of the cache: https://huggingface.co/docs/huggingface_hub/guides/manage-cache.
"""

from __future__ import annotations

import difflib
import errno
import fnmatch
import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from engine.errors import ModelError, shown_value
from engine.models.gguf.find import is_gguf
from engine.models.weight_files import plain_folder

# The files beside the weights that a run reads, all at the top of a repository, which may hold other formats as well.
_WANTED = (
    "config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "*.model", "*.tiktoken", "tekken.json", "chat_template*", "LICENSE*", "NOTICE*", "*.py",
)  # fmt: skip
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_ANSWER_SECONDS = 20.0
_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def resolve_model(path_or_id: str | Path) -> Path:
    """The folder of a model that is on this machine; nothing is downloaded.

    For a GGUF file, quantised weights and a text model in a wrapper, it is a folder that stands for them: see
    :mod:`engine.models.stand_in`.

    Args:
        path_or_id: a folder, a GGUF file, or a Hugging Face id such as ``EleutherAI/pythia-410m``.

    Raises:
        ModelError: there is no such folder, and no such model in the local cache.
    """
    text = str(path_or_id)
    try:
        path = Path(text).expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # a name that is too long, a NUL, the home of an unknown user
        reason = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
        raise ModelError(
            f"There is no folder {shown_value(text)}.", f"{reason}.", "Name a model's folder, or a Hugging Face id."
        ) from None
    if is_folder:
        return plain_folder(path)
    if is_file:
        if path.suffix == ".gguf" or is_gguf(path):
            from engine.models.gguf.folder import folder_of_gguf  # loads numpy

            return folder_of_gguf(path)
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
    return plain_folder(snapshot)


def is_hub_id(text: str) -> bool:
    """Whether it reads like a Hugging Face id: ``name`` or ``owner/name``."""
    return _ID.fullmatch(text) is not None and ".." not in text


def fetch_model(model_id: str) -> Path:
    """The folder of a model, downloaded into the Hugging Face cache where it is not there yet.

    Raises:
        ModelError: it cannot be downloaded; each cause has its own sentence.
    """
    try:
        return resolve_model(model_id)
    except ModelError:
        if not is_hub_id(model_id):
            raise
    from huggingface_hub import HfApi, constants, hf_hub_download  # here: slow to import and rarely needed

    if constants.HF_HUB_OFFLINE:
        raise ModelError(
            f"{model_id} is not on this machine, and HF_HUB_OFFLINE forbids downloading it.",
            _what_is_cached(model_id),
            "Unset HF_HUB_OFFLINE, or name a model that is already here.",
        )
    try:
        info = HfApi(endpoint=constants.ENDPOINT).model_info(model_id, files_metadata=True, timeout=_ANSWER_SECONDS)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}

        def fetch(name: str) -> Path:
            return Path(hf_hub_download(model_id, name, cache_dir=hub_cache(), endpoint=constants.ENDPOINT))

        indexed = list(json.loads(fetch(_INDEX).read_bytes())["weight_map"].values()) if _INDEX in sizes else []
        names = wanted_files(model_id, list(sizes), indexed)
        _check_room(model_id, sum(sizes.get(name, 0) for name in names))
        for name in names:
            fetch(name)
        return fetch("config.json").parent  # the last: a snapshot with a config.json is taken for a model
    except ModelError:
        raise
    except Exception as error:  # of the hub's client, of whichever HTTP library it uses, and of a proxy's package
        raise _download_error(model_id, error) from error


def wanted_files(model_id: str, names: Sequence[str], indexed: Sequence[str]) -> list[str]:
    """The files of a repository that a run reads, without config.json: one set of weights, tokenizer and licence.

    Args:
        model_id: for messages.
        names: of all files of the repository.
        indexed: the weight files that its index names; none where there is no index.

    Raises:
        ModelError: there is no config.json, or there are no safetensors.
    """
    if "config.json" not in names:
        raise ModelError(
            f"{model_id} on Hugging Face has no config.json.",
            "It holds GGUF files." if any(name.endswith(".gguf") for name in names) else "",
            "Choose the version of the model with config.json and safetensors.",
        )
    weights = sorted(set(indexed)) or [name for name in names if name == _SINGLE]
    if not weights:
        others = sorted({Path(name).suffix for name in names if name.endswith((".bin", ".pth", ".gguf", ".h5"))})
        raise ModelError(
            f"{model_id} on Hugging Face has no safetensors.",
            f"Its weights are there as {', '.join(others)}." if others else "",
            "Choose a version of the model with safetensors.",
        )
    beside = [name for name in names if "/" not in name and any(fnmatch.fnmatch(name, like) for like in _WANTED)]
    return [name for name in (*beside, *weights) if name != "config.json"]


def _check_room(model_id: str, needed: int) -> None:
    place = hub_cache()
    while not place.is_dir():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise ModelError(
            f"{model_id} takes {needed:,} bytes, and {free:,} are free where models are kept ({hub_cache()}).",
            "",
            "Free some space, or set HF_HUB_CACHE to a folder on another disk.",
        )


def _download_error(model_id: str, error: BaseException) -> ModelError:
    """Why a download failed, told from the whole chain of errors: a client's wrapper names none of the causes."""
    chain = [error]
    while (deeper := chain[-1].__cause__ or chain[-1].__context__) is not None and deeper not in chain:
        chain.append(deeper)
    status = next((code for link in chain if (code := _status(link)) is not None), None)
    kinds = " ".join(type(link).__name__ for link in chain)
    said = " ".join(str(link) for link in chain)
    has_token = any(os.environ.get(name) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"))
    what, todo = f"{model_id} cannot be downloaded: ", "Try again later, or name a model that is already here."
    if "GatedRepo" in kinds or status == 403:
        what = f"{model_id} is gated: you have not accepted its terms or have no access ({status or 403})."
        todo = f"Accept them on https://huggingface.co/{model_id}, then run hf auth login."
    elif status == 401 and has_token:
        what += "Hugging Face refuses the token in HF_TOKEN (401)."
        todo = "Make a new one on https://huggingface.co/settings/tokens, or unset HF_TOKEN for a public model."
    elif status in (401, 404):
        what = f"Hugging Face has no model {model_id}, or it is private ({status})."
        todo = "Check the spelling; for a private model run hf auth login first."
    elif status == 407:
        what += "the proxy asks for a name and a password (407)."
        todo = "Put them into HTTPS_PROXY, as in http://name:password@proxy:3128."
    elif status == 429:
        what += "too many requests came from here (429)."
        todo = "Wait some minutes; with hf auth login more are allowed."
    elif status is not None:
        what += f"Hugging Face answers with a server error ({status})."
    elif "ImportError" in kinds or "ModuleNotFoundError" in kinds:
        what += f"a package is missing ({_first_line(next(link for link in chain if isinstance(link, ImportError)))})."
        todo = "Install it (for a SOCKS proxy: pip install socksio), or unset ALL_PROXY and HTTPS_PROXY."
    elif "SSL" in kinds or "CERTIFICATE" in said or "[SSL" in said:
        what += "the certificate of Hugging Face, or of a proxy before it, is not trusted here (TLS)."
        todo = "Set SSL_CERT_FILE to your organisation's certificates, and check this machine's date."
    elif "Timeout" in kinds:
        what += "Hugging Face did not answer in time."
        todo = "Check the connection and a proxy's settings, or name a model that is already here."
    elif "Connect" in kinds or "gaierror" in kinds or "OfflineMode" in kinds:
        what += "Hugging Face cannot be reached."
        todo = "Connect the machine to the internet, or name a model that is already here."
    elif any(isinstance(link, OSError) and link.errno == errno.ENOSPC for link in chain):
        what += f"there is no room in {hub_cache()}."
        todo = "Free some space, or set HF_HUB_CACHE to a folder on another disk."
    elif any(isinstance(link, PermissionError) for link in chain):
        what += f"{hub_cache()} cannot be written."
        todo = "Set HF_HUB_CACHE to a folder that can be."
    else:
        what += f"the answer is invalid ({type(error).__name__}: {_first_line(error)})."
        todo = "Check HF_ENDPOINT and a proxy's settings; a login page of the network may be in between."
    return ModelError(what, _what_is_cached(model_id), todo)


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error tells of, where it is one of failure."""
    code = getattr(getattr(error, "response", None), "status_code", None)
    return code if isinstance(code, int) and code >= 400 else None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return shown_value(lines[0].rstrip(".")) if lines else type(error).__name__


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
    """Ids of the models in the local cache, in alphabetical order."""
    folders = hub_cache().glob("models--*")
    names = [folder.name.removeprefix("models--").replace("--", "/", 1) for folder in folders]
    return sorted(name for name in names if _snapshot(name) is not None)


def cached_folder(model_id: str) -> Path | None:
    """The folder of a model in the local cache; None where it is not there, or the text is no id."""
    return _snapshot(model_id) if is_hub_id(model_id) else None


def _snapshot(model_id: str) -> Path | None:
    """The snapshot that ``main`` points to, else the newest one; None where there is none with a model."""
    repository = hub_cache() / ("models--" + model_id.replace("/", "--"))
    reference = repository / "refs" / "main"
    snapshots = sorted((repository / "snapshots").glob("*"), key=lambda folder: folder.stat().st_mtime, reverse=True)
    if reference.is_file():
        snapshots.insert(0, repository / "snapshots" / reference.read_text().strip())
    return next(
        (folder for folder in snapshots if (folder / "config.json").is_file() or any(folder.glob("*.gguf"))), None
    )


def _what_is_cached(wanted: str) -> str:
    there = cached_models()
    if not there:
        return "The cache holds no models."
    near = difflib.get_close_matches(wanted, there, n=3) or there[:5]
    return f"The cache holds {len(there)} models, among them {', '.join(near)}."
