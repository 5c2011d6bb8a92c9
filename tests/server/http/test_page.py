"""The pages, in a real Chromium against a real server."""

import json
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select

from models.manifest import FILE_NAME, Preprocessing
from server.http.page import HEADERS, PAGES
from tests import tiny
from tests.server.running import GatedServer, RunningServer, red_image, until

PHONES = [(320, 568), (390, 844)]
LOCAL = "127.0.0.1"


class Browser:
    """A Chromium that shows one page, driven as a person would."""

    def __init__(self, profile: Path) -> None:
        binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
        if not binary or not driver:
            pytest.skip("no chromium and chromedriver here: apt-get install chromium chromium-driver")
        options = webdriver.ChromeOptions()
        options.binary_location = binary
        quiet = ["background-networking", "component-update", "sync", "quic", "gpu"]
        for flag in ["headless=new", "no-sandbox", "no-first-run", *(f"disable-{name}" for name in quiet)]:
            options.add_argument(f"--{flag}")
        options.add_argument(f"--user-data-dir={profile}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(driver))

    def cdp(self, command: str, **arguments: Any) -> Any:
        return self.driver.execute_cdp_cmd(command, arguments)

    def by_id(self, name: str) -> WebElement:
        return self.driver.find_element(By.ID, name)

    def text(self, name: str) -> str:
        return self.by_id(name).text

    def choose(self, path: Path) -> None:
        self.by_id("file").send_keys(str(path))

    def press(self, *keys: str) -> None:
        ActionChains(self.driver).send_keys(*keys).perform()

    def focused(self) -> str:
        """The id, or where it has none the text, of what has the focus."""
        element = self.driver.switch_to.active_element
        return element.get_attribute("id") or element.text

    def bars(self) -> list[tuple[str, str]]:
        """(label, percentage) of each bar, once they are those of the last answer."""
        until(lambda: self.by_id("bars").get_attribute("aria-busy") == "false")
        items = self.driver.find_elements(By.CSS_SELECTOR, "#bars li")
        found = []
        for item in items:
            label, percent = (item.find_element(By.CLASS_NAME, name).text for name in ("label", "percent"))
            meter = item.find_element(By.CSS_SELECTOR, "[role=meter]")
            assert meter.accessible_name == label
            assert meter.get_attribute("aria-valuetext") == percent
            found.append((label, percent))
        return found

    def sees(self, red: int) -> bool:
        """Whether the first bar is of that class of `tests.tiny`."""
        return any(label == f"red {red}" for label, _ in self.bars()[:1])

    def logged(self, kind: str) -> list[dict[str, Any]]:
        log: list[dict[str, Any]] = self.driver.get_log(kind)  # type: ignore[no-untyped-call]
        return log

    def requests(self) -> set[str]:
        """Every address that the page asked the network for since this was last called."""
        messages = [json.loads(entry["message"])["message"] for entry in self.logged("performance")]
        sent = [one["params"] for one in messages if one["method"] == "Network.requestWillBeSent"]
        sent = [one for one in sent if not one["documentURL"].startswith("chrome:")]
        return {url for one in sent if not (url := one["request"]["url"]).startswith(("blob:", "data:"))}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Serves `tiny` (the default), `untrained`, which looks at green instead, `vouched`, which is calibrated, and
    `where`, which has heat maps.
    """
    repository = tmp_path_factory.mktemp("repository")
    tiny.write(repository)
    narrow = Preprocessing(
        resize=32, crop=(32, 16), crop_mode="squash", interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3
    )
    untrained = tiny.write(repository, "untrained", channel=1, preprocessing=narrow, activation="sigmoid")
    random = untrained.model_copy(update={"weights": untrained.weights.model_copy(update={"random": True})})
    (repository / "untrained" / "1" / FILE_NAME).write_text(random.model_dump_json())
    tiny.calibrate(repository, tiny.write(repository, "vouched"))
    tiny.write(repository, "where", extras=True)
    with RunningServer(repository, default_model="tiny") as running:
        yield running


@pytest.fixture(scope="module")
def one_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    try:
        yield browser
    finally:
        browser.driver.quit()


@pytest.fixture
def browser(one_browser: Browser, server: RunningServer) -> Browser:
    """On the page, with the models known."""
    return opened(one_browser, server)


def opened(browser: Browser, server: RunningServer) -> Browser:
    browser.driver.get("about:blank")
    browser.requests()
    browser.logged("browser")
    browser.driver.get(f"{server.url}/")
    until(browser.by_id("model").is_enabled)
    return browser


def image(folder: Path, red: int) -> Path:
    path = folder / f"{red}.png"
    path.write_bytes(red_image(red))
    return path


def shown(answer: dict[str, Any]) -> list[tuple[str, str]]:
    return [(one["label"], f"{one['probability']:.1%}") for one in answer["predictions"]]


def test_a_chosen_image_has_the_five_bars_of_its_answer(
    browser: Browser, server: RunningServer, tmp_path: Path
) -> None:
    browser.choose(image(tmp_path, 77))
    until(lambda: browser.sees(77))
    bars = browser.bars()
    assert len(bars) == 5
    assert bars == shown(server.classify(red_image(77)).json())
    assert browser.text("summary") == ", ".join(bars[0])
    assert "tiny version 1" in browser.text("facts")
    assert browser.by_id("preview").get_attribute("naturalWidth") == "32"


def test_what_a_model_sees_is_told(browser: Browser) -> None:
    assert "32\N{MULTIPLICATION SIGN}32 pixels" in browser.text("about")
    Select(browser.by_id("model")).select_by_visible_text("untrained · version 1")
    assert "16\N{MULTIPLICATION SIGN}32 pixels, squashed · each class has a probability of its own" in browser.text(
        "about"
    )


def test_an_image_is_dropped(browser: Browser, tmp_path: Path) -> None:
    data = {"items": [], "files": [str(image(tmp_path, 12))], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        browser.cdp("Input.dispatchDragEvent", type=kind, x=200, y=200, data=data)
    until(lambda: browser.sees(12))


def test_an_image_is_pasted(browser: Browser, server: RunningServer) -> None:
    browser.cdp("Browser.grantPermissions", origin=server.url, permissions=["clipboardReadWrite"])
    copy = """
        const [bytes, done] = arguments;
        const blob = new Blob([new Uint8Array(bytes)], { type: "image/png" });
        navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]).then(() => done("copied"), done);
    """
    assert browser.driver.execute_async_script(copy, list(red_image(34))) == "copied"
    ActionChains(browser.driver).key_down(Keys.CONTROL).send_keys("v").key_up(Keys.CONTROL).perform()
    until(lambda: browser.sees(34))


def test_the_keyboard_is_enough(browser: Browser, tmp_path: Path) -> None:
    visited = []
    while browser.focused() != "file":
        browser.press(Keys.TAB)
        visited.append(browser.focused())
    assert visited == ["API", "Models", "Metrics", "file"]
    button = browser.driver.find_element(By.CSS_SELECTOR, "label[for=file]")
    assert button.value_of_css_property("outline-style") == "solid"  # where the focus is can be seen
    browser.choose(image(tmp_path, 56))  # what the system's dialog would do
    until(lambda: browser.sees(56))
    browser.press(Keys.TAB)
    assert browser.focused() == "model"
    browser.press(Keys.ARROW_DOWN)
    until(lambda: browser.sees(0))  # there is no green in it
    browser.press(Keys.ARROW_UP, Keys.TAB)
    assert browser.focused() == "crops"
    until(lambda: browser.sees(56))
    browser.press(Keys.SPACE)
    assert browser.by_id("crops").is_selected()
    until(lambda: any("crops=10" in url for url in browser.requests()))
    until(lambda: browser.sees(56))


def test_untrained_weights_are_warned_of(browser: Browser) -> None:
    assert not browser.by_id("untrained").is_displayed()
    model = Select(browser.by_id("model"))
    model.select_by_index(1)
    until(browser.by_id("untrained").is_displayed)
    model.select_by_index(0)
    until(lambda: not browser.by_id("untrained").is_displayed())


def test_a_calibrated_model_says_what_its_bars_mean_and_what_it_does_not_know(browser: Browser, tmp_path: Path) -> None:
    browser.choose(image(tmp_path, 20))
    until(lambda: browser.sees(20))
    assert not browser.by_id("unsure").is_displayed()
    assert browser.text("meaning") == ""
    Select(browser.by_id("model")).select_by_visible_text("vouched · version 1")
    until(browser.by_id("unsure").is_displayed)
    assert browser.text("unsure").startswith("Not sure it is any of these.")
    means = "of a hundred answers as sure as this one, 20 are right, give or take 2.5 points."
    assert browser.text("meaning") == f"Calibrated: {means}"
    browser.choose(image(tmp_path, 120))
    until(lambda: browser.sees(120))
    assert not browser.by_id("unsure").is_displayed()
    assert browser.text("meaning") == f"Calibrated: {means}"
    browser.by_id("crops").click()
    until(lambda: browser.text("meaning") == "")
    assert browser.sees(120)


def test_a_heat_map_lies_over_the_photo_where_it_is_switched_on(browser: Browser, tmp_path: Path) -> None:
    """Of a photo twice as wide as high, whose middle is seen and whose red is in the right half of that."""
    photo = Image.new("RGB", (64, 32))
    photo.paste((255, 0, 0), (32, 0, 48, 32))
    photo.save(tmp_path / "photo.png")
    assert not browser.by_id("heat").is_enabled()
    assert browser.text("heat-hint") == "this model has none"
    Select(browser.by_id("model")).select_by_visible_text("where · version 1")
    browser.by_id("heat").click()
    browser.choose(tmp_path / "photo.png")
    until(browser.by_id("heatmap").is_displayed)
    seen, over = browser.by_id("preview").rect, browser.by_id("heatmap").rect
    assert over["x"] - seen["x"] == pytest.approx(seen["width"] / 4, abs=1)
    assert (over["width"], over["height"]) == pytest.approx((seen["width"] / 2, seen["height"]), abs=1)
    alphas = """
        const { width, height } = arguments[0];
        const { data } = arguments[0].getContext("2d").getImageData(0, 0, width, height);
        return [0, width - 1].map((column) => data[4 * column + 3]);
    """
    left, right = browser.driver.execute_script(alphas, browser.by_id("heatmap"))
    assert left == 0 < right
    assert "was seen" in browser.by_id("heatmap").accessible_name
    browser.by_id("crops").click()
    until(lambda: not browser.by_id("heatmap").is_displayed())
    assert not browser.by_id("heat").is_enabled()
    browser.by_id("crops").click()
    until(browser.by_id("heatmap").is_displayed)
    browser.by_id("heat").click()
    assert not browser.by_id("heatmap").is_displayed()


def test_what_is_no_image_has_its_problem_shown(browser: Browser, server: RunningServer, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not an image")
    browser.choose(path)
    problem = server.classify(b"not an image").json()
    until(lambda: problem["code"] in browser.text("problem"))
    assert problem["title"] in browser.text("problem")
    assert problem["detail"] in browser.text("problem")
    assert browser.by_id("problem").aria_role == "alert"
    assert browser.bars() == []
    assert not browser.by_id("again").is_displayed()  # it would end in the same way
    browser.choose(image(tmp_path, 5))
    until(lambda: browser.sees(5))
    assert browser.text("problem") == ""


def test_an_upload_that_is_too_large_has_its_problem_shown(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(bytes(2**25))
    browser.choose(path)
    until(lambda: "body_too_large" in browser.text("problem"))


def test_a_refused_image_is_tried_again_on_demand(one_browser: Browser, tmp_path: Path) -> None:
    tiny.write(tmp_path / "models")
    with (
        GatedServer(tmp_path / "models", queue_size=1) as server,
        ThreadPoolExecutor(1) as aside,
        server.hold(1) as let_go,
    ):
        browser = opened(one_browser, server)
        other = aside.submit(server.classify, red_image(1))
        until(lambda: server.pending() == 1)
        browser.choose(image(tmp_path, 90))
        until(lambda: "queue_full" in browser.text("problem"))
        let_go()
        other.result()
        browser.by_id("again").click()
        until(lambda: browser.sees(90))
        assert not browser.by_id("again").is_displayed()


def test_a_server_that_is_gone_is_noticed(one_browser: Browser, tmp_path: Path) -> None:
    tiny.write(tmp_path / "models")
    with RunningServer(tmp_path / "models") as server:
        browser = opened(one_browser, server)
        until(lambda: browser.text("status") == "ready")
        server.terminate()
        until(lambda: browser.text("status") == "no answer")
        browser.choose(image(tmp_path, 1))
        until(lambda: "unreachable" in browser.text("problem"))
        assert browser.by_id("again").is_displayed()


def test_the_charts_follow_the_metrics(browser: Browser, server: RunningServer) -> None:
    figures = {"throughput": r"answered [1-9]", "latency": r"p50 [\d.]+ ms\s+p99 \d", "batches": r"mean [1-9]"}

    def drawn() -> bool:
        server.classify_all([red_image(1)] * 20, 4)
        return all(re.search(figure, browser.text(f"{name}-now")) for name, figure in figures.items())

    until(drawn)
    for marks in ("#throughput :is(.line, .dot)", "#latency :is(.line, .dot)", "#batches .column"):
        assert browser.driver.find_elements(By.CSS_SELECTOR, marks)


@pytest.mark.parametrize("size", PHONES)
def test_a_phone_scrolls_in_one_direction_only(browser: Browser, size: tuple[int, int], tmp_path: Path) -> None:
    width, height = size
    browser.cdp("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2, mobile=True)
    browser.cdp("Emulation.setTouchEmulationEnabled", enabled=True)
    try:
        browser.choose(image(tmp_path, 200))
        until(lambda: browser.sees(200))
        assert browser.driver.execute_script("return document.documentElement.scrollWidth") == width
        camera = browser.driver.find_element(By.CSS_SELECTOR, "label[for=camera]")
        assert camera.is_displayed()
        for control in browser.driver.find_elements(By.CSS_SELECTOR, "label.button, select"):
            assert control.size["height"] >= 36  # a finger hits it
    finally:
        browser.cdp("Emulation.clearDeviceMetricsOverride")
        browser.cdp("Emulation.setTouchEmulationEnabled", enabled=False)


def test_everything_has_a_name_for_those_who_do_not_see_it(browser: Browser, tmp_path: Path) -> None:
    browser.choose(image(tmp_path, 40))
    until(lambda: browser.sees(40))
    nodes = [node for node in browser.cdp("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]
    named = {"button", "checkbox", "combobox", "image", "link", "list", "meter", "navigation", "option", "region"}
    for node in nodes:
        if node["role"]["value"] in named:
            assert node["name"]["value"], node
    roles = [node["role"]["value"] for node in nodes]
    assert {"alert", "status", "main", "banner", "navigation"} <= set(roles)
    assert (roles.count("meter"), roles.count("image")) == (5, 4)
    levels = [level for node in nodes for level in _properties(node, "level") if node["role"]["value"] == "heading"]
    assert levels == [1, 2, 2, 2]
    assert browser.driver.find_element(By.TAG_NAME, "html").get_attribute("lang") == "en"


def _properties(node: dict[str, Any], name: str) -> list[Any]:
    return [one["value"]["value"] for one in node["properties"] if one["name"] == name]


@pytest.mark.parametrize(("path", "last"), [("/", "/metrics"), ("/docs", "/openapi.json")])
def test_no_page_asks_anybody_else_or_breaks_its_own_policy(
    browser: Browser, server: RunningServer, path: str, last: str
) -> None:
    browser.driver.get("about:blank")
    browser.requests()
    browser.logged("browser")
    browser.driver.get(f"{server.url}{path}")
    asked: set[str] = set()

    def loaded() -> bool:
        asked.update(browser.requests())
        return f"{server.url}{last}" in asked

    until(loaded)
    until(lambda: "ready" in browser.text("status") if path == "/" else "Classify an image" in browser.text("api"))
    asked |= browser.requests()
    assert {urlsplit(url).hostname for url in asked} == {LOCAL}
    assert browser.logged("browser") == []


@pytest.mark.parametrize(
    "path", [*PAGES, "/static/page.js", "/static/heatmap.js", "/static/style.css", "/static/swagger-ui-bundle.js"]
)
def test_every_file_is_answered_with_its_policy_and_once(server: RunningServer, path: str) -> None:
    first = server.client.get(path)
    assert first.status_code == 200
    assert first.headers.items() >= {(name.lower(), value) for name, value in HEADERS.items()}
    again = server.client.get(path, headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert server.client.head(path).status_code == 200


@pytest.mark.parametrize("path", ["/static/", "/static/none.js", "/static/%2e%2e/page.py", "/redoc"])
def test_nothing_else_is_served(server: RunningServer, path: str) -> None:
    response = server.client.get(path)
    assert (response.status_code, response.json()["code"]) == (404, "not_found")
