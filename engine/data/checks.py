"""What must hold between two models before any text is tokenised for them. All from their files; no torch."""

from __future__ import annotations

from engine.errors import ModelError, Problem, SettingsError
from engine.models.spec import ModelSpec
from engine.models.vocabulary import Vocabulary, compare, read_vocabulary


def check_models(teacher: ModelSpec, student: ModelSpec | None, sequence_length: int) -> Vocabulary:
    """The vocabulary that both models share.

    Args:
        teacher: the model that scores.
        student: the model that learns; None when it is cut from the teacher, or comes later.
        sequence_length: tokens in a row.

    Raises:
        TokenizerMismatch: the tokenizers differ.
        ModelError: an embedding has fewer rows than there are ids.
        SettingsError: a row is longer than a model can read.
    """
    vocabulary = read_vocabulary(teacher.path)
    models = [("teacher", teacher)]
    if student is not None:
        models.append(("student", student))
        if student.path != teacher.path:
            compare(vocabulary, read_vocabulary(student.path))
    for role, model in models:
        if model.vocab_size < vocabulary.size:
            raise ModelError(
                f"The {role} {model.name} has an embedding of {model.vocab_size:,} rows, and its tokenizer has "
                f"{vocabulary.size:,} ids.",
                "Some tokens would have no row.",
                "Resize the model's embedding (resize_token_embeddings), or use the tokenizer it was trained with.",
            )
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
