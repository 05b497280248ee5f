"""The page of an experiment: whole in one file, pictures before curves before tables before maps, nothing missing unsaid."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from star import config as configuration
from star import layout
from star.errors import InputError
from star.report import page

ROOT = Path(__file__).parents[2]
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><title>{}</title></svg>'
TABLE = "# Scores <of> an experiment\n\n## Scores\n\n| method | letters |\n|:---|:---|\n| star | 0.9 [0.8, 1.0] |\n\nA note.\n"


class Reader(HTMLParser):
    """Collects headings, sources and the text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


@pytest.fixture
def config(tmp_path: Path) -> configuration.Config:
    config = configuration.load(ROOT / "config/miniature.yaml", [f"results={tmp_path}", "experiment=e"])
    for name in ("main", "categories", "cost", "guards"):
        file = tmp_path / "e/tables" / f"{name}.md"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(("letters: star <is> ahead.\n\n" if name == "main" else "") + TABLE)
    drawn = [tmp_path / "e/figures" / f"{name}.svg" for name in ("samples", "learning_curves", "scores")]
    drawn.append(layout.run(config, "letters", "star", 0).maps / "maps.svg")
    for file in drawn:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(SVG.format(file.stem))
    return config


def test_the_page_has_everything_in_itself_and_in_order(config: configuration.Config, tmp_path: Path) -> None:
    page.write(config, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    assert "letters: star <is> ahead." in reader.texts  # words are text, not markup
    assert all(re.match("data:image/svg|#", source) for source in reader.sources)
    order = ("Before and after", "Learning curves", "Tables", "letters, star", "Next")
    texts = reader.texts[reader.texts.index(order[0]) :]  # below the navigation
    assert [text for text in texts if text in order] == list(order)
    assert reader.texts.count("0.9 [0.8, 1.0]") == 4 and "A note." in reader.texts and "# Scores" not in text


@pytest.mark.parametrize("missing", ["tables/cost.md", "figures/samples.svg"])
def test_what_is_missing_is_named_with_its_rule(config: configuration.Config, tmp_path: Path, missing: str) -> None:
    (tmp_path / "e" / missing).unlink()
    with pytest.raises(InputError, match=f"{missing}: is not there; .* rule `tables`"):
        page.write(config, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
