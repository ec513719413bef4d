"""Which lists changed between two runs, and how encoded lists are cut into files."""

from __future__ import annotations

from dataclasses import asdict
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from lakerank.export.format import Change, PartLimits, Piece, Target, changes, parts
from lakerank.export.job import FORMATS

from .conftest import make_list


def rows(old: dict[str, int], new: dict[str, int]) -> list[dict[str, object]]:
    """Two runs' rows, sorted by query: the value of a query seeds its list's logits."""
    both = [(key, False, seed) for key, seed in new.items()] + [(key, True, seed) for key, seed in old.items()]
    return [
        {**asdict(row), "is_old": is_old}
        for key, is_old, seed in sorted(both)
        for row in make_list(key, ["d1", "d2", "d3"], seed).rows
    ]


QUERIES = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 2))


@given(QUERIES, QUERIES)
def test_every_list_has_changed_in_one_way(old, new):
    result = {change.key: change for change in changes(rows(old, new), FORMATS["parquet"](Target()))}
    assert result.keys() == old.keys() | new.keys()
    for key, ranking in result.items():
        expected = (
            Change.REMOVED if key not in new
            else Change.ADDED if key not in old
            else Change.UNCHANGED if old[key] == new[key]
            else Change.CHANGED
        )  # fmt: skip
        assert ranking.change is expected
        assert (ranking.current is None) == (key not in new)


def test_a_change_that_a_format_does_not_show_is_none():
    ranking = [asdict(row) | {"is_old": False} for row in make_list("q", ["d1", "d2"], 0).rows]
    before = [row | {"is_old": True, "logit": row["logit"] - 1e-3} for row in ranking]
    (seen,) = changes([*ranking, *before], FORMATS["trec-run"](Target()))
    (graded,) = changes([*ranking, *before], FORMATS["trec-qrels"](Target()))
    assert (seen.change, graded.change) == (Change.CHANGED, Change.UNCHANGED)


def test_queries_are_numbered_as_in_the_whole_run():
    form = FORMATS["svmrank"](Target())
    result = [*changes(rows({"a": 0, "b": 0, "c": 0}, {"a": 0, "c": 1, "d": 0}), form, first_number=7)]
    assert [(ranking.key, ranking.current.number) for ranking in result if ranking.current] == [
        ("a", 7),
        ("c", 8),
        ("d", 9),
    ]


@given(st.lists(st.tuples(st.binary(max_size=9), st.integers(0, 9))), st.integers(1, 20), st.integers(1, 20))
def test_parts_hold_every_piece_in_order_within_the_limits(pieces, most_rows, most_bytes):
    given_pieces = [Piece(*piece) for piece in pieces]
    result = [*parts(given_pieces, PartLimits(most_rows, most_bytes))]
    assert [piece for part in result for piece in part] == given_pieces
    for part in result:
        small = sum(piece.rows for piece in part) <= most_rows and sum(len(piece.data) for piece in part) <= most_bytes
        assert small or len(part) == 1
    for part, following in pairwise(result):
        joined = [*part, following[0]]
        assert sum(piece.rows for piece in joined) > most_rows or sum(len(p.data) for p in joined) > most_bytes
