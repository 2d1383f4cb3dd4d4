"""``tiny-distill-cache``: inspect, verify and clean up a cache of records."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console
from rich.progress import Progress

from engine.cache.check import damaged_shards, leftovers
from engine.cache.garbage import Garbage, find_garbage, remove
from engine.cache.store import CacheStore, caches_below
from engine.cli.cache_view import show_cache
from engine.cli.distill import guarded
from engine.disk.named_path import named_path
from engine.errors import FolderError, Problem, RequestError, SettingsError
from engine.format import format_bytes
from engine.machine.device import NAMES, is_name
from engine.settings.describe import suggestion
from engine.version import __version__

if TYPE_CHECKING:
    from engine.phases.rescore import Rescored

PROGRAM = "tiny-distill-cache"
NOT_WHOLE = 4
_SECONDS = {"": 86_400, "h": 3600, "d": 86_400, "w": 7 * 86_400}


def main(words: Sequence[str] | None = None) -> int:
    """Entry point of ``tiny-distill-cache``."""
    return guarded(sys.argv[1:] if words is None else words, _main)


def _main(words: Sequence[str]) -> int:
    typed = _parse(words)
    command: Callable[[argparse.Namespace], int] = {"inspect": _inspect, "verify": _verify, "gc": _gc}[typed.command]
    return command(typed)


def _inspect(typed: argparse.Namespace) -> int:
    for place, cache in enumerate(_caches(typed.folder)):
        if place and not typed.json:
            print()
        with CacheStore.look(cache) as store:
            show_cache(store, num_records=typed.records, tokenizer=typed.tokenizer, as_json=typed.json)
    return 0


def _verify(typed: argparse.Namespace) -> int:
    is_whole, is_damaged = True, False
    for cache in _caches(typed.folder):
        with CacheStore.look(cache) as store:
            found = _verified(store, quiet=typed.json)
            extra = leftovers(store)
            again = _rescored(store, typed, found)
        is_whole &= not found
        is_damaged |= bool(found) and again is None
        if typed.json:
            _print_json(
                path=str(cache),
                whole=not found,
                shards=store.num_shards,
                rows=sum(entry.rows for entry in store.entries),
                tokens=store.num_tokens,
                bytes=store.num_bytes,
                problems=found,
                leftovers=[file.name for file in extra],
                **({} if again is None else {"rescored": asdict(again)}),
            )
            continue
        what = f"{store.num_shards} shards, {store.num_tokens:,} tokens, {format_bytes(store.num_bytes)}"
        print(f"{cache}: {what}: {'damaged' if found else 'complete'}.")
        for problem in found:
            print(f"  {problem}")
        if again is not None:
            print(
                f"  {again.rows} rows ({again.tokens:,} tokens) were scored again: {again.same:.1%} of the records "
                f"have the same ids, {again.overlap:.2%} of the probability lies on the same ids, and the labels' "
                f"log-probabilities differ by {again.label_difference:.2g} nats on average."
            )
        elif typed.rescore:
            print("  No row was scored again: only an undamaged cache with records can be rescored.")
        if extra:
            what = "1 file is" if len(extra) == 1 else f"{len(extra)} files are"
            print(f"  {what} left over; {PROGRAM} gc {cache} removes it.")
    if is_damaged and not typed.json:
        print("Resume the run that uses it: damaged files are set aside, and their rows are scored again.")
    return 0 if is_whole else NOT_WHOLE


def _gc(typed: argparse.Namespace) -> int:
    if not typed.folder.is_dir():
        raise FolderError(
            f"There is no folder {typed.folder}.", "", "Name a run's folder, its cache, or a --cache_dir."
        )
    found, kept = find_garbage(typed.folder, now=time.time(), older_than_seconds=typed.older_than, keep=typed.keep)
    if not typed.json:
        for garbage in found:
            print(f"{format_bytes(garbage.bytes):>10}  {garbage.path}  ({garbage.why})")
        for sentence in kept:
            print(sentence)
    wanted = bool(found) and not typed.dry_run and _agreed(typed, found)
    freed = {garbage.path: remove(garbage) if wanted else 0 for garbage in found}
    if typed.json:
        for garbage in found:
            _print_json(
                path=str(garbage.path),
                kind=garbage.kind,
                bytes=garbage.bytes,
                why=garbage.why,
                removed=wanted and not garbage.path.exists(),
            )
        _print_json(freed_bytes=sum(freed.values()), kept=kept)
    elif not found:
        print("There is nothing to remove.")
    elif wanted:
        print(f"{format_bytes(sum(freed.values()))} freed.")
    else:
        print("Nothing was removed.")
    return 0


def _agreed(typed: argparse.Namespace, found: list[Garbage]) -> bool:
    if typed.yes:
        return True
    if typed.json or not sys.stdin.isatty():
        raise RequestError(
            f"Something in {typed.folder} can be removed ({len(found)} in all), but this terminal cannot ask for "
            "confirmation.",
            "",
            "Add --yes to remove them, or --dry_run to see them.",
        )
    answer = input(f"Remove these, {format_bytes(sum(garbage.bytes for garbage in found))}? [y/N] ")
    return answer.strip().lower() in ("y", "yes")


def _verified(store: CacheStore, *, quiet: bool) -> list[str]:
    with _progress(store, quiet=quiet) as on_progress:
        damaged = [f"{entry.name} is damaged: {wrong}." for entry, wrong in damaged_shards(store, on_progress)]
    return [*store.problems, *damaged]


def _rescored(store: CacheStore, typed: argparse.Namespace, found: list[str]) -> Rescored | None:
    """Rescore rows if requested and if the cache is undamaged; adds to the problems found."""
    if not typed.rescore or found or not store.num_tokens:
        return None
    from engine.phases.rescore import AGREEING, rescore

    again = rescore(store, typed.rescore, typed.teacher, device=typed.device)
    if not again.agrees:
        found.append(
            f"The teacher gives other records now: only {again.overlap:.0%} of the probability lies on the same ids "
            f"({AGREEING:.0%} is the least where only rounding differs)."
        )
    return again


@contextmanager
def _progress(store: CacheStore, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    if quiet or not sys.stderr.isatty():  # rich 14 writes an empty line for a bar that is disabled
        yield lambda _done, _total: None
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"Reading {store.path.name}", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _caches(folder: Path) -> list[Path]:
    return list(caches_below(folder)) or [folder]  # what is none is refused when it is opened


def _print_json(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields, ensure_ascii=False) + "\n")
    sys.stdout.flush()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{self.prog}: {message}.", "", f"{self.prog} --help shows what there is.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=PROGRAM, description="Inspect, verify and clean up the teacher's records.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="inspect|verify|gc", parser_class=_Parser)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        made.add_argument("folder", metavar="DIR", type=named_path, help="A run's folder, its cache, or a --cache_dir")
        made.add_argument("--json", action="store_true", help="Print one JSON object a line, and nothing else")
        made.add_argument("--debug", action="store_true", help="Show the traceback of an error")
        return made

    _add_inspect(
        command("inspect", "Show a cache's teacher and settings, its bytes by part, statistics and some records")
    )
    _add_verify(command("verify", "Check checksums, weights, ids and journal; exit code 4 if anything is damaged"))
    _add_gc(command("gc", "Remove files that crashes and damage left, and caches that no run uses"))
    return parser


def _add_inspect(inspect: argparse.ArgumentParser) -> None:
    inspect.add_argument("--records", type=_count, default=3, metavar="N", help="Records to show (default: 3)")
    inspect.add_argument(
        "--tokenizer",
        type=named_path,
        metavar="MODEL",
        help="Model folder whose tokenizer shows ids as text (default: the run's teacher)",
    )


def _add_verify(verify: argparse.ArgumentParser) -> None:
    verify.add_argument(
        "--rescore",
        type=_count,
        default=0,
        metavar="N",
        help="Score N random rows again with the teacher, and compare",
    )
    verify.add_argument(
        "--teacher", metavar="MODEL", help="The teacher's folder (default: the folder that the run used)"
    )
    verify.add_argument(
        "--device", type=_device, metavar="DEVICE", help=f"{NAMES} (default: that of the run, else cpu)"
    )


def _add_gc(gc: argparse.ArgumentParser) -> None:
    gc.add_argument(
        "--older_than",
        type=_age,
        metavar="AGE",
        help="Also remove caches that were not opened for this time: 30d, 12h, 4w",
    )
    gc.add_argument("--keep", type=_count, metavar="N", help="Also remove caches except the N opened last")
    gc.add_argument("--yes", action="store_true", help="Do not ask for confirmation")
    gc.add_argument("--dry_run", action="store_true", help="Show the files that would be removed, and remove none")


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    typed, unknown = parser.parse_known_args([_underscored(word) for word in words])
    if unknown:
        known = (
            "json",
            "debug",
            "records",
            "tokenizer",
            "rescore",
            "teacher",
            "device",
            "older_than",
            "keep",
            "yes",
            "dry_run",
        )
        raise SettingsError(
            [
                Problem(word.lstrip("-"), "", f"is not a flag of {PROGRAM}{suggestion(word.lstrip('-'), known)}")
                for word in unknown
            ],
            f"{PROGRAM} --help shows what there is.",
        )
    return typed


def _underscored(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number; expected 0 or more")
    return int(text)


def _device(text: str) -> str:
    if not is_name(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a device; expected {NAMES}")
    return text


def _age(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([hdw]?)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not an age; expected 30d, 12h or 4w")
    return float(match[1]) * _SECONDS[match[2]]


if __name__ == "__main__":
    sys.exit(main())
