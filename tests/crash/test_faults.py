"""Bad disks and damaged files under a real run: noticed, named, made again or fallen back from, never used."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import pytest

from engine.channel.events import read_events
from engine.data.tokens import SPLITS, TokenFile
from engine.errors import CorruptState, FolderError
from engine.phase_kinds import PHASES
from engine.run import launch, supervisor
from engine.run.folder import Run
from engine.settings.config import RunConfig
from tests.crash.harness import Harness, Kill, Life, differing, leftovers, outcome


def said_in(folder: Path) -> str:
    """Everything that the run has told a user."""
    events = read_events(folder / "events.jsonl")
    return "\n".join(
        " ".join(str(event.get(key) or "") for key in ("message", "what", "why", "todo"))
        for event in events
        if event["kind"] in ("log", "error")
    )


def flip(path: Path) -> None:
    """Turn one bit, in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def flip_a_token(path: Path) -> None:
    """Turn one bit of what is learned from: the middle of the file may be room that HDF5 keeps and nothing uses."""
    with h5py.File(path) as file:
        where = file["train"]["tokens"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[where.byte_offset + where.size // 2] ^= 4
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def vanish(path: Path) -> None:
    path.unlink()


def flip_digit(path: Path) -> None:
    """Damage that is still JSON."""
    text = path.read_text()
    place = max(place for place, letter in enumerate(text[: text.rindex("checksum")]) if letter in "12345678")
    path.write_text(text[:place] + str(int(text[place]) + 1) + text[place + 1 :])


def garble(path: Path) -> None:
    path.write_bytes(b"\x00\xff{]" + path.read_bytes()[4:])


def tear(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b'{"kind": "half a l')


def newest(folder: Path) -> Path:
    return max((folder / "checkpoints").glob("step-*"))


def holdout_shard(run: Path) -> Path:
    """The last shard, with records of the hold-out: other ones may have no row of the steps that are left."""
    return max((run / "cache").glob("shard-*.h5"))


# what is damaged, how, and what of it is said; nothing where nothing is lost
DAMAGES: dict[str, tuple[Callable[[Path], Path], Callable[[Path], None], str]] = {
    "a shard with a flipped bit": (holdout_shard, flip, "{name} is damaged"),
    "a shard cut short": (lambda run: run / "cache" / "shard-00001.h5", cut, "shard-00001.h5 is damaged"),
    "a shard that vanished": (lambda run: run / "cache" / "shard-00001.h5", vanish, "shard-00001.h5 is damaged"),
    "a journal that vanished": (lambda run: run / "cache" / "journal.jsonl", vanish, "rows have no record"),
    "a journal with a bad line": (lambda run: run / "cache" / "journal.jsonl", garble, "of the journal"),
    "a journal with a torn last line": (lambda run: run / "cache" / "journal.jsonl", tear, ""),
    "weights with a flipped bit": (lambda run: newest(run) / "weights.safetensors", flip, "weights.safetensors is not"),
    "moments cut short": (lambda run: newest(run) / "optimizer.safetensors", cut, "optimizer.safetensors has"),
    "a checkpoint's state that vanished": (lambda run: newest(run) / "state.json", vanish, "state.json cannot be read"),
    "tokens with a flipped bit": (lambda run: run / "tokens.h5", flip_a_token, "tokens.h5 is damaged"),
    "tokens cut short": (lambda run: run / "tokens.h5", cut, "tokens.h5 is damaged"),
    "tokens that vanished": (lambda run: run / "tokens.h5", vanish, "tokens.h5 is damaged"),
    "a result with another digit": (lambda run: run / "phases" / "teacher.json", flip_digit, "teacher.json is damaged"),
    "a result cut short": (lambda run: run / "phases" / "teacher.json", cut, "teacher.json is damaged"),
    "first weights with a flipped bit": (
        lambda run: run / "initial-student" / "model.safetensors",
        flip,
        "initial-student is damaged",
    ),
    "events with a torn last line": (lambda run: run / "events.jsonl", tear, ""),
    "events that vanished": (lambda run: run / "events.jsonl", vanish, ""),
}
QUICK = ("a shard with a flipped bit", "weights with a flipped bit", "tokens with a flipped bit")


@pytest.mark.parametrize(
    "damage", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in DAMAGES]
)
def test_damage_is_named_and_the_student_is_the_same(harness: Harness, damage: str) -> None:
    which, how, said = DAMAGES[damage]
    folder = harness.half_done()
    damaged = which(folder)
    how(damaged)
    assert Life(folder).wait() == 0, said_in(folder)
    assert said.format(name=damaged.name) in said_in(folder)
    different = differing(outcome(folder), harness.expected)
    assert [name for name in different if not name.startswith("cache/")] == []


def test_run_json_with_another_digit_is_refused_by_name(harness: Harness) -> None:
    folder = harness.half_done()
    flip_digit(folder / "run.json")
    with pytest.raises(CorruptState, match=r"run\.json is not what was written"):
        Run.open(folder)


def test_tokens_of_another_text_are_not_learned_from(harness: Harness) -> None:
    folder = harness.half_done()
    info = json.loads((folder / "phases" / "prepare.json").read_text())
    del info["checksum"]
    info["data"]["data_hash"] = "another"
    (folder / "phases" / "prepare.json").write_text(json.dumps(info))
    vanish(folder / "tokens.h5")
    assert Life(folder).wait() == 4
    assert "the text has changed since it was made" in said_in(folder)
    assert not (folder / "student").exists()


FULL = {
    "shard-written:2": "teacher",
    "journal-written:1": "teacher",
    "checkpoint-weights:2": "student",
    "student-durable:1": "student",  # the student has its name, and the phase has more to write
    "tokens-written:1": "prepare",
    "report.json-written:1": "supervisor",
}


@pytest.mark.parametrize(
    "point",
    [
        "checkpoint-weights:2",
        *(
            pytest.param(point, marks=pytest.mark.slow)
            for point in ("shard-written:2", "student-durable:1", "report.json-written:1")
        ),
    ],
)
def test_a_full_disk_ends_the_run_with_what_is_needed_and_resuming_continues(harness: Harness, point: str) -> None:
    assert full_disk(harness, FULL[point], point) == []


@pytest.mark.slow
def test_a_full_disk_at_every_write_site(harness: Harness) -> None:
    """A run meets a full disk at one site, continues to the next site, and so on to its end: a life for each site.

    A run that had passed a site before it was stopped does not meet it again; a new run is made for such a site.
    """
    points = [(role, point) for role in (*PHASES, "supervisor") for of, point in harness.points if of == role]
    points = [(role, point) for role, point in points if point.endswith(":1")]
    assert len(points) > 40
    wrong: dict[str, list[str]] = {}
    folder, met = harness.new_run(), 0
    for role, point in points:
        code = Life(folder, kill=Kill("disk", role, point, 0.0, 0)).wait()
        if code:
            met += 1
            said = ([] if code == 4 else [f"exit code {code}"]) + said_wrongly(folder)
        else:
            said = ended_wrongly(folder, harness)
            said += full_disk(harness, role, point)
            folder = harness.new_run()
        if said:
            wrong[f"{role} {point}"] = said
    code = Life(folder).wait()
    if code or ended_wrongly(folder, harness):
        wrong["at the end"] = [f"exit code {code}", said_in(folder)[-500:], *ended_wrongly(folder, harness)]
    assert wrong == {}
    assert met > 20, "most of them are met by a run that continues"


DELETED = {
    "student": ("evaluation:1", "metric:1", "metric:2", "checkpoint:1", "checkpoint:3"),
    "teacher": ("progress:1", "shard:1", "shard:2"),
    "prepare": ("progress:1",),
    "supervisor": ("plan:1", "phase_started:1", "phase_finished:1", "phase_finished:2", "phase_finished:3"),
}


@pytest.mark.parametrize(
    ("role", "event"),
    [
        ("prepare", "log:1"),
        *(pytest.param(role, event, marks=pytest.mark.slow) for role in DELETED for event in DELETED[role]),
    ],
)
def test_a_folder_that_is_deleted_during_a_run_is_not_made_again(harness: Harness, role: str, event: str) -> None:
    folder = harness.new_run()
    code = Life(folder, kill=Kill("folder", role, event, 0.0, 0)).wait()
    assert (folder.parent / "killed").exists(), "it was deleted"
    said = (folder.parent / "log").read_text()
    assert code == 4, said
    assert "Traceback" not in said
    assert [path for path in (folder, *folder.rglob("*")) if path.exists()] == []


def full_disk(harness: Harness, role: str, point: str) -> list[str]:
    """Return the problems of a run whose disk is full at a commit point and has room again afterwards."""
    folder = harness.new_run()
    code = Life(folder, kill=Kill("disk", role, point, 0.0, 0)).wait()
    wrong = []
    if code != 0:
        if code != 4:
            wrong.append(f"exit code {code}")
        wrong += said_wrongly(folder)
        code = Life(folder).wait()
    if code != 0:
        wrong.append(f"resumed, it ends with {code}: {said_in(folder)[-500:]}")
    return wrong + ended_wrongly(folder, harness)


def said_wrongly(folder: Path) -> list[str]:
    """Return the last error of a run on a full disk, unless it says what is needed and how to continue."""
    error = [event for event in read_events(folder / "events.jsonl") if event["kind"] == "error"][-1]
    if "bytes" in error["what"] and "resume" in error["todo"] and "full" in error["why"]:
        return []
    return [f"says: {error['what']} {error['why']} {error['todo']}"]


def ended_wrongly(folder: Path, harness: Harness) -> list[str]:
    return differing(outcome(folder), harness.expected) + leftovers(folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 200 KiB; for root on Linux."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("no disk can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_disk_that_is_really_full_ends_the_run_and_a_larger_one_continues(harness: Harness, small_disk: Path) -> None:
    folder = small_disk / "run"
    folder.mkdir()
    (folder / "run.json").write_bytes((harness.template / "run.json").read_bytes())
    assert Life(folder).wait() == 4
    subprocess.run(["mount", "-o", "remount,size=50m", small_disk], check=True)
    assert Life(folder).wait() == 0, said_in(folder)
    assert differing(outcome(folder), harness.expected) == []


@pytest.mark.slow
def test_disks_that_are_full_sooner_or_later(harness: Harness, small_disk: Path) -> None:
    wrong, ends = {}, set()
    for kibibytes in (20, 60, 100, 140, 180, 240, 300, 400, 500, 600, 700, 800, 900):
        subprocess.run(["mount", "-o", f"remount,size={kibibytes}k", small_disk], check=True)
        folder = small_disk / str(kibibytes) / "run"
        folder.mkdir(parents=True)
        (folder / "run.json").write_bytes((harness.template / "run.json").read_bytes())
        code = Life(folder).wait()
        errors = [event for event in read_events(folder / "events.jsonl") if event["kind"] == "error"]
        if code != 0:
            ends.add(errors[-1]["what"].split(str(folder))[-1][:12] if errors else "without a word")
            subprocess.run(["mount", "-o", "remount,size=50m", small_disk], check=True)
            code = Life(folder).wait()
        said = [f"ends with {code}: {said_in(folder)[-300:]}"] if code else []
        said += [error["what"] for error in errors if "bytes" not in error["what"]]
        said += differing(outcome(folder), harness.expected) + leftovers(folder)
        if said:
            wrong[kibibytes] = said
        shutil.rmtree(folder.parent)
    assert wrong == {}
    assert len(ends) > 3, f"the disk was always full at the same place: {ends}"


def test_a_read_only_disk_is_said_and_nothing_is_begun(harness: Harness, small_disk: Path) -> None:
    folder = small_disk / "run"
    folder.mkdir()
    (folder / "run.json").write_bytes((harness.template / "run.json").read_bytes())
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(FolderError, match="Read-only file system"):
        supervisor.start(folder)
    assert [entry.name for entry in folder.iterdir()] == ["run.json"]


def test_two_supervisors_on_one_folder_are_impossible(harness: Harness) -> None:
    folder = harness.new_run()
    first = Life(folder)
    while not (folder / "events.jsonl").exists():
        os.sched_yield()
    assert supervisor.main([str(folder)]) == 2
    with pytest.raises(FolderError, match="already running"):
        launch.resume_run(RunConfig.parse({"resume": True, "output_dir": str(folder), "steps": 9}))
    assert first.wait() == 0
    assert differing(outcome(folder), harness.expected) == []


def test_two_runs_on_one_shared_cache_score_each_row_once_even_when_one_is_killed(
    harness: Harness, tmp_path: Path
) -> None:
    folders = [with_shared_cache(harness.new_run(), tmp_path / "shared") for _ in range(2)]
    first = Life(folders[0], kill=Kill("both", "teacher", "shard-renamed:2", 0.0, 0))
    second = Life(folders[1])
    assert second.wait() == 0, said_in(folders[1])
    assert first.wait() != 0 or (folders[0] / "report.json").exists()  # the second may have been first to score
    assert Life(folders[0]).wait() == 0, said_in(folders[0])
    for folder in folders:
        different = differing(outcome(folder), harness.expected)
        # The card tells the settings, the shared cache among them; the teacher's samples are told by who loaded it.
        may_differ = ("cache/", "student/README", "report: samples")
        assert [name for name in different if not name.startswith(may_differ)] == []
    (cache,) = (tmp_path / "shared").iterdir()
    entries = [json.loads(line) for line in (cache / "journal.jsonl").read_text().splitlines()]
    assert len(list(cache.glob("shard-*.h5"))) == len(entries)
    with TokenFile(folders[0] / "tokens.h5") as tokens:
        assert sum(entry["rows"] for entry in entries) == sum(len(set(tokens.hashes(split))) for split in SPLITS)


def with_shared_cache(folder: Path, shared: Path) -> Path:
    info = json.loads((folder / "run.json").read_text())
    del info["checksum"]
    info["settings"]["cache_dir"] = str(shared)
    (folder / "run.json").write_text(json.dumps(info))
    return folder


def test_a_run_that_was_killed_while_its_folder_was_made_does_not_stand_in_the_way(tmp_path: Path) -> None:
    from tests.engine.run.test_folder import make_run

    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json.123.tmp").write_text("{")
    make_run(folder)
    assert [entry.name for entry in folder.iterdir()] == ["run.json"]


def test_settings_that_may_not_change_stay_after_any_kill(harness: Harness) -> None:
    folder = harness.half_done()
    with pytest.raises(Exception, match="--seed"):
        launch.resume_run(RunConfig.parse({"resume": True, "output_dir": str(folder), "seed": random.randrange(9) + 7}))
