"""``tiny-distill-export``: the student for other programs, without a network."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.cli.distill import guarded
from engine.disk.files import make_folder, write_atomic
from engine.disk.named_path import named_path
from engine.errors import FolderError, Problem, SettingsError
from engine.export.gguf_file import TYPES, write_gguf
from engine.export.place import check_place, copy_folder, folder_written_whole
from engine.format import format_bytes
from engine.model_files.adapter import is_adapter
from engine.model_files.gguf.find import gguf_in
from engine.model_files.gguf.numbers import exact_tokens, has_unusual_windows, short_context
from engine.model_files.headers import read_json
from engine.model_files.hub import cached_folder, resolve_model
from engine.model_files.spec import read_spec
from engine.model_files.weight_files import is_decoded
from engine.settings.command import resume_command
from engine.version import __version__

PROGRAM = "tiny-distill-export"
FORMATS = ("hf", "gguf", "ollama")
_USUAL_TYPE = "f16"
_NUMBERS = {"f16": "float16", "bf16": "bfloat16"}
_MOST_CONTEXT = 8192  # Ollama takes memory for all of it at once


def main(words: Sequence[str] | None = None) -> int:
    """Entry point of ``tiny-distill-export``."""
    return guarded(sys.argv[1:] if words is None else words, _main)


def _main(words: Sequence[str]) -> int:
    typed = _parse(words)
    named = named_path(typed.folder)
    model = student_folder(named)
    out = _default_out(_home(named, model), typed.format, typed.type or _USUAL_TYPE)
    if typed.out is not None:
        out = named_path(typed.out)
    check_place(out, is_folder=typed.format != "gguf", force=typed.force, sources=(named, model))
    if typed.format == "hf" and typed.type is not None:
        _refuse_other_type(model, typed.type)
    typed.type = typed.type or _USUAL_TYPE
    make_folder(out.parent)
    if typed.format == "hf" and is_decoded(model):
        from engine.models.derive import derive_student  # torch takes seconds to import

        # A GGUF file brings no code.
        spec = read_spec(model, trust_remote_code=False)
        with folder_written_whole(out) as folder:
            derive_student(spec, spec.num_layers, folder)
        print(f"Wrote the model to {out}, its weights as float16.")
    elif typed.format == "hf":
        with folder_written_whole(out) as folder:
            copy_folder(model, folder, without=(out,))
        print(f"Copied the model to {out}. AutoModelForCausalLM.from_pretrained({str(out)!r}) loads it.")
    elif typed.format == "gguf":
        count = write_gguf(model, out, weight_type=typed.type)
        print(f"Wrote {count} tensors to {out} ({format_bytes(out.stat().st_size)}).")
        print(f"Try it with llama.cpp: llama-cli -m {shlex.quote(str(out))}")
        if (tokens := _exact_tokens(model)) is not None:
            print("Its layers have a sliding window, and llama.cpp computes this architecture without one: beyond")
            print(f"{tokens:,} tokens its answers differ from the model's.")
        if (tokens := short_context(_config_of(model))) is not None:
            print(
                "It has two sets of rotary factors, and llama.cpp chooses by the size of the context, not by the text:"
            )
            print(f"for texts of up to {tokens:,} tokens use a context of no more (-c {tokens}).")
        _tell_windows(model)
    else:
        _write_ollama(model, out, typed.type)
    return 0


def _refuse_other_type(model: Path, wanted: str) -> None:
    """A folder for transformers keeps its number format: another one would be asked for and not written.

    Raises:
        SettingsError: the weights are in another format than ``wanted``.
    """
    stored = "float16" if is_decoded(model) else read_spec(model, trust_remote_code=False).dtype
    if _NUMBERS.get(wanted) != stored:
        accepted = f"--format hf writes the weights as they are stored, in {stored}; types are for gguf and ollama"
        raise SettingsError([Problem("type", wanted, accepted)], "")


def _write_ollama(model: Path, out: Path, weight_type: str) -> None:
    from engine.export.ollama import modelfile

    weights = f"model-{weight_type}.gguf"
    config = read_json(model / "config.json")
    context = int(config.get("max_position_embeddings") or config.get("n_positions") or 2048)
    context = min(context, _MOST_CONTEXT, _exact_tokens(model) or context, short_context(_config_of(model)) or context)
    made = modelfile(model, weights, context=context)
    with folder_written_whole(out) as folder:
        write_gguf(model, folder / weights, weight_type=weight_type)
        write_atomic(folder / "Modelfile", made.text)
    print(f"Wrote {out / weights} ({format_bytes((out / weights).stat().st_size)}) and {out / 'Modelfile'}.")
    place = shlex.quote(str(out / "Modelfile"))
    print(f"Import it into Ollama: ollama create my-student -f {place} && ollama run my-student")
    for note in made.notes:
        print(note)
    _tell_windows(model)


def _tell_windows(model: Path) -> None:
    if has_unusual_windows(_config_of(model)):
        print(
            "Its layers have sliding windows in another order than its architecture usually has. The file says so, and"
        )
        print(
            "a program that does not read this computes another model: llama.cpp of May 2026 does not, of October 2026"
        )
        print("does, and Ollama does if it is built on such a version. Compare an answer with tiny-distill-chat's.")


def _exact_tokens(model: Path) -> int | None:
    return exact_tokens(_config_of(model))


def _config_of(model: Path) -> dict[str, Any]:
    from engine.models.meta import read_config  # torch takes seconds to import

    found: dict[str, Any] = read_config(model, trust_remote_code=False).to_dict()
    return found


def student_folder(path: Path) -> Path:
    """The model's folder behind a run, a folder, a GGUF file or the id of a model in the Hugging Face cache.

    Raises:
        FolderError: there is no finished student and no model.
    """
    path = named_path(path)
    if path.is_file():
        return resolve_model(path)
    for folder in (path / "student", path):
        if is_adapter(folder):
            return resolve_model(folder)
        if (folder / "config.json").is_file():
            return folder
    if path.is_dir() and not (path / "run.json").is_file() and gguf_in(path):
        return resolve_model(path)
    if not path.is_dir():
        if cached_folder(str(path)) is not None:
            return resolve_model(path)
        todo = "Name a run's folder, a model's, or the id of a model in the Hugging Face cache."
        raise FolderError(f"There is no folder {path}.", "", todo)
    if (path / "run.json").is_file():
        raise FolderError(
            f"The run in {path} has no student yet.",
            "The run is not finished.",
            f"Continue it: {resume_command(path)}",
        )
    raise FolderError(
        f"{path} holds neither a run nor a model.",
        "There is no student/ and no config.json.",
        "Name a run's folder, or a folder as written by save_pretrained().",
    )


def _home(named: Path, model: Path) -> Path:
    """The path that an export is named after and written beside: not a folder in this user's cache."""
    if not named.exists():  # an id, perhaps with the quantisation of a GGUF file
        return Path.cwd() / named.name.partition(":")[0]
    return named if is_decoded(model) else model


def _default_out(model: Path, wanted: str, weight_type: str) -> Path:
    if model.is_file():
        stem = model.name.removesuffix(".gguf")
        ending = {"gguf": f"{weight_type}.gguf", "ollama": "ollama", "hf": "hf"}[wanted]
        return model.with_name(f"{stem}-{ending}")
    run = model.parent if model.name == "student" else model
    if wanted == "gguf":
        return run / f"{run.resolve().name}-{weight_type}.gguf"
    return run / ("ollama" if wanted == "ollama" else "student-copy")


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Export a student for other programs: Hugging Face, llama.cpp (GGUF) or Ollama."
    )
    parser.add_argument(
        "folder", metavar="RUN_OR_FOLDER", help="A run's folder, a model's or an adapter's folder, or a GGUF file"
    )
    parser.add_argument("--format", choices=FORMATS, required=True,
                        help="hf: a folder for transformers; gguf: one file for llama.cpp; ollama: a GGUF file with a "
                        "Modelfile")  # fmt: skip
    parser.add_argument("--type", choices=TYPES, help="How a GGUF file stores matrices (default: f16)")
    parser.add_argument("--out", metavar="PATH", help="Where to write; next to the student unless given")
    parser.add_argument("--force", action="store_true", help="Replace what is at --out")
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--debug", action="store_true", help="Show tracebacks")
    return parser.parse_args(list(words))


if __name__ == "__main__":
    sys.exit(main())
