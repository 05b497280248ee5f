"""The pages of this repository that quote tables quote them right."""

from pathlib import Path

from star.evidence import quotes

ROOT = Path(__file__).parents[2]


def test_pages_quote_what_the_tables_say():
    pages = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
    assert len(pages) > 5
    for page in pages:
        if quotes.quotes_tables(page):
            assert quotes.check(page) > 0
