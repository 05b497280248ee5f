"""The page of an experiment in a real browser, at two widths, light and dark. Screenshots are left in results/screenshots."""

import sys
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests/report"))
from test_report_page import config  # noqa: E402, F401

from star.config import Config  # noqa: E402
from star.report import page  # noqa: E402


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [500, 1280])
def test_the_page_fits_and_can_be_read(config: Config, tmp_path: Path, width: int, scheme: str) -> None:  # noqa: F811
    page.write(config, tmp_path / "report.html")
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for argument in ("--headless=new", "--no-sandbox", f"--window-size={width},2400"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    try:
        scheme_set = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme_set)
        driver.get((tmp_path / "report.html").as_uri())
        screenshots = ROOT / "results/screenshots"
        screenshots.mkdir(parents=True, exist_ok=True)
        driver.save_screenshot(str(screenshots / f"report-{width}-{scheme}.png"))
        assert driver.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
        widths = driver.execute_script("return [...document.images].map(image => image.naturalWidth)")
        assert len(widths) == 4 and all(widths)
        ink, ground = driver.execute_script("const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]")
        assert (_light(ink) > _light(ground)) == (scheme == "dark") and abs(_light(ink) - _light(ground)) > 150
    finally:
        driver.quit()


def _light(color: str) -> float:
    numbers = [float(part) for part in color.partition("(")[2].rstrip(")").split(",")[:3]]
    return sum(numbers) / 3
