"""Nothing in the user's current folder is imported or run, whatever it is called: it would run with their rights."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from engine.machine import safe_child
from tests.end_to_end import program
from tests.tiny import tiny_model

LIBRARIES = (
    *("numpy", "torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "h5py", "psutil", "pydantic"),
    *("pydantic_core", "rich", "textual", "platformdirs", "pyarrow", "datasets", "bitsandbytes", "accelerate", "yaml"),
    *("regex", "filelock", "tqdm", "packaging", "jinja2", "requests", "httpx", "socksio", "typing_extensions", "numba"),
    *("sitecustomize", "usercustomize", "lm_eval", "gguf", "triton", "pandas", "PIL", "sklearn"),
)
SCRIPTS = ("tiny-distill", "tiny-distill-cache", "tiny-distill-profile", "tinydistill-tui")
MODULES = ("engine", "engine.cli.distill", "engine.cli.cache", "tinydistill_tui", "tinydistill_tui.cli")
CHILDREN = ("engine.run.supervisor", "engine.phases.process", "engine.data.row_preview", "engine.machine.gemm_probe",
            "tinydistill_tui.work.download")  # fmt: skip


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    """A folder with a file of each name that Python or we could look for, and a package called engine."""
    folder = tmp_path / "mine"
    trap = f"import os\nopen({str(tmp_path / 'run')!r}, 'a').write(__name__ + ' ')\nos._exit(66)\n"
    (folder / "engine").mkdir(parents=True)
    (folder / "engine/__init__.py").write_text(trap)
    for name in (*sys.stdlib_module_names, *LIBRARIES):
        (folder / f"{name}.py").write_text(trap)
    return folder


def assert_nothing_was_run(done: subprocess.CompletedProcess[str], folder: Path) -> None:
    trap = folder.parent / "run"
    assert not trap.exists(), f"run by us: {trap.read_text()}"
    assert "is not a package" not in done.stderr


def here(words: Sequence[object], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, words)), cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=500,
        env={**os.environ, **environment},
    )  # fmt: skip


def script(name: str) -> Path:
    path = Path(sys.executable).parent / name
    if not path.exists():
        pytest.skip("the programs are not installed here")
    return path


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_program_imports_nothing_of_the_folder_that_it_is_started_in(name, own_folder):
    done = here([script(name), "--help"], own_folder)
    assert_nothing_was_run(done, own_folder)
    assert done.returncode == 0


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_nothing_of_the_folder_that_it_is_started_in(name, own_folder):
    (own_folder / "engine/__init__.py").unlink()  # python -m engine means this one: it is what was asked for
    (own_folder / "engine").rmdir()
    done = here([sys.executable, "-m", name, "--help"], own_folder)
    assert_nothing_was_run(done, own_folder)
    assert done.returncode == 0


@pytest.mark.parametrize("name", CHILDREN)
def test_a_child_imports_nothing_of_the_folder_that_it_is_started_in(name, own_folder):
    # Measuring the machine takes seconds; its modules are imported before that.
    words = ["--help"] if name == "engine.machine.gemm_probe" else []
    done = here(safe_child.command(name, *words), own_folder, **safe_child.environment())
    assert_nothing_was_run(done, own_folder)
    assert "No module named" not in done.stderr


@pytest.mark.slow
def test_a_run_is_whole_in_a_folder_of_own_files(own_folder):
    words = ["--teacher", tiny_model("llama"), "--student", tiny_model("llama", num_layers=2, seed=1), "--until",
             "teacher", "--data", program.write_texts(own_folder.parent), "--output_dir", own_folder / "run",
             "--device", "cpu", *program.QUICK]  # fmt: skip
    done = here([script("tiny-distill"), *words], own_folder)
    assert_nothing_was_run(done, own_folder)
    assert done.returncode == 0, done.stderr


def test_the_path_that_the_person_named_stays_and_an_empty_entry_goes():
    given = {"PYTHONPATH": os.pathsep.join(["", "/mine", "", "."])}
    assert safe_child.environment(given)["PYTHONPATH"] == os.pathsep.join(["/mine", "."])


@pytest.mark.parametrize(
    ("name", "value"), [("PYTHONOPTIMIZE", "2"), ("PYTHONINSPECT", "1"), ("HF_HUB_ETAG_TIMEOUT", "1.5")]
)
def test_variables_that_no_child_can_work_with_do_not_reach_one(name, value):
    assert name not in safe_child.environment({name: value, "PATH": "/bin"})
    assert "HF_HUB_DOWNLOAD_TIMEOUT" in safe_child.environment({"HF_HUB_DOWNLOAD_TIMEOUT": "30"})
