from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.data.packing import PackedRow, Packer, TokenisedDocument
from tests.engine.data.small_data import pack

EOS, BOS = 0, 1

documents = st.lists(st.lists(st.integers(2, 9), max_size=40).map(TokenisedDocument), max_size=12)
lengths = st.integers(2, 17)


@st.composite
def masked_documents(draw: st.DrawFn) -> list[TokenisedDocument]:
    found = []
    for _ in range(draw(st.integers(0, 8))):
        ids = draw(st.lists(st.integers(2, 9), max_size=30))
        found.append(TokenisedDocument(ids, draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))))
    return found


def flat(rows: list[PackedRow]) -> list[int]:
    return [int(token) for row in rows for token in row.tokens]


@given(documents, lengths, st.booleans())
def test_no_token_is_lost_or_doubled(documents: list[TokenisedDocument], length: int, packing: bool) -> None:
    rows = list(pack(documents, length, eos_id=EOS, packing=packing))
    assert flat(rows) == [token for document in documents if document.ids for token in (*document.ids, EOS)]


@given(documents, lengths, st.booleans(), st.sampled_from([None, BOS]))
def test_rows_are_within_bounds_and_never_begin_with_a_label(
    documents: list[TokenisedDocument], length: int, packing: bool, bos_id: int | None
) -> None:
    for row in pack(documents, length, eos_id=EOS, packing=packing, bos_id=bos_id):
        assert 1 <= len(row.tokens) <= length
        assert len(row.scored) == len(row.tokens)
        assert row.tokens.dtype == np.int32
        assert row.scored.dtype == np.bool_
        assert not row.scored[0]


@given(documents, lengths)
def test_all_rows_but_the_last_are_full(documents: list[TokenisedDocument], length: int) -> None:
    rows = list(pack(documents, length, eos_id=EOS, packing=True))
    assert all(len(row.tokens) == length for row in rows[:-1])


@given(documents, lengths)
def test_without_packing_no_row_has_two_documents(documents: list[TokenisedDocument], length: int) -> None:
    for row in pack(documents, length, eos_id=EOS, packing=False):
        assert EOS not in row.tokens[:-1]


@given(documents, lengths, st.booleans())
def test_every_row_begins_with_the_token_that_the_model_wants_there(
    documents: list[TokenisedDocument], length: int, packing: bool
) -> None:
    rows = list(pack(documents, length, eos_id=EOS, packing=packing, bos_id=BOS))
    assert all(row.tokens[0] == BOS for row in rows)
    assert not any(row.scored[row.tokens == BOS].any() for row in rows)
    assert [token for token in flat(rows) if token != BOS] == [
        token for document in documents if document.ids for token in (*document.ids, EOS)
    ]


@given(masked_documents(), lengths, st.booleans())
def test_a_token_is_a_label_if_it_is_trained_on_and_something_comes_before_it(
    documents: list[TokenisedDocument], length: int, packing: bool
) -> None:
    rows = list(pack(documents, length, eos_id=EOS, packing=packing))
    wanted = [mark for document in documents if document.ids for mark in (False, *(document.trained or ())[1:], False)]
    marks = iter(wanted)
    for row in rows:
        for place, scored in enumerate(row.scored):
            assert scored == (next(marks) and place > 0)


@given(documents, lengths, st.booleans(), st.sampled_from([None, BOS]))
def test_borders_are_where_documents_begin_and_no_label_crosses_one(
    documents: list[TokenisedDocument], length: int, packing: bool, bos_id: int | None
) -> None:
    rows = list(pack(documents, length, eos_id=EOS, packing=packing, bos_id=bos_id))
    for row in rows:
        begins = row.document_begins()
        assert begins[0]
        assert not (begins & row.scored).any()
        pieces = np.split(row.tokens, np.flatnonzero(begins)[1:])
        assert all(EOS not in piece[:-1] for piece in pieces), "two documents without a border"
        assert all(piece[-1] == EOS for piece in pieces[:-1]), "a border within a document"
        assert bos_id is None or all(piece[0] == bos_id for piece in pieces)


def test_the_end_of_a_text_is_a_label_and_not_doubled() -> None:
    (row,) = pack([TokenisedDocument([5, 6]), TokenisedDocument([7, EOS])], 8, eos_id=EOS, packing=True)
    assert row.tokens.tolist() == [5, 6, EOS, 7, EOS]
    assert row.scored.tolist() == [False, True, True, False, True], "nothing comes before the first of a document"


def test_the_end_of_a_conversation_is_no_label() -> None:
    (row,) = pack([TokenisedDocument([5, 6, 7], [False, True, True])], 8, eos_id=EOS, packing=True)
    assert row.scored.tolist() == [False, True, True, False]


def test_tokenizer_without_end_of_text_puts_nothing_between() -> None:
    (row,) = pack([TokenisedDocument([5, 6]), TokenisedDocument([7])], 8, eos_id=None, packing=True)
    assert row.tokens.tolist() == [5, 6, 7]


@pytest.mark.parametrize("packing", [True, False])
def test_nothing_gives_no_row(packing: bool) -> None:
    assert list(pack([], 4, eos_id=EOS, packing=packing)) == []
    assert list(pack([TokenisedDocument([])], 4, eos_id=EOS, packing=packing)) == []


def test_a_conversation_that_brings_its_beginning_gets_no_second_one() -> None:
    rows = list(pack([TokenisedDocument([BOS, 5, 6, 7])], 3, eos_id=EOS, packing=True, bos_id=BOS))
    assert [row.tokens.tolist() for row in rows] == [[BOS, 5, 6], [BOS, 7, EOS]]


@st.composite
def mixed_documents(draw: st.DrawFn) -> list[TokenisedDocument]:
    """Texts and conversations; a conversation is a question and an answer, each of one number."""
    found = []
    for number in range(draw(st.integers(0, 30))):
        if draw(st.booleans()):
            asked, answered = draw(st.integers(1, 12)), draw(st.integers(1, 12))
            ids = [2 * number + 10] * asked + [2 * number + 11] * answered
            found.append(TokenisedDocument(ids, [False] * asked + [True] * answered, whole=True))
        else:
            found.append(TokenisedDocument([2 * number + 10] * draw(st.integers(1, 40))))
    return found


@given(mixed_documents(), lengths, st.booleans(), st.sampled_from([None, BOS]), st.sampled_from([None, EOS]))
def test_conversations_stay_whole_or_are_cut_at_their_end_and_counted(
    documents: list[TokenisedDocument], length: int, packing: bool, bos_id: int | None, eos_id: int | None
) -> None:
    packer = Packer(length, eos_id=eos_id, packing=packing, bos_id=bos_id)
    rows = [row for document in documents for row in packer.add(document)] + list(packer.finish())
    seen: list[int] = []
    for row in rows:
        assert len(row.tokens) <= length
        starts = np.flatnonzero(row.document_begins())
        assert len(row.documents) == len(starts)
        for number, piece, scored in zip(
            row.documents, np.split(row.tokens, starts[1:]), np.split(row.scored, starts[1:]), strict=True
        ):
            document = documents[number]
            ids = [int(token) for token in piece if token not in (BOS, EOS)]
            if document.whole:
                assert ids == document.ids[: len(ids)], "from its beginning on"
                assert len(ids) == len(document.ids) or len(row.tokens) == length
                labels = [token for token, mark in zip(piece.tolist(), scored, strict=True) if mark]
                assert set(labels) <= {2 * number + 11}
                seen.append(number)
            else:
                assert set(ids) <= {2 * number + 10}
    assert len(set(seen)) == len(seen) == packer.num_whole - packer.num_lost
    assert packer.num_whole == sum(document.whole for document in documents)
    before = 0 if bos_id is None else 1
    assert packer.num_cut == sum(document.whole and before + len(document.ids) > length for document in documents)


def test_short_conversations_fill_what_longer_ones_leave() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(20, 200, 400).tolist()
    rows = list(pack([TokenisedDocument([5] * size, whole=True) for size in sizes], 512, eos_id=None, packing=True))
    assert sum(len(row.tokens) for row in rows) == sum(sizes)
    assert sum(sizes) > 0.95 * 512 * len(rows)
