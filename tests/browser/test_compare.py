"""The page of `star compare` in a real browser, opened from disk: keys, reload, export, looks.

Screenshots are left in results/screenshots. A machine without chromium and its driver fails, it does not skip.
"""

import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests/compare"))
from studies import data, pictures  # noqa: E402

from star.compare import page, votes  # noqa: E402

SCREENSHOTS = ROOT / "results/screenshots"
KEYS = {"left": Keys.ARROW_LEFT, "right": Keys.ARROW_RIGHT, "tie": Keys.ARROW_DOWN}


class Judge:
    """A browser with the page open."""

    def __init__(self, driver: webdriver.Chrome, page: Path, downloads: Path) -> None:
        self.driver, self.page, self.downloads = driver, page, downloads
        self.driver.get(page.as_uri())

    def part(self, name: str) -> webdriver.remote.webelement.WebElement:
        return self.driver.find_element("id", name)

    def counted(self, count: int) -> None:
        """Wait until the page says so, and the pictures can be judged."""

        def said(_: object) -> bool:
            ready = self.driver.execute_script("return ready || !document.getElementById('end').hidden")
            return ready and self.part("count").get_attribute("textContent").startswith(f"{count} of")

        WebDriverWait(self.driver, 10).until(said)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def exported(self, button: str) -> dict:
        shutil.rmtree(self.downloads, ignore_errors=True)
        self.part(button).click()
        for _ in range(100):
            files = list(self.downloads.glob("votes-*.json"))
            if files:
                return json.loads(files[0].read_text(encoding="utf-8"))
            time.sleep(0.1)
        raise AssertionError("nothing was saved")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pictures")
    return pictures(folder / "trained", seed=1, images=1, size=64), pictures(folder / "base", seed=2, images=1, size=64)


@pytest.fixture(params=["inside", "beside"])
def judge(
    request: pytest.FixtureRequest, folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Judge]:
    if request.param == "beside":
        monkeypatch.setattr(page, "EMBEDDED_AT_MOST", 0)
    page.write(folders, tmp_path / "page", question="Which picture shows the text better?")
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    assert chromium and chromedriver, "no chromium found; install it (Debian: apt install chromium chromium-driver)"
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path}/user",
    ):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path / "downloads")})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(chromedriver))
    try:
        yield Judge(driver, tmp_path / "page/index.html", tmp_path / "downloads")
        assert driver.get_log("browser") == []
    finally:
        driver.quit()


def test_votes_by_keys_outlive_a_reload_and_are_exported_as_given(judge: Judge, tmp_path: Path) -> None:
    study = data(judge.page)
    judge.counted(0)
    for count, side in enumerate(("left", "right", "right"), start=1):
        judge.press(KEYS[side])
        judge.counted(count)
    judge.press("u")
    judge.counted(2)
    judge.press(KEYS["tie"])
    judge.counted(3)
    assert judge.part("prompt").text == study["items"][3]["prompt"]

    judge.driver.refresh()
    judge.counted(3)
    unfinished = judge.exported("export")
    assert [vote["vote"] for vote in unfinished["votes"]] == ["left", "right", "tie", None, None, None]

    judge.part("left").click()
    judge.counted(4)
    judge.part("tie").click()
    judge.counted(5)
    judge.press(KEYS["right"])
    judge.counted(6)
    assert judge.part("end").is_displayed() and not judge.part("judge").is_displayed()
    judge.press(Keys.BACKSPACE)
    judge.counted(5)
    judge.press(KEYS["left"])
    judge.counted(6)
    judge.driver.refresh()
    judge.counted(6)

    exported = judge.exported("export-end")
    assert [vote["vote"] for vote in exported["votes"]] == ["left", "right", "tie", "left", "tie", "left"]
    assert [vote["a_side"] for vote in exported["votes"]] == study["key"]["a_side"]
    for key in ("prompt_id", "picture", "tag", "prompt"):
        assert [vote[key] for vote in exported["votes"]] == [item[key] for item in study["items"]]
    assert {exported[key] == study[key] for key in ("comparison", "seed", "question", "format")} == {True}
    assert exported["judge"] == unfinished["judge"] and (exported["a"], exported["b"]) == (study["key"]["a"], study["key"]["b"])
    assert all(0 <= vote["milliseconds"] < 60_000 for vote in exported["votes"])
    saved = tmp_path / "votes.json"
    saved.write_text(json.dumps(exported), encoding="utf-8")
    (ballot,) = votes.read([saved])
    wins = sum(v == s for v, s in zip(("left", "right", "tie", "left", "tie", "left"), study["key"]["a_side"], strict=True))
    assert votes.win_rate(votes.frame([ballot]))["a"] == wins


def test_nothing_that_is_shown_tells_the_sides_apart_or_comes_from_elsewhere(judge: Judge) -> None:
    judge.counted(0)
    for count in range(1, 7):
        shown = judge.driver.execute_script("return [document.body.innerText, document.querySelector('main').outerHTML].join()")
        assert "trained" not in shown and "base/" not in shown
        sizes = [judge.part(f"{side}-picture").size for side in ("left", "right")]
        assert sizes[0] == sizes[1] and sizes[0]["width"] > 200
        judge.press(KEYS["left"])
        judge.counted(count)
    script = "return performance.getEntriesByType('resource').map(entry => entry.name)"
    assert all(name.startswith(("file:", "data:")) for name in judge.driver.execute_script(script))


def test_held_and_combined_keys_do_not_vote(judge: Judge) -> None:
    judge.counted(0)
    script = "document.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowLeft', bubbles: true, %s: true}))"
    for key in ("repeat", "ctrlKey", "metaKey", "altKey"):
        judge.driver.execute_script(script % key)
    judge.counted(0)


@pytest.mark.parametrize("judge", ["inside"], indirect=True)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1400, 900), (390, 844)])
def test_it_fits_and_is_legible(judge: Judge, scheme: str, width: int, height: int) -> None:
    driver = judge.driver
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    for name, choices in (("judging", 0), ("end", 6)):
        for count in range(1, choices + 1):
            judge.press(KEYS["left"])
            judge.counted(count)
        judge.counted(choices)
        driver.save_screenshot(SCREENSHOTS / f"compare-{name}-{scheme}-{width}.png")
        page_width, page_height = driver.execute_script(
            "const page = document.documentElement; return [page.scrollWidth, page.scrollHeight]"
        )
        assert page_width <= width and page_height <= height
    for button in driver.find_elements("tag name", "button"):
        assert button.accessible_name or not button.is_displayed()
    assert judge.part("bar").accessible_name == "Pairs judged"
    ink, ground = driver.execute_script("const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]")
    assert _contrast(ink, ground) > 7


def _contrast(one: str, other: str) -> float:
    """WCAG 2 contrast of two `rgb(r, g, b)`."""

    def luminance(color: str) -> float:
        parts = [int(part) / 255 for part in color.removeprefix("rgb(").removesuffix(")").split(",")]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)
