"""Inputs of a run, identified by their content: a folder may be moved, deleted after use, or renamed.

The phase that prepares keeps what identifies the teacher, the student and the text; a run that is resumed compares with
it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from engine.cache.identity import MANIFEST, read_manifest
from engine.errors import ModelError, TinyDistillError
from engine.model_files.spec import ModelSpec, fingerprint, read_spec
from engine.model_files.vocabulary import forget_vocabularies, read_vocabulary
from engine.run.folder import Run

INPUTS = ("teacher", "student", "data")
_SAMPLE_BYTES = 4096
_COSTS = {
    "weights": {
        "teacher": "Records of two teachers would be mixed.",
        "student": "The training, or its checkpoints, would belong to another model.",
    },
    "tokenizer": {
        "teacher": "The text was made into tokens by the other one, and the ids would mean other words.",
        "student": "The text was made into tokens by the other one, and the ids would mean other words.",
    },
}
"""Parts of a model that may not change within a run, and what a change would cost."""


def identity_of(name: str, value: str, *, trust_remote_code: bool = False) -> dict[str, str] | None:
    """Return the fingerprint of an input; None if only its name identifies it.

    Args:
        name: teacher, student or data.
        value: as the setting has it.
        trust_remote_code: whether a model that needs code of its own is accepted.

    Raises:
        ModelError: there is no such model.
    """
    path = Path(value).expanduser()
    if name == "data":
        return {"content": _content(path)} if path.exists() else None
    return identity_of_model(read_spec(path, trust_remote_code=trust_remote_code)) if path.exists() else None


def identity_of_model(spec: ModelSpec) -> dict[str, str]:
    """Return the fingerprint of a model: weights, tokenizer and chat template.

    Raises:
        ModelError: its tokenizer cannot be read.
    """
    vocabulary = read_vocabulary(spec.path)
    return {
        "weights": fingerprint(spec),
        "tokenizer": vocabulary.sha,
        "chat template": vocabulary.chat_template_sha,
    }


def moved(run: Run, given: Mapping[str, Any]) -> dict[str, Any]:
    """New places of a run's inputs and records.

    An input that was given again with the same content is used, as is a folder that has the run's records. An input
    that has moved is searched where it would be if it had been moved together with the run.

    Returns:
        The settings whose folder is another one now; what was given and differs is not among them.
    """
    settings = run.info["settings"]
    found: dict[str, Any] = {}
    for name in INPUTS:
        before, now = settings.get(name), given.get(name)
        if before is not None and now is not None and str(now) != before and _same(run, name, str(now)):
            found[name] = str(now)
    before, now = settings.get("cache_dir"), given.get("cache_dir")
    if now is not None and str(now) != before and _has_records(run, Path(str(now))):
        found["cache_dir"] = str(now)
    home = run.info.get("folder")
    if home and home != str(run.path):
        for name in (*INPUTS, "cache_dir"):
            before = settings.get(name)
            if name in found or not before or not os.path.isabs(before) or os.path.lexists(before):
                continue
            there = os.path.normpath(run.path / os.path.relpath(before, home))
            if str(given.get(name) or there) != there:
                continue  # another one was named, and its content is another: that is refused
            if os.path.lexists(there) and (name == "cache_dir" or _same(run, name, there)):
                found[name] = there
    return found


def _has_records(run: Run, folder: Path) -> bool:
    """Whether a folder has records of the run's teacher and settings; any will do before there are some."""
    teacher = ((run.result("prepare") or {}).get("inputs") or {}).get("teacher")
    if teacher is None:
        return run.result("teacher") is None
    own = {
        **{name: run.info["settings"].get(name) for name in ("temperature", "record_size", "seed", "quantization")},
        **{"teacher": teacher["weights"], "tokenizer": teacher["tokenizer"]},
        "chat_template": teacher["chat template"],
    }
    for manifest in (folder / MANIFEST, *folder.glob(f"*/{MANIFEST}")):
        with contextlib.suppress(TinyDistillError, OSError):
            there = read_manifest(manifest.parent)
            if there is not None and all(getattr(there, name) == value for name, value in own.items()):
                return True
    return False


def check_unchanged(run: Run, name: str, spec: ModelSpec) -> None:
    """Compare a model with the one that the run was prepared with, before a phase works with it.

    Args:
        run: whose model it is.
        name: teacher or student.
        spec: the model, as it is now.

    Raises:
        ModelError: it has other weights, or another tokenizer.
    """
    kept = ((run.result("prepare") or {}).get("inputs") or {}).get(name)
    if kept is None:  # it is known by its name alone
        return
    now = identity_of_model(spec)
    forget_vocabularies()  # 262,144 ids take 40 MiB, and a phase works with numbers
    differing = [part for part in _COSTS if now[part] != kept.get(part)]
    if not differing:
        return
    first = differing[0]
    raise ModelError(
        f"{spec.path} is not the {name} that this run was prepared with: its {' and its '.join(differing)} "
        f"{'is another one' if differing == ['tokenizer'] else 'are others'} (fingerprint {now[first][:12]}…, not "
        f"{str(kept.get(first))[:12]}…).",
        _COSTS[first][name],
        f"Put that {name}'s folder back, or start a new run.",
    )


def _same(run: Run, name: str, value: str) -> bool:
    kept = ((run.result("prepare") or {}).get("inputs") or {}).get(name)
    trusted = bool(run.info["settings"].get("trust_remote_code"))
    try:
        return kept is not None and identity_of(name, value, trust_remote_code=trusted) == kept
    except (TinyDistillError, OSError):
        return False


def _content(path: Path) -> str:
    """A digest of a file, or of all files in a folder: names, sizes, and three samples of each."""
    digest = blake2b(digest_size=16)
    files = [path] if path.is_file() else sorted(entry for entry in path.rglob("*") if entry.is_file())
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path) if file != path else ''}\0{size}\0".encode("utf-8", "surrogateescape"))
        with file.open("rb") as opened:
            for place in (0, size // 2, max(0, size - _SAMPLE_BYTES)):
                opened.seek(place)
                digest.update(opened.read(_SAMPLE_BYTES))
    return digest.hexdigest()
