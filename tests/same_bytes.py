"""Do two versions of the program make the same bytes? ``python -m tests.same_bytes FILE [--against FILE] [--quick]``.

It runs the demo and four tiny runs, and writes the hash of each file of their records and students to FILE. Run it in a
checkout of the version before a change and after it, on the same machine: a change that is only a move or a clean-up
leaves every hash as it was. ``--quick`` trains the demo's student for 20 steps only.

The tiny runs cover what the demo does not: a streamed teacher, an adapter on a streamed and quantized student, 8-bit
moments in files, accumulation, conversations, and two ranks.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

from tests.end_to_end import program
from tests.end_to_end.program import write_texts
from tests.tiny import tiny_model

# The planner chooses these by measuring the machine, and a machine that is busy measures otherwise.
_MEASURED = {"precision": "fp32", "evaluations": 2}
_COMMON = {**_MEASURED, "threads": 1, "steps": 6, "learning_rate": 1e-2, "holdout": 0.2, "seed": 3}


def main() -> int:
    """Write the hashes; returns 1 if they differ from those in ``--against``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    found: dict[str, str] = {}
    scratch = Path(tempfile.mkdtemp(prefix="same-bytes-"))
    try:
        for name, words in _runs(scratch, quick=asked.quick).items():
            folder = scratch / name
            done = program.run(*words, "--output_dir", folder)
            if done.returncode:
                sys.exit(f"{name} ended with exit code {done.returncode}: {done.stderr[-2000:]}")
            found |= hashes(name, folder)
            sys.stdout.write(f"{name}: {sum(place.startswith(name + '/') for place in found)} files\n")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    asked.file.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    if asked.against is None:
        return 0
    before = json.loads(asked.against.read_text(encoding="utf-8"))
    differing = sorted(name for name in {*before, *found} if before.get(name) != found.get(name))
    sys.stdout.write("".join(f"differs: {name}\n" for name in differing) or f"all {len(found)} files are the same\n")
    return bool(differing)


def hashes(name: str, folder: Path) -> dict[str, str]:
    """The hash of each file of a run's records and student that does not depend on where and when it was made."""
    # Ranks give their shards and journals names of their own in each run.
    parts = ("student",) if name == "ranks" else ("cache", "student")
    return {
        f"{name}/{place}": hashlib.sha256(content).hexdigest()
        for place, content in program.content(folder, parts).items()
    }


def _runs(scratch: Path, *, quick: bool) -> dict[str, list[object]]:
    """The words of each run's command by its name."""
    texts = write_texts(scratch / "text", 60)
    talks = scratch / "talks.jsonl"
    talks.write_text(
        "".join(
            json.dumps({"prompt": f"What is {number} and one?", "completion": f"{number} and one is {number + 1}."})
            + "\n"
            for number in range(60)
        )
    )
    llama, neox = tiny_model("llama", num_layers=4), tiny_model("gpt_neox", num_layers=3, seed=2)
    runs: dict[str, dict[str, object]] = {
        "cut": {"teacher": llama, "student": "from-teacher", "student_layers": 2, "data": texts}
        | {"gradient_accumulation": 2, "student_batch": 2, "target": "blend", "kd_weight": 0.8},
        "adapter": {"teacher": llama, "student": llama, "data": texts, "layer_by_layer": "on", "lora_rank": 4}
        | {"student_layer_by_layer": "on", "student_quantization": "int8", "cpu_offload": "on"},
        "talks": {"teacher": neox, "student": neox, "data": talks, "optimizer": "adamw-8bit", "packing": "on"}
        | {"gradient_checkpointing": "on", "temperature": 2.0, "record_size": 8},
        "ranks": {"teacher": llama, "student": "from-teacher", "student_layers": 1, "data": texts, "processes": 2},
    }
    words: dict[str, list[object]] = {
        name: [word for key, value in (_COMMON | settings).items() for word in (f"--{key}", value)]
        for name, settings in runs.items()
    }
    measured = [word for key, value in _MEASURED.items() for word in (f"--{key}", value)]
    return {"demo": ["--demo", "--threads", 2, *measured, *(["--steps", 20] if quick else [])], **words}


if __name__ == "__main__":
    sys.exit(main())
