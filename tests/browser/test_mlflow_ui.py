"""The MLflow pages of a simulated experiment in a real browser (chromium, headless): what a person reads there.

Screenshots are left in results/screenshots. A machine without chromium fails, it does not skip.
"""

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import urlopen

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests"))
import synthetic  # noqa: E402

from star import layout  # noqa: E402
from star.analysis.results import methods  # noqa: E402
from star.config import load  # noqa: E402
from star.files import write_json  # noqa: E402
from star.tracking import store  # noqa: E402
from star.tracking.mirror import mirror  # noqa: E402

METHODS = "{flow_grpo: {allocation: {source: none}}, star: {allocation: {source: attention}}}"
TASKS = "{letters: {prompts: letters, reward: {ocr: 1.0}}}"
SCREENSHOTS = ROOT / "results/screenshots"


class Pages:
    """A running `star ui`, and chromium to look at it."""

    def __init__(self, url: str, experiment: str, runs: dict[str, str], profile: Path) -> None:
        self.url, self.experiment, self.runs, self.profile = url, experiment, runs, profile

    def read(self, page: str, name: str, height: int = 1300) -> str:
        """The text of a page after its scripts have run; a screenshot of it is left."""
        found = re.sub(r"</?code[^>]*>", "", self.source(page, name, height))
        return re.sub(r"\s+", " ", re.sub(r"<(script|style).*?</\1>|<[^>]+>", " ", found, flags=re.DOTALL))

    def source(self, page: str, name: str, height: int = 1300) -> str:
        """The same with its tags."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        chromium = shutil.which("chromium")
        assert chromium, "no chromium found; install it (Debian: apt install chromium)"
        common = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={self.profile}"]
        common += [f"--window-size=1700,{height}", "--virtual-time-budget=30000", "--hide-scrollbars"]
        address = f"{self.url}/#/{page}{'&' if '?' in page else '?'}workflowType=machine_learning"
        shot = [*common, f"--screenshot={SCREENSHOTS / name}.png", address]
        subprocess.run(shot, check=True, capture_output=True, timeout=120)
        return subprocess.run([*common, "--dump-dom", address], check=True, capture_output=True, text=True, timeout=120).stdout


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _draw_pictures(run: layout.Run) -> None:
    for epoch in (0, 10):
        run.pictures.mkdir(exist_ok=True)
        Image.new("RGB", (256, 64), (40, 20 * epoch, 200)).save(run.picture(epoch))
        measured = {"reward": 0.1 * epoch, "edge_density": 0.1, "color_entropy": 2.0, "diversity": 0.2}
        write_json(run.picture(epoch).with_suffix(".json"), {"epoch": epoch, "pictures": 16, **measured})


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    folder = tmp_path_factory.mktemp("ui")
    config = load(
        ROOT / "config/experiments/evidence-miniature.yaml",
        [f"results={folder}", "seeds=[0, 1]", f"tasks={TASKS}", f"methods={METHODS}"],
    )
    synthetic.fill(config, {"star": 0.3}, images=1)
    runs = {}
    for method in methods(config, "letters"):
        for seed in config.seeds:
            run = layout.run(config, "letters", method, seed)
            run.adapter(layout.epochs(config, "letters", method)[-1]).mkdir(parents=True)
            if method != "base":
                _draw_pictures(run)
            runs[f"{method}-seed{seed}"] = mirror(config, "letters", method, seed, run.folder)
    port = _free_port()
    serve = [
        sys.executable,
        "-m",
        "star.cli",
        "ui",
        "--config",
        "config/experiments/evidence-miniature.yaml",
        "--port",
        str(port),
    ]
    serve += ["--set", f"results={folder}"]
    with (folder / "ui.log").open("w") as log:
        server = subprocess.Popen(serve, stdout=log, stderr=log, cwd=ROOT)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urlopen(url, timeout=5).close()
                break
            except (URLError, OSError):
                assert server.poll() is None, (folder / "ui.log").read_text()
                time.sleep(1)
        with store.client(config) as client:
            experiment = client.get_experiment_by_name("evidence-miniature-letters").experiment_id
        yield Pages(url, experiment, runs, folder / "chromium")
    finally:
        server.terminate()
        server.wait(timeout=30)


def test_the_experiment_page_lists_the_runs_and_says_what_they_are(pages: Pages):
    text = pages.read(f"experiments/{pages.experiment}/runs", "experiment")
    for run in pages.runs:
        assert run in text
    assert "evidence-miniature-letters" in text


def test_the_side_bar_is_that_of_trainings(pages: Pages):
    text = pages.read(f"experiments/{pages.experiment}/runs", "kind")
    assert "Runs" in text
    for other in ("Judges", "Prompts & versions", "Playground", "Evaluation"):
        assert other not in text, other


def test_the_charts_are_named_by_what_they_show_and_the_test_score_is_the_first(pages: Pages):
    text = pages.read(f"experiments/{pages.experiment}/runs?compareRunsMode=CHART", "charts")
    sections = [text.index(f" {name} (") for name in ("test", "tracked", "training", "watch")]
    assert sections == sorted(sections)
    for metric in ("letters", "diversity", "reward_mean", "kl"):
        assert metric in text


def test_the_newest_pictures_of_a_run_are_on_its_first_page_and_all_in_its_charts(pages: Pages):
    run = f"experiments/{pages.experiment}/runs/{pages.runs['star-seed0']}"
    found = pages.source(run, "pictures")
    assert re.search(rf"<img[^>]+get-artifact\?path=pictures\.png&amp;run_uuid={pages.runs['star-seed0']}", found)
    with urlopen(f"{pages.url}/get-artifact?path=pictures.png&run_uuid={pages.runs['star-seed0']}") as answer:
        assert Image.open(answer).getpixel((0, 0)) == (40, 200, 200)  # of epoch 10
    assert "tracked/pictures" in pages.read(f"{run}/model-metrics", "picture-chart", height=2000)


def test_the_compare_page_sets_methods_side_by_side(pages: Pages):
    chosen = [pages.runs["flow_grpo-seed0"], pages.runs["star-seed0"]]
    page = f"compare-runs?runs={quote(json.dumps(chosen))}&experiments={quote(json.dumps([pages.experiment]))}"
    text = pages.read(page, "compare")
    for words in ("flow_grpo-seed0", "star-seed0", "allocation.source", "attention", "test/letters", "configuration", "method"):
        assert words in text


def test_a_run_says_what_it_is(pages: Pages):
    text = pages.read(f"experiments/{pages.experiment}/runs/{pages.runs['star-seed0']}", "run")
    assert (
        "star on letters, seed 0, of the configuration evidence-miniature" in text and "allocation.source = attention" in text
    )
    for tag in ("task", "method", "seed", "configuration"):
        assert tag in text
