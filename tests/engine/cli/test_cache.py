from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.cache.identity import FORMAT
from engine.cache.store import CacheStore
from engine.cli.cache import main
from tests.engine.cache.some_records import row, wave
from tests.engine.cache.test_store import IDENTITY, content, fill, flip
from tests.tiny import tiny_tokenizer, tiny_tokenizer_folder

DAY = 86_400


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    fill(tmp_path / "shared" / "one")
    return tmp_path / "shared" / "one"


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def a_run(folder: Path, *, is_finished: bool, teacher: str = "nowhere") -> Path:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"settings": {"teacher": teacher}}))
    if is_finished:
        (folder / "report.json").write_text("{}")
    return folder


def open_and_close(cache: Path, **values) -> None:
    CacheStore.open(cache, IDENTITY, writable=False, **values).close()


def opened_days_ago(cache: Path, days: float) -> None:
    then = time.time() - days * DAY
    os.utime(cache / "in-use", (then, then))


def test_inspect_shows_what_a_cache_belongs_to_and_its_bytes_by_part(cache, capsys):
    assert main(["inspect", str(cache)]) == 0
    shown = capsys.readouterr().out
    for words in (
        "teacher's precision     fp32",
        "tokens of 9 rows in 3 shards",
        "bytes a token",
        "probability of the sampled ids",
        "nats",
    ):
        assert words in shown


def test_inspect_as_json_is_one_object(cache, capsys):
    assert main(["inspect", str(cache), "--json"]) == 0
    [found] = lines(capsys.readouterr().out)
    assert found["tokens"] == found["sampled_tokens"] == sum(found["entropy_counts"])
    assert found["identity"]["record_size"] == 6
    assert sum(found["parts"].values()) == found["bytes"]
    assert len(found["records"]) == 3
    for record in found["records"]:
        assert sum(weight for _, weight in record["heads"]) + record["tail_mass"] == pytest.approx(1, abs=1e-5)


def test_inspect_takes_a_folder_of_caches_and_a_runs_folder(cache, tmp_path, capsys):
    fill(tmp_path / "shared" / "two")
    assert main(["inspect", str(tmp_path / "shared"), "--json"]) == 0
    assert [Path(found["path"]).name for found in lines(capsys.readouterr().out)] == ["one", "two"]
    fill(a_run(tmp_path / "run", is_finished=True) / "cache")
    assert main(["inspect", str(tmp_path / "run"), "--json"]) == 0
    assert lines(capsys.readouterr().out)[0]["used_by"] == [str(tmp_path / "run")]


def test_inspect_shows_records_as_text_with_a_models_tokenizer(cache, capsys):
    tokenizer = tiny_tokenizer()
    assert main(["inspect", str(cache), "--json", "--tokenizer", str(tiny_tokenizer_folder()), "--records", "1"]) == 0
    [record] = lines(capsys.readouterr().out)[0]["records"]
    ids = [token for token, _ in record["heads"]] + record["tail"]
    texts = record["head_texts"] + record["tail_texts"]
    expected = tokenizer.decode([ids[0]], skip_special_tokens=False)
    assert texts[0] == "".join(s if s.isprintable() else s.encode("unicode_escape").decode() for s in expected)


def test_inspect_changes_nothing_not_even_what_is_damaged(cache, capsys):
    flip(cache / "shard-00001.h5")
    (cache / "shard-00002.h5").write_bytes(b"")
    before, opened = content(cache), (cache / "in-use").stat().st_mtime_ns
    assert main(["inspect", str(cache)]) == 0
    assert "shard-00002.h5 is damaged" in capsys.readouterr().out
    assert main(["verify", str(cache)]) == 4
    assert content(cache) == before
    assert (cache / "in-use").stat().st_mtime_ns == opened


def test_verify_says_whole_and_exits_0(cache, capsys):
    assert main(["verify", str(cache)]) == 0
    assert "3 shards" in (shown := capsys.readouterr().out)
    assert ": complete." in shown


@pytest.mark.parametrize("place", [0.2, 0.5, 0.99])
def test_verify_names_the_damaged_shard_and_exits_4(cache, capsys, place):
    flip(cache / "shard-00001.h5", place)
    assert main(["verify", str(cache)]) == 4
    shown = capsys.readouterr().out
    assert "shard-00001.h5" in shown
    assert "damaged" in shown
    assert main(["verify", str(cache), "--json"]) == 4
    [found] = lines(capsys.readouterr().out)
    assert found["whole"] is False
    assert len(found["problems"]) == 1


def test_verify_finds_a_shard_that_is_in_the_journal_and_not_there(cache, capsys):
    (cache / "shard-00000.h5").unlink()
    assert main(["verify", str(cache)]) == 4
    assert "shard-00000.h5 is damaged (it is missing)" in capsys.readouterr().out


def test_verify_finds_records_that_were_written_wrong(tmp_path, capsys):
    rows, records = wave(1)
    bad = dataclasses.replace(records, ids=records.ids * 0)
    with CacheStore.open(tmp_path, IDENTITY, writable=True) as store:
        store.commit(rows, bad)
    assert main(["verify", str(tmp_path)]) == 4
    assert "names an id twice" in capsys.readouterr().out


def test_verify_tells_of_leftovers_which_are_no_damage(cache, capsys):
    (cache / "shard-00007.h5.tmp").write_bytes(b"half")
    assert main(["verify", str(cache)]) == 0
    assert "1 file is left over" in capsys.readouterr().out


def test_gc_removes_what_kills_and_damage_left_and_nothing_else(cache, capsys):
    before = content(cache)
    for name in ("shard-00003.h5.tmp", "shard-00001.h5.bad", "shard-00009.h5", "journal.jsonl.5.tmp"):
        (cache / name).write_bytes(b"x" * 100)
    assert main(["gc", str(cache), "--dry-run"]) == 0
    assert "Nothing was removed" in capsys.readouterr().out
    assert main(["gc", str(cache), "--yes"]) == 0
    assert "400 B freed" in capsys.readouterr().out
    assert content(cache) == before


def test_gc_asks_and_takes_silence_for_no(cache, capsys, monkeypatch):
    (cache / "x.tmp").write_bytes(b"x")
    assert main(["gc", str(cache)]) == 2, "there is no terminal to ask on"
    assert "--yes" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda _: "")
    assert main(["gc", str(cache)]) == 0
    assert (cache / "x.tmp").exists()
    monkeypatch.setattr("builtins.input", lambda _: "y")
    assert main(["gc", str(cache)]) == 0
    assert not (cache / "x.tmp").exists()


def test_gc_removes_whole_caches_only_when_they_are_old_and_asked_for(cache, tmp_path, capsys):
    fill(tmp_path / "shared" / "two")
    opened_days_ago(cache, 40)
    assert main(["gc", str(tmp_path / "shared"), "--yes"]) == 0
    assert cache.exists()
    assert main(["gc", str(tmp_path / "shared"), "--yes", "--older-than", "30d", "--json"]) == 0
    *items, total = lines(capsys.readouterr().out.split("remove.\n")[1])
    assert [(item["path"], item["kind"], item["removed"]) for item in items] == [(str(cache), "cache", True)]
    assert total["freed_bytes"] == items[0]["bytes"] > 0
    assert not cache.exists()
    assert (tmp_path / "shared" / "two").exists()


def test_gc_keeps_those_that_were_opened_last(cache, tmp_path):
    for place, name in enumerate(("two", "three")):
        fill(tmp_path / "shared" / name)
        opened_days_ago(tmp_path / "shared" / name, 10 * (place + 1))
    assert main(["gc", str(tmp_path / "shared"), "--yes", "--keep", "2"]) == 0
    assert sorted(path.name for path in (tmp_path / "shared").iterdir()) == ["one", "two"]


@pytest.mark.parametrize("is_finished", [True, False])
def test_gc_keeps_the_records_of_a_run_that_is_not_finished(cache, tmp_path, capsys, is_finished):
    run = a_run(tmp_path / "run", is_finished=is_finished)
    open_and_close(cache, used_by=run)
    assert main(["gc", str(cache), "--yes", "--keep", "0"]) == 0
    assert cache.exists() == (not is_finished)
    assert ("is not finished" in capsys.readouterr().out) == (not is_finished)


def test_gc_keeps_a_cache_that_somebody_has_open(cache, capsys):
    with CacheStore.open(cache, IDENTITY, writable=False) as store:
        assert main(["gc", str(cache), "--yes", "--keep", "0"]) == 0
        assert "has it open" in capsys.readouterr().out
        assert store.missing([row(0)]) == []
    with CacheStore.open(cache, IDENTITY, writable=True):
        (cache / "shard-00009.h5.tmp").write_bytes(b"being written")
        assert main(["gc", str(cache), "--yes"]) == 0
        assert "a run is writing to it" in capsys.readouterr().out
        assert (cache / "shard-00009.h5.tmp").exists()


def test_gc_never_removes_a_runs_own_cache(tmp_path, capsys):
    fill(a_run(tmp_path / "run", is_finished=True) / "cache")
    assert main(["gc", str(tmp_path / "run"), "--yes", "--keep", "0"]) == 0
    assert (tmp_path / "run" / "cache" / "shard-00000.h5").exists()


def test_gc_leaves_files_that_are_not_ours(cache):
    (cache / "notes.txt").write_text("mine")
    assert main(["gc", str(cache), "--yes", "--keep", "0"]) == 0
    assert [file.name for file in cache.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("command", ["inspect", "verify", "gc"])
def test_a_folder_without_records_is_a_wrong_request(tmp_path, capsys, command):
    assert main([command, str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["inspect", "x", "--tokeniser", "y"], "did you mean --tokenizer"),
        (["gc", "x", "--older-than", "soon"], "expected 30d, 12h or 4w"),
        (["gc", "x", "--keep", "-1"], "expected 0 or more"),
        (["destroy", "x"], "invalid choice"),
        ([], "required"),
        (["inspect"], "required"),
    ],
)
def test_a_wrong_request_is_said_and_exits_2(words, said, capsys):
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_a_manifest_of_another_version_is_refused(cache, capsys):
    manifest = cache / "manifest.json"
    written = manifest.read_text()
    assert f'"format": {FORMAT}' in written
    manifest.write_text(written.replace(f'"format": {FORMAT}', '"format": 1'))
    assert main(["verify", str(cache)]) == 2
    assert f"of format 1; this program reads format {FORMAT}" in capsys.readouterr().err
    manifest.write_text(written.replace("300", '"many"'))
    assert main(["verify", str(cache)]) == 4
    assert "manifest.json cannot be read" in capsys.readouterr().err


def test_the_command_loads_no_torch(cache):
    program = (
        "import sys; from engine.cli.cache import main; "
        f"code = main(['inspect', {str(cache)!r}, '--json']); "
        "print({'torch', 'transformers'} & {*sys.modules}, code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set() 0"
