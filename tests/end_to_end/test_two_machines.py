"""torchrun on two machines: network namespaces with host names and processes of their own, and a common folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.end_to_end import program
from tests.end_to_end.test_ranks import assert_same_records, assert_same_student, records, wait_for, words

pytestmark = pytest.mark.slow

_PORT = 29400


@dataclass(frozen=True)
class Machine:
    """A network namespace whose only way to the other machine is a cable.

    Attributes:
        name: of the namespace, and of the host.
        cable: its end of the cable, a network interface.
        hosts: the file that it has as /etc/hosts.
    """

    name: str
    cable: str
    hosts: Path

    def start(self, first: Machine, *arguments: object, **environment: str) -> subprocess.Popen[str]:
        """``torchrun`` with one process here, and the rendezvous on the first machine."""
        run = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
        run += [
            "--rdzv_backend",
            "c10d",
            "--rdzv_endpoint",
            f"{first.name}:{_PORT}",
            "--rdzv_id",
            "test",
            "-m",
            "engine",
        ]
        setup = f'hostname "{self.name}" && mount --bind "{self.hosts}" /etc/hosts && exec "$@"'
        apart = [
            "unshare",
            "--uts",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "bash",
            "-c",
            setup,
            "-",
        ]
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, *apart, *run, *map(str, arguments)],
            cwd=program.ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def cut_the_cable(self) -> None:
        _ip("-n", self.name, "link", "set", self.cable, "down")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[list[Machine]]:
    """Two machines that reach each other."""
    if not (shutil.which("ip") and shutil.which("unshare")):
        pytest.skip("needs ip and unshare")
    hosts = tmp_path / "hosts"
    found = [Machine(f"distill{os.getpid()}-{number}", f"cable{number}", hosts) for number in range(2)]
    hosts.write_text("".join(f"10.213.0.{number} {machine.name}\n" for number, machine in enumerate(found, 1)))
    try:
        _connect(found)
        yield found
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr}")
    finally:
        for machine in found:
            subprocess.run(["ip", "netns", "delete", machine.name], check=False, capture_output=True)


def _connect(machines: list[Machine]) -> None:
    one, other = machines
    for machine in machines:
        _ip("netns", "add", machine.name)
        _ip("-n", machine.name, "link", "set", "lo", "up")
    _ip("link", "add", one.cable, "netns", one.name, "type", "veth", "peer", "name", other.cable, "netns", other.name)
    for number, machine in enumerate(machines, 1):
        _ip("-n", machine.name, "address", "add", f"10.213.0.{number}/24", "dev", machine.cable)
        _ip("-n", machine.name, "link", "set", machine.cable, "up")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, measured_cache: Path) -> Path:
    """A finished run on one process, and its text beside it."""
    folder = tmp_path_factory.mktemp("machines")
    done = program.run(*words(folder, "one"), XDG_CACHE_HOME=str(measured_cache))
    assert done.returncode == 0, done.stderr
    return folder / "one"


@pytest.mark.parametrize("flag", ["--no_student_sharded", "--student_sharded"])
def test_two_machines_leave_the_records_and_the_student_of_one_process(
    machines: list[Machine], one: Path, flag: str
) -> None:
    name = f"two{flag}"
    started = [machine.start(machines[0], *words(one.parent, name), flag) for machine in machines]
    output = [process.communicate(timeout=400)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0], output
    run = one.parent / name
    assert_same_records(records(one), records(run))
    assert_same_student(one, run)
    assert json.loads((run / "report.json").read_text())["world"] == {"ranks": 2, "hosts": 2}


def test_a_cut_cable_ends_the_training_with_a_message_and_loses_nothing(machines: list[Machine], one: Path) -> None:
    run = one.parent / "cut"
    arguments = words(one.parent, "cut", cache_dir=one / "cache", steps=1_000, checkpoint_every=20)
    limit = {"TINYDISTILL_RANK_SECONDS": "20"}  # busy cores may leave a rank without an answer for seconds
    first, second = (machine.start(machines[0], *arguments, **limit) for machine in machines)
    try:
        wait_for(lambda: list(run.glob("checkpoints/step-*")))
        machines[1].cut_the_cable()
        began = time.monotonic()
        output = first.communicate(timeout=120)[0]
        assert time.monotonic() - began < 100
        assert "did not answer" in output
    finally:
        for process in (first, second):  # torchrun itself waits much longer for the other machine
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    resumed = program.run("--resume", "--output_dir", run, "--processes", 1, "--steps", 100)
    assert resumed.returncode == 0, resumed.stderr
    assert any(event.get("code") == "resumed-checkpoint" for event in program.events(run))
