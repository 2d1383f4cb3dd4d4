"""Where a model's files are: a folder, or a snapshot in the local Hugging Face cache.

Looking up is done by file names alone, without network and without importing anything; :func:`fetch_model` is the
only place that downloads. Layout of the cache: https://huggingface.co/docs/huggingface_hub/guides/manage-cache.
"""

from __future__ import annotations

import difflib
import fnmatch
import functools
import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from engine.errors import ModelError, shown_value
from engine.model_files import adapter as adapters
from engine.model_files.download_error import download_error
from engine.model_files.gguf.find import files_by_quant, is_gguf
from engine.model_files.gguf.header import parts_of
from engine.model_files.weight_files import plain_folder

# The files beside the weights that a run reads, all at the top of a repository, which may hold other formats as well.
_WANTED = (
    "config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "*.model", "*.tiktoken", "tekken.json", "chat_template*", "LICENSE*", "NOTICE*", "*.py",
)  # fmt: skip
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_ANSWER_SECONDS = 20.0
_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(:[A-Za-z0-9][\w.-]*)?")
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
_ADDRESS = re.compile(
    r"(?:hf://|(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/)(?!datasets/|spaces/)([\w.-]+/[\w.-]+)"
)
_MOST_ADAPTERS = 4  # that change one another, before a circle is suspected


def resolve_model(path_or_id: str | Path) -> Path:
    """The folder of a model that is on this machine; nothing is downloaded.

    For a GGUF file, quantised weights, a text model in a wrapper and an adapter, it is a folder that stands for them:
    see :mod:`engine.model_files.stand_in`.

    Args:
        path_or_id: a folder, a GGUF file, or a Hugging Face id such as ``EleutherAI/pythia-410m``. An id of GGUF files
            may name one of them by its quantisation, as in ``owner/name:Q4_K_M``.

    Raises:
        ModelError: there is no such folder, and no such model in the local cache.
    """
    return _resolved(str(path_or_id), 0)


def _resolved(text: str, depth: int) -> Path:
    if depth > _MOST_ADAPTERS:
        raise adapters.AdapterCircle(
            f"The adapter that {shown_value(text)} changes is an adapter, as is its own base, and so on.",
            "Somewhere in this chain an adapter names itself as its base model.",
            "Correct base_model_name_or_path in adapter_config.json.",
        )
    resolve_base = functools.partial(_resolved, depth=depth + 1)
    try:
        path = Path(text).expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # a name that is too long, a NUL, the home of an unknown user
        reason = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
        raise ModelError(
            f"There is no folder {shown_value(text)}.", f"{reason}.", "Name a model's folder, or a Hugging Face id."
        ) from None
    if is_folder:
        return plain_folder(path, resolve_base)
    if is_file:
        if path.suffix == ".gguf" or is_gguf(path):
            return _gguf_folder(path)
        if path.name.lower().endswith(_ARCHIVES):
            raise ModelError(f"{text} is an archive, not a model's folder.", "", "Unpack it, and name the folder.")
        is_of_model = (path.parent / "config.json").is_file()
        todo = f"Try {path.parent}." if is_of_model else "Name a model's folder, or a GGUF file."
        raise ModelError(f"{text} is a file, not a model's folder.", "", todo)
    if not is_hub_id(text):
        meant = _meant_id(text)
        raise ModelError(
            f"There is no folder {shown_value(text)}.",
            "" if meant or path.parent.is_dir() else f"{path.parent} is not there either.",
            f"Name the model by its Hugging Face id: {meant}"
            if meant
            else "Name a model's folder, or a Hugging Face id such as EleutherAI/pythia-70m.",
        )
    model_id, _, quant = text.partition(":")
    snapshot = _snapshot(model_id)
    if snapshot is None:
        raise ModelError(
            f"There is no folder {text}, and no model of that name in the local Hugging Face cache ({hub_cache()}).",
            _what_is_cached(model_id),
            "Name a model's folder, or let the model be downloaded once while the machine is online.",
        )
    ggufs = _ggufs_in(snapshot)
    if quant or ggufs:
        return _gguf_folder(snapshot / _chosen(model_id, quant, ggufs)[0])
    return plain_folder(snapshot, resolve_base)


def _gguf_folder(file: Path) -> Path:
    from engine.model_files.gguf.folder import folder_of_gguf  # loads numpy

    return folder_of_gguf(file)


def _ggufs_in(snapshot: Path) -> dict[str, list[str]]:
    """Names of a snapshot's GGUF files by their quantisation; none where it holds safetensors."""
    if any(snapshot.glob("*.safetensors")):
        return {}
    names = [str(file.relative_to(snapshot)) for file in sorted(snapshot.rglob("*.gguf"))]
    return files_by_quant(names)


def _chosen(model_id: str, quant: str, there: dict[str, list[str]]) -> list[str]:
    """The GGUF files of one model out of a repository, the first part first.

    Args:
        model_id: of the repository.
        quant: as it was named; empty where it was not.
        there: names of files by their quantisation.

    Raises:
        ModelError: there is none of that quantisation, or several and none was named.
    """
    known = {name.lower(): files for name, files in there.items()}
    if quant and quant.lower() in known:
        return known[quant.lower()]
    if not quant and len(there) == 1:
        return next(iter(there.values()))
    example = next((name for name in ("Q8_0", "Q6_K", "Q4_K_M") if name in there), next(iter(there), ""))
    if not there:
        raise ModelError(
            f"{model_id} holds no GGUF files, so {shown_value(quant)} names none of them.",
            "A name behind a colon selects one of several GGUF files.",
            f"Name the model without it: {model_id}",
        )
    raise ModelError(
        f"{model_id} holds no GGUF file {shown_value(quant)}."
        if quant
        else f"{model_id} holds {len(there)} GGUF files, and a run needs exactly one of them.",
        f"There are {', '.join(there)}.",
        f"Name one of them: {model_id}:{example}",
    )


def is_hub_id(text: str) -> bool:
    """Whether it reads like a Hugging Face id: ``name`` or ``owner/name``, with ``:quantisation`` for GGUF files."""
    return _ID.fullmatch(text) is not None and ".." not in text and "--" not in text


def _meant_id(text: str) -> str | None:
    """The id in a model's address, in the name of its folder in the cache, or with a revision; None without one."""
    if found := _ADDRESS.match(text):
        return found[1] if is_hub_id(found[1]) else None
    name = Path(text).name
    if name.startswith("models--"):
        name = name.removeprefix("models--").replace("--", "/")
        return name if is_hub_id(name) else None
    plain = re.split(r"@|/(?:tree|blob|resolve)/", text.strip().rstrip("/"))[0]
    return plain if "/" in plain and not Path(plain).parent.exists() and is_hub_id(plain) else None


def fetch_model(model_id: str) -> Path:
    """The folder of a model, downloaded into the Hugging Face cache where it is not there yet.

    Raises:
        ModelError: it cannot be downloaded; each cause has its own sentence.
    """
    try:
        return _with_base(model_id)
    except ModelError:
        if not is_hub_id(model_id) or _is_here(model_id):
            raise
    asked = model_id
    model_id, _, quant = model_id.partition(":")
    try:
        from huggingface_hub import HfApi, constants, hf_hub_download  # here: slow to import and rarely needed

        if constants.HF_HUB_OFFLINE:
            raise ModelError(
                f"{model_id} is not on this machine, and HF_HUB_OFFLINE forbids downloading it.",
                _what_is_cached(model_id),
                "Unset HF_HUB_OFFLINE, or name a model that is already here.",
            )
        info = HfApi(endpoint=constants.ENDPOINT).model_info(model_id, files_metadata=True, timeout=_ANSWER_SECONDS)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}

        def fetch(name: str) -> Path:
            return Path(hf_hub_download(model_id, name, cache_dir=hub_cache(), endpoint=constants.ENDPOINT))

        if ggufs := repository_ggufs(list(sizes)):
            names = _chosen(model_id, quant, ggufs)
            last = names.pop(0)
        elif quant:
            _chosen(model_id, quant, {})
        else:
            is_whole = _SINGLE in sizes or _INDEX in sizes
            last = adapters.CONFIG if adapters.CONFIG in sizes and not is_whole else "config.json"
            indexed = list(json.loads(fetch(_INDEX).read_bytes())["weight_map"].values()) if _INDEX in sizes else []
            names = wanted_files(model_id, list(sizes), indexed)
        _check_room(model_id, sum(sizes.get(name, 0) for name in (*names, last)))
        for name in names:
            fetch(name)
        fetch(last)  # a snapshot with it is taken for a model
    except ModelError:
        raise
    except Exception as error:  # of the hub's client, of whichever HTTP library it uses, and of a proxy's package
        raise download_error(model_id, error, hub_cache(), _what_is_cached(model_id)) from error
    return _with_base(asked)


def _with_base(model_id: str) -> Path:
    """The folder of a model that is on this machine; the base model of an adapter is downloaded where it is not."""
    try:
        return resolve_model(model_id)
    except adapters.BaseMissing as missing:
        if not is_hub_id(missing.base) or _is_here(missing.base):
            raise
        base, folder = missing.base, missing.folder
    try:
        fetch_model(base)
    except ModelError as error:
        raise adapters.BaseMissing(folder, base, error) from error
    return resolve_model(model_id)


def _is_here(text: str) -> bool:
    """Whether a path exists, or all files of an id were downloaded: downloading would change nothing."""
    if Path(text).expanduser().exists():
        return True
    model_id, _, quant = text.partition(":")
    snapshot = _snapshot(model_id)
    if snapshot is None:
        return False
    try:
        ggufs = _ggufs_in(snapshot)
        return not (quant or ggufs) or all(map(Path.is_file, parts_of(snapshot / _chosen(model_id, quant, ggufs)[0])))
    except ModelError:  # of a quantisation that is not here, or a part that is missing
        return False


def repository_ggufs(names: Sequence[str]) -> dict[str, list[str]]:
    """GGUF files of a repository by their quantisation; none where it holds safetensors too."""
    return {} if any(name.endswith(".safetensors") and "/" not in name for name in names) else files_by_quant(names)


def wanted_files(model_id: str, names: Sequence[str], indexed: Sequence[str]) -> list[str]:
    """The files of a repository that a run reads, without the last: one set of weights, tokenizer and licence.

    The last is config.json, or adapter_config.json where the repository holds an adapter.

    Args:
        model_id: for messages.
        names: of all files of the repository.
        indexed: the weight files that its index names; none where there is no index.

    Raises:
        ModelError: there is no config.json, or there are no safetensors.
    """
    if adapters.CONFIG in names and _SINGLE not in names and not indexed:
        if adapters.WEIGHTS not in names:
            raise ModelError(
                f"{model_id} on Hugging Face is an adapter without {adapters.WEIGHTS}.",
                "Its weights are a pickle (adapter_model.bin)." if "adapter_model.bin" in names else "",
                "Choose an adapter with safetensors.",
            )
        return [*_beside(names), adapters.WEIGHTS]
    if "config.json" not in names:
        raise ModelError(
            f"{model_id} on Hugging Face has no config.json.",
            "",
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
    return [*_beside(names), *weights]


def _beside(names: Sequence[str]) -> list[str]:
    """Files beside the weights, without config.json."""
    found = [name for name in names if "/" not in name and any(fnmatch.fnmatch(name, like) for like in _WANTED)]
    return [name for name in found if name != "config.json"]


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
    """Ids of the models in the local cache, in alphabetical order; with the quantisation where GGUF files differ."""
    folders = hub_cache().glob("models--*")
    found = []
    for folder in folders:
        name = folder.name.removeprefix("models--").replace("--", "/", 1)
        if (snapshot := _snapshot(name)) is not None:
            ggufs = _ggufs_in(snapshot)
            found += [f"{name}:{quant}" for quant in ggufs] if len(ggufs) > 1 else [name]
    return sorted(found)


def cached_folder(model_id: str) -> Path | None:
    """The folder of a model in the local cache; None where it is not there, or the text is no id."""
    return _snapshot(model_id.partition(":")[0]) if is_hub_id(model_id) else None


def _snapshot(model_id: str) -> Path | None:
    """The snapshot that ``main`` points to, else the newest one; None where there is none with a model."""
    repository = hub_cache() / ("models--" + model_id.replace("/", "--"))
    reference = repository / "refs" / "main"
    snapshots = sorted((repository / "snapshots").glob("*"), key=lambda folder: folder.stat().st_mtime, reverse=True)
    if reference.is_file():
        snapshots.insert(0, repository / "snapshots" / reference.read_text().strip())
    return next((folder for folder in snapshots if _holds_a_model(folder)), None)


def _holds_a_model(snapshot: Path) -> bool:
    """Whether the file is there that is downloaded last."""
    told = ("config.json", adapters.CONFIG)
    return any((snapshot / name).is_file() for name in told) or next(snapshot.rglob("*.gguf"), None) is not None


def _what_is_cached(wanted: str) -> str:
    there = cached_models()
    if not there:
        return "The cache holds no models."
    near = difflib.get_close_matches(wanted, there, n=3) or there[:5]
    return f"The cache holds {len(there)} models, among them {', '.join(near)}."
