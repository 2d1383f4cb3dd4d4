"""Small exams for a model: how well it foretells a text, and three tasks that are made of the text itself.

*Next word*: the model's likeliest tokens after a passage are the next word. *Cloze*: of four words, the one that stood
in a gap makes the passage likeliest. *Continuation*: of four passages, the likeliest for each byte is the one that
follows. Guessing gives 0, a quarter and a quarter. Figures come with a bootstrap over documents; shares of
right answers with Wilson's interval. Knows nothing of files and runs.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from engine.models.core import last_hidden_states, logits_of
from engine.student.judge import middle, resampled
from engine.student.verdict import FEWEST_DOCUMENTS

GUESSING = {"next-word": 0.0, "cloze": 0.25, "continuation": 0.25}
_CHOICES = 4
_CONTEXT_WORDS, _CLOZE_WORDS, _CONTINUATION_WORDS = 40, 24, 12
_SHORTEST_WORD = 3
_ROWS_AT_A_TIME, _CHUNK_TOKENS = 4, 256
_SURE = 1.96  # standard errors on each side of a 95 % interval

Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class ExamQuestion:
    """One question of a task.

    Attributes:
        context: the text before.
        choices: what may follow, the right one first; the next word alone where the model answers freely.
        document: the number of the text that it was made of.
    """

    context: str
    choices: tuple[str, ...]
    document: int


@dataclass(frozen=True)
class Figure:
    """A mean with its 95 % interval; the interval is the mean alone where there are few documents."""

    mean: float
    low: float
    high: float

    def as_list(self) -> list[float]:
        """Mean, low, high."""
        return [self.mean, self.low, self.high]


def questions(task: str, texts: Sequence[str], count: int, seed: int) -> list[ExamQuestion]:
    """Up to ``count`` questions of a task, the same for each model; fewer where the texts are short.

    Args:
        task: one of those in :data:`GUESSING`.
        texts: documents.
        count: of questions.
        seed: of the places and the wrong choices.
    """
    draw = random.Random(f"{seed} {task}")
    words = [text.split() for text in texts]
    needed = {"next-word": 10, "cloze": _CLOZE_WORDS, "continuation": _CONTEXT_WORDS + _CONTINUATION_WORDS}[task]
    long = [number for number, each in enumerate(words) if len(each) >= needed]
    others = sorted({word for each in words for word in each if len(word) >= _SHORTEST_WORD and word.isalpha()})
    made: list[ExamQuestion] = []
    for _ in range(20 * count):
        if len(made) == count or not long or len(others) < _CHOICES:
            break
        number = draw.choice(long)
        question = _question(task, words, number, long, others, draw)
        if question is not None and question not in made:
            made.append(question)
    return made


def _question(
    task: str, words: list[list[str]], number: int, long: list[int], others: list[str], draw: random.Random
) -> ExamQuestion | None:
    text = words[number]
    if task == "continuation":
        begin = draw.randrange(len(text) - _CONTEXT_WORDS - _CONTINUATION_WORDS + 1)
        cut = begin + _CONTEXT_WORDS
        right = " ".join(text[cut : cut + _CONTINUATION_WORDS])
        wrong: list[str] = []
        for _ in range(_CHOICES - 1):
            other = words[draw.choice(long)]
            start = draw.randrange(len(other) - _CONTINUATION_WORDS + 1)
            wrong.append(" ".join(other[start : start + _CONTINUATION_WORDS]))
        choices = (right, *wrong)
        return ExamQuestion(" ".join(text[begin:cut]), choices, number) if len({*choices}) == _CHOICES else None
    size = min(len(text), _CLOZE_WORDS if task == "cloze" else _CONTEXT_WORDS + 1)
    begin = draw.randrange(len(text) - size + 1)
    passage = text[begin : begin + size]
    gap = len(passage) // 2 if task == "cloze" else len(passage) - 1
    word = passage[gap]
    if len(word) < _SHORTEST_WORD or not word.isalpha():
        return None
    context = " ".join(passage[:gap])
    if task == "next-word":
        return ExamQuestion(context, (word,), number)
    rest = passage[gap + 1 :]
    picked = draw.sample([other for other in others if other != word], _CHOICES - 1)
    return ExamQuestion(context, tuple(" ".join([each, *rest]) for each in (word, *picked)), number)


class Examinee:
    """A model that is asked.

    Args:
        model: in evaluation mode.
        encode: text to ids, without special tokens.
        vocab_size: V_eff.
        most_tokens: longest row.
        bos_id: put before each text; None where the model expects none.
    """

    def __init__(
        self, model: PreTrainedModel, encode: Encode, *, vocab_size: int, most_tokens: int, bos_id: int | None
    ) -> None:
        self._model, self._encode = model, encode
        self.vocab_size, self._most, self._bos = vocab_size, most_tokens, bos_id

    def is_right(self, task: str, question: ExamQuestion) -> bool:
        """Return whether the model answers a question as the text does."""
        context = self._encode(question.context)
        rows = []
        for choice in question.choices:
            answer = self._encode(f" {choice}")[: self._most // 2]
            rows.append((self._row(context, len(answer)), answer))
        scores = self._scores([(row + answer, len(row)) for row, answer in rows])
        if task == "next-word":
            return scores[0][1]
        by_byte = task == "continuation"
        sums = [
            float(values.sum()) / (max(1, len(choice.encode())) if by_byte else 1)
            for (values, _), choice in zip(scores, question.choices, strict=True)
        ]
        return sums[0] > max(sums[1:])

    def losses(self, ids: Sequence[int], learned: Sequence[bool] | None = None) -> tuple[int, float]:
        """Tokens that a text's windows score, and the sum of their cross-entropy in nats.

        Args:
            ids: of the text.
            learned: of a conversation, for each id whether it is part of an answer; only these are counted.
        """
        step = self._most - (self._bos is not None)
        kept = [True] * len(ids) if learned is None else list(learned)
        windows = []
        for begin in range(0, len(ids), step):
            window, counted = list(ids[begin : begin + step]), kept[begin : begin + step]
            if self._bos is not None and window[0] != self._bos:  # a chat template may have written it
                window, counted = [self._bos, *window], [False, *counted]
            windows.append((window, torch.tensor(counted)))
        windows = [(window, counted) for window, counted in windows if counted[1:].any()]
        scores = self._scores([(window, 1) for window, _ in windows])
        tokens = sum(int(counted[1:].sum()) for _, counted in windows)
        return tokens, -sum(
            float(values[counted[1:]].sum()) for (values, _), (_, counted) in zip(scores, windows, strict=True)
        )

    def _row(self, context: list[int], answer: int) -> list[int]:
        start = [] if self._bos is None else [self._bos]
        kept = context[-max(1, self._most - answer - len(start)) :]
        return [*start, *kept]

    @torch.no_grad()
    def _scores(self, rows: Sequence[tuple[list[int], int]]) -> list[tuple[torch.Tensor, bool]]:
        """Of each row from a place on: the tokens' log-probabilities, float64, and whether each was the likeliest."""
        found = []
        for first in range(0, len(rows), _ROWS_AT_A_TIME):
            some = rows[first : first + _ROWS_AT_A_TIME]
            length = max(len(ids) for ids, _ in some)
            padded = torch.tensor([ids + [0] * (length - len(ids)) for ids, _ in some], device=self._model.device)
            states = last_hidden_states(self._model, padded)
            for place, (ids, begin) in enumerate(some):
                labels = torch.tensor(ids[begin:], device=states.device)
                values, best = [], True
                for start in range(0, len(labels), _CHUNK_TOKENS):
                    chunk = labels[start : start + _CHUNK_TOKENS]
                    at = begin - 1 + start
                    logits = logits_of(self._model, states[place, at : at + len(chunk)]).float()[:, : self.vocab_size]
                    values.append(logits.log_softmax(1).gather(1, chunk[:, None])[:, 0].cpu().double())
                    best = best and bool((logits.argmax(1) == chunk).all())
                found.append((torch.cat(values) if values else torch.zeros(0, dtype=torch.float64), best))
        return found


def figure(sums: NDArray[np.float64], weights: NDArray[np.float64], seed: int) -> Figure:
    """The mean of sums over weights, with a 95 % interval by a bootstrap over their rows.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13 (the percentile interval).
    """
    count, total = len(sums), float(weights.sum())
    mean = float(sums.sum()) / total if total else math.nan
    if count < FEWEST_DOCUMENTS or not total:
        return Figure(mean, mean, mean)
    draws = resampled(count, seed)
    low, high = middle((draws @ sums) / np.maximum(draws @ weights, 1e-12))
    return Figure(mean, low, high)


def share(right: int, count: int) -> Figure:
    """The share of right answers with its 95 % interval, which is never empty: also not where all are right, or none.

    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference, JASA 22(158).
    """
    mean, z = right / count, _SURE
    middle = (right + z * z / 2) / (count + z * z)
    away = z / (count + z * z) * math.sqrt(right * (count - right) / count + z * z / 4)
    return Figure(mean, max(0.0, middle - away), min(1.0, middle + away))
