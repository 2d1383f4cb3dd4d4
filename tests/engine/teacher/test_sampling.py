import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import BadNumbers
from engine.teacher.sampling import BLOCK, Drawn, _without_doubles, draw_records


def log_of(probs) -> torch.Tensor:
    return torch.as_tensor(np.asarray(probs, dtype=np.float64)).log().float()


def weights_of(drawn: Drawn) -> torch.Tensor:
    """The probability that each id stands for, [N, k] float64."""
    size = drawn.ids.shape[1]
    is_head = torch.arange(size) < drawn.num_head[:, None]
    share = drawn.tail_mass.double() / (size - drawn.num_head).clamp_min(1)
    return torch.where(is_head, drawn.head_log_probs.double().exp(), share[:, None])


def threshold(probs: np.ndarray, size: int) -> float:
    """tau of VarOpt by bisection of sum(min(1, p / tau)) = size: another way than the code under test goes."""
    low, high = 0.0, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(1.0, probs / middle).sum() > size else (low, middle)
    return high


def check_sound(log_probs: torch.Tensor, drawn: Drawn, size: int) -> None:
    assert drawn.ids.shape == (len(log_probs), size)
    weights = weights_of(drawn)
    torch.testing.assert_close(weights.sum(1), torch.ones(len(weights), dtype=torch.float64), atol=1e-5, rtol=0)
    for row in range(len(log_probs)):
        ids, heads = drawn.ids[row].tolist(), int(drawn.num_head[row])
        assert len(set(ids)) == size, f"row {row}: an id is there twice: {ids}"
        assert all(0 <= number < log_probs.shape[1] for number in ids)
        own = log_probs[row, drawn.ids[row]]
        torch.testing.assert_close(drawn.head_log_probs[row, :heads], own[:heads], rtol=0, atol=0)
        assert (own[:heads].exp().diff() <= 0).all(), "heads come by falling probability"
        if drawn.tail_mass[row] > 0:
            assert heads < size, f"row {row}: there is tail mass {drawn.tail_mass[row]} but no tail id"
            assert torch.isfinite(own[heads:]).all(), f"row {row}: an id that cannot occur was drawn"
            if heads:
                assert own[heads:].max() <= own[:heads].min(), "no tail id is likelier than a head"


def extremes(vocab_size: int) -> dict[str, np.ndarray]:
    """Distributions that rounding is most likely to trip over."""
    one_hot = np.zeros(vocab_size)
    one_hot[vocab_size // 2] = 1.0
    two = np.zeros(vocab_size)
    two[[0, vocab_size - 1]] = 0.5
    faint = np.full(vocab_size, 1e-30)
    faint[-1] = 1.0
    fainter = np.geomspace(1e-38, 1e-3, vocab_size)
    steps = 2.0 ** -np.arange(1, vocab_size + 1)
    blocks = np.where(np.arange(vocab_size) % BLOCK == 0, 1.0, 1e-9)
    masked = np.where(np.arange(vocab_size) % 3 == 0, 1.0, 0.0)
    equal_heads = np.r_[np.full(vocab_size // 2, 1.0), np.full(vocab_size - vocab_size // 2, 1.0 - 1e-7)]
    kinds = {
        "uniform": np.ones(vocab_size), "one-hot": one_hot, "two-way tie": two, "1e-30 tail": faint,
        "geometric": fainter, "halves": steps, "one per block": blocks, "two thirds masked": masked,
        "nearly equal": equal_heads,
    }  # fmt: skip
    return {name: probs / probs.sum() for name, probs in kinds.items()}


@pytest.mark.parametrize("vocab_size", [1, 2, 5, 127, 128, 129, 1000, 5003])
@pytest.mark.parametrize("record_size", [1, 2, 3, 12, 64, 255])
def test_extreme_distributions_give_k_different_ids_and_weights_that_sum_to_one(vocab_size, record_size):
    for name, probs in extremes(vocab_size).items():
        uniforms = torch.tensor([0.0, 1e-12, 0.25, 0.5, 1 - 1e-9, 1 - 2**-53], dtype=torch.float64)
        log_probs = log_of(probs).expand(len(uniforms), -1)
        drawn = draw_records(log_probs, record_size=record_size, uniforms=uniforms)
        try:
            check_sound(log_probs, drawn, min(record_size, vocab_size))
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


@given(
    st.integers(1, 400),
    st.integers(1, 40),
    st.floats(0.01, 60.0),
    st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=150)
def test_any_distribution_gives_k_different_ids_and_weights_that_sum_to_one(vocab_size, record_size, spread, seed):
    generator = torch.Generator().manual_seed(seed)
    log_probs = (torch.randn((9, vocab_size), generator=generator) * spread).log_softmax(-1)
    uniforms = torch.rand(9, generator=generator, dtype=torch.float64)
    drawn = draw_records(log_probs, record_size=record_size, uniforms=uniforms)
    check_sound(log_probs, drawn, min(record_size, vocab_size))


@given(st.integers(2, 300), st.integers(1, 20), st.floats(0.1, 8.0), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=60)
def test_the_heads_are_exactly_the_ids_that_reach_the_threshold(vocab_size, record_size, spread, seed):
    generator = torch.Generator().manual_seed(seed)
    log_probs = (torch.randn((1, vocab_size), generator=generator) * spread).log_softmax(-1)
    drawn = draw_records(log_probs, record_size=record_size, uniforms=torch.tensor([0.3], dtype=torch.float64))
    probs = log_probs[0].double().exp().numpy()
    probs /= probs.sum()
    if record_size >= vocab_size:
        assert int(drawn.num_head[0]) == vocab_size
        return
    tau = threshold(probs, record_size)
    sure = set(np.flatnonzero(probs > tau * (1 + 1e-6)).tolist())
    possible = set(np.flatnonzero(probs >= tau * (1 - 1e-6)).tolist())
    heads = set(drawn.ids[0, : int(drawn.num_head[0])].tolist())
    assert sure <= heads <= possible
    if heads == sure == possible and len(heads) < record_size:
        share = float(drawn.tail_mass[0]) / (record_size - len(heads))
        assert share == pytest.approx(tau, rel=1e-4)


@pytest.mark.parametrize(("vocab_size", "record_size"), [(7, 1), (50, 3), (300, 12), (1000, 40)])
def test_the_mean_of_many_records_is_the_full_distribution(vocab_size, record_size):
    # Evenly spaced uniforms integrate over the one random number of a record: the error falls as 1 / draws.
    generator = torch.Generator().manual_seed(vocab_size)
    log_probs = (2.0 * torch.randn(vocab_size, generator=generator)).log_softmax(-1)
    draws = 4000
    uniforms = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    mean = torch.zeros(vocab_size, dtype=torch.float64)
    for part in uniforms.split(500):
        drawn = draw_records(log_probs.expand(len(part), -1), record_size=record_size, uniforms=part)
        mean.scatter_add_(0, drawn.ids.flatten(), weights_of(drawn).flatten())
    # Each record is worth at most tau for one id, and the u-interval in which it is drawn has two ends.
    assert (mean / draws - log_probs.double().exp()).abs().max() < 2.0 / draws + 1e-6


def test_rare_ids_of_a_large_vocabulary_keep_their_chance():
    # A running sum in float32 would swallow every id below 6e-8 of the mass, here 40 % of the tail.
    vocab_size = 150_000
    probs = np.full(vocab_size, 3e-8)
    probs[:200] = 1.0
    probs /= probs.sum()
    probs[:200] *= 0.997 / probs[:200].sum()
    probs[200:] *= 0.003 / probs[200:].sum()
    draws, size = 64, 300
    log_probs = log_of(probs).expand(draws, -1)
    uniforms = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    drawn = draw_records(log_probs, record_size=size, uniforms=uniforms)
    is_rare = drawn.ids >= 200
    assert float((weights_of(drawn) * is_rare).sum(1).mean()) == pytest.approx(0.003, rel=1e-3)
    halves = (drawn.ids >= (vocab_size + 200) // 2).sum() / is_rare.sum()
    assert float(halves) == pytest.approx(0.5, abs=0.01)


def test_ids_that_cannot_occur_fill_a_record_with_no_weight():
    probs = np.zeros(40)
    probs[[3, 7]] = [0.75, 0.25]
    drawn = draw_records(log_of(probs)[None], record_size=5, uniforms=torch.tensor([0.9], dtype=torch.float64))
    assert drawn.num_head.tolist() == [2]
    assert drawn.tail_mass.tolist() == [0.0]
    assert drawn.ids[0, :2].tolist() == [3, 7]
    assert len(set(drawn.ids[0].tolist())) == 5
    assert weights_of(drawn)[0].tolist() == pytest.approx([0.75, 0.25, 0.0, 0.0, 0.0], abs=1e-7)


def test_a_record_as_large_as_the_vocabulary_is_the_distribution():
    log_probs = torch.randn((6, 33), generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    drawn = draw_records(log_probs, record_size=100, uniforms=torch.full((6,), 0.5, dtype=torch.float64))
    assert drawn.ids.shape == (6, 33)
    assert (drawn.num_head == 33).all()
    torch.testing.assert_close(drawn.head_log_probs, log_probs.sort(descending=True).values)


def test_entropy_and_top_1_are_those_of_the_distribution():
    log_probs = torch.stack([log_of(probs) for probs in extremes(1000).values()])
    drawn = draw_records(log_probs, record_size=3, uniforms=torch.zeros(len(log_probs), dtype=torch.float64))
    probs = log_probs.double().exp()
    expected = -(probs * log_probs.double().nan_to_num(neginf=0.0)).sum(1)
    torch.testing.assert_close(drawn.entropy.double(), expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(drawn.top1_log_prob, log_probs.max(1).values)
    assert (log_probs.gather(1, drawn.top1_id[:, None])[:, 0] == log_probs.max(1).values).all()


def test_a_row_gives_the_same_record_in_any_batch():
    generator = torch.Generator().manual_seed(5)
    log_probs = (3 * torch.randn((24, 1000), generator=generator)).log_softmax(-1)
    uniforms = torch.rand(24, generator=generator, dtype=torch.float64)
    whole = draw_records(log_probs, record_size=12, uniforms=uniforms)
    order = torch.randperm(24, generator=generator)
    for part in order.split(7):
        drawn = draw_records(log_probs[part], record_size=12, uniforms=uniforms[part])
        assert torch.equal(drawn.ids, whole.ids[part])
        assert torch.equal(drawn.tail_mass, whole.tail_mass[part])


def test_no_rows_give_no_records():
    drawn = draw_records(torch.empty((0, 300)), record_size=12, uniforms=torch.empty(0, dtype=torch.float64))
    assert drawn.ids.shape == (0, 12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_no_distribution_are_named_by_row(bad):
    log_probs = torch.zeros((5, 50)).log_softmax(-1)
    log_probs[3, 7] = bad
    with pytest.raises(BadNumbers, match="row 3 of 5"):
        draw_records(log_probs, record_size=4, uniforms=torch.zeros(5, dtype=torch.float64))


def test_a_row_without_any_possible_id_is_refused():
    log_probs = torch.zeros((2, 50)).log_softmax(-1)
    log_probs[1] = -torch.inf
    with pytest.raises(BadNumbers, match="row 1 of 2"):
        draw_records(log_probs, record_size=4, uniforms=torch.zeros(2, dtype=torch.float64))


def test_an_id_with_exactly_the_mass_between_two_draws_is_not_drawn_twice():
    # Half of the mass on the first id, two draws half of the mass apart: without care, rounding draws the first
    # id twice in about one row of six.
    rest = torch.rand((2000, 40), generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    rest[:, 0] = rest[:, 1:].sum(1)
    log_probs = (rest / rest.sum(1, keepdim=True)).log().float()
    drawn = draw_records(log_probs, record_size=2, uniforms=torch.zeros(2000, dtype=torch.float64))
    assert (drawn.num_head == 0).any()
    assert (drawn.ids[:, 0] != drawn.ids[:, 1]).all()


def test_an_id_that_rounding_draws_twice_is_replaced():

    probs = torch.zeros((1, 2, BLOCK))
    probs[0, 0, [2, 5, 9]] = 0.1
    probs[0, 1, 4] = 0.1
    ids = torch.tensor([[77, 5, 5, BLOCK + 4]])
    assert _without_doubles(ids, torch.tensor([1]), probs).tolist() == [[77, 5, 9, BLOCK + 4]]
    at_the_end = torch.tensor([[2, BLOCK + 4, BLOCK + 4]])
    assert _without_doubles(at_the_end, torch.tensor([0]), probs).tolist() == [[2, 5, BLOCK + 4]]
