"""Answers in passages: the decisions of the heuristics that open-domain question answering is judged by."""

from __future__ import annotations

import unicodedata

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from lakerank_datasets.layouts.mkqa import is_answered, searchable_answer, searchable_passage

TOKENS = regex.compile(
    r"([\p{L}\p{N}\p{M}]+)|([^\p{Z}\p{C}])", flags=regex.IGNORECASE | regex.UNICODE | regex.MULTILINE
)


def holds(passage, *answers):
    return is_answered(searchable_passage(passage), [searchable_answer(answer) for answer in answers])


def published(passage: str, answers: list[str]) -> bool:
    """The definition, token by token: does any answer's run of tokens stand in the passage's?"""

    def tokens(text: str) -> list[str]:
        return [match.group().lower() for match in TOKENS.finditer(unicodedata.normalize("NFD", text))]

    words = tokens(passage)
    return any(
        words[at : at + len(answer)] == answer
        for answer in map(tokens, answers)
        for at in range(len(words) - len(answer) + 1)
    )


@pytest.mark.parametrize(
    ("passage", "answer", "expected"),
    [
        ("The Volvo was made in Göteborg.", "volvo", True),
        ("The volvox is an alga.", "Volvo", False),
        ("VOLVO CARS", "Volvo Cars", True),
        ("Volvo, Cars", "Volvo Cars", False),
        ("1914–1918", "1914-1918", True),
        ("it’s", "it's", True),
        ("Go\u0308teborg", "Göteborg", True),
        ("90 %", "90%", True),
        ("東京都", "東京", False),
        ("anything", "", True),
    ],
)
def test_decisions(passage, answer, expected):
    assert holds(passage, answer) is expected


SIMPLE = st.text("abé1. -ก\u0308 東", max_size=12)


@given(SIMPLE, st.lists(SIMPLE, max_size=3))
def test_it_decides_as_the_definition_does(passage, answers):
    assert holds(passage, *answers) == published(passage.lower(), answers)
