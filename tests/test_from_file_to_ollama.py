"""The page "From file to Ollama": its commands run as they are written, one after the other, without a network."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from engine.model_files.spec import read_spec
from tests.engine.export.go_template import fields, ollama_fill

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/from-file-to-ollama.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)

# In Ollama's place: it reads the Modelfile and its GGUF file, and answers with that file's weights.
OLLAMA = r'''#!/bin/sh
set -e
case "$1" in
create)
    [ "$3" = -f ]
    from=$(sed -n 's/^FROM //p' "$4")
    grep -q '^TEMPLATE """' "$4"
    grep -q '^PARAMETER num_ctx [1-9]' "$4"
    cd "$(dirname "$4")"
    realpath "$from" > "$OLLAMA_MODELS/$2"
    ;;
run) tiny-distill-chat "$(cat "$OLLAMA_MODELS/$2")" --prompt "$3" --max_tokens 8 ;;
*) exit 2 ;;
esac
'''


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder to work in, beside programs of the names that the page uses."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "ollama").write_text(OLLAMA)
    for name in ("export", "chat", "eval", ""):
        words = f"engine.cli.{name or 'distill'}"
        script = f'#!/bin/sh\nexec "{sys.executable}" -m {words} "$@"\n'
        (programs / f"tiny-distill{'-' if name else ''}{name}").write_text(script)
    (programs / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    for program in programs.iterdir():
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def sh(commands: str, place: Path) -> str:
    models = place.parent / "ollama"
    models.mkdir(exist_ok=True)
    done = subprocess.run(
        ["sh", "-euc", commands],
        capture_output=True,
        text=True,
        cwd=place,
        stdin=subprocess.DEVNULL,
        timeout=900,
        env={
            **os.environ,
            "PATH": f"{place.parent / 'programs'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OLLAMA_MODELS": str(models),
        },
    )
    assert done.returncode == 0, f"{commands}\n{done.stderr}"
    return done.stdout


def test_every_command_of_the_page_is_in_a_block_that_is_run() -> None:
    assert len(BLOCKS) == PAGE.count("```sh") == PAGE.count("```") // 2
    for word in ("--dry_run", "tiny-distill-eval run", "tiny-distill-chat run", "--format ollama", "ollama create"):
        assert any(word in block for block in BLOCKS), word


@pytest.mark.slow
def test_the_pages_commands_run_word_for_word(place: Path) -> None:
    told = [sh(block, place) for block in BLOCKS]
    said = "\n".join(told)
    assert (place / "run/ollama/model-q8_0.gguf").is_file()
    assert read_spec(place / "run/ollama/model-q8_0.gguf").num_layers < read_spec(place / "model.gguf").num_layers
    assert "behind the teacher" in said or "as good as the teacher" in said or "better than the teacher" in said
    assert len(told[-2].split()) > 1, "the exported model said nothing"


@pytest.mark.slow
def test_the_pages_commands_run_with_a_real_chat_model(place: Path) -> None:
    if not os.environ.get("SMOLLM2_GGUF"):
        pytest.skip("SMOLLM2_GGUF=FILE names SmolLM2-135M-Instruct as a GGUF file")
    shutil.copyfile(os.environ["SMOLLM2_GGUF"], place / "model.gguf")
    sh("\n".join(line for line in BLOCKS[0].splitlines() if "model.gguf" not in line), place)
    for block in BLOCKS[1:]:
        sh(block, place)
    words = (place / "run/ollama/Modelfile").read_text()
    template = dict(fields(words))["template"]
    asked = ollama_fill(template, [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}])
    assert asked == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    assert 'PARAMETER stop "<|im_end|>"' in words
