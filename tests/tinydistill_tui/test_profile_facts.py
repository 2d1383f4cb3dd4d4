from dataclasses import replace

import pytest

from engine.machine.hardware import Gpu
from engine.model_files.demo import DEMO_TEACHER
from tests.tinydistill_tui.fixtures import GIB
from tests.tinydistill_tui.wizard import MACHINE
from tinydistill_tui.view.profile_facts import fit_of

GPU = Gpu(0, "NVIDIA RTX 3050", 4 * GIB, 3 * GIB, "550.1", "8.6")


@pytest.mark.parametrize(
    ("name", "value", "mark", "words"),
    [
        ("teacher", str(DEMO_TEACHER), "good", "is here"),
        ("teacher", "nobody/nothing-7b", "look", "to be downloaded"),
        ("student", "/nowhere/at/all", "wrong", "is not here"),
        ("student", "from-teacher", "good", "cut when it starts"),
        ("data", "python-docs", "good", "is here"),
        ("data", "/nowhere.txt", "wrong", "is not here"),
        ("data", "owner/set", "look", "from the hub"),
        ("memory_budget", 3 * GIB, "good", "8.0 GiB free"),
        ("ram_budget", 9 * GIB, "wrong", "8.0 GiB free"),
        ("device", "cpu", "good", "is here"),
        ("device", "cuda:0", "wrong", "is not here"),
    ],
)
def test_setting_is_held_against_this_machine(name, value, mark, words):
    assert fit_of(name, value, MACHINE) == (mark, words)


def test_budget_is_held_against_the_gpu_where_there_is_one_and_other_settings_against_nothing():
    machine = replace(MACHINE, gpus=(GPU,))
    assert fit_of("memory_budget", 4 * GIB, machine) == ("wrong", "3.0 GiB free")
    assert fit_of("device", "cuda:0", machine) == ("good", "is here")
    assert fit_of("student_batch", 8, machine) is None
