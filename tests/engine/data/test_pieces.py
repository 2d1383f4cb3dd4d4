from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from engine.data.document import Document
from engine.data.holdout import is_holdout, smallest_fraction
from engine.data.pieces import cut_text
from engine.data.split import FINE, USUAL, pieces, stretches
from tests.tiny import tiny_texts

texts = st.text(st.sampled_from("ab \n\té漢"), max_size=400)


@given(texts, st.integers(1, 60))
def test_pieces_one_behind_the_other_are_the_text(text: str, size: int) -> None:
    assert "".join(cut_text(text, size)) == text


@given(texts, st.integers(2, 60))
def test_pieces_are_within_bounds(text: str, size: int) -> None:
    found = cut_text(text, size)
    assert all(len(piece) <= size + size // 2 for piece in found)
    assert all(len(piece) > size // 2 for piece in found[:-1])


def test_paragraph_border_is_preferred_to_a_line_and_a_line_to_a_word() -> None:
    assert cut_text("aaa aaa\naaa\n\nbbb bbb\nbbb bbb bbb bbb", 16)[0] == "aaa aaa\naaa\n\n"
    assert cut_text("aaa aaa aaa\nbbb bbb bbb bbb bbb bbb", 16)[0] == "aaa aaa aaa\n"
    assert cut_text("aaa aaa aaa aaa bbb bbb bbb bbb", 14)[0] == "aaa aaa aaa "
    assert cut_text("a" * 40, 16)[0] == "a" * 16


def test_short_document_and_conversation_stay_whole() -> None:
    assert pieces(Document("a", "x" * 30_000), USUAL) == ["x" * 30_000]
    messages = ({"role": "user", "content": "x" * 90_000},)
    assert len(pieces(Document("a", "x" * 90_000, messages), USUAL)) == 1
    assert len(pieces(Document("a", "x" * 90_000), None)) == 1
    assert len(pieces(Document("a", "x" * 90_000), USUAL)) > 10


@given(st.integers(0, 10**6), st.sampled_from([0.05, 0.3, 0.5]))
def test_stretches_are_the_document_and_each_piece_is_on_its_side(seed: int, fraction: float) -> None:
    document = Document("long", f"{seed}\n\n" + "\n\n".join(tiny_texts(150)))
    found = list(stretches(document, fraction, FINE))
    assert "".join(text for _, text in found) == document.text
    assert all(one[0] != two[0] for one, two in itertools.pairwise(found)), "neighbours are joined"
    for held_out in (False, True):
        joined = "".join(text for side, text in found if side is held_out)
        own = [piece for piece in pieces(document, FINE) if is_holdout(piece, fraction) is held_out]
        assert joined == "".join(own)


@given(st.text(max_size=30))
def test_smallest_fraction_holds_it_out_and_hardly_less_does_not(text: str) -> None:
    fraction = smallest_fraction(text)
    assert is_holdout(text, fraction)
    assert not is_holdout(text, fraction * (1 - 1e-9))
