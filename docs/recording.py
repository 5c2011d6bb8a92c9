"""Uses the page of a running server for ten seconds in a real Chromium, and writes docs/page.gif and docs/page.png.

    python docs/recording.py http://127.0.0.1:8000

It needs Chromium and its driver (apt-get install chromium chromium-driver), and a model that has heat maps.
"""

import argparse
import shutil
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

FOLDER = Path(__file__).parent
PHOTO = FOLDER.parent / "export" / "photos" / "cat.jpg"
SIZE = 1040, 680
COLOURS = 256


def main() -> None:
    """Record it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of the server")
    url = parser.parse_args().url
    driver = _chromium()
    try:
        driver.get(url)
        _record(driver)
        _resize(driver, 1280, 800)
        driver.find_element(By.LINK_TEXT, "Try it").click()
        _wait(driver, "#heatmap")
        (FOLDER / "page.png").write_bytes(driver.get_screenshot_as_png())
    finally:
        driver.quit()


def _chromium() -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("headless=new", "no-sandbox", "hide-scrollbars"):
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    _resize(driver, *SIZE)
    return driver


def _resize(driver: webdriver.Chrome, width: int, height: int) -> None:
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)


def _wait(driver: webdriver.Chrome, selector: str) -> None:
    WebDriverWait(driver, 10).until(lambda _: driver.find_element(By.CSS_SELECTOR, selector).is_displayed())


def _record(driver: webdriver.Chrome) -> None:
    def drag(kind: str) -> None:
        data = {"items": [], "files": [str(PHOTO)], "dragOperationsMask": 1}
        driver.execute_cdp_cmd("Input.dispatchDragEvent", {"type": kind, "x": 520, "y": 300, "data": data})

    def click(selector: str) -> Callable[[], None]:
        return lambda: driver.find_element(By.CSS_SELECTOR, selector).click()

    steps: list[tuple[Callable[[], object], float]] = [
        (lambda: _wait(driver, "#samples"), 0.8),
        (lambda: drag("dragEnter"), 0.4),
        (lambda: drag("dragOver"), 0.4),
        (lambda: drag("drop"), 2.2),
        (click("label[for=heat]"), 2.0),
        (click("nav a[href='#models']"), 1.3),
        (click("nav a[href='#metrics']"), 1.4),
    ]
    frames: list[tuple[Image.Image, float]] = []  # and when each was taken
    for act, for_s in steps:
        act()
        until_s = time.monotonic() + for_s
        while time.monotonic() < until_s:
            taken_s = time.monotonic()
            frames.append((Image.open(BytesIO(driver.get_screenshot_as_png())).convert("RGB"), taken_s))
    ends_s = [taken_s for _, taken_s in frames[1:]] + [time.monotonic()]
    pictures = [frame.quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE) for frame, _ in frames]
    durations_ms = [round(1000 * (end_s - taken_s)) for (_, taken_s), end_s in zip(frames, ends_s, strict=True)]
    path = FOLDER / "page.gif"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations_ms, loop=0, optimize=True)
    print(f"{path}: {len(frames)} frames, {sum(durations_ms) / 1e3:.1f} s, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
