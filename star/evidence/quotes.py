"""Numbers that a page quotes, checked against the tables that `star evidence` or `star tables` wrote.

A page is Markdown, written by a person. It names the folder of the tables once, relative to itself, and every number its cell:

    <!-- tables: evidence -->
    On preference it is +0.24 [-0.36, +1.19]<!-- comparisons: preference star flow_grpo -->, and the curve is
    +0.34 [+0.03, +0.69]<!-- comparisons: preference star flow_grpo / area --> higher (p < 0.05<!-- ... / p_holm -->).

A comment stands directly behind its number and says TABLE: ROW / COLUMN. TABLE is <folder>/tables/TABLE.csv. ROW is words that
the row has in its columns of text, from left to right, or column=value; it must fit one row. COLUMN is `mean` where nothing is
said; an interval has the column's limits. A number agrees when it is the cell's value, rounded to its own digits; `%` is a
hundredth, and `<` and `>` are bounds.

Every number with a decimal point or a `%` must have its comment; `<!-- source: WHERE -->` says of a number that it comes from
elsewhere. A row of a Markdown table must be a line of <folder>/tables.md, or the table stands below a line of its own with such
a source. What stands in code is not looked at. Pictures must exist.
"""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from star.errors import InputError

_NUMBER = r"[+\-−]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?<=\d)(?:e[+\-]?\d+)?"
_QUOTE = re.compile(
    rf"(?P<bound>[<>]\s*)?(?<![\w.,])(?P<mean>{_NUMBER})(?P<percent>\s?%)?"
    rf"(?:\s*\[(?P<low>{_NUMBER}),\s*(?P<high>{_NUMBER})\])?\s*<!--(?P<cell>.*?)-->",
    re.DOTALL,
)
_COMMENT = re.compile(r"<!--(.*?)-->", re.DOTALL)
_TABLES = re.compile(r"<!--\s*tables:\s*(\S+)\s*-->")
_CODE = re.compile(r"^```.*?^```[^\n]*$|`[^`\n]+`", re.DOTALL | re.MULTILINE)
_TABLE = re.compile(r"(?P<source><!--\s*source:[^\n]*-->\s*\n+)?(?P<rows>(?:^[ \t]*\|[^\n]*(?:\n|\Z))+)", re.MULTILINE)
_PICTURE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")
_TARGET = re.compile(r"\]\([^)]*\)|https?://\S+")
_UNMARKED = re.compile(r"(?<![\w.,])[+\-−]?(?:(?:\d[\d,]*)?\.\d+(?!\.?\d)|\d[\d,.]*(?=\s?%(?! interval)))")
_SLACK = 1.001  # of half a unit of the last digit: a tie may be rounded either way


class _Cell(NamedTuple):
    """What a comment names: the value and its limits, which are None where the table has none."""

    column: str
    value: float
    limits: tuple[float, float] | None


class _Wrong(Exception):
    """Why a quote does not agree, in words."""


def check(page: Path) -> int:
    """Compare every quoted number of a page with the tables; returns how many there are.

    Prints a line for each that differs, and then raises InputError. Raises InputError at once when the page, or its line that
    names the folder of the tables, is missing.
    """
    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{page}: not a readable text file ({error})") from None
    text = _CODE.sub(_blank, text)
    named = _TABLES.search(text)
    if named is None:
        raise InputError(f"{page}: names no tables; write <!-- tables: FOLDER --> with the folder of `star evidence --out`")
    folder = page.parent / named[1]
    if not (folder / "tables").is_dir():
        raise InputError(f"{folder / 'tables'}: no such folder; make it with `star evidence --data DATA --out {folder}`")
    quotes = [match for match in _QUOTE.finditer(text) if not match["cell"].strip().startswith("tables:")]
    problems = sorted({*_wrong_quotes(folder, quotes), *_wrong_rest(page, folder, text)})
    for position, problem in problems:
        print(f"{page}:{text.count(chr(10), 0, position) + 1}: {problem}", file=sys.stderr)
    if problems:
        raise InputError(f"{page}: {len(problems)} of its numbers, tables and pictures are not as the tables say, see above")
    return len(quotes)


def quotes_tables(page: Path) -> bool:
    """Whether a page names tables, so that `check` is for it."""
    return bool(_TABLES.search(_CODE.sub(_blank, page.read_text(encoding="utf-8"))))


def _blank(match: re.Match) -> str:
    """Spaces in place of what is not to be looked at, so that positions stay."""
    return re.sub(r"[^\n]", " ", match[0])


# Numbers with a comment.


def _wrong_quotes(folder: Path, quotes: list[re.Match]) -> Iterator[tuple[int, str]]:
    for quote in quotes:
        try:
            _compare(folder, quote)
        except _Wrong as error:
            quoted = " ".join(quote[0].partition("<!--")[0].split())
            yield quote.start(), f"`{quoted}`: {error}"


def _compare(folder: Path, quote: re.Match) -> None:
    """Raise _Wrong unless a quote agrees with its cell."""
    name, colon, place = quote["cell"].partition(":")
    name, place = name.strip(), place.strip()
    if not colon or not place:
        raise _Wrong("its comment is not TABLE: ROW / COLUMN")
    if name == "source":
        return
    cell = _cell(folder / "tables" / f"{name}.csv", place)
    scale = 100 if quote["percent"] and not cell.column.endswith("percent") else 1
    if quote["bound"]:
        bound = _value(quote["mean"])
        holds = cell.value * scale < bound if quote["bound"].strip() == "<" else cell.value * scale > bound
        if not holds:
            raise _Wrong(f"`{cell.column}` is {cell.value * scale:.6g} there")
        return
    quoted = {"mean": cell.value}
    if quote["low"]:
        if cell.limits is None:
            raise _Wrong(f"`{cell.column}` has no interval in {name}")
        quoted |= dict(zip(("low", "high"), cell.limits, strict=True))
    if not all(_agrees(quote[part], value * scale) for part, value in quoted.items()):
        there = [f"{value * scale:.6g}" for value in quoted.values()]
        limits = f" [{there[1]}, {there[2]}]" if len(there) > 1 else ""
        raise _Wrong(f"`{cell.column}` is {there[0]}{limits} there")


def _value(number: str) -> float:
    return float(number.replace(",", "").replace("−", "-"))


def _agrees(number: str, value: float) -> bool:
    """Whether a quoted number is a value, rounded to the number's own digits."""
    mantissa, _, exponent = number.lower().partition("e")
    places = len(mantissa.partition(".")[2]) - int(exponent or 0)
    return abs(_value(number) - value) <= 0.5 * 10.0**-places * _SLACK


def _cell(path: Path, place: str) -> _Cell:
    """The cell of a table that a comment names. Raises _Wrong."""
    if not path.is_file():
        raise _Wrong(f"there is no table {path}")
    table = pd.read_csv(path, keep_default_na=False, na_values=[""])
    words, _, column = place.partition(" / ")
    column = column.strip() or "mean"
    if column not in table:
        raise _Wrong(f"{path.name} has no column `{column}`; name one of {', '.join(table)} behind a slash")
    row = _row(path, table, shlex.split(words))
    try:
        limits = next((tuple(float(row[name]) for name in pair) for pair in _limits(column) if set(pair) <= set(table)), None)
        return _Cell(column, float(row[column]), limits)
    except ValueError:
        raise _Wrong(f"`{column}` of {path.name} is {row[column]!r} there, no number") from None


def _limits(column: str) -> list[tuple[str, str]]:
    """The names that the limits of a column may have."""
    stems = [f"{column}_"] + [f"{column.removesuffix('mean')}", "ci_"] * column.endswith("mean")
    return [(f"{stem}low", f"{stem}high") for stem in stems]


def _row(path: Path, table: pd.DataFrame, words: list[str]) -> pd.Series:
    """The one row that has the words. Raises _Wrong when there are none or several."""
    equal = dict(word.split("=", 1) for word in words if "=" in word)
    for column in equal:
        if column not in table:
            raise _Wrong(f"{path.name} has no column `{column}`; it has {', '.join(table)}")
    names = [word for word in words if "=" not in word]
    texts = table.select_dtypes(exclude=["number", "bool"]).astype(str)
    fits = [
        _in_order(names, row) and all(str(cells[column]) == value for column, value in equal.items())
        for row, cells in zip(texts.itertuples(index=False, name=None), table.to_dict("records"), strict=True)
    ]
    rows = table[fits]
    if len(rows) != 1:
        differing = [column for column in texts if rows[column].nunique() > 1]
        say_which = f"; add {' or '.join(f'{column}=...' for column in differing)}" if differing else ""
        raise _Wrong(f"{path.name} has {len(rows) or 'no'} row{'s' * (len(rows) != 1)} with {' '.join(words)}{say_which}")
    return rows.iloc[0]


def _in_order(names: list[str], row: tuple[str, ...]) -> bool:
    """Whether all names are in a row, in their order."""
    rest = iter(row)
    return all(name in rest for name in names)


# What has no comment.


def _wrong_rest(page: Path, folder: Path, text: str) -> Iterator[tuple[int, str]]:
    """Pictures, comments, tables and numbers outside of quotes."""
    for picture in _PICTURE.finditer(text):
        if "://" not in picture[1] and not (page.parent / picture[1]).is_file():
            yield picture.start(), f"there is no picture {page.parent / picture[1]}"
    text = _QUOTE.sub(_blank, text)
    lines = _lines(folder / "tables.md")
    for table in _TABLE.finditer(text):
        if not table["source"]:
            yield from _wrong_table(folder, lines, table)
    text = _TABLE.sub(_blank, text)
    for comment in _COMMENT.finditer(text):
        name = comment[1].partition(":")[0].strip()
        if name == "source" or (folder / "tables" / f"{name}.csv").is_file():
            yield comment.start(), f"`{comment[1].strip()}` stands behind no number"
    text = _TARGET.sub(_blank, _COMMENT.sub(_blank, text))
    for number in _UNMARKED.finditer(text):
        yield number.start(), f"`{number[0]}` has no comment that says where it comes from: <!-- TABLE: ROW / COLUMN -->"


def _lines(path: Path) -> set[str]:
    return set(map(str.strip, path.read_text(encoding="utf-8").splitlines())) if path.is_file() else set()


def _wrong_table(folder: Path, lines: set[str], table: re.Match) -> Iterator[tuple[int, str]]:
    for row in re.finditer(r"[^\n]+", table["rows"]):
        if row[0].strip() not in lines:
            yield table.start("rows") + row.start(), f"`{row[0].strip()}` is no line of {folder / 'tables.md'}"
