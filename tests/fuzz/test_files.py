"""Whatever is in a file, it is read or named on one line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.config.experiment import read_experiment
from harness.files import read_csv, read_json, read_json_lines, read_toml, write_atomically
from tests.support.fuzzing import JSON, at_most_a_user_error, cases, damaged

READERS = {"json": read_json, "jsonl": read_json_lines, "csv": read_csv, "toml": read_toml}
SOUND = {
    "json": b'{"info": {"year": 2017}, "annotations": [{"id": 1, "answers": ["\xc3\xa4", "no"], "x": 1.5e3}]}',
    "jsonl": b'{"id": "a", "score": 1}\n\n{"id": "b", "score": 0.3}\r\n',
    "csv": b'dev-1-0-0,True\r\ndev-1-0-1,"Fa,""lse"\n\ndev-2,x\r',
    "toml": b'[run]\nmethods = ["lora", "das[skip=4]"]\ntasks = "vqa"\nseeds = [0, 1]\n[methods.lora]\nr = 8\n',
}


@pytest.mark.parametrize("form", READERS)
@cases(110)
@given(data=st.data())
def test_damaged_files(tmp_path: Path, form: str, data: st.DataObject) -> None:
    path = tmp_path / "file"
    content = data.draw(damaged(SOUND[form]) | st.binary(max_size=40))
    path.write_bytes(gzip.compress(content) if data.draw(st.booleans()) else content)
    with at_most_a_user_error():
        READERS[form](path)


@cases(150)
@given(value=JSON)
def test_any_json_is_read_as_it_was_written(tmp_path: Path, value: object) -> None:
    path = tmp_path / "file"
    text = json.dumps(value)
    write_atomically(path, text.encode())
    with at_most_a_user_error():
        found = read_json(path)
        if not found.replaced:
            assert json.dumps(found.value) == text


@cases(200)
@given(content=damaged(SOUND["toml"]))
def test_damaged_experiments(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with at_most_a_user_error():
        read_experiment(path)
