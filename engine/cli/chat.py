"""``tiny-distill-chat``: chat with a student, optionally next to its teacher."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from engine.cli.distill import guarded
from engine.cli.export import student_folder
from engine.disk.named_path import named_path
from engine.errors import FolderError, Problem, SettingsError
from engine.model_files.headers import read_json
from engine.model_files.hub import resolve_model
from engine.talk.conversation import ChatSession
from engine.version import __version__

PROGRAM = "tiny-distill-chat"
_STANDARD_INPUT = "-"
LEAVE = ("/quit", "/exit", "/q")


def main(words: Sequence[str] | None = None) -> int:
    """Entry point of ``tiny-distill-chat``."""
    return guarded(sys.argv[1:] if words is None else words, _main)


def _main(words: Sequence[str]) -> int:
    typed = _parse(words)
    path = named_path(typed.folder)
    sides = {"student": _conversation(student_folder(path), typed)}
    if typed.beside == "teacher":
        sides["teacher"] = _conversation(_teacher(path), typed)
    with contextlib.ExitStack() as stack:
        for side in sides.values():
            stack.enter_context(side)
        if typed.prompt is not None:
            prompt = sys.stdin.read() if typed.prompt == _STANDARD_INPUT and sys.stdin is not None else typed.prompt
            _answer(sides, prompt.removesuffix("\n"), typed.max_tokens)
            return 0
        return _talk(sides, typed.max_tokens)


def _talk(sides: dict[str, ChatSession], most_tokens: int) -> int:
    if sys.stdin.isatty():
        sys.stderr.write(
            "Type a question and press Enter. Ctrl+C stops an answer; an empty line, /quit or Ctrl+C leaves.\n"
        )
    told = False
    for line in _lines():
        if not line.strip() or line.strip() in LEAVE:
            break
        try:
            _answer(sides, line.strip(), most_tokens)
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            sys.stderr.write("\n(Stopped.)\n")
            continue
        if not told and not all(side.has_template for side in sides.values()):
            sys.stderr.write("(A model without a chat template continues each text by itself; it remembers nothing.)\n")
        told = True
    return 0


def _lines() -> Iterator[str]:
    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            return


def _answer(sides: dict[str, ChatSession], words: str, most_tokens: int) -> None:
    """Print each side's answer as it comes; only one model is in memory at a time."""
    for name, side in sides.items():
        if len(sides) > 1:
            print(f"{name}: ", end="", flush=True)
        try:
            with contextlib.closing(side.ask(words)) as pieces:
                for piece in pieces:
                    print(piece, end="", flush=True)
        finally:
            if len(sides) > 1:
                side.close()
        print(flush=True)
        for remark in _remarks(side, most_tokens):
            sys.stderr.write(f"({remark})\n")


def _remarks(side: ChatSession, most_tokens: int) -> Iterator[str]:
    """Sentences on the last answer."""
    if not side.is_whole and side.num_tokens >= most_tokens:
        yield f"Cut off after {most_tokens} tokens: see --max_tokens."
    elif not side.is_whole:
        yield f"Cut off after {side.num_tokens} tokens: the model's context is full."
    if side.is_shortened:
        yield "The question is longer than the model's context, so the model read only its end."
    elif side.left_out:
        yield f"The conversation is longer than the model's context; its first {side.left_out} turns were not read."


def _conversation(folder: Path, typed: argparse.Namespace) -> ChatSession:
    return ChatSession(
        folder,
        trust_remote_code=typed.trust_remote_code,
        max_tokens=typed.max_tokens,
        temperature=typed.temperature,
        seed=typed.seed,
    )


def _teacher(path: Path) -> Path:
    """The folder of a run's teacher.

    Raises:
        FolderError: the folder is no run's, or the run does not say which teacher it had.
    """
    run = next((folder for folder in (path, path.parent) if (folder / "run.json").is_file()), None)
    settings = read_json(run / "run.json").get("settings") if run is not None else None
    teacher = settings.get("teacher") if isinstance(settings, dict) else None
    if not teacher:
        raise FolderError(f"{path} does not say which teacher its student had.", "", "Name the run's folder.")
    return resolve_model(teacher)


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Chat with a student, optionally next to its teacher.")
    parser.add_argument(
        "folder", metavar="RUN_OR_FOLDER", help="A run's folder, a model's or an adapter's folder, or a GGUF file"
    )
    parser.add_argument("--beside", choices=("teacher",), help="Show the teacher's answer below the student's")
    parser.add_argument(
        "--prompt",
        metavar="TEXT",
        help="Print the answer to this prompt and exit; - reads it from the standard input. Without this, each line of "
        "the standard input is a prompt",
    )
    parser.add_argument(
        "--max_tokens", type=int, default=256, metavar="N", help="Maximum number of tokens in an answer (default: 256)"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.7,
        metavar="T",
        help="Sampling temperature; 0 always takes the most likely token (default: 0.7)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="Seed of the sampling; the same seed gives the same answers (default: 0)",
    )
    parser.add_argument("--trust_remote_code", action="store_true", help="Run Python code that comes with the model")
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--debug", action="store_true", help="Show tracebacks")
    typed = parser.parse_args(list(words))
    problems = []
    if typed.max_tokens < 1:
        problems.append(Problem("max_tokens", typed.max_tokens, "expected a whole number from 1 up"))
    if not -(2**63) <= typed.seed < 2**63:
        problems.append(Problem("seed", typed.seed, "expected a whole number of at most 64 bits"))
    if not 0 <= typed.temperature <= 10:
        problems.append(Problem("temperature", typed.temperature, "expected a number from 0 to 10"))
    if problems:
        raise SettingsError(problems, "")
    return typed


if __name__ == "__main__":
    sys.exit(main())
