"""Numbers that a page quotes are those of the tables, or the page is refused."""

from pathlib import Path

import pytest

from star import cli
from star.errors import InputError
from star.evidence.quotes import check

COMPARISONS = """\
letters,task,method,reference,mean,low,high,p_holm,area,area_low,area_high,seeds
ab,letters,star,flow_grpo,0.24361,-0.3561,1.1949,0.0004,0.335,0.0312,0.694,8
a,letters,star,random,-0.0125,,,,0.2,0.1,0.3,8
a,letters,random,star,1536.4,1,2,0.2,0.2,0.1,0.3,8
"""
LEARNING = "task,method,epoch,mean,low,high\nletters,star,0,0.5,0.4,0.6\nletters,star,32,0.75,0.7,0.8\n"
TABLES = "# Tables\n\n| task | difference |\n|:--|:--|\n| letters | +0.24 |\n"
ROW = "comparisons: letters star flow_grpo"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    (tmp_path / "evidence/tables").mkdir(parents=True)
    (tmp_path / "evidence/tables/comparisons.csv").write_text(COMPARISONS)
    (tmp_path / "evidence/tables/learning.csv").write_text(LEARNING)
    (tmp_path / "evidence/tables.md").write_text(TABLES)
    (tmp_path / "there.svg").touch()
    return tmp_path / "page.md"


def _check(page: Path, text: str) -> int:
    page.write_text(f"<!-- tables: evidence -->\n# A page\n\n{text}\n", encoding="utf-8")
    return check(page)


@pytest.mark.parametrize(
    "text",
    [
        f"It gains +0.24 [-0.36, +1.19]<!-- {ROW} -->.",
        f"It gains 0.2436 [−0.356, 1.195] <!-- {ROW} / mean -->.",
        "Over\nlines .2\n[-.4, 1.2]\n<!-- comparisons: letters\nstar flow_grpo -->",
        f"Higher by +0.335 [+0.03, +0.69]<!-- {ROW} / area -->",
        f"A tie is either: 0.33<!-- {ROW} / area --> and 0.34<!-- {ROW} / area -->",
        f"As a share 24 %<!-- {ROW} --> or 24.4%<!-- {ROW} -->",
        f"p < 0.001<!-- {ROW} / p_holm -->, p > 0.0001<!-- {ROW} / p_holm -->, 4e-4<!-- {ROW} / p_holm -->",
        f"With 8<!-- {ROW} / seeds --> seeds it is 1,536<!-- comparisons: random reference=star --> higher.",
        "A loss of -0.01<!-- comparisons: star random -->.",
        "After training .75 [.70, .80]<!-- learning: star epoch=32 -->.",
    ],
)
def test_numbers_that_agree(page: Path, text: str):
    assert _check(page, text) == text.count("<!--")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"+0.25 [-0.36, +1.19]<!-- {ROW} -->", "`+0.25 [-0.36, +1.19]`: `mean` is 0.24361 [-0.3561, 1.1949] there"),
        (f"+0.24 [-0.36, +1.20]<!-- {ROW} -->", "is 0.24361"),
        (f"-0.24<!-- {ROW} -->", "is 0.24361"),
        (f"2.4 %<!-- {ROW} -->", "is 24.361 there"),
        (f"p < 0.0001<!-- {ROW} / p_holm -->", "`p_holm` is 0.0004"),
        ("-0.01 [-0.02, 0.00]<!-- comparisons: star random -->", "[nan, nan] there"),
        ("8 [7, 9]<!-- comparisons: star flow_grpo / seeds -->", "`seeds` has no interval"),
        ("0.24<!-- comparisons: flow_grpo star -->", "no rows with flow_grpo star"),
        ("0.24<!-- comparisons: star -->", "3 rows with star; add letters=... or method=... or reference=..."),
        ("0.24<!-- comparisons: star size=3 -->", "no column `size`"),
        (f"0.24<!-- {ROW} / median -->", "no column `median`; name one of letters, task"),
        (f"0.24<!-- {ROW} / task -->", "'letters' there, no number"),
        ("0.24<!-- differences: star -->", "there is no table"),
        ("0.24<!-- checked by hand -->", "not TABLE: ROW / COLUMN"),
        ("0.24<!-- source: -->", "not TABLE: ROW / COLUMN"),
        ("It gains 0.24 over all.", "`0.24` has no comment"),
        ("It gains some 24 % over all.", "`24` has no comment"),
        (f"0.24<!-- {ROW} --> and .25 more", "`.25` has no comment"),
        (f"a gain<!-- {ROW} -->", "stands behind no number"),
        ("| task | difference |\n|:--|:--|\n| letters | +0.25 |", "`| letters | +0.25 |` is no line of"),
        ("![A figure](evidence/none.svg)", "there is no picture"),
    ],
)
def test_what_is_refused(page: Path, text: str, words: str, capsys: pytest.CaptureFixture):
    with pytest.raises(InputError, match="1 of its numbers"):
        _check(page, text)
    problem = capsys.readouterr().err
    assert problem.startswith(f"{page}:{4 + text.count(chr(10))}: ") and words in problem and problem.count("\n") == 1


@pytest.mark.parametrize(
    "text",
    [
        "Eight seeds (5 to 12), 95 % intervals, SD3.5-M, [1](https://arxiv.org/abs/2310.11513), since 2026-11-28.",
        "As published, .95<!-- source: arXiv 2310.11513 --> is reached.",
        "`0.25` is code, and so is\n\n```\n0.5 <!-- comparisons: star -->\n```",
        TABLES,
        "<!-- source: config/miniature.yaml -->\n| rate |\n|--|\n| 2.5e-3 |",
        "![A figure](there.svg) ![Another](https://example.org/0.5.svg)",
    ],
)
def test_what_needs_no_cell(page: Path, text: str):
    assert _check(page, text) == text.partition("```")[0].count("-> is reached")


def test_lines_are_those_of_the_page(page: Path, capsys: pytest.CaptureFixture):
    with pytest.raises(InputError, match="2 of its numbers"):
        _check(page, f"```\n0.1\n```\n0.25<!-- {ROW} -->\n\n0.5 here")
    assert [line.split(": ")[0] for line in capsys.readouterr().err.splitlines()] == [f"{page}:7", f"{page}:9"]


def test_the_command(page: Path, capsys: pytest.CaptureFixture):
    _check(page, f"0.24<!-- {ROW} -->")
    assert cli.main(["evidence", "--check", str(page)]) == 0
    assert capsys.readouterr().out == f"{page}: 1 quoted numbers are those of the tables\n"
    page.write_text("no tables named")
    assert cli.main(["evidence", "--check", str(page)]) == 2
    assert "names no tables; write <!-- tables: FOLDER -->" in capsys.readouterr().err
    page.write_text("<!-- tables: elsewhere -->")
    assert cli.main(["evidence", "--check", str(page)]) == 2
    assert "elsewhere/tables: no such folder" in capsys.readouterr().err
    assert cli.main(["evidence"]) == 2
    assert cli.main(["evidence", "--out", str(page)]) == 2
