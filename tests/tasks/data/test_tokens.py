"""Token ids of many texts: each distinct text is tokenised once, and large collections once per cache folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tasks.data import tokens
from tasks.data.tokens import tokenize
from tests.support.word_processor import WordProcessor


class Counting(WordProcessor):
    """Remembers which texts it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        self.asked += texts
        return super().tokenize(texts)


@pytest.mark.parametrize("kept_from", [1, 3])
def test_texts_are_tokenised_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_from: int) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    monkeypatch.setattr(tokens, "KEPT_FROM", kept_from)
    texts = ["a cat", "a dog sits", "a cat"]
    processor, second = Counting(), Counting()
    found, again = tokenize(processor, texts), tokenize(second, texts)
    assert processor.asked == ["a cat", "a dog sits"]
    assert second.asked == ([] if kept_from == 1 else processor.asked)
    assert [row.tolist() for row in found] == WordProcessor().tokenize(texts)
    assert [row.tolist() for row in again] == WordProcessor().tokenize(texts)
    assert found.lengths.tolist() == [len(row) for row in WordProcessor().tokenize(texts)]
    assert found.of([2, 1]).lengths.tolist() == found.lengths[[2, 1]].tolist()
