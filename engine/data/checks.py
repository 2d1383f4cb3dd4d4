"""Checks of two models before text is tokenised for them. They read the models' files only; no torch."""

from __future__ import annotations

from engine.errors import Problem, SettingsError
from engine.model_files.spec import ModelSpec
from engine.model_files.vocabulary import Vocabulary, read_vocabulary, shared_vocabulary


def check_models(teacher: ModelSpec, student: ModelSpec | None, sequence_length: int) -> Vocabulary:
    """Return the vocabulary that both models share; its ``notes`` list ids that only one of them has.

    Args:
        teacher: the model that scores.
        student: the model that learns; None when it is cut from the teacher, or comes later.
        sequence_length: tokens in a row.

    Raises:
        TokenizerMismatch: the tokenizers differ.
        ModelError: an embedding has fewer rows than the tokenizer's own ids.
        SettingsError: a row is longer than a model can read.
    """
    models = [("teacher", teacher)]
    other: Vocabulary | None = None
    if student is not None:
        models.append(("student", student))
        if (student.path, student.vocab_size) != (teacher.path, teacher.vocab_size):
            other = read_vocabulary(student.path)
    rows = student.vocab_size if student is not None else 0
    vocabulary = shared_vocabulary(read_vocabulary(teacher.path), teacher.vocab_size, other, rows)
    limits = [(role, model.max_positions) for role, model in models if model.max_positions is not None]
    problems = [
        Problem("sequence_length", sequence_length, f"the {role} reads at most {limit:,} tokens")
        for role, limit in limits
        if sequence_length > limit
    ]
    if problems:
        shortest = min(limit for _, limit in limits)
        raise SettingsError(problems, f"Use --sequence_length {shortest} or less.")
    return vocabulary
