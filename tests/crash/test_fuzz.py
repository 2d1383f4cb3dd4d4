"""Any bytes in the files that a run, a user or another program writes: read, refused or passed over, never obeyed."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from engine.cache.identity import read_manifest
from engine.cache.journal import read_journal
from engine.channel.events import EventWriter, Tail, read_events
from engine.errors import TinyDistillError
from engine.run.folder import Run
from engine.settings import profiles
from engine.student.checkpoint import find_damage

quickly = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
text = some.text('ab"\\\n\0/.{}ü\u2028', max_size=8)
values: Any = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | text,
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
names = some.sampled_from(
    [
        "kind",
        "command",
        "name",
        "rows",
        "tokens",
        "bytes",
        "sha256",
        "has_top1",
        "format",
        "settings",
        "identity",
        "time",
    ]
)
objects = some.dictionaries(names, values, max_size=8).map(json.dumps).map(str.encode)
lines = some.lists(objects | some.binary(max_size=30), max_size=6).map(b"\n".join)


@contextlib.contextmanager
def folder_with(name: str, content: bytes) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(content)
        yield Path(folder)


@quickly
@given(lines)
def test_events_and_control_files(content):
    with folder_with("events.jsonl", content) as folder:
        tail = Tail(folder / "events.jsonl")
        assert all(isinstance(event["kind"], str) for event in tail.read())
        before = len(list(read_events(folder / "events.jsonl")))
        writer = EventWriter(folder / "events.jsonl", log_path=folder / "run.log")
        writer.write("progress", done=1, total=2)
        writer.close()
        after = list(read_events(folder / "events.jsonl"))
        assert after[-1]["kind"] == "progress"  # whatever was there, a torn last line does not swallow what follows
        assert len(after) in (before + 1, before + 2)  # a whole line that only lacked its end counts now


@quickly
@given(lines)
def test_journals(content):
    with folder_with("journal.jsonl", content) as folder:
        for entry in read_journal(folder).entries:
            path = folder / entry.name
            assert path.parent == folder
            assert path.name.startswith("shard-")


@quickly
@given(objects | some.binary(max_size=60))
def test_manifests_and_run_json(content):
    with folder_with("manifest.json", content) as folder:
        with contextlib.suppress(TinyDistillError):
            identity = read_manifest(folder)
            if identity is not None:
                identity.check_format(folder)
        (folder / "run.json").write_bytes(content)
        with contextlib.suppress(TinyDistillError):
            Run.open(folder)
        run = Run(folder, {})
        (folder / "phases").mkdir()
        (folder / "phases" / "teacher.json").write_bytes(content)
        assert run.result("teacher") is None or isinstance(run.result("teacher"), dict)


@quickly
@given(objects | some.binary(max_size=60))
def test_checksums_of_a_checkpoint(content):
    with folder_with("checksums.json", content) as folder:
        assert find_damage(folder) is not None


@quickly
@given(
    some.text("ab./\\~\0\n ü", max_size=40)
    | some.sampled_from(["../x", "a/../b", "/etc/passwd", "..", ".", "a\0b", "a\nb", "ü"])
)
def test_names_of_profiles_stay_in_their_folder(name):
    with contextlib.suppress(TinyDistillError):
        assert profiles.path_of(name).parent == profiles.folder()
        assert profiles.path_of(name).resolve().parent == profiles.folder().resolve()


@quickly
@given(some.binary(max_size=80) | values.map(lambda value: f"seed = {value!r}\nteacher = {value!r}".encode()))
def test_content_of_profiles(content):
    path = profiles.path_of("fuzzed")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    with contextlib.suppress(TinyDistillError):
        profiles.load("fuzzed")
