"""Configurations with anything anywhere: read, or refused in one line; never a traceback."""

import copy
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
    for overrides in ([f"{'.'.join(map(str, place))}={text}" for place, text in sets], mapping):
        try:
            load(tmp_path / "c.yaml", overrides)
        except InputError as refused:
            assert "\n" not in str(refused)


@given(st.binary(max_size=60))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.yaml").write_bytes(content)
    with pytest.raises(InputError, match=r"^[^\n]*c\.yaml"):
        load(tmp_path / "c.yaml")
