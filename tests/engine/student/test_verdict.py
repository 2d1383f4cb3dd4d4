from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.student.verdict import details, doubts, gap_closed, gap_of, headline, in_a_word, is_success, skill

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
        ({"after": 3.2}, "went past its teacher"),
        ({"chance": None, "kl": 0.3, "after": 3.8}, "close, with gaps."),
    ],
)
def test_the_first_sentence_says_what_the_student_is_worth(figures, said):
    assert said in headline(report(**figures))


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
        ({"teacher": 6.11, "before": 6.9, "after": 5.76, "chance": None}, "went past its teacher", True),
        ({"after": 3.2}, "went past its teacher", True),
        ({"before": 5.0, "after": 6.9}, "got worse", False),
        ({"after": 6.9}, "no better than counting words", False),
    ],
)
def test_a_student_of_a_teacher_that_does_not_know_the_text_is_no_success(figures, said, success):
    assert said in headline(report(**figures))
    assert is_success(report(**figures)) is success
