"""Whole-file writes: all or nothing, in UTF-8, and JSON lines that say where they are wrong."""

import json
from pathlib import Path

import pytest

from star import files
from star.errors import InputError


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "deep/er/notes.txt"
    files.write_text(file, "één\n")
    assert file.read_bytes() == b"\xc3\xa9\xc3\xa9n\n"
    with pytest.raises(RuntimeError, match="halfway"), files.whole(file) as draft:
        draft.write_text("half of it")
        raise RuntimeError("halfway")
    assert file.read_bytes() == b"\xc3\xa9\xc3\xa9n\n" and [f.name for f in file.parent.iterdir()] == ["notes.txt"]


def test_json_lines_come_back_as_they_were(tmp_path: Path) -> None:
    rows = [{"prompt": "a sign “HÄT”\u2028below", "n": 1}, {}]
    files.write_jsonl(tmp_path / "rows.jsonl", rows)
    assert files.read_jsonl(tmp_path / "rows.jsonl") == rows  # U+2028 ends a line for str.splitlines, not here
    files.write_json(tmp_path / "row.json", rows[0])
    assert json.loads((tmp_path / "row.json").read_text(encoding="utf-8")) == rows[0]
    (tmp_path / "none.jsonl").touch()
    assert files.read_jsonl(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(
    ("content", "says"),
    [(b'{}\n{"a"', r":2: not JSON"), (b"{}\n[]\n", r":2: not a JSON object"), (b"\xff", "not a readable text")],
)
def test_lines_that_are_no_objects_are_named(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    with pytest.raises(InputError, match=says):
        files.read_jsonl(file)
    with pytest.raises(InputError, match=r"none\.jsonl: not a readable text file"):
        files.read_jsonl(tmp_path / "none.jsonl")
