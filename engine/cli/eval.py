"""``tiny-distill-eval``: judge a student on its run's own hold-out or on another text, without a network."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.cli.distill import guarded
from engine.cli.eval_table import Findings, table, verdict
from engine.cli.export import student_folder
from engine.data.tally import in_words
from engine.disk.named_path import named_path
from engine.errors import DataError, FolderError, Problem, SettingsError
from engine.version import __version__

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from engine.data.sources import TextSource
    from engine.student.exam import Examinee

PROGRAM = "tiny-distill-eval"
TASKS = ("next-word", "cloze", "continuation")
_MOST_TOKENS = 512  # of a row of another text
_LONG_DOCUMENTS = 8  # of another text, that have a part in its figures at least


def main(words: Sequence[str] | None = None) -> int:
    """Entry point of ``tiny-distill-eval``."""
    return guarded(sys.argv[1:] if words is None else words, _main)


def _main(words: Sequence[str]) -> int:
    typed = _parse(words)
    path = named_path(typed.folder)
    folder = student_folder(path)
    run = next((each for each in (path, path.parent) if (each / "run.json").is_file()), None)
    has_holdout = run is not None and (run / "tokens.h5").is_file()
    if typed.data is None and not has_holdout and (_own(typed.tasks) or not typed.tasks):
        raise FolderError(
            f"{path} has no hold-out of its own.", "Only a run's folder has one.", "Name a text: --data FILE_OR_FOLDER"
        )
    with contextlib.redirect_stdout(sys.stderr):  # the code of a model, and the harness, may print
        if typed.data is not None:
            found = _on_text(folder, typed)
        elif has_holdout:
            assert run is not None
            found = _on_holdout(run, folder, typed)
        else:
            found = _on_tasks(folder, typed)
    found.verdict = verdict(found)
    print(json.dumps(vars(found)) if typed.json else table(found))
    return 0


def _on_holdout(home: Path, folder: Path, typed: argparse.Namespace) -> Findings:
    """A run's student on the run's hold-out, beside the teacher's records."""
    import torch

    from engine.channel.channel import Channel
    from engine.channel.events import EventWriter
    from engine.data.tokens import TokenFile
    from engine.jobs import TrainJob, last_of
    from engine.models.load import load_causal_lm, load_tokenizer
    from engine.phases.teacher import open_store
    from engine.run.folder import Run
    from engine.student.batches import Source
    from engine.student.evaluate import HoldoutBatches, evaluate, evaluate_teacher
    from engine.student.exam import Examinee
    from engine.student.judge import DocumentSums
    from engine.student.learner import Learner

    run = Run.open(home)
    job = last_of(run.jobs, TrainJob)
    model = load_causal_lm(folder, dtype=torch.float32, trust_remote_code=typed.trust_remote_code)
    tokenizer = load_tokenizer(folder, trust_remote_code=typed.trust_remote_code)
    found = Findings(str(folder), "the run's own hold-out")
    with (
        TokenFile(run.tokens_path) as tokens,
        open_store(run, job, tokens.vocab_size, Channel(EventWriter(Path(os.devnull)))) as store,
    ):
        source = Source(tokens, store)
        ours, theirs = DocumentSums(tokens.eos_id), DocumentSums(tokens.eos_id)
        learner = Learner(model, dtype=torch.float32, gradient_checkpointing=False)
        holdout = HoldoutBatches(source, job.student_batch)
        evaluate(
            learner,
            holdout,
            vocab_size=tokens.vocab_size,
            temperature=job.temperature,
            chunk_tokens=256,
            documents=ours,
        )
        evaluate_teacher(holdout, documents=theirs)
        student, teacher = ours.table(), theirs.table()
        texts, num_bytes = _texts_of(tokens, tokenizer)
        vocab_size, length = tokens.vocab_size, tokens.sequence_length
    before = ((run.result("student") or {}).get("student_before") or {}).get("holdout_loss")
    _enter_figures(found, student, teacher, before, num_bytes=num_bytes, seed=typed.seed)
    examinee = Examinee(model, _encoder(tokenizer), vocab_size=vocab_size, most_tokens=length, bos_id=_bos(tokenizer))
    _ask(found, examinee, texts, typed)
    _ask_harness(found, model, tokenizer, typed)
    return found


def _enter_figures(
    found: Findings,
    student: NDArray[np.float64],
    teacher: NDArray[np.float64],
    before: float | None,
    *,
    num_bytes: int,
    seed: int,
) -> None:
    """Enter the figures of both models' sums for each document, and of the student before its training."""
    from engine.student.exam import figure

    weights = student[:, 0]
    found.documents, found.tokens = len(student), int(weights.sum())
    names = ("loss", "kl_to_teacher", "top1_agreement")
    for place, name in enumerate(names, start=1):
        found.figures[name] = figure(student[:, place], weights, seed).as_list()
    found.figures["loss_beyond_teacher"] = figure(student[:, 1] - teacher[:, 1], weights, seed).as_list()
    share = found.tokens / max(1, num_bytes) / 0.6931471805599453
    found.figures["bits_per_byte"] = [value * share for value in found.figures["loss"]]
    loss = float(teacher[:, 1].sum() / max(1.0, weights.sum()))
    found.teacher = {"loss": loss, "bits_per_byte": loss * share}
    if before is not None:
        found.before = {"loss": float(before), "bits_per_byte": float(before) * share}


def _on_tasks(folder: Path, typed: argparse.Namespace) -> Findings:
    """A model in tasks that bring a text of their own."""
    import torch

    from engine.models.load import load_causal_lm, load_tokenizer

    found = Findings(str(folder), "tasks of lm-eval")
    model = load_causal_lm(folder, dtype=torch.float32, trust_remote_code=typed.trust_remote_code)
    _ask_harness(found, model, load_tokenizer(folder, trust_remote_code=typed.trust_remote_code), typed)
    return found


def _on_text(folder: Path, typed: argparse.Namespace) -> Findings:
    """A model on any text."""
    import numpy as np
    import torch

    from engine.data.sources import open_source
    from engine.model_files.spec import read_spec
    from engine.model_files.vocabulary import read_vocabulary
    from engine.models.load import load_causal_lm, load_tokenizer
    from engine.student.exam import Examinee, figure

    spec = read_spec(folder, trust_remote_code=typed.trust_remote_code)
    tokenizer = load_tokenizer(folder, trust_remote_code=typed.trust_remote_code)
    model = load_causal_lm(folder, dtype=torch.float32, trust_remote_code=typed.trust_remote_code)
    examinee = Examinee(
        model,
        _encoder(tokenizer),
        vocab_size=min(read_vocabulary(folder).size, spec.vocab_size),
        most_tokens=min(_MOST_TOKENS, spec.max_positions or _MOST_TOKENS),
        bos_id=_bos(tokenizer),
    )
    found = Findings(str(folder), str(typed.data))
    texts, rows = [], []
    source = open_source(typed.data, text_field=None, split="train")
    for text, tokens, loss, num_bytes in _documents(source, tokenizer, examinee, str(folder), typed):
        texts.append(text)
        rows.append((tokens, loss, num_bytes))
    sums = np.array(rows, dtype=np.float64).reshape(-1, 3)
    if not sums[:, 0].sum():
        raise DataError(f"There is no text in {typed.data} that could be scored.", "", "Name another text.")
    found.documents, found.tokens = len(rows), int(sums[:, 0].sum())
    found.figures["loss"] = figure(sums[:, 1], sums[:, 0], typed.seed).as_list()
    found.figures["bits_per_byte"] = figure(sums[:, 1] / np.log(2), sums[:, 2], typed.seed).as_list()
    _ask(found, examinee, texts, typed)
    _ask_harness(found, model, tokenizer, typed)
    return found


def _documents(
    source: TextSource, tokenizer: Any, examinee: Examinee, name: str, typed: argparse.Namespace
) -> Iterator[tuple[str, int, float, int]]:
    """Of each document: its text, its scored tokens, their loss in nats, and the bytes that they stand for.

    A conversation is written in the model's chat template, and its answers are scored, as in training. It ends with the
    most tokens that are asked for. Of a long text the beginning is scored, so that several have a part in the figures.
    """
    from engine.data.tokenise import DocumentTokeniser

    tokeniser, left = None, typed.max_tokens
    most = max(_MOST_TOKENS, typed.max_tokens // _LONG_DOCUMENTS)
    for document in source.documents():
        if left <= 0:
            break
        if document.messages is None:
            if document.text.strip():
                text, ids = document.text, _encoder(tokenizer)(document.text)
                if len(ids) > min(left, most) + 1:  # the first token has no score
                    ids = ids[: min(left, most) + 1]
                    text = str(tokenizer.decode(ids))
                tokens, loss = examinee.losses(ids)
                left -= tokens
                yield text, tokens, loss, len(text.encode())
            continue
        if tokeniser is None:
            tokeniser = DocumentTokeniser(tokenizer, name, examinee.vocab_size)
        found = tokeniser.conversation(document.messages, document.fields, document.notes)
        if found is None:
            continue
        learned = found.trained or [True] * len(found.ids)
        ids = [token for token, is_learned in zip(found.ids, learned, strict=True) if is_learned]
        answers = str(tokenizer.decode(ids, skip_special_tokens=True))
        tokens, loss = examinee.losses(found.ids, learned)
        left -= tokens
        yield answers, tokens, loss, len(answers.encode())
    if tokeniser is not None and tokeniser.skipped:
        _say(typed, f"Conversations left out: {in_words(tokeniser.skipped)}.")


def _own(tasks: Sequence[str]) -> list[str]:
    """The tasks that are made of the text."""
    return [task for task in tasks if task in TASKS]


def _of_harness(tasks: Sequence[str]) -> list[str]:
    """The tasks of lm-eval."""
    return [task for task in tasks if task not in TASKS]


def _ask_harness(found: Findings, model: Any, tokenizer: Any, typed: argparse.Namespace) -> None:
    tasks = _of_harness(typed.tasks)
    if not tasks:
        return
    from engine.student import harness

    for name, score in harness.ask(model, tokenizer, tasks, most_questions=typed.questions).items():
        found.tasks[name] = {"metrics": score.figures, "questions": score.questions}


def _ask(found: Findings, examinee: Examinee, texts: list[str], typed: argparse.Namespace) -> None:
    from engine.student.exam import GUESSING, questions, share

    for task in _own(typed.tasks):
        asked = questions(task, texts, typed.questions, typed.seed)
        if not asked:
            found.tasks[task] = {"questions": 0, "guessing": GUESSING[task]}
            continue
        _say(typed, f"Asking {len(asked)} questions: {task}.")
        right = sum(examinee.is_right(task, question) for question in asked)
        told = share(right, len(asked)).as_list()
        found.tasks[task] = {"share": told, "questions": len(asked), "guessing": GUESSING[task]}


def _say(typed: argparse.Namespace, sentence: str) -> None:
    """Tell what is being done, which may take minutes."""
    if not typed.json:
        sys.stderr.write(f"{sentence}\n")
        sys.stderr.flush()


def _encoder(tokenizer: Any) -> Any:
    return lambda text: tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _bos(tokenizer: Any) -> int | None:
    """The token that the tokenizer itself puts before a text; None where it puts none."""
    ids = tokenizer("a", verbose=False)["input_ids"]
    puts = bool(ids) and ids[0] == tokenizer.bos_token_id and tokenizer.bos_token_id is not None
    return int(ids[0]) if puts else None


def _texts_of(tokens: Any, tokenizer: Any) -> tuple[list[str], int]:
    """The hold-out's documents as text, and the bytes that its scored tokens stand for.

    Of a conversation the answers are taken: its questions and the template's own words are not what was learned.
    """
    texts: list[str] = []
    num_bytes = 0
    for number in range(tokens.num_rows("holdout")):
        rows = tokens.rows("holdout", [number])
        ids, scored = rows.tokens[0], rows.scored[0]
        num_bytes += len(str(tokenizer.decode(ids[scored].tolist(), skip_special_tokens=True)).encode())
        borders = [*map(int, rows.begins[0].nonzero()[0]), len(ids)]
        pieces = zip([0, *borders], [*borders, len(ids)], strict=True)
        for begin, end in pieces:
            own = scored[begin + 1 : end]  # nothing comes before a document's first token, which has no score
            kept = ids[begin:end] if own.all() else ids[begin + 1 : end][own]
            if len(kept):
                texts.append(str(tokenizer.decode(kept.tolist(), skip_special_tokens=True)))
    return texts, num_bytes


def _unusable(tasks: Sequence[str]) -> list[Problem]:
    """Problems of the tasks that are not made of the text."""
    if not tasks:
        return []
    from engine.student import harness

    own = f"expected some of {', '.join(TASKS)}, or a task of lm-eval"
    return [replace(each, accepted=f"{own}: {each.accepted}") for each in harness.check(tasks)]


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Judge a student on its run's hold-out, or any model on a text, without a network.",
    )
    parser.add_argument("folder", metavar="RUN_OR_FOLDER", help="A run's folder, a model's folder, or a GGUF file")
    parser.add_argument("--data", metavar="TEXT", help="Another text than the run's hold-out: a file or a folder")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), metavar="FILE_OR_NAME",
                        help=f"Tasks made of the text: {', '.join(TASKS)} (default: all); tasks of lm-eval by name or "
                             "by YAML file, which need the extra 'eval'; --tasks without a name runs no task"
                        )  # fmt: skip
    parser.add_argument(
        "--questions",
        type=int,
        default=50,
        metavar="N",
        help="Maximum number of questions of each task (default: 50)",
    )
    parser.add_argument("--max_tokens", type=int, default=20_000, metavar="N",
                        help="Maximum number of tokens of --data to score, an eighth of them in one document "
                             "(default: 20000)")  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="Seed of the questions and of the bootstrap (default: 0)"
    )
    parser.add_argument("--json", action="store_true", help="Print one JSON object")
    parser.add_argument("--trust_remote_code", action="store_true", help="Run Python code that comes with the model")
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--debug", action="store_true", help="Show tracebacks")
    typed = parser.parse_args(list(words))
    problems = [
        Problem(name, getattr(typed, name), "expected a whole number from 1 up")
        for name in ("questions", "max_tokens")
        if getattr(typed, name) < 1
    ]
    if not 0 <= typed.seed < 2**63:
        problems.append(Problem("seed", typed.seed, "expected a whole number from 0 to 9,223,372,036,854,775,807"))
    problems += _unusable(_of_harness(typed.tasks))
    if problems:
        raise SettingsError(problems, "")
    return typed


if __name__ == "__main__":
    sys.exit(main())
