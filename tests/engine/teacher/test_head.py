import dataclasses
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from engine.errors import BadNumbers
from engine.teacher.head import Scored, records_from_hidden

VOCAB_SIZE, ROWS, HIDDEN = 300, 323, 16


def some_positions(count: int, seed: int = 0) -> Scored:
    generator = torch.Generator().manual_seed(seed)
    return Scored(
        torch.randn((count, HIDDEN), generator=generator),
        torch.randint(VOCAB_SIZE, (count,), generator=generator),
        torch.rand(count, generator=generator, dtype=torch.float64),
    )


def a_head(seed: int = 1):
    weight = torch.randn((ROWS, HIDDEN), generator=torch.Generator().manual_seed(seed))
    weight[VOCAB_SIZE:] *= 3.0  # padded rows that would win, were they let in

    # Row by row, so that a row's logits do not depend on how many rows there are.
    return lambda hidden_states: torch.stack([weight @ row for row in hidden_states])


def make(parts, head, *, record_size=8, temperature=1.0, chunk_tokens=16):
    return records_from_hidden(
        parts,
        head,
        vocab_size=VOCAB_SIZE,
        record_size=record_size,
        temperature=temperature,
        chunk_tokens=chunk_tokens,
    )


def pieces(whole: Scored, sizes) -> list[Scored]:
    bounds = np.cumsum([0, *sizes])
    return [
        Scored(whole.hidden_states[a:b], whole.labels[a:b], whole.uniforms[a:b]) for a, b in itertools.pairwise(bounds)
    ]


@pytest.mark.parametrize("temperature", [1.0, 2.5, 0.5])
def test_labels_and_top_1_are_told_at_temperature_1_and_the_rest_at_the_runs(temperature):
    whole = some_positions(50)
    head = a_head()
    records = make([whole], head, temperature=temperature)
    logits = head(whole.hidden_states)[:, :VOCAB_SIZE].double()
    plain, tempered = logits.log_softmax(-1), (logits / temperature).log_softmax(-1)
    rows = torch.arange(50)
    np.testing.assert_allclose(records.label_log_prob, plain[rows, whole.labels], atol=1e-4)
    np.testing.assert_allclose(records.top1_log_prob, plain.max(1).values, atol=1e-4)
    assert records.top1_id.tolist() == plain.argmax(1).tolist()
    np.testing.assert_allclose(records.entropy, -(tempered.exp() * tempered).sum(1), atol=1e-4)
    for row in range(50):
        heads = int(records.num_head[row])
        expected = tempered[row, records.ids[row, :heads].astype(np.int64)]
        np.testing.assert_allclose(records.head_log_probs[row, :heads], expected, atol=1e-4)
        np.testing.assert_allclose(records.tail_mass[row], 1 - expected.exp().sum(), atol=1e-4)
    assert records.ids.max() < VOCAB_SIZE, "a padded row was recorded"
    np.testing.assert_allclose(records.weights().sum(1), 1.0, atol=1e-5)


@pytest.mark.parametrize("chunk_tokens", [1, 7, 16, 90, 1000])
@pytest.mark.parametrize("sizes", [(90,), (1,) * 90, (0, 40, 0, 0, 50), (13, 77)])
def test_chunks_and_pieces_do_not_change_a_record(chunk_tokens, sizes):
    whole, head = some_positions(90), a_head()
    expected = make([whole], head, chunk_tokens=90)
    records = make(pieces(whole, sizes), head, chunk_tokens=chunk_tokens)
    for field in dataclasses.fields(records):
        assert np.array_equal(getattr(records, field.name), getattr(expected, field.name)), field.name


def test_chunks_hold_the_same_positions_whatever_pieces_they_came_in():
    whole, head = some_positions(90), a_head()
    for sizes in [(90,), (1,) * 90, (40, 50)]:
        seen = []
        make(pieces(whole, sizes), lambda states: seen.append(states.clone()) or head(states), chunk_tokens=32)  # noqa: B023
        assert [len(chunk) for chunk in seen] == [32, 32, 26]
        assert torch.equal(torch.cat(seen), whole.hidden_states)


def test_nothing_to_score_gives_no_records():
    for parts in ([], [some_positions(0)]):
        records = make(parts, a_head())
        assert len(records) == 0
        assert records.ids.shape == (0, 8)


def test_a_record_larger_than_the_vocabulary_holds_all_of_it():
    records = make([some_positions(5)], a_head(), record_size=1000)
    assert records.ids.shape == (5, VOCAB_SIZE)


def test_a_head_that_gives_no_numbers_is_reported():
    head = a_head()
    with pytest.raises(BadNumbers):
        make([some_positions(5)], lambda states: head(states) * float("nan"))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_two_blocks_of_logits_are_alive_at_most(temperature):
    # All that torch allocates is traced. The 0.4 over 2 are the [chunk, k, BLOCK] pieces of the draw.
    from torch.profiler import ProfilerActivity, profile

    rows, chunk = 20_011, 64
    weight = torch.randn((rows, HIDDEN))
    part = some_positions(chunk)
    block = rows * chunk * 4
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        records_from_hidden(
            [part],
            lambda states: states @ weight.T,
            vocab_size=20_000,
            record_size=12,
            temperature=temperature,
            chunk_tokens=chunk,
        )
    alive = peak = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    assert peak < 2.5 * block, f"{peak / block:.2f} blocks"


@pytest.mark.parametrize("shape", [(1, 3), (5, 320), (48, 1031), (3, 50_304)])
def test_log_softmax_in_place_is_that_of_torch_to_the_last_bit(shape: tuple[int, int]) -> None:
    from engine.teacher.head import _log_softmax_

    logits = torch.randn(shape) * 10
    expected = logits[:, : shape[1] - 1].log_softmax(-1)
    found = _log_softmax_(logits.clone(), shape[1] - 1)
    torch.testing.assert_close(found[:, :-1], expected, rtol=1e-6, atol=1e-6)
    padded = logits.clone()
    padded[:, -1] = -torch.inf
    assert torch.equal(found, padded.log_softmax(-1))


_SCORE_MANY_CHUNKS = """
import sys, torch
from engine.teacher.head import Scored, records_from_hidden

def anonymous_bytes():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

torch.set_num_threads(1)
weight = torch.randn(40_000, 8, generator=torch.Generator().manual_seed(0))

def parts():
    for number in range(250):
        generator = torch.Generator().manual_seed(number)
        yield Scored(
            torch.randn(12, 8, generator=generator), torch.zeros(12, dtype=torch.int64),
            torch.rand(12, generator=generator, dtype=torch.float64),
        )
        seen.append(anonymous_bytes())

seen = []
with torch.no_grad():
    records_from_hidden(
        parts(), lambda states: states @ weight.T, vocab_size=40_000, record_size=12, temperature=1.0, chunk_tokens=12,
    )
print(seen[-1] - seen[20])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="tells memory in /proc, with glibc's allocator")
def test_what_is_kept_of_a_chunk_leaves_no_holes_between_the_temporary_matrices_of_the_next():
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _SCORE_MANY_CHUNKS], env=environment, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 16 * 2**20
