from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.student.verdict import (
    details,
    doubts,
    gap_closed,
    gap_of,
    got_worse,
    headline,
    in_a_word,
    is_success,
    skill,
)

losses = st.floats(min_value=0.0, max_value=20.0, allow_nan=False)


def report(teacher=3.43, before=14.01, after=5.99, chance=6.8, kl=2.81, top1=0.23, **more):
    found = {
        "teacher": {"holdout_loss": teacher},
        "student_before": {"holdout_loss": before},
        "student_after": {"holdout_loss": after, "kl_to_teacher": kl, "top1_agreement": top1},
        "chance": None if chance is None else {"holdout_loss": chance},
    }
    return found | {"gap_closed": gap_of(found)} | more


@given(losses, losses, losses, losses, losses)
def test_a_worse_student_never_gets_a_higher_gap_closed_from_the_same_data(teacher, chance, before, one, other):
    """The same beginning and chance: the one with the higher loss has the lower share."""
    better, worse = sorted((one, other))
    high, low = (gap_closed(teacher, before, chance, after) for after in (better, worse))
    assert (high is None) == (low is None)
    assert high is None or low is None or low <= high


@given(losses, losses, st.lists(st.tuples(losses, losses), min_size=2, max_size=6))
def test_students_that_begin_below_chance_are_ordered_by_their_loss_whatever_they_began_with(teacher, chance, students):
    shares = [(after, gap_closed(teacher, chance + below, chance, after)) for below, after in students]
    known = sorted(((after, share) for after, share in shares if share is not None), reverse=True)
    assert [share for _, share in known] == sorted(share for _, share in known)


@given(losses, losses, st.lists(losses, min_size=2, max_size=6))
def test_skill_is_in_the_order_of_losses(teacher, chance, students):
    shares = [skill(teacher, chance, after) for after in sorted(students, reverse=True)]
    assert len({share is None for share in shares}) == 1
    assert None in shares or shares == sorted(shares)


def test_three_cuts_of_one_teacher_come_in_the_order_of_their_losses():
    """Evenly spread, by influence: the old share put the worse one first (76 and 66 %)."""
    even, influence = gap_closed(3.43, 14.01, 6.4, 5.99), gap_closed(3.43, 6.52, 6.4, 4.47)
    assert even is not None
    assert influence is not None
    assert even < 0.2 < 0.6 < influence


def test_a_student_that_begins_as_its_teacher_has_no_share_of_a_gap():
    """An adapter of the teacher itself: the losses differ by rounding, and the share was -24,479 %."""
    same = report(teacher=1.63039, before=1.63041, after=1.635, chance=3.1)
    assert same["gap_closed"] is None
    assert not any("of the way" in sentence for sentence in details(same))
    assert gap_closed(1.63, 1.66, 3.1, 1.64) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ({}, "in 23% of places (KL 2.81): far from fluent."),
        ({"kl": 1.28, "top1": 0.44, "after": 4.47}, "in 44% of places (KL 1.28): not fluent yet."),
        ({"kl": 0.09, "top1": 0.9, "after": 3.5}, "hardly different."),
        ({"after": 6.9}, "no better than counting words: its loss is 6.90, chance 6.80"),
        ({"before": 5.0, "after": 6.9}, "got worse: its hold-out loss rose from 5.000 to 6.900"),
        ({"after": 3.2}, "hold-out loss is below its teacher's: 3.200, the teacher's 3.430"),
        (
            {"before": 3.3, "after": 3.2, "intervals": {"loss_beyond_teacher": [-0.5, -0.1]}},
            "was better than its teacher on this text before: its hold-out loss is 3.200 (3.300 before)",
        ),
        ({"after": 3.428, "kl": 0.2}, "answers like its teacher"),
        ({"after": 3.2, "intervals": {"loss_beyond_teacher": [-0.5, 0.1]}}, "answers like its teacher"),
        ({"after": 3.2, "intervals": {"loss_beyond_teacher": [-0.5, -0.1]}}, "went past its teacher"),
        ({"after": 3.5, "kl": -0.039, "top1": 1.0}, "in 100% of places (KL 0.00): hardly different."),
        ({"chance": None, "kl": 0.3, "after": 3.8}, "close, with gaps."),
    ],
)
def test_the_first_sentence_says_what_the_student_is_worth(figures, said):
    assert said in headline(report(**figures))


def began(before, first_kl, **more):
    """A report of a student whose KL at the beginning is known."""
    found = report(before=before, **more)
    found["student_before"]["kl_to_teacher"] = first_kl
    return found


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        (began(3.43, -0.02, after=3.4301, kl=0.0), "began as its teacher and has hardly changed"),
        (began(5.0, 1.0, after=5.0001, kl=1.0), "hardly changed: its hold-out loss is 5.000, as before"),
        (began(5.0, 1.0, after=4.9999, kl=1.0), "hardly changed"),
        (began(5.0, 1.0, after=5.001, kl=0.4), "answers like its teacher"),
    ],
)
def test_a_change_that_is_rounding_is_none(figures, said):
    """A loss "rose from 7.270 to 7.270"; advice on a lower learning rate followed."""
    assert said in headline(figures)
    assert is_success(figures) is ("answers like" in said)


def test_a_student_that_follows_a_worse_teacher_is_not_told_to_lower_its_learning_rate():
    followed = began(3.0, 1.2, after=3.4, kl=0.2)
    assert "closer to a teacher that is worse on this text than it was: KL 1.20 to 0.20" in headline(followed)
    assert "--kd_weight" in headline(followed)
    assert not is_success(followed)
    assert "got worse" in headline(began(3.0, 1.2, after=3.4, kl=1.5)), "it did not come closer"
    assert "got worse" in headline(began(3.6, 1.2, after=3.9, kl=0.2)), "the teacher is better than it was"


def test_what_a_share_does_not_show_is_not_claimed():
    assert not any("of the way" in line for line in details(report(after=6.9))), "less than nothing of a way"
    unsure = details(report(intervals={"gap_closed": [-0.4, 0.9]}))[0]
    assert unsure == "The hold-out is too small to tell how far its loss went from chance (6.80) to its teacher's."


def test_a_student_that_began_as_its_teacher_and_got_worse_is_told_so():
    away = began(3.43, 0.002, after=3.8, kl=0.36)
    assert "began as its teacher and moved away from it: its hold-out loss rose from 3.430 to 3.800" in headline(away)
    assert got_worse(away)
    assert not is_success(away)
    assert not got_worse(began(3.43, 0.002, after=3.4301, kl=0.0))


def test_a_student_whose_steps_were_skipped_is_not_told_that_they_were_too_small():
    unchanged = began(5.0, 1.0, after=5.0, kl=1.0, training={"steps": 12, "skipped_steps": 9, "best_step": 3})
    assert "Most of its steps were skipped; try a lower --learning_rate." in headline(unchanged)
    assert "9 of 12 steps were skipped, as loss or gradient was not a number, or far too large." in details(unchanged)
    assert "too low" in headline(began(5.0, 1.0, after=5.0, kl=1.0, training={"steps": 12, "skipped_steps": 0}))


def test_a_student_of_an_earlier_step_is_said_to_be_one():
    told = " ".join(details(report(training={"steps": 30, "skipped_steps": 1, "best_step": 12})))
    assert "the student of step 12 of 30: its loss on this hold-out was the lowest" in told
    assert "1 of 30 step was skipped" in told
    flat = details(report(steps=30, skipped_steps=0, best_step=12))
    assert any("step 12 of 30" in line for line in flat), "a phase's result, for the student's card"
    assert not any("step" in line for line in details(report(training={"steps": 30, "best_step": 30})))


def test_few_documents_are_said_to_be_few():
    assert "The hold-out has one document: too few to tell how far others would differ." in details(
        report(holdout_documents=1)
    )
    assert not any("too few" in line for line in details(report(holdout_documents=6)))


def test_figures_of_few_tokens_are_called_rough_wherever_they_stand():
    few = report()
    few["student_after"]["tokens"] = 41
    assert "The hold-out has only 41 tokens: figures measured with it are rough." in details(few)
    few["student_after"]["tokens"] = 2_000
    assert not any("rough" in line for line in details(few))


def test_figures_of_quantized_weights_are_not_said_to_be_those_of_the_written_student():
    """With nf4 the report said 3.756, and the written student had 4.08."""
    assert any(
        "in nf4" in line and "tiny-distill-eval" in line for line in details(report(adapter={"quantization": "nf4"}))
    )
    assert not any("These figures" in line for line in details(report(adapter={"quantization": "none"})))
    assert details(report(adapter=None)) == details(report())


def test_usual_first_sentences_fit_a_line():
    for kl in (0.05, 0.2, 0.7, 1.9, 9.99):
        assert len(headline(report(kl=kl, top1=1.0))) <= 74
        assert in_a_word(kl)


def test_where_the_way_began_is_told():
    assert "from chance (6.80) to its teacher (3.43)" in details(report())[0]
    began_better = details(report(before=5.0, after=4.0))[0]
    assert "64% of the way from its beginning (5.00) to its teacher (3.43)" in began_better
    assert began_better.endswith("; from chance (6.80) it is 83%.")
    assert "from its beginning (5.00) to its teacher" in details(report(before=5.0, after=4.0, chance=None))[0]
    sure = details(report(intervals={"gap_closed": [0.2, 0.3]}))[0]
    assert sure.endswith(", 95% interval 20% to 30%.")
    labels = report(compare={"labels": {"holdout_loss": 6.123, "kl_to_teacher": 3.0}})
    assert "labels alone" in details(labels)[-1]
    assert "6.123 (this one 5.990)" in details(labels)[-1]


def test_a_teacher_that_does_not_know_the_text_is_told():
    assert doubts(3.4, 6.8) is None
    assert doubts(3.4, None) is None
    assert "hardly knows" in str(doubts(5.5, 6.8))
    assert "does not know" in str(doubts(6.75, 6.8))
    assert any("hardly knows" in line for line in details(report(teacher=5.5)))


@pytest.mark.parametrize(
    ("figures", "said", "success"),
    [
        ({"teacher": 6.11, "before": 6.9, "after": 5.76, "chance": 7.0}, "The teacher hardly knows this text", False),
        ({"teacher": 6.9, "before": 9.0, "after": 6.95, "chance": 7.0}, "The teacher does not know this text", False),
        ({"teacher": 6.11, "before": 6.9, "after": 5.76, "chance": None}, "below its teacher's", True),
        ({"after": 3.2}, "below its teacher's", True),
        ({"before": 5.0, "after": 6.9}, "got worse", False),
        ({"after": 6.9}, "no better than counting words", False),
    ],
)
def test_a_student_of_a_teacher_that_does_not_know_the_text_is_no_success(figures, said, success):
    assert said in headline(report(**figures))
    assert is_success(report(**figures)) is success


def test_what_quantization_cost_the_teacher_is_said():
    cost = {"quantized_loss": 3.58, "own_loss": 3.425, "tokens": 1_020}
    told = details(report(quantization_cost=cost, config={"quantization": "nf4"}))
    assert "In nf4 the teacher's loss is 3.580, in its own weights 3.425 (on 1,020 hold-out tokens)." in told
