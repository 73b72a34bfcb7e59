from __future__ import annotations

from pathlib import Path

import pytest

from tasks.data.files import read_json, read_json_lines


def test_replaced_characters_are_counted_on_standard_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "questions.json"
    path.write_text(r'["a\ud800", "\udc00\udc00"]')
    assert read_json(path)[0] == ["a\ufffd", "\ufffd\ufffd"]
    assert capsys.readouterr().err == f"harness: {path}: 3 lone surrogates were read as U+FFFD\n"
    path.write_text(r'"\ud800"')
    read_json_lines(path)
    assert capsys.readouterr().err == f"harness: {path}: 1 lone surrogate was read as U+FFFD\n"
    path.write_text(r'"\ud83d\ude00"')
    read_json(path)
    assert not capsys.readouterr().err
