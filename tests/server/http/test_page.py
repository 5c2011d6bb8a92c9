"""The pages, in a real Chromium against a real server."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
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

from models.manifest import FILE_NAME, Accuracy, Preprocessing
from server.http.page import FOLDER, HEADERS, PAGES
from tests import tiny
from tests.server.running import ROOT, GatedServer, RunningServer, red_image, until

PHONES = [(320, 568), (390, 844)]
LOOKS = [("light", (1280, 800)), ("dark", (390, 844))]
FINGER = 44
"""Pixels that a target for a finger needs in each direction (WCAG 2.2, 2.5.5)."""
LOCAL = "127.0.0.1"
AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
AXE_VERSION = re.findall(r"axe-core@([\d.]+)", (ROOT / ".ci" / "run").read_text())[0]


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

    def choose(self, *paths: Path) -> None:
        self.by_id("file").send_keys("\n".join(map(str, paths)))

    def drag(self, *paths: Path, **items: str) -> None:
        """Drop files, or other items, named by the last part of their media type."""
        dragged = [{"mimeType": f"text/{kind.replace('_', '-')}", "data": text} for kind, text in items.items()]
        data = {"items": dragged, "files": [str(path) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.cdp("Input.dispatchDragEvent", type=kind, x=200, y=200, data=data)

    def go(self, view: str) -> None:
        self.driver.find_element(By.LINK_TEXT, view).click()

    def select(self, model: str) -> None:
        Select(self.by_id("model")).select_by_visible_text(f"{model} · version 1")

    @contextmanager
    def looking(self, size: tuple[int, int], scheme: str = "light", motion: str = "") -> Iterator[None]:
        """Emulate a screen of that size, colour scheme and preference of motion; a narrow one is a phone's."""
        width, height = size
        phone = width < 500
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.cdp("Emulation.setTouchEmulationEnabled", enabled=phone)
        preferred = {"color-scheme": scheme, "reduced-motion": motion}
        features = [{"name": f"prefers-{name}", "value": value} for name, value in preferred.items()]
        self.cdp("Emulation.setEmulatedMedia", features=features)
        try:
            yield
        finally:
            self.cdp("Emulation.clearDeviceMetricsOverride")
            self.cdp("Emulation.setTouchEmulationEnabled", enabled=False)
            self.cdp("Emulation.setEmulatedMedia", features=[])

    def axe(self) -> list[str]:
        """The rules that axe finds violated on the page as it is now, and the elements."""
        if not AXE.is_file():
            pytest.skip(f"no axe here: npm install --no-save --no-package-lock axe-core@{AXE_VERSION}")
        self.driver.execute_script(AXE.read_text())
        run = """
            const done = arguments[0];
            const told = ({ id, nodes }) => `${id}: ${nodes.map(({ target }) => target.join(" ")).join(", ")}`;
            axe.run().then(({ violations }) => done(violations.map(told)), (error) => done([`${error}`]));
        """
        found: list[str] = self.driver.execute_async_script(run)
        return found

    def press(self, *keys: str) -> None:
        ActionChains(self.driver).send_keys(*keys).perform()

    def focused(self) -> str:
        """The id of the focused element, or its text if it has no id."""
        element = self.driver.switch_to.active_element
        return element.get_attribute("id") or element.text

    def bars(self) -> list[tuple[str, str]]:
        """(label, percentage) of each bar, once they show the last answer."""
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
        """Every address that the page has requested since the last call."""
        messages = [json.loads(entry["message"])["message"] for entry in self.logged("performance")]
        sent = [one["params"] for one in messages if one["method"] == "Network.requestWillBeSent"]
        sent = [one for one in sent if not one["documentURL"].startswith("chrome:")]
        return {url for one in sent if not (url := one["request"]["url"]).startswith(("blob:", "data:"))}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Serves `tiny` (the default), `untrained`, which looks at green instead, `vouched`, which is calibrated, and
    `where`, in INT8, which has heat maps.
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
    where = tiny.write(repository, "where", extras=True)
    lower = where.model_copy(update={"precision": "int8", "published_accuracy": Accuracy(top1=75.1)})
    (repository / "where" / "1" / FILE_NAME).write_text(lower.model_dump_json())
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
    """A browser on the page, which has loaded the list of models."""
    return opened(one_browser, server)


def opened(browser: Browser, server: RunningServer, at: str = "/") -> Browser:
    browser.driver.get("about:blank")
    browser.requests()
    browser.logged("browser")
    browser.driver.get(f"{server.url}{at}")
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
    assert browser.text("facts") == ""  # folded until somebody opens them
    browser.driver.find_element(By.CSS_SELECTOR, "#details summary").click()
    assert "tiny version 1" in browser.text("facts")
    assert "Inference" in browser.text("facts")
    assert "WordNet" in browser.text("ids")
    assert browser.by_id("preview").get_attribute("naturalWidth") == "32"


def test_what_a_model_sees_is_told(browser: Browser) -> None:
    assert "32\N{MULTIPLICATION SIGN}32 pixels" in browser.text("about")
    browser.select("untrained")
    assert "16\N{MULTIPLICATION SIGN}32 pixels, squashed · each class has a probability of its own" in browser.text(
        "about"
    )


def test_an_image_is_dropped(browser: Browser, tmp_path: Path) -> None:
    browser.drag(image(tmp_path, 12))
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
    assert visited == ["Try it", "Models", "Metrics", "API", "file"]
    button = browser.driver.find_element(By.CSS_SELECTOR, "label[for=file]")
    assert button.value_of_css_property("outline-style") == "solid"  # the focus is visible
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
    browser.select("vouched")
    until(browser.by_id("unsure").is_displayed)
    assert browser.text("unsure").startswith("Not sure it is any of these.")
    assert browser.text("meaning") == ""
    browser.choose(image(tmp_path, 120))
    until(lambda: browser.sees(120))
    assert not browser.by_id("unsure").is_displayed()
    means = "of a hundred answers as sure as this one, 20 are right, give or take 2.5 points."
    assert browser.text("meaning") == f"Calibrated: {means}"
    browser.by_id("crops").click()
    until(lambda: browser.text("meaning") == "")
    assert browser.sees(120)


def test_a_heat_map_lies_over_the_photo_where_it_is_switched_on(browser: Browser, tmp_path: Path) -> None:
    """For a photo twice as wide as high: the model sees its middle, and the right half of that is red."""
    photo = Image.new("RGB", (64, 32))
    photo.paste((255, 0, 0), (32, 0, 48, 32))
    photo.save(tmp_path / "photo.png")
    browser.choose(tmp_path / "photo.png")
    until(lambda: len(browser.bars()) == 5)
    assert not browser.by_id("heat").is_enabled()
    assert browser.text("heat-hint") == "this model has none"
    browser.select("where")
    browser.by_id("heat").click()
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
    assert "was seen" in browser.text("heat-hint")
    (tmp_path / "cut.png").write_bytes(red_image(1)[:-30])
    browser.choose(tmp_path / "cut.png")
    until(lambda: "broken_image" in browser.text("problem"))
    assert browser.text("heat-hint") == ""  # nothing was seen there
    browser.by_id("heat").click()
    assert not browser.by_id("heatmap").is_displayed()


def test_an_upload_shows_how_far_it_is_and_can_be_left(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "slow.bmp"
    Image.new("RGB", (2000, 1500), (60, 0, 0)).save(path)  # 9 MB
    browser.cdp("Network.enable")
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1}
    browser.cdp("Network.emulateNetworkConditions", **slow, uploadThroughput=2**20)
    try:
        browser.choose(path)
        until(lambda: "Uploading" in browser.text("progress"))
        until(lambda: 0 < float(browser.by_id("done").get_attribute("value") or 0) < 1)
        browser.by_id("back").click()
    finally:
        browser.cdp("Network.emulateNetworkConditions", **slow, uploadThroughput=-1)
    assert not browser.by_id("progress").is_displayed()
    assert browser.by_id("samples").is_displayed()
    assert browser.focused() == "file"
    browser.choose(image(tmp_path, 61))
    until(lambda: browser.sees(61))


def test_sample_photos_are_those_of_the_export(browser: Browser) -> None:
    buttons = browser.driver.find_elements(By.CSS_SELECTOR, "#samples button")
    names = {str(button.get_attribute("value")) for button in buttons}
    assert names == {path.name for path in (ROOT / "export" / "photos").glob("*.jpg")}
    for name in names:
        assert (FOLDER / "photos" / name).read_bytes() == (ROOT / "export" / "photos" / name).read_bytes()
    buttons[1].click()
    until(lambda: len(browser.bars()) == 5)
    assert browser.text("photo-title") == "espresso.jpg"
    assert browser.focused() == "photo-title"
    browser.by_id("back").click()
    assert browser.by_id("samples").is_displayed()


def test_several_photos_are_listed_and_each_can_be_looked_at(browser: Browser, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("not an image")
    browser.drag(image(tmp_path, 7), image(tmp_path, 170), notes)

    def listed() -> list[str]:
        return browser.text("several").splitlines()

    until(lambda: len(listed()) == 6)
    assert browser.text("photo-title") == "3 photos"
    assert [line.rpartition(" ")[0] for line in listed()[:3:2]] == ["red 7", "red 170"]
    assert listed()[1::2] == ["7.png", "170.png", "notes.txt"]
    assert "not a photo" in listed()[4]
    before = listed()
    browser.driver.find_elements(By.CSS_SELECTOR, "#several button")[1].click()
    until(lambda: browser.sees(170))
    assert browser.text("back") == "All photos"
    browser.by_id("back").click()
    assert listed() == before
    browser.select("where")
    browser.by_id("back").click()
    assert browser.by_id("samples").is_displayed()


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        ({"uri_list": "https://example.com/cat.jpg"}, "That is a link. Save the photo that it leads to"),
        ({"plain": "https://example.com/cat.jpg"}, "That is a link."),
        ({"plain": "a cat"}, "That is text."),
    ],
)
def test_what_is_no_file_gets_a_sentence(browser: Browser, items: dict[str, str], sentence: str) -> None:
    browser.drag(**items)
    until(lambda: browser.text("problem").startswith(sentence))
    assert browser.by_id("samples").is_displayed()


def test_a_folder_gets_a_sentence(browser: Browser, tmp_path: Path) -> None:
    browser.drag(tmp_path)
    until(lambda: browser.text("problem").startswith("That is a folder."))


def test_what_is_no_image_has_its_problem_shown(browser: Browser, server: RunningServer, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not an image")
    browser.choose(path)
    problem = server.classify(b"not an image").json()
    until(lambda: problem["code"] in browser.text("problem"))
    assert problem["title"] in browser.text("problem")
    assert problem["detail"] in browser.text("problem")
    assert browser.by_id("problem").aria_role == "alert"
    assert browser.text("problem").startswith("notes.txt is not a photo that this server can read.")
    assert browser.bars() == []
    assert browser.by_id("samples").is_displayed()
    assert not browser.by_id("again").is_displayed()  # it would fail again
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
    browser.go("Metrics")
    figures = {"throughput": r"answered [1-9]", "latency": r"p50 [\d.]+ ms\s+p99 \d", "batches": r"mean [1-9]"}

    def drawn() -> bool:
        server.classify_all([red_image(1)] * 20, 4)
        return all(re.search(figure, browser.text(f"{name}-now")) for name, figure in figures.items())

    until(drawn)
    for marks in ("#throughput :is(.line, .dot)", "#latency :is(.line, .dot)", "#batches .column"):
        assert browser.driver.find_elements(By.CSS_SELECTOR, marks)


def test_metrics_are_tables_for_people(browser: Browser, server: RunningServer) -> None:
    server.classify(red_image(3))
    browser.go("Metrics")
    until(lambda: "tiny version 1" in browser.text("tables"))
    tables = dict(_tables(browser, "tables"))
    assert tables.keys() >= {"Models", "Engines", "Processes"}
    assert re.search(r" ready \d", tables["Engines"][0])
    assert any(re.match(r"http-0 \d+ MB", row) for row in tables["Processes"])
    answered = server.metric("serving_requests_total", model="tiny", code="ok")
    assert any(row.replace(",", "").startswith(f"tiny version 1 {answered:.0f} ") for row in tables["Models"])


def test_models_are_a_table_from_which_one_is_tried(browser: Browser) -> None:
    browser.go("Models")
    until(lambda: len(_tables(browser, "models")) == 1)
    ((_, rows),) = _tables(browser, "models")
    assert len(rows) == 4
    assert rows[0].startswith("tiny default 1 tiny ")
    assert "untrained" in rows[1]
    assert "calibrated: probabilities 2.5 points off on average" in rows[2]
    assert "75.1% (FP32) features, heat map" in rows[3]  # published for the weights, before they became INT8
    browser.go("where")
    until(browser.by_id("model").is_displayed)
    assert Select(browser.by_id("model")).first_selected_option.text == "where · version 1"
    browser.driver.back()
    until(browser.by_id("models").is_displayed)


def test_models_that_are_not_loaded_or_refused_are_told(one_browser: Browser, tmp_path: Path) -> None:
    for name in ("tiny", "other", "broken"):
        tiny.write(tmp_path / "models", name)
    (tmp_path / "models" / "broken" / "1" / FILE_NAME).write_text("{}")
    with RunningServer(tmp_path / "models", max_loaded=1, default_model="tiny") as server:
        browser = opened(one_browser, server, "/#models")
        until(lambda: len(_tables(browser, "models")) == 2)
        (_, (first, second)), (_, refused) = _tables(browser, "models")
        assert second.startswith("tiny default 1 ")
        assert first.startswith("other not loaded 1 ")
        (reason,) = server.client.get("/models").json()["refused"].values()
        assert reason in refused[0]


def _tables(browser: Browser, name: str) -> list[tuple[str, list[str]]]:
    """(caption, rows) of each table, read at one time: the page draws them again and again."""
    read = """
        const text = (element) => (element?.innerText ?? "").trim().split(/\\s+/).join(" ");
        const read = (table) => [text(table.caption), [...table.tBodies].flatMap(({ rows }) => [...rows].map(text))];
        return [...document.getElementById(arguments[0]).querySelectorAll("table")].map(read);
    """
    return [(caption, rows) for caption, rows in browser.driver.execute_script(read, name)]


def test_a_server_with_keys_asks_for_one(one_browser: Browser, tmp_path: Path) -> None:
    tiny.write(tmp_path / "models")
    keys = tmp_path / "keys.txt"
    keys.write_text(f"shop {hashlib.sha256(b'secret').hexdigest()}\n")
    with RunningServer(tmp_path / "models", api_keys=keys, metrics_role="admin") as server:
        browser = one_browser
        browser.driver.get(f"{server.url}/")

        def give(key: str) -> None:
            browser.by_id("key-value").send_keys(key, Keys.ENTER)

        def asked() -> bool:
            return bool(browser.driver.find_elements(By.ID, "key-value"))

        for scheme, size in LOOKS:
            with browser.looking(size, scheme):
                until(asked)
                assert browser.axe() == []
        assert browser.focused() == "key-value"
        assert not browser.by_id("drop").is_displayed()
        give("nobodys")
        main = browser.driver.find_element(By.TAG_NAME, "main")  # in which one form replaces another
        until(lambda: "does not know this key" in main.text)
        give("secret")
        until(browser.by_id("model").is_enabled)
        assert not asked()
        browser.choose(image(tmp_path, 44))
        until(lambda: browser.sees(44))
        browser.go("Metrics")
        until(lambda: "needs admin" in browser.text("metrics-problem"))
        assert browser.text("status") == "ready"  # from probes, which need no key
        browser.driver.refresh()
        until(browser.by_id("model").is_enabled)  # without being asked again
        assert browser.driver.execute_script("return JSON.stringify(localStorage) + document.cookie") == "{}"
        browser.go("API")
        until(lambda: "Classify an image" in browser.text("api"))
        browser.by_id("forget").click()
        until(asked)
        give("secret")
        until(lambda: "Classify an image" in browser.text("api"))
        browser.by_id("forget").click()
        until(asked)


@pytest.mark.parametrize(("scheme", "size"), LOOKS)
def test_axe_finds_nothing(
    browser: Browser, server: RunningServer, scheme: str, size: tuple[int, int], tmp_path: Path
) -> None:
    browser.driver.get("about:blank")
    with browser.looking(size, scheme):
        opened(browser, server)
        found = {"empty": browser.axe()}
        browser.drag(plain="https://example.com/cat.jpg")
        found["a link"] = browser.axe()
        browser.choose(image(tmp_path, 120), image(tmp_path, 20))
        until(lambda: len(browser.text("several").splitlines()) == 4)
        found["several"] = browser.axe()
        browser.choose(image(tmp_path, 120))
        until(lambda: browser.sees(120))
        browser.driver.find_element(By.CSS_SELECTOR, "#details summary").click()
        found["an answer"] = browser.axe()
        browser.select("where")
        browser.by_id("heat").click()
        until(browser.by_id("heatmap").is_displayed)
        found["a heat map"] = browser.axe()
        browser.select("vouched")
        browser.choose(image(tmp_path, 20))
        until(browser.by_id("unsure").is_displayed)
        found["calibrated, unsure"] = browser.axe()
        browser.select("untrained")
        until(browser.by_id("untrained").is_displayed)
        found["untrained"] = browser.axe()
        browser.go("Models")
        until(lambda: len(_tables(browser, "models")) == 1)
        found["models"] = browser.axe()
        browser.go("Metrics")
        until(lambda: len(_tables(browser, "tables")) >= 3)
        found["metrics"] = browser.axe()
        browser.go("API")
        until(lambda: "Classify an image" in browser.text("api"))
        browser.driver.find_element(By.CSS_SELECTOR, "#api .opblock button").click()
        until(lambda: "4XX" in browser.text("api"))
        found["API"] = browser.axe()
    assert {state: findings for state, findings in found.items() if findings} == {}


def test_the_api_is_grouped_and_dark_in_the_dark_and_leads_back(browser: Browser, server: RunningServer) -> None:
    lightness = "return getComputedStyle(document.documentElement).backgroundColor.match(/\\d+/g).map(Number)"
    for scheme in ("light", "dark"):
        with browser.looking((1280, 800), scheme):
            browser.driver.get(f"{server.url}/docs")
            until(lambda: "Classify an image" in browser.text("api"))
            assert (max(browser.driver.execute_script(lightness)) < 64) is (scheme == "dark")
            classes = browser.driver.find_element(By.TAG_NAME, "html").get_attribute("class")
            assert ("dark-mode" in str(classes)) is (scheme == "dark")
    groups = [tag.text.splitlines()[0] for tag in browser.driver.find_elements(By.CSS_SELECTOR, "#api .opblock-tag")]
    assert groups[:4] == ["Classify", "Models", "Probes and metrics", "Open Inference Protocol"]
    assert str(browser.by_id("api").get_attribute("textContent")).count("urn:resnet-serving:") == 1
    browser.go("Try it")
    until(lambda: bool(browser.driver.find_elements(By.ID, "drop")))


def test_nothing_moves_where_reduced_motion_is_preferred(
    browser: Browser, server: RunningServer, tmp_path: Path
) -> None:
    moving = """
        const seconds = (list) => list.split(",").some((each) => parseFloat(each) > 0);
        return [...document.querySelectorAll("*")].flatMap((element) => ["", "::before", "::after"].filter((part) => {
            const { animationDuration, transitionDuration } = getComputedStyle(element, part);
            return seconds(animationDuration) || seconds(transitionDuration);
        }).map((part) => `${element.localName}${element.id && "#"}${element.id}${part}`));
    """
    for motion in ("", "reduce"):
        with browser.looking((1280, 800), motion=motion):
            opened(browser, server)
            browser.choose(image(tmp_path, 80))
            until(lambda: browser.sees(80))
            found = browser.driver.execute_script(moving)
            assert ({"div::before", "div#progress"} <= set(found)) if not motion else found == []
            browser.go("API")
            until(lambda: "Classify an image" in browser.text("api"))
            found = browser.driver.execute_script(moving)
            assert found if not motion else found == []


@pytest.mark.parametrize("size", PHONES)
def test_a_phone_scrolls_in_one_direction_only(browser: Browser, size: tuple[int, int], tmp_path: Path) -> None:
    width, height = size
    fits = "return document.documentElement.scrollWidth"
    controls = "header a, main :is(button, summary, select, label.check, label.button)"
    with browser.looking(size):
        assert browser.driver.find_element(By.CSS_SELECTOR, "label[for=camera]").is_displayed()
        browser.choose(image(tmp_path, 200))
        until(lambda: browser.sees(200))
        first = browser.driver.find_element(By.CSS_SELECTOR, "#bars li")
        box = browser.driver.execute_script("return arguments[0].getBoundingClientRect().toJSON()", first)
        assert 0 <= box["top"] < box["bottom"] <= height  # the answer is in view without scrolling
        assert browser.by_id("heat-hint").is_displayed()  # why the switch is grey
        for view in ("Try it", "Models", "Metrics"):
            browser.go(view)
            assert browser.driver.execute_script(fits) == width
            for control in browser.driver.find_elements(By.CSS_SELECTOR, controls):
                if control.is_displayed():
                    assert control.size["height"] >= FINGER, control.get_attribute("outerHTML")


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
    assert (roles.count("meter"), roles.count("image")) == (5, 1)
    levels = [level for node in nodes for level in _properties(node, "level") if node["role"]["value"] == "heading"]
    assert levels == [1, 2, 2]
    assert browser.driver.find_element(By.TAG_NAME, "html").get_attribute("lang") == "en"


def _properties(node: dict[str, Any], name: str) -> list[Any]:
    return [one["value"]["value"] for one in node["properties"] if one["name"] == name]


@pytest.mark.parametrize(("path", "last"), [("/", "/models"), ("/#metrics", "/metrics"), ("/docs", "/openapi.json")])
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
    until(lambda: "Classify an image" in browser.text("api") if path == "/docs" else "ready" in browser.text("status"))
    asked |= browser.requests()
    assert {urlsplit(url).hostname for url in asked} == {LOCAL}
    assert browser.logged("browser") == []


@pytest.mark.parametrize(
    "path",
    [*PAGES, *(f"/static/{name}" for name in ("page.js", "style.css", "photos/cat.jpg", "swagger-ui-bundle.js"))],
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
