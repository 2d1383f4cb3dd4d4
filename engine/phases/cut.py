"""Initial weights of a student that is cut from its teacher: the choice of layers, and their copy in the run's folder.

The teacher phase makes them; the student phase needs nothing of the teacher. The choice is stored in
``phases/cut.json``, so that an interrupted run continues with the same student.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.channel.channel import Channel
from engine.data.tokens import TokenFile
from engine.errors import CorruptState
from engine.jobs import Job, ScoreJob
from engine.model_files.spec import ModelSpec
from engine.planner.models import FROM_TEACHER
from engine.planner.sizes import wave_tokens
from engine.run.folder import Run
from engine.settings.describe import layer_list

if TYPE_CHECKING:
    from engine.teacher.depth import Cut, CutRules, DeepTeacher

CUT = "cut"


def is_cut(run: Run, job: Job) -> bool:
    """Return whether the student's initial weights exist, or do not come from the teacher."""
    if job.student != FROM_TEACHER:
        return True
    written = run.result(CUT)
    return written is not None and written["files"] == checksums(run.initial_student_path)


def cut_student(
    run: Run,
    job: ScoreJob,
    spec: ModelSpec,
    teacher: Callable[[], DeepTeacher],
    tokens: TokenFile,
    channel: Channel,
) -> None:
    """Choose the layers, unless they are chosen, and write the student's first weights.

    Args:
        run: whose student.
        job: the scoring.
        spec: the teacher, described.
        teacher: the teacher itself; asked for only when something has to be measured.
        tokens: the rows.
        channel: receives the choice, and the initial losses of other depths.

    Raises:
        Stopped: the user stopped the run.
        ModelError: no layers of this number make a model.
    """
    found = run.result(CUT)
    if found is None:
        found = _measured(job, spec, teacher(), tokens, channel)
        for line in words(found, spec.num_layers):
            channel.log("info", line, "cut")
    _write(run, spec, found)


def repair_student(run: Run, spec: ModelSpec, channel: Channel) -> None:
    """Copy the chosen layers again where the student's first weights are damaged.

    Raises:
        CorruptState: the choice of layers is lost.
    """
    found = run.result(CUT) or (run.result("teacher") or {}).get(CUT)
    if found is None:
        raise CorruptState(
            f"{run.phases_path / 'cut.json'} is damaged or gone.",
            "It lists the teacher's layers that the student was built from.",
            "Start a new run; with --cache_dir it reuses the teacher's records.",
        )
    channel.log("warning", f"{run.initial_student_path} is damaged: it is cut from the teacher again.", "derived")
    _write(run, spec, found)


def _write(run: Run, spec: ModelSpec, found: dict[str, Any]) -> None:
    from engine.model_files.narrow import Kept, Width
    from engine.models.derive import derive_student

    width = found.get("width")
    parts = {
        int(index): Kept(tuple(part["neurons"]), tuple(part["kv_heads"]))
        for index, part in found.get("parts", {}).items()
    }
    shutil.rmtree(run.initial_student_path, ignore_errors=True)
    derive_student(
        spec,
        found["kept"],
        run.initial_student_path,
        width=None if width is None else Width(**width),
        parts=parts,
    )
    run.finish_phase(CUT, {**found, "files": checksums(run.initial_student_path)})


def words(found: dict[str, Any], total: int) -> list[str]:
    """Describe the choice for the log: the layers, and the loss right after the cut at several depths."""
    chosen = ", ".join(map(str, found["kept"]))
    ways = {
        "named": "as you named them",
        "even": "evenly spread, which measured best on the text",
        "influence": "those that change their input most on the text",
        "influence in rounds": "those that change their input most on the text, measured again as layers are removed",
    }
    losses = ", ".join(f"{len(cut['layers'])} layers {_loss(cut['holdout_loss'])}" for cut in found["cuts"])
    width = found.get("width")
    narrow = f", each with {width['neurons']:,} neurons and {width['kv_heads']} key-value heads" if width else ""
    way = ways.get(found["way"], found["way"])
    at_full_width = " at full width" if width else ""
    return [
        f"The student begins with layers {chosen} of its teacher's {total}: {way}{narrow}.",
        f"Hold-out loss right after the cut{at_full_width}, before any training: {losses}.",
    ]


def _loss(value: float | None) -> str:
    return "no number" if value is None else f"{value:.2f}"


def checksums(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file in a folder, in hex; none where there is no folder."""
    files = sorted(entry for entry in folder.glob("*") if entry.is_file())
    found = {}
    for entry in files:
        with entry.open("rb") as file:
            found[entry.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _measured(
    job: ScoreJob, spec: ModelSpec, teacher: DeepTeacher, tokens: TokenFile, channel: Channel
) -> dict[str, Any]:
    from engine.model_files.narrow import width_of
    from engine.teacher.depth import Bench, choose_depth, piece_of
    from engine.teacher.width import choose_width

    batch = job.teacher_batch
    train = piece_of(tokens, "train", batch)
    bench = Bench(
        teacher,
        vocab_size=tokens.vocab_size,
        wave_tokens=wave_tokens(
            spec.hidden_size,
            batch * tokens.sequence_length,
            layer_by_layer=job.layer_by_layer,
            device=job.where,
        ),
        chunk_tokens=job.head_chunk_tokens,
        safe_point=channel.safe_point,
    )
    depth = choose_depth(bench, train, piece_of(tokens, "holdout", batch), _rules(job, spec))
    narrower: dict[str, Any] = {}
    if job.student_width < 1:
        width = width_of(spec, job.student_width)
        parts = choose_width(
            teacher,
            train,
            depth.kept,
            width,
            head_dim=spec.head_dim,
            outputs=depth.outputs,
            safe_point=channel.safe_point,
        )
        narrower = {"width": asdict(width), "parts": {str(index): asdict(part) for index, part in parts.items()}}
    return {
        **narrower,
        "kept": list(depth.kept),
        "way": depth.way,
        "influence": list(depth.influence),
        "cuts": [_plain(cut) for cut in depth.cuts],
    }


def _rules(job: ScoreJob, spec: ModelSpec) -> CutRules:
    from engine.models.derive import is_valid_cut, layer_kinds, layers_to_keep
    from engine.teacher.depth import CutRules

    return CutRules(
        num_layers=job.num_kept,
        named=layer_list(job.student_layers),
        even=lambda count: layers_to_keep(spec.num_layers, count),
        kinds=layer_kinds(spec),
        is_valid=lambda kept: is_valid_cut(spec, kept),
    )


def _plain(cut: Cut) -> dict[str, Any]:
    return {"layers": list(cut.layers), "holdout_loss": cut.holdout_loss if math.isfinite(cut.holdout_loss) else None}
