from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.models.documents import batches_of, find_documents

LONGEST = 200
rows = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=6), min_size=1, max_size=6)


def begins_of(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([sum(row) for row in rows])
    begins = np.zeros((len(rows), lengths.max()), np.bool_)
    for place, row in enumerate(rows):
        begins[place, np.cumsum([0, *row[:-1]])] = True
    return begins, lengths


@given(rows)
def test_documents_are_found_where_they_lie(rows: list[list[int]]) -> None:
    found = find_documents(*begins_of(rows))
    assert found.lengths.tolist() == [length for row in rows for length in row]
    assert found.rows.tolist() == [place for place, row in enumerate(rows) for _ in row]
    assert found.starts.tolist() == [sum(row[:number]) for row in rows for number in range(len(row))]


@given(st.lists(st.integers(1, LONGEST), max_size=60), st.integers(1, 3 * LONGEST))
def test_each_document_is_in_one_batch_that_keeps_to_the_limit(lengths: list[int], most_tokens: int) -> None:
    seen = []
    shapes = []
    for chosen, length in batches_of(np.array(lengths, np.int64), most_tokens=most_tokens, longest=LONGEST):
        held = [lengths[place] for place in chosen]
        assert max(held) <= length <= LONGEST
        assert length - max(held) < max(8, max(held) / 8), "padding of the longest"
        assert len(held) == 1 or len(held) * length <= most_tokens
        seen += chosen.tolist()
        shapes.append(length)
    assert sorted(seen) == list(range(len(lengths)))
    assert shapes == sorted(shapes, reverse=True), "the longest come first"


def test_full_rows_are_batched_as_rows() -> None:
    found = list(batches_of(np.full(5, 48), most_tokens=96, longest=48))
    assert [(chosen.tolist(), length) for chosen, length in found] == [([0, 1], 48), ([2, 3], 48), ([4], 48)]


def test_a_document_has_the_same_key_wherever_it_stands() -> None:
    one, two, three = [5, 6, 7], [8, 9], [10]
    keys = []
    for order in ([one, two, three], [two, three, one]):
        tokens = np.array([[token for document in order for token in document]])
        found = find_documents(*begins_of([[len(document) for document in order]]))
        keys.append(dict(zip(map(len, order), found.keys(tokens).tolist(), strict=True)))
    assert keys[0] == keys[1]
    assert len(set(keys[0].values())) == 3
