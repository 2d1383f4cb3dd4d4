"""Results of a finished training: figures for the report, samples, and the folder of the student.

Knows nothing of steps, devices or memory.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.channel.channel import Channel
from engine.data.chat_template import PLAIN_TEMPLATE
from engine.data.tokens import TokenFile
from engine.disk.files import NO_ROOM, write_atomic
from engine.errors import (
    BadNumbers,
    DiskFull,
    OutOfMemory,
    RankLost,
    RunFailed,
    Stopped,
    TinyDistillError,
)
from engine.jobs import TrainJob
from engine.machine.out_of_memory import is_out_of_memory
from engine.model_files.spec import ModelSpec
from engine.model_files.vocabulary import read_chat_template
from engine.models.load import first_sentence
from engine.phases.cut import CUT
from engine.planner.models import FROM_TEACHER
from engine.planner.shape import shape_of
from engine.run.folder import Run
from engine.settings.config import SETTINGS, RunConfig
from engine.student.adapter import LowRankAdapter
from engine.student.adapter_file import ADAPTER
from engine.student.adapter_words import adapter_in_words
from engine.student.companions import versions_told
from engine.student.evaluate import Metrics
from engine.student.export import export_student
from engine.student.judge import bits_per_byte, intervals
from engine.student.learn import Learned
from engine.student.learner import Learner
from engine.student.model_card import ModelCard
from engine.student.verdict import details, gap_of, headline
from engine.version import __version__

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase


def told_of_trained(learner: Learner, spec: ModelSpec, job: TrainJob) -> dict[str, Any]:
    """The report's entry about an adapter; none where the whole student is trained."""
    adapter = learner.trainable
    if not isinstance(adapter, LowRankAdapter):
        return {}
    trained = adapter.num_parameters
    told = {
        "rank": adapter.shape.rank,
        "alpha": adapter.shape.alpha,
        "targets": sorted({linear.kind for linear in adapter.linears}),
        "trained_parameters": trained,
        "share": trained / shape_of(spec).parameters,
        "quantization": job.student_quantization,
    }
    return {"adapter": told}


def figures_of(learned: Learned, chance: NDArray[np.float64], num_bytes: int, seed: int) -> dict[str, Any]:
    """The report's figures: three models, chance, and how sure they are."""
    tables = {**learned.documents, "chance": chance}
    scored, loss = float(chance[:, 0].sum()), float(chance[:, 1].sum())
    found = {
        "teacher": with_bits(learned.teacher, num_bytes),
        "student_before": with_bits(learned.student_before, num_bytes),
        "student_after": with_bits(learned.student_after, num_bytes),
        "intervals": intervals(tables, seed=seed),
        "holdout_documents": len(learned.documents["after"]),
    }
    if scored:
        mean = loss / scored
        found["chance"] = {"holdout_loss": mean, "bits_per_byte": bits_per_byte(mean, int(scored), num_bytes)}
    return found


def with_bits(metrics: Metrics, num_bytes: int) -> dict[str, Any]:
    """A model's metrics with bits per byte; ``num_bytes`` of text are scored."""
    return {
        **metrics.as_dict(),
        "calibration": metrics.calibration,
        "bits_per_byte": bits_per_byte(metrics.holdout_loss, metrics.tokens, num_bytes),
    }


def holdout_bytes(tokens: TokenFile, tokenizer: PreTrainedTokenizerBase) -> int:
    """Bytes of text, in UTF-8, that the scored hold-out tokens stand for."""
    total, num_rows = 0, tokens.num_rows("holdout")
    for start in range(0, num_rows, 64):
        rows = tokens.rows("holdout", range(start, min(start + 64, num_rows)))
        for ids, scored in zip(rows.tokens, rows.scored, strict=True):
            total += len(str(tokenizer.decode(ids[scored].tolist(), skip_special_tokens=True)).encode())
    return total


def write_student(
    run: Run,
    job: TrainJob,
    spec: ModelSpec,
    learner: Learner,
    result: dict[str, Any],
    tokens: TokenFile,
    channel: Channel,
) -> None:
    """Write ``student/``, with a card that names the result and the template in which conversations were trained."""
    adapter = learner.trainable if isinstance(learner.trainable, LowRankAdapter) else None
    for note in export_student(
        learner.model,
        spec,
        run.student_path,
        card_of(run, spec.path, result),
        end_ids=tokens.end_ids,
        adapter=adapter,
        # The cut teacher is in the run's folder; any other folder's path might be published with the student.
        base=os.path.relpath(spec.path, run.student_path / ADAPTER)
        if job.student == FROM_TEACHER
        else _without_folders(job.student),
    ):
        channel.log("warning", note, "student-files")
    if (run.result("prepare") or {}).get("data", {}).get("plain_template"):
        write_template(run.student_path, PLAIN_TEMPLATE)
    elif tokens.chat_template is not None and write_template(run.student_path, tokens.chat_template):
        channel.log("warning", OTHER_TEMPLATE, "student-files")


OTHER_TEMPLATE = (
    "The student came with another chat template, or with none. It was trained in the teacher's, which student/ has "
    "now."
)


def write_template(folder: Path, template: str) -> bool:
    """Give a student the template in which it was trained, and return whether it had another one.

    A chat with the student is written like its conversations then. Some programs read tokenizer_config.json first.
    """
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    is_another = read_chat_template(folder) != template
    # In chat_template.json tokenizers of transformers do not find it.
    if is_another or not ("chat_template" in settings or (folder / "chat_template.jinja").is_file()):
        write_atomic(folder / "chat_template.jinja", template)
    if is_another and "chat_template" in settings:
        write_atomic(path, json.dumps({**settings, "chat_template": template}, indent=2, ensure_ascii=False) + "\n")
    return is_another


def card_of(run: Run, folder: Path, result: dict[str, Any]) -> str:
    """The text of the student's model card."""
    settings = run.settings
    judged = {**result, "gap_closed": gap_of(result)}
    card = ModelCard(
        name=run.name,
        teacher=_without_folders(str(settings.teacher)),
        student=_beginning(run),
        data=_without_folders(str(settings.data)),
        figures={
            "teacher": result["teacher"],
            "before": result["student_before"],
            "after": result["student_after"],
        },
        settings=_to_publish(settings),
        version=__version__,
        opens=versions_told(folder),
        verdict=" ".join([headline(judged), *details(judged)]),
        adapter=adapter_in_words(result["adapter"]) if result.get("adapter") else "",
    )
    return card.text


@contextlib.contextmanager
def training_is_kept() -> Iterator[None]:
    """Add to errors after the training that the training is kept and the run can be resumed."""
    try:
        yield
    except (Stopped, OutOfMemory, DiskFull, BadNumbers, RankLost, MemoryError):
        raise  # say it themselves, or are answered with less memory
    except Exception as error:
        if is_out_of_memory(error) or (isinstance(error, OSError) and error.errno in NO_ROOM):
            raise  # the phase says how much room is needed
        said = error if isinstance(error, TinyDistillError) else None
        raise RunFailed(
            f"The training is done and kept, and the student could not be written: "
            f"{said.what if said else f'{type(error).__name__}: {first_sentence(error)}'}",
            said.why if said else "",
            "",
        ) from error


def _to_publish(settings: RunConfig) -> dict[str, Any]:
    """Return the settings for the student's model card, without paths: a card may be published."""
    chosen = settings.model_dump(mode="json", by_alias=True)
    names = {name: _without_folders(chosen[name]) for name in ("teacher", "student", "data") if chosen[name]}
    kept = {name: value for name, value in chosen.items() if SETTINGS[name].group not in ("command", "run")}
    return {**kept, **names}


def _without_folders(name: str) -> str:
    """A file or folder by its last name; the id of a model or dataset as it is."""
    return Path(name).name if Path(name).expanduser().exists() else name


def _beginning(run: Run) -> str:
    student = str(run.settings.student)
    if student != FROM_TEACHER:
        return f"**{Path(student).name}**"
    kept = (run.result(CUT) or {}).get("kept") or []
    width = (run.result(CUT) or {}).get("width")
    narrow = f" narrowed to {width['neurons']:,} neurons and {width['kv_heads']} key-value heads" if width else ""
    return f"layers {', '.join(map(str, kept))} of its teacher{narrow}, with the teacher's embedding and head"


def samples_of(
    run: Run, tokenizer: Any, prompts: list[list[int]], learned: Learned, end_ids: Collection[int]
) -> list[dict[str, str | None]]:
    """Prompts with each model's continuation; the teacher's are there when it was loaded in this run.

    A text that did not end by itself has three dots behind it.
    """
    path = run.phases_path / "teacher-samples.json"
    teacher_texts: list[Any] = json.loads(path.read_text()) if path.exists() else [None] * len(prompts)

    def told(ids: list[int] | None) -> str | None:
        if ids is None:
            return None
        ended = bool(ids) and ids[-1] in end_ids
        return tokenizer.decode(ids[:-1]) if ended else f"{tokenizer.decode(ids)} …"

    texts = zip(teacher_texts, learned.before_texts, learned.after_texts, strict=True)
    names = ("teacher", "before", "after")
    return [
        {"prompt": tokenizer.decode(prompt), **{name: told(ids) for name, ids in zip(names, row, strict=True)}}
        for prompt, row in zip(prompts, texts, strict=True)
    ]
