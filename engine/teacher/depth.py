"""Selection of the teacher's layers for a student, by measurement on the text.

A layer's influence is 1 - cos(its input, its output), averaged over positions: a layer that hardly turns the hidden
states can go (Men et al. 2024, ShortGPT, https://arxiv.org/abs/2403.03853, eq. 1). Two neighbours may each be needed
only because of the other, so influence is measured again whenever some layers have been taken out, and the result is
compared, by its loss on the text, with the cuts that one measurement gives and with evenly spaced layers.

Each step is a pass of the teacher over 512 to 1,024 tokens. A streamed teacher reads its layers once per pass, with all
cuts that are compared in it, and gives the same numbers as one in memory. Knows nothing of files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from engine.data.tokens import Split, TokenFile
from engine.errors import BadNumbers, ModelError
from engine.machine.out_of_memory import is_out_of_memory
from engine.machine.torch_device import exact, exact_sum
from engine.models.documents import batches_of, find_documents
from engine.models.skipping import cut_to, watched
from engine.teacher.score import Teacher

# Tokens of a pass: a thirty-second of the text, between these. There are some ten passes.
_FEWEST_TOKENS, _MOST_TOKENS, _SHARE_OF_TEXT = 512, 1_024, 1 / 32
_FEWEST_ROWS = 4
# A tenth of the layers goes before influence is measured again: some seven passes down to a third of them.
_ROUNDS = 10
# Other depths in the report, as shares of the teacher's layers.
_OTHER_DEPTHS = (5 / 6, 2 / 3, 1 / 2, 1 / 3)


class DeepTeacher(Teacher, Protocol):
    """A teacher whose layers can be left out."""

    @property
    def layers(self) -> nn.ModuleList:
        """Its decoder layers."""
        ...


@dataclass(frozen=True)
class Piece:
    """Some rows of the text.

    Attributes:
        ids: int64 [rows, length], padded on the right.
        scored: bool [rows, length], True where the token is a label.
        real: bool [rows, length], False where there is padding.
    """

    ids: Tensor
    scored: Tensor
    real: Tensor


@dataclass(frozen=True)
class Cut:
    """A student right after the cut, before training.

    Attributes:
        layers: of the teacher, rising.
        holdout_loss: cross-entropy on some hold-out text, nats a token.
    """

    layers: tuple[int, ...]
    holdout_loss: float


@dataclass(frozen=True)
class Depth:
    """Result of the measurement.

    Attributes:
        kept: the layers of the student, rising.
        way: method of the choice: ``named``, ``influence``, ``influence in rounds`` or ``even``.
        influence: of each of the teacher's layers.
        cuts: the student and students of other depths, by decreasing depth, the whole teacher first.
        outputs: how many values each layer returns, as :func:`engine.models.skipping.cut_to` takes them.
    """

    kept: tuple[int, ...]
    way: str
    influence: tuple[float, ...]
    cuts: tuple[Cut, ...]
    outputs: tuple[int | None, ...] = ()


def piece_of(tokens: TokenFile, split: Split, micro_batch: int) -> list[Piece]:
    """Return 512 to 1,024 tokens from evenly spaced rows of a split; empty if it has no rows.

    Each document of a row becomes a batch row, as documents do not attend to each other.
    """
    num_rows = tokens.num_rows(split)
    share = int(tokens.num_scored("train") * _SHARE_OF_TEXT)
    most_tokens = min(_MOST_TOKENS, max(_FEWEST_TOKENS, share))
    wanted = max(_FEWEST_ROWS, most_tokens // tokens.sequence_length)
    indices = sorted({place * num_rows // wanted for place in range(wanted)}) if num_rows else []
    if not indices:
        return []
    rows = tokens.rows(split, indices)
    length = max(2, most_tokens // len(indices))
    documents = find_documents(rows.begins[:, :length], np.minimum(rows.lengths, length))
    pieces = []
    for chosen, longest in batches_of(documents.lengths, most_tokens=micro_batch * length, longest=length):
        row, column, real = documents.places(chosen, longest)
        parts = rows.tokens[row, column], rows.scored[row, column] & real, real
        pieces.append(Piece(*map(torch.from_numpy, parts)))
    return pieces


@dataclass(frozen=True)
class CutRules:
    """Rules for the layers that a student keeps.

    Attributes:
        num_layers: layers to keep.
        named: the layers that the user named; None to choose.
        even: evenly spaced layers of a depth.
        kinds: of each layer; each kind keeps at least one layer if there is room.
        is_valid: whether some layers make a model of the teacher's architecture.
    """

    num_layers: int
    named: Sequence[int] | None
    even: Callable[[int], list[int]]
    kinds: Sequence[Hashable]
    is_valid: Callable[[Sequence[int]], bool]


def choose_depth(bench: Bench, train: Sequence[Piece], holdout: Sequence[Piece], rules: CutRules) -> Depth:
    """Choose the layers of a student, and compute the initial losses of other depths.

    Args:
        bench: measures the teacher.
        train: training text, used for the choice.
        holdout: text for the reported losses; the training text if it is empty.
        rules: for the layers to keep.

    Raises:
        ModelError: no layers of this number make a model.
        BadNumbers: the teacher gives NaN or infinity.
    """
    num_layers, named = rules.num_layers, rules.named
    total = len(bench.teacher.layers)
    everything = tuple(range(total))
    if not bench.teacher.whole_waves:  # a streamed teacher finds it out by itself
        _require_one_use(bench.teacher, train[0])
    first = bench.influence(train, everything)
    others = {max(1, round(share * total)) for share in _OTHER_DEPTHS}
    depths = sorted({num_layers, *others}, reverse=True)
    rounds = _in_rounds(bench, train, first, depths[-1], rules.kinds)
    chosen, way = tuple(named or ()), "named"
    if named is None:
        candidates = _candidates(rules, first, rounds)
        if not candidates:
            raise ModelError(
                f"No {num_layers} of the teacher's {total} layers make a model of its architecture.",
                "Its layers depend on their numbers or share weights, and the layers that stay would not fit together.",
                "Choose another --student_layers: a divisor of the teacher's layers, or all of them.",
            )
        losses = bench.losses(train, list(candidates.values()))
        best = min(range(len(losses)), key=lambda place: (math.isnan(losses[place]), losses[place], place))
        way, chosen = list(candidates.items())[best]
    shown = [everything, *(rounds[depth] if depth != num_layers else chosen for depth in depths)]
    shown = sorted({*shown, chosen}, key=lambda layers: -len(layers))
    losses = bench.losses(holdout or train, shown)
    cuts = tuple(Cut(layers, loss) for layers, loss in zip(shown, losses, strict=True))
    return Depth(chosen, way, tuple(first), cuts, bench.outputs)


def _require_one_use(teacher: DeepTeacher, piece: Piece) -> None:
    """Refuse a model that uses its layers several times or in another order: leaving one out changes more than depth.

    Raises:
        ModelError: a layer is not used once and in order.
    """
    used: list[int] = []
    with watched(teacher.layers, lambda index, _given, _output: used.append(index)):
        teacher.last_hidden_states([piece.ids[:1]])
    if used != list(range(len(teacher.layers))):
        raise ModelError(
            "The teacher does not use its layers once and in order.",
            "A student with some of its layers would not compute what was measured.",
            "Name a student of its own with --student, or the teacher's own folder.",
        )


def _candidates(
    rules: CutRules, influence: Sequence[float], rounds: dict[int, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Return the cuts to compare, by method; only valid models, without duplicates."""
    total, num_layers, is_valid = len(influence), rules.num_layers, rules.is_valid
    once = _most_influential(range(total), influence, num_layers, rules.kinds)
    found = {"influence in rounds": rounds[num_layers], "influence": once, "even": tuple(rules.even(num_layers))}
    valid: dict[str, tuple[int, ...]] = {}
    for way, layers in found.items():
        if layers not in valid.values() and is_valid(layers):
            valid[way] = layers
    if valid:
        return valid
    # Where kinds follow from numbers in a period, whole periods can go: a run of neighbours. Where a layer computes
    # with its number (DiffLlama), only the last layers can.
    gap = total - num_layers
    runs = [(*range(start), *range(start + gap, total)) for start in range(1, num_layers + 1)]
    wanted = set(rules.kinds) if len(set(rules.kinds)) <= num_layers else set()  # one of each, where there is room
    runs = [layers for layers in runs if wanted <= {rules.kinds[index] for index in layers}]
    runs.sort(key=lambda layers: -sum(influence[index] for index in layers))
    return next(({"a run of neighbours left out": layers} for layers in runs if is_valid(layers)), {})


def _in_rounds(
    bench: Bench, train: Sequence[Piece], influence: Sequence[float], fewest: int, kinds: Sequence[Hashable]
) -> dict[int, tuple[int, ...]]:
    """A cut for each depth from all layers down to ``fewest``, each a part of the one before."""
    kept = tuple(range(len(influence)))
    found = {len(kept): kept}
    each_round = math.ceil(len(kept) / _ROUNDS)
    while len(kept) > fewest:
        for depth in range(len(kept) - 1, max(fewest, len(kept) - each_round) - 1, -1):
            found[depth] = _most_influential(kept, influence, depth, kinds)
        kept = found[max(fewest, len(kept) - each_round)]
        if len(kept) > fewest:
            influence = bench.influence_if_possible(train, kept) or influence
    return found


def _most_influential(
    layers: Sequence[int], influence: Sequence[float], count: int, kinds: Sequence[Hashable]
) -> tuple[int, ...]:
    """The first, the last, one of each kind, and then those with most influence; ties keep the earlier layer."""
    falling = sorted(layers, key=lambda index: (-influence[index], index))
    ends = [layers[0], layers[-1]]
    first_of_kind = {kinds[index]: index for index in reversed(falling)}
    for index in ends:
        first_of_kind.pop(kinds[index], None)
    wanted = dict.fromkeys([*ends, *sorted(first_of_kind.values(), key=falling.index), *falling])
    return tuple(sorted(list(wanted)[:count]))


# Errors of a forward pass in which a layer misses something that another layer leaves for it.
_NEEDS_ANOTHER = (KeyError, ValueError, IndexError, AttributeError, TypeError, RuntimeError)


class Bench:
    """Measures a teacher, and what is left of it without some layers, on pieces of text.

    Args:
        teacher: the whole model, in memory or streamed.
        vocab_size: V_eff.
        wave_tokens: maximum number of tokens in a wave of a streamed pass.
        chunk_tokens: positions whose logits exist at a time.
        safe_point: called between pieces of work; may raise to stop.
    """

    def __init__(
        self,
        teacher: DeepTeacher,
        *,
        vocab_size: int,
        wave_tokens: int,
        chunk_tokens: int,
        safe_point: Callable[[], None],
    ) -> None:
        self.teacher = teacher
        self._vocab_size = vocab_size
        self._wave_tokens = wave_tokens
        self._chunk_tokens = chunk_tokens
        self._safe_point = safe_point
        self._outputs: list[int | None] = [None] * len(teacher.layers)

    @property
    def outputs(self) -> tuple[int | None, ...]:
        """Return the number of values that each layer returns; None if it returns hidden states only."""
        return tuple(self._outputs)

    def influence(self, text: Sequence[Piece], kept: Sequence[int]) -> list[float]:
        """Of each layer, in a model that has only ``kept`` of them; 0 for the others.

        Raises:
            BadNumbers: hidden states are not numbers.
        """
        sums = torch.zeros(len(self.teacher.layers), dtype=torch.float64)
        queues: dict[int, Iterator[Piece]] = {}

        def heard(index: int, given: Tensor, output: Any) -> None:
            self._outputs[index] = len(output) if isinstance(output, tuple | list) else None
            output = output[0] if isinstance(output, tuple | list) else output
            # A whole model takes one micro-batch through all layers, a streamed one all of them through one layer: the
            # n-th call of a layer is for the n-th piece either way.
            piece = next(queues.setdefault(index, iter(text)))
            turned = 1.0 - exact(cosine_similarity(given.float(), output.float(), dim=-1)).cpu()
            if turned.dim() > 2:  # several parallel streams, before (Gemma 3n) or behind the positions (DeepSeek-V4)
                first = turned.shape[-2:] == piece.real.shape
                turned = turned.flatten(0, -3).mean(0) if first else turned.flatten(2).mean(2)
            sums[index] += turned[piece.real].sum()

        with watched(self.teacher.layers, heard), cut_to(self.teacher.layers, [kept] * len(text), self._outputs):
            self.teacher.last_hidden_states([piece.ids for piece in text], on_progress=self._progress)
        if not bool(sums.isfinite().all()):
            raise BadNumbers(
                "The teacher's hidden states hold NaN or infinity.",
                "The student cannot learn from it.",
                "In half precision, try --precision fp32; in fp32 the weights are damaged: download them again.",
            )
        count = sum(int(piece.real.sum()) for piece in text)
        return [float(total) / max(1, count) for total in sums]

    def influence_if_possible(self, text: Sequence[Piece], kept: Sequence[int]) -> list[float] | None:
        """As :meth:`influence`; None where the layers that stay need something of one that does not."""
        try:
            return self.influence(text, kept)
        except _NEEDS_ANOTHER as error:
            if is_out_of_memory(error):
                raise
            return None

    def losses(self, text: Sequence[Piece], cuts: Sequence[Sequence[int]]) -> list[float]:
        """Mean cross-entropy to the labels with only these layers, for each cut.

        NaN where it is no number, or the layers that stay need something of one that does not (keys and values, in
        Gemma 3n), which the model's own code finds out.
        """
        try:
            return self._losses(text, cuts)
        except _NEEDS_ANOTHER as error:
            if is_out_of_memory(error):
                raise
            return [math.nan] if len(cuts) == 1 else [self.losses(text, [cut])[0] for cut in cuts]

    def _losses(self, text: Sequence[Piece], cuts: Sequence[Sequence[int]]) -> list[float]:
        sums = [0.0] * len(cuts)
        for wave in self._waves(text, len(cuts)):
            kept = [frozenset(cuts[place]) for place, _ in wave]
            with cut_to(self.teacher.layers, kept, self._outputs):
                states = self.teacher.last_hidden_states([piece.ids for _, piece in wave], on_progress=self._progress)
            for (place, piece), hidden_states in zip(wave, states, strict=True):
                sums[place] += _nll(self.teacher, hidden_states, piece, self._vocab_size, self._chunk_tokens)
                self._safe_point()
        return [total / max(1, num_labels(text)) for total in sums]

    def _waves(self, text: Sequence[Piece], num_cuts: int) -> Iterator[list[tuple[int, Piece]]]:
        """Pairs of cut and piece that go through the layers together."""
        wave: list[tuple[int, Piece]] = []
        held = 0
        for place in range(num_cuts):
            for piece in text:
                full = held + piece.ids.numel() > self._wave_tokens if self.teacher.whole_waves else True
                if wave and full:
                    yield wave
                    wave, held = [], 0
                wave.append((place, piece))
                held += piece.ids.numel()
        if wave:
            yield wave

    def _progress(self, _done: int, _total: int) -> None:
        self._safe_point()


def mean_loss(
    teacher: Teacher, text: Sequence[Piece], *, vocab_size: int, chunk_tokens: int, safe_point: Callable[[], None]
) -> float:
    """Mean cross-entropy to the labels of some text, however the teacher uses its layers.

    Args:
        teacher: in memory or streamed.
        text: see :func:`piece_of`.
        vocab_size: V_eff.
        chunk_tokens: positions whose logits exist at a time.
        safe_point: called between pieces of work; may raise to stop.
    """
    states = teacher.last_hidden_states([piece.ids for piece in text], on_progress=lambda *_: safe_point())
    pairs = zip(states, text, strict=True)
    total = sum(_nll(teacher, hidden_states, piece, vocab_size, chunk_tokens) for hidden_states, piece in pairs)
    return total / max(1, num_labels(text))


def num_labels(text: Sequence[Piece]) -> int:
    """Tokens of some text that a loss is measured on."""
    return sum(int(piece.scored[:, 1:].sum()) for piece in text)


def _nll(teacher: Teacher, hidden_states: Tensor, piece: Piece, vocab_size: int, chunk_tokens: int) -> float:
    is_label = piece.scored[:, 1:].to(hidden_states.device)
    states, labels = hidden_states[:, :-1][is_label], piece.ids[:, 1:].to(hidden_states.device)[is_label]
    total = 0.0
    for start in range(0, len(labels), chunk_tokens):
        chunk = slice(start, start + chunk_tokens)
        logits = teacher.logits(states[chunk])[:, :vocab_size]
        own = logits.gather(1, labels[chunk, None])[:, 0]
        total += float(exact_sum(logits.logsumexp(1) - own))
    return total
