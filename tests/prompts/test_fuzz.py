"""Any prompt file through the command line: done, or refused in one line; never a traceback."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from star import cli
from star.prompts.record import read

FUZZ = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 20),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["ring", "red", "above", "a red ring", 'a sign "AB"', "\ud800", "\x00", "counting", "colors"]),
)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=6
)


def mostly(*good: object) -> st.SearchStrategy:
    """One of some values that fit, and anything at all once in twenty times."""
    return st.integers(0, 19).flatmap(lambda drawn: JSON if drawn == 0 else st.sampled_from(good))


ITEM = st.fixed_dictionaries(
    {"class": mostly("ring"), "count": mostly(1, 1.0, 2)}, optional={"color": mostly("red"), "position": mostly(["above", 0])}
)
ITEMS = st.lists(ITEM, min_size=1, max_size=2)
METADATA = st.fixed_dictionaries(
    {"include": ITEMS}, optional={"tag": mostly("counting", "colors"), "exclude": ITEMS, "text": mostly("AB", "")}
)
SPAN = st.fixed_dictionaries({"text": mostly("ring"), "start": mostly(6), "end": mostly(10, 10.0), "kind": mostly("object")})
ROW = st.fixed_dictionaries(
    {"prompt": mostly("a red ring", "two red rings above a ring", 'a ring that says "AB"', "“AB” and \u2028 „ring“")},
    optional={
        "id": mostly("a", "b", "c"),
        "tag": mostly("counting"),
        "core": st.lists(SPAN, max_size=1),
        "metadata": METADATA,
        "file": mostly("0.png", "1.png"),
    },
)
ENCODINGS = st.sampled_from(["utf-8"] * 4 + ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1"])
LINE_ENDS = st.sampled_from(["\n", "\n", "\r\n", "\r", "\n\n", "\u2028"])


@st.composite
def prompt_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """A name and content: rows that nearly fit as lines or an array, plain lines, or anything."""
    form = draw(st.sampled_from(["rows"] * 5 + ["array", "lines", "anything"]))
    if form == "anything":
        return draw(st.sampled_from(["p.txt", "p.jsonl"])), draw(st.binary(max_size=60))
    if form == "lines":
        name, lines = "p.txt", draw(st.lists(st.text(max_size=20), max_size=3))
    else:
        name = "p.jsonl"
        ascii_only = draw(st.booleans())
        rows = draw(st.lists(ROW, min_size=1, max_size=3))
        lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    text = (
        f"[{','.join(lines)}]"
        if form == "array"
        else draw(LINE_ENDS).join(lines) + draw(st.sampled_from(["", "\n", "\r\n\r\n"]))
    )
    return name, text.encode(draw(ENCODINGS), errors="replace")


def run(*arguments: object) -> int:
    """The command's exit code; a refusal is one line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main([str(argument) for argument in arguments])
    assert code in (0, 2)
    if code == 2:
        assert err.getvalue().startswith(f"star {arguments[0]}: ") and err.getvalue().count("\n") == 1
    return code


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "images").mkdir()
    for name in ("0.png", "1.png"):
        Image.fromarray(np.full((64, 64, 3), 230, np.uint8)).save(folder / "images" / name)
    return folder


@pytest.mark.parametrize("task", ["geneval", "ocr", "pickscore"])
@FUZZ
@given(file=prompt_files())
def test_prompts_of_any_file_are_written_or_refused(task: str, file: tuple[str, bytes], folder: Path) -> None:
    path, out = folder / file[0], folder / "out.jsonl"
    path.write_bytes(file[1])
    own = ["--set", f"prompts.files={{{task}: {{train: {path}}}}}"]
    if run("prompts", *own, "--task", task, "--split", "train", "--out", out) == 0:
        prompts = read(out)  # what was written is held to the schema
        assert all(prompt.text.strip() and prompt.metadata["prompt"] == prompt.text for prompt in prompts)
        assert len({prompt.id for prompt in prompts}) == len(prompts)


@FUZZ
@given(file=prompt_files())
def test_pictures_of_any_prompts_are_scored_or_refused(file: tuple[str, bytes], folder: Path) -> None:
    path, out = folder / file[0], folder / "scores.jsonl"
    path.write_bytes(file[1])
    arguments = ("--task", "geneval", "--images", folder / "images", "--prompts", path, "--out", out)
    if run("score", *arguments) == 0:
        assert all(0 <= json.loads(line)["reward"] <= 1 for line in out.read_text().splitlines())


@FUZZ
@given(row=ROW, torn=st.integers(0, 3))
def test_records_of_any_file_are_read_or_refused(row: dict, torn: int, folder: Path) -> None:
    record = {"id": "x", "task": "t", "tag": "g", "core": [], "metadata": {}} | row
    text = json.dumps(record)
    path = folder / "records.jsonl"
    path.write_text(text[: len(text) - torn] + "\n")
    run("prompts", "--show-core", path, "--set", "policy.model=resources/miniature/base")
