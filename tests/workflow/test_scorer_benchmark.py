"""The scorers' benchmark: its two tables on a little work, and that a score which is waited for counts as such."""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from benchmarks import scorers as benchmark


def test_prints_a_row_for_each_of_the_miniatures_scorers(capsys: pytest.CaptureFixture) -> None:
    benchmark.main(["--images", "4", "--true-size", "0", "--epochs", "0"])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if "pictures" in line]
    assert [re.split(r"[ ,]", row[0])[0] for row in rows] == ["GenEval", "OCR", "OCR", "PickScore"]
    assert all(float(row[2]) > 0 for row in rows)


def test_without_overlap_the_wait_is_the_whole_scoring() -> None:
    with ThreadPoolExecutor(1) as executor:
        waiting = benchmark.Waiting(SimpleNamespace(submit=lambda images, records: executor.submit(time.sleep, 0.05)))
        assert all(waiting.submit([], []).done() for _ in range(2))
    assert waiting.seconds >= 0.1
