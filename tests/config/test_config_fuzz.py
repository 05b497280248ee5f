"""Configurations with anything anywhere: read, or refused in one line; never a traceback."""

import contextlib
import copy
import io
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from star import cli
from star.config import load
from star.errors import InputError

ROOT = Path(__file__).parents[2]
DOCUMENT = yaml.safe_load((ROOT / "config/miniature.yaml").read_text(encoding="utf-8"))
VALUES = [None, True, -1, 0, 3, 10**30, float("inf"), float("nan"), "", " ", "a b", "~x", "$X", "random", "é", {}, {1: 2}]
VALUES += [
    {"a": 1},
    {"name": "x"},
    {"train": "x"},
    {"overrides": 3},
    {"reward": {}},
    [],
    [None],
    ["a", "a"],
    {"rollout": {"x": 1}},
]
TEXTS = ["3", "[", "null", "{a: 1}", "a b", "{}", ".nan", "x: y: z", "*a", "&a [*a]", "!!python/name:os.system", "2026-02-30"]


def _places(document: dict, above: tuple = ()) -> list[tuple]:
    inner = [(*above, key) for key in document]
    return inner + [p for key, value in document.items() if isinstance(value, dict) for p in _places(value, (*above, key))]


PLACES = [
    *_places(DOCUMENT),
    ("extends",),
    (3,),
    ("tasks", "x"),
    ("methods", "a b"),
    ("objective", "name"),
    ("compute", "shard"),
]


def _put(document: dict, place: tuple, value: object) -> None:
    for key in place[:-1]:
        document = document.setdefault(key, {})
        if not isinstance(document, dict):
            return
    document[place[-1]] = value


def _printed_or_refused(file: Path, overrides: list[str]) -> None:
    """`star config` prints what it read, or says why not in one line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(["config", "--config", str(file), *(word for each in overrides for word in ("--set", each))])
    assert code in (0, 2)
    if code == 2:
        assert err.getvalue().startswith("star config: ") and err.getvalue().count("\n") == 1
    else:
        assert isinstance(yaml.safe_load(out.getvalue()), dict)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.sampled_from(PLACES), st.sampled_from(VALUES)), max_size=2),
    st.lists(st.tuples(st.sampled_from(PLACES), st.sampled_from(TEXTS)), max_size=1),
    st.dictionaries(st.sampled_from([place[0] for place in PLACES]), st.sampled_from(VALUES), max_size=1),
)
def test_any_configuration_is_read_or_refused(tmp_path: Path, changes: list, sets: list, mapping: dict) -> None:
    document = copy.deepcopy(DOCUMENT)
    for place, value in changes:
        _put(document, place, value)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(document))
    _printed_or_refused(tmp_path / "c.yaml", [f"{'.'.join(map(str, place))}={text}" for place, text in sets])
    try:
        load(tmp_path / "c.yaml", mapping)  # as snakemake hands its --config on
    except InputError as refused:
        assert "\n" not in str(refused)


LINES = (ROOT / "config/miniature.yaml").read_text(encoding="utf-8").splitlines()
SLIPS = [
    "results: a b",
    "seeds: [0, 0]",
    "seeds: [-1]",
    "\ttasks:",
    "results: ~/x",
    "results: $X",
    "tasks:",
    "é: ü",
    "- a",
    "---",
]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    place=st.integers(0, len(LINES)),
    added=st.one_of(st.sampled_from([*SLIPS, *LINES]), st.text(max_size=12)),
    taken=st.integers(0, 2),
    encoding=st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "latin-1", "utf-16"]),
    ending=st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_any_slip_of_an_editor_is_read_or_refused(
    tmp_path: Path, place: int, added: str, taken: int, encoding: str, ending: str
) -> None:
    lines = [*LINES[:place], added, *LINES[place + taken :]]
    (tmp_path / "c.yaml").write_bytes(ending.join(lines).encode(encoding, errors="replace"))
    _printed_or_refused(tmp_path / "c.yaml", [])


@given(st.binary(max_size=60))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(InputError, match=r"^[^\n]*c\.yaml"):
        load(tmp_path / "c.yaml")
    _printed_or_refused(tmp_path / "c.yaml", [])
