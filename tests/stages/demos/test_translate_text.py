"""Text to sentences and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_stages.demos.translate.sentences import join_text, split_text


@pytest.mark.parametrize(
    ("line", "sentences"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("Dr. Smith met Mr. J. Jones.", ["Dr. Smith met Mr. J. Jones."]),
        ("A Sra. Lima chegou. Ela sorriu.", ["A Sra. Lima chegou.", "Ela sorriu."]),
        ("It costs 3.50 euros. 4 people paid.", ["It costs 3.50 euros.", "4 people paid."]),
        ("“Stop!” he said. (Nobody did.) They ran", ["“Stop!” he said.", "(Nobody did.)", "They ran"]),
        ("Wait... what? Oh… Well.", ["Wait... what?", "Oh…", "Well."]),
        ("So did I. Then we left.", ["So did I.", "Then we left."]),
        ("  blanks   stay inside.  ", ["blanks   stay inside."]),
        ("...", ["..."]),
        (". A", [".", "A"]),
    ],
)
def test_sentences(line, sentences):
    assert split_text(line) == [sentences]


def test_lines():
    assert split_text("One. Two.\n\nThree\n") == [["One.", "Two."], [], ["Three"]]
    assert split_text("") == []
    assert split_text(" \n ") == [[], []]


@given(st.text(alphabet="aB.!? \n1"))
def test_nothing_is_lost(text):
    lines = split_text(text)
    assert all(sentence == sentence.strip() and sentence for line in lines for sentence in line)
    joined = join_text([sentence for line in lines for sentence in line], [len(line) for line in lines])
    assert [line.split() for line in joined.split("\n")] == [
        line.split() for line in text.splitlines() or [""]
    ]
