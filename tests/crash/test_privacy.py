"""A whole run leaves the network alone and the text where it is, and its files belong to whom the user says."""

from __future__ import annotations

import json
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.crash.harness import Harness, Life, differing, outcome
from tests.end_to_end import program
from tests.end_to_end.program import QUICK, write_texts
from tests.tiny import tiny_model

_WORDS = 4  # in a row: fewer could be in a message by chance


def text_in(log: str, documents: list[str]) -> list[str]:
    """Stretches of the documents that stand in a log."""
    found = []
    for document in documents:
        words = document.split()
        stretches = (" ".join(words[place : place + _WORDS]) for place in range(len(words) - _WORDS + 1))
        found += [stretch for stretch in stretches if stretch in log]
    return found


def documents_of(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


@dataclass(frozen=True)
class QuietRun:
    folder: Path
    tried: Path
    documents: list[str]


@pytest.fixture(scope="module")
def quiet(harness: Harness, tmp_path_factory: pytest.TempPathFactory) -> QuietRun:
    """A run whose processes are refused the network, with a umask that gives other users no access."""
    tried = tmp_path_factory.mktemp("network") / "tried"

    def refuse(*arguments: Any, **more: Any) -> None:
        tried.write_text(str(arguments))
        raise OSError("the network is refused here")

    before = os.umask(0o077)
    try:
        with pytest.MonkeyPatch.context() as patched:
            for name in ("connect", "connect_ex", "sendto", "bind"):
                patched.setattr(socket.socket, name, refuse, raising=False)
            patched.setattr(socket, "getaddrinfo", refuse)
            folder = harness.new_run()
            assert Life(folder).wait() == 0
    finally:
        os.umask(before)
    return QuietRun(folder, tried, documents_of(harness.scratch / "data" / "texts.jsonl"))


def test_no_process_of_a_run_opens_a_connection(quiet: QuietRun, harness: Harness) -> None:
    assert not quiet.tried.exists(), quiet.tried.read_text()
    assert differing(outcome(quiet.folder), harness.expected) == []


def test_logs_hold_no_text_of_the_data(quiet: QuietRun) -> None:
    folder = quiet.folder
    for log in (folder / "events.jsonl", folder / "run.log", folder.parent / "log", folder / "run.json"):
        assert text_in(log.read_text(), quiet.documents) == [], log.name
    assert text_in(quiet.documents[3], quiet.documents), "the test would see text that is there"


def test_files_of_a_run_follow_the_umask(quiet: QuietRun) -> None:
    made = [path for path in quiet.folder.rglob("*") if path.name != "run.json"]
    open_to_others = [path.name for path in made if stat.S_IMODE(path.stat().st_mode) & 0o077]
    assert len(made) > 30
    assert open_to_others == []


@pytest.mark.slow
def test_the_programs_open_no_connection_with_local_models(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import os, socket, sys\n"
        "open(os.environ['LOADED'], 'a').write(' '.join(sys.argv) + '\\n')\n"
        "def refuse(*args, **kwargs):\n"
        "    open(os.environ['TRIED'], 'a').write(repr(args[1:]) + ' ' + ' '.join(sys.argv) + '\\n')\n"
        "    raise OSError('the network is refused here')\n"
        "socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = refuse\n"
        "socket.getaddrinfo = refuse\n"
    )
    done = program.run(
        *["--teacher", tiny_model("llama"), "--student", "from-teacher", "--student_layers", 2, "--steps", 4],
        *["--data", write_texts(tmp_path / "data"), "--output_dir", tmp_path / "run", *QUICK],
        PYTHONPATH=str(tmp_path / "site"),
        LOADED=str(tmp_path / "loaded"),
        TRIED=str(tmp_path / "tried"),
        HF_HUB_OFFLINE="0",
    )
    assert done.returncode == 0, done.stderr
    loaded = (tmp_path / "loaded").read_text()
    for program_of in ("--teacher", "engine.run.supervisor", "engine.phases.process"):
        assert program_of in loaded, "not every process had the network refused"
    assert not (tmp_path / "tried").exists(), (tmp_path / "tried").read_text()
    documents = documents_of(tmp_path / "data" / "texts.jsonl")
    for log in ("events.jsonl", "run.log"):
        assert text_in((tmp_path / "run" / log).read_text(), documents) == []
