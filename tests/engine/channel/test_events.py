from __future__ import annotations

import json
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from engine.channel.events import EventWriter, Tail, read_events


def test_what_is_written_is_read_in_order(tmp_path):
    writer = EventWriter(tmp_path / "events.jsonl", phase="teacher")
    writer.write("progress", done=1, total=10, unit="rows", rate=2.5, eta_seconds=3.6)
    writer.log("info", "hello", code="greeting")
    first, second = read_events(tmp_path / "events.jsonl")
    assert (first["kind"], first["phase"], first["done"], first["eta_seconds"]) == ("progress", "teacher", 1, 3.6)
    assert (second["kind"], second["code"]) == ("log", "greeting")


def test_a_torn_last_line_is_ignored_and_closed_by_the_next_writer(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"kind": "log", "time": 1}\n{"kind": "lo')
    assert len(list(read_events(path))) == 1
    EventWriter(path).log("info", "after the crash")
    tail = Tail(path)
    assert [event.get("message") for event in tail.read()] == [None, "after the crash"]
    assert tail.bad_lines == 1


def test_a_tail_reads_only_what_is_new_and_starts_again_when_the_file_is_replaced(tmp_path):
    path = tmp_path / "events.jsonl"
    writer = EventWriter(path)
    writer.log("info", "one")
    tail = Tail(path)
    assert len(tail.read()) == 1
    assert tail.read() == []
    writer.log("info", "two")
    assert [event["message"] for event in tail.read()] == ["two"]
    path.unlink()
    EventWriter(path).log("info", "new")
    assert [event["message"] for event in tail.read()] == ["new"]


def test_nan_is_no_json_and_becomes_null(tmp_path):
    EventWriter(tmp_path / "e").write("metric", step=1, total_steps=2, loss=float("nan"), nested=[float("inf")])
    event = json.loads((tmp_path / "e").read_text(), parse_constant=lambda name: pytest_fail(name))
    assert event["loss"] is None
    assert event["nested"] == [None]


def pytest_fail(name: str) -> None:
    raise AssertionError(f"{name} stands in the file")


def test_lines_of_several_processes_do_not_mix(tmp_path):
    program = (
        "import sys; from pathlib import Path; from engine.channel.events import EventWriter\n"
        "w = EventWriter(Path(sys.argv[1]))\n"
        "for i in range(300): w.log('info', sys.argv[2] * 500)\n"
    )
    path = tmp_path / "events.jsonl"
    children = [subprocess.Popen([sys.executable, "-c", program, str(path), letter]) for letter in "abc"]
    assert [child.wait() for child in children] == [0, 0, 0]
    tail = Tail(path)
    events = tail.read()
    assert tail.bad_lines == 0
    assert len(events) == 900
    assert all(len(set(event["message"])) == 1 for event in events)


@given(st.lists(st.binary(max_size=60)))
def test_rubbish_never_stops_a_reader(tmp_path_factory, chunks):
    path = tmp_path_factory.mktemp("rubbish") / "events.jsonl"
    path.write_bytes(b"\n".join(chunks) + b'\n{"kind": "log", "time": 0}\n')
    assert list(read_events(path))[-1]["kind"] == "log"
