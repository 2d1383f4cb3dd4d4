from hypothesis import given
from hypothesis import strategies as st

from engine.data.holdout import FEWEST_HOLDOUT_ROWS, MOST_HOLDOUT_ROWS
from engine.planner import defaults
from engine.planner.workload import Text


@given(
    tokens=st.integers(1, 10**10), samples=st.none() | st.integers(1, 10**6), length=st.sampled_from([64, 512, 2048])
)
def test_amounts_are_positive_and_never_more_than_there_is(tokens: int, samples: int | None, length: int) -> None:
    text = Text(tokens, 0.05, samples)
    rows, train = text.train_rows(length), text.train_tokens(length)
    assert rows is not None
    assert train is not None
    assert 1 <= rows <= (samples or rows)
    assert 1 <= train <= min(tokens, rows * length)
    assert 0 <= text.holdout_tokens(length) <= MOST_HOLDOUT_ROWS * length
    assert text.all_tokens(length) <= tokens + length
    if samples is not None and tokens > 10**9:
        assert text.holdout_tokens(length) >= FEWEST_HOLDOUT_ROWS * length, "few samples have as large a hold-out"


@given(tokens=st.none() | st.integers(1, 10**10), length=st.integers(2, 8192))
def test_a_step_has_a_power_of_two_of_rows(tokens: int | None, length: int) -> None:
    rows, reason = defaults.effective_rows(Text(tokens, 0.05, None), length)
    assert rows & (rows - 1) == 0
    assert defaults.FEWEST_ROWS_PER_STEP <= rows <= defaults.MOST_ROWS_PER_STEP
    assert str(rows) in reason


def test_much_text_gets_full_steps_and_little_text_gets_many() -> None:
    much, little = Text(10**8, 0.05, None), Text(10**8, 0.05, 500)
    assert defaults.effective_rows(much, 512)[0] * 512 == 16_384
    assert defaults.effective_rows(little, 64)[0] * 64 == 2_048
    assert defaults.epochs_for(10_000)[0] == 1
    assert defaults.epochs_for(40)[0] == 5
    assert defaults.epochs_for(2)[0] == defaults.MOST_EPOCHS


def test_rows_are_shorter_for_short_text_and_for_models_with_a_short_memory() -> None:
    assert defaults.default_length(Text(10**7, 0.05, None), 2048)[0] == 512
    assert defaults.default_length(Text(None, 0.05, None), None)[0] == 512
    assert defaults.default_length(Text(10_000, 0.05, None), 2048)[0] == 128
    assert defaults.default_length(Text(10**7, 0.05, None), 256)[0] == 256
    assert defaults.default_length(Text(1, 0.05, None), 2048)[0] == 64


def test_the_learning_rate_falls_with_the_size() -> None:
    rates = [defaults.learning_rate_for(size) for size in (10**5, 3 * 10**6, 7 * 10**7, 5 * 10**8, 2 * 10**9, 10**12)]
    assert rates == sorted(rates, reverse=True)
    assert rates[:4] == [1e-3, 1e-3, 3e-4, 8e-5]


def test_a_checkpoint_comes_about_once_a_minute_but_not_when_writing_would_take_long() -> None:
    assert defaults.checkpoint_every(1.0, 10**6, 1e9, None) == 60
    assert defaults.checkpoint_every(1.0, 10**10, 1e9, None) == 200
    assert defaults.checkpoint_every(1.0, 10**6, 1e9, 25) == 25
    assert defaults.checkpoint_every(1e-9, 10**6, 1e9, None) == 1000
    assert defaults.checkpoint_every(500.0, 10**6, 1e9, None) == 1


def test_rows_hold_most_conversations_whole_where_the_models_allow() -> None:
    lengths = tuple(range(1, 201))
    text = Text(10**7, 0.05, None, lengths)
    assert defaults.default_length(text, 2048)[0] == 512, "as much as for any text"
    long = Text(10**7, 0.05, None, tuple(10 * length for length in lengths))
    length, reason = defaults.default_length(long, None)
    assert length % 64 == 0
    assert 0.95 <= long.share_whole(length) < 1
    assert "99 % of the conversations fit" in reason
    length, reason = defaults.default_length(long, 1024)
    assert length == 1024
    assert "51 % of the conversations fit" in reason
    assert "the models take no more than 1024" in reason
    few = Text(5_649, 0.05, None, (94,) * 60)
    assert defaults.default_length(few, 2048)[0] == 128
    assert "every conversation fits" in defaults.default_length(few, 2048)[1]


def test_rows_of_conversations_are_not_quite_full_and_what_is_cut_is_not_counted() -> None:
    text = Text(9_400, 0.0, None, (94,) * 60)
    assert text.row_tokens(128) == 94
    assert text.row_tokens(512) == 5 * 94
    assert text.train_rows(128) == 100
    assert text.train_rows(512) == 20
    assert text.train_tokens(512) == 9_400
    assert text.kept_tokens(47) == 4_700
    assert text.train_rows(47) == 100


@given(
    total=st.none() | st.integers(1, 10**6),
    step=st.floats(1e-4, 100, allow_nan=False),
    look=st.floats(0, 1e4, allow_nan=False),
)
def test_looks_take_a_small_share_of_the_steps_and_the_last_one_always_comes(
    total: int | None, step: float, look: float
) -> None:
    count = defaults.evaluations_for(total, step, look)
    assert 1 <= count <= min(defaults.MOST_EVALUATIONS, total or defaults.MOST_EVALUATIONS)
    if total is not None and count > 1:
        assert count * look <= 0.04 * total * step * (1 + 1e-9)


def test_five_looks_where_they_cost_nothing_and_one_where_a_checkpoint_takes_as_long_as_a_step() -> None:
    assert defaults.evaluations_for(None, 1.0, 1.0) == 5
    assert defaults.evaluations_for(1000, 0.5, 0.1) == 5
    assert defaults.evaluations_for(24, 3.7, 4.0) == 1
    assert defaults.evaluations_for(3, 100.0, 0.0) == 3
