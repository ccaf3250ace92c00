"""The page in a real browser: it loads without an error, its plots are drawn, its tables sort."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lezo.config.schema import ReportConfig
from lezo.records.reader import Reader
from lezo.report.page import page
from lezo.report.write import rendered
from tests.lezo.run_folders import config, finished, result, rows, write

EVIL = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>\"'&\x1b[31m"
Browser = Callable[..., tuple[str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of three optimizers' runs, one of them failed with markup in its error, and of an unfinished one."""
    folder = tmp_path_factory.mktemp("report")
    for number, (optim, test) in enumerate((("fo-sgd", 0.9), ("mezo", 0.7), ("lezo", 0.8))):
        finished(folder / "runs" / optim, optim__name=optim, test=test, optim__sparsity=0.5, seed=number)
    write(folder / "runs" / "evil<b>", config(task__name=EVIL), rows(), result(status="failed", error=EVIL))
    write(folder / "runs" / "left", config(seed=9), rows((0.7, 0.6)))
    runs = Reader().runs([folder / "runs"])
    files = rendered(runs, [Path("runs")], ReportConfig(out=str(folder)), reload=600)
    (folder / "report.html").write_text(str(files["report.html"]))
    return folder


@pytest.fixture
def browser() -> Browser:
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no chromium and no google-chrome on the PATH: the page was not opened in a browser")

    def opened(page: Path, *flags: str, fragment: str = "") -> tuple[str, str]:
        """The page's elements as they are once its script has run, and what the console said."""
        with tempfile.TemporaryDirectory() as profile:
            common = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
            done = subprocess.run(
                [
                    program,
                    *common,
                    "--enable-logging=stderr",
                    "--virtual-time-budget=2000",
                    *flags,
                    "--dump-dom",
                    f"{page.as_uri()}{fragment}",
                ],
                capture_output=True,
                text=True,
                timeout=120,
            )
        return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)

    return opened


def column(dom: str, table: str, place: int) -> list[str]:
    """A column's texts as they stand in the page."""
    body = re.search(rf'<table id="{table}">.*?<tbody>(.*?)</tbody>', dom, re.DOTALL)
    assert body is not None
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in body[1].split("</tr>")[:-1]]
    return [re.sub(r"</?strong>", "", row[place]) for row in cells]


# What a user's clicks do, and what the page looks like, said in the page's title.
PROBE = """
const errors = [];
addEventListener("error", (event) => errors.push(event.message));
addEventListener("load", () => {
  const header = document.querySelectorAll("#results th button")[2];
  header.click();
  const up = header.parentElement.getAttribute("aria-sort");
  const texts = Array.from(document.querySelectorAll("#results tbody tr"), (row) => row.cells[2].textContent);
  header.click();
  const drawn = Array.from(document.querySelectorAll("figure svg"), (svg) => {
    const box = svg.getBoundingClientRect();
    const lines = Array.from(svg.querySelectorAll("path"), (path) => path.getBoundingClientRect());
    return box.width > 200 && box.height > 80 && lines.some((line) => line.width > 50);
  });
  const tips = Array.from(document.querySelectorAll("svg[data-plot]"), (svg) => {
    const box = svg.querySelector("title, [data-series] > path").closest("use, path, g").getBoundingClientRect();
    svg.dispatchEvent(new PointerEvent("pointermove", { clientX: box.x + box.width / 2, clientY: box.y + box.height / 2 }));
    return document.getElementById("tip").textContent;
  });
  const form = document.getElementById("filters");
  const shown = () => Array.from(document.querySelectorAll("#runs tbody tr")).filter((row) => row.offsetParent).length;
  const counts = [shown()];
  form.elements.method.value = "mezo";
  form.elements.method.dispatchEvent(new Event("input", { bubbles: true }));
  counts.push(shown());
  const told = [form.querySelector("output").textContent, document.querySelector(".unfiltered").hidden];
  const series = Array.from(document.querySelectorAll("svg [data-method]"));
  const others = series.filter((part) => part.dataset.method !== "mezo").every((part) => !part.getClientRects().length);
  form.elements.words.value = "no such word";
  form.elements.words.dispatchEvent(new Event("input", { bubbles: true }));
  counts.push(shown());
  const wide = document.documentElement.scrollWidth > innerWidth;
  const ink = getComputedStyle(document.querySelector("figure svg text")).fill;
  document.body.dataset.found = JSON.stringify({ errors, up, texts, drawn, tips, counts, told, others, wide, ink, address: location.hash });
});
"""


def probed(page: Path, browser: Browser, *flags: str) -> dict[str, object]:
    """What the probe found in a copy of the page."""
    import html
    import json

    copy = page.with_name("probed.html")
    copy.write_text(page.read_text().replace("<script>", f"<script>{PROBE}</script><script>", 1))
    dom, console = browser(copy, *flags)
    assert console == ""
    found = re.search(r'data-found="([^"]*)"', dom)
    assert found is not None
    answer = json.loads(html.unescape(found[1]))
    assert isinstance(answer, dict)
    return answer


def test_the_page_loads_draws_and_sorts_in_a_browser(folder: Path, browser: Browser) -> None:
    page = folder / "report.html"
    dom, console = browser(page, fragment="#sort=results,2,descending")
    assert console == ""
    assert re.search(r"<title>.*lezo.*</title>", dom) and "Runs in" not in dom
    assert column(dom, "results", 2) == ["90.0", "80.0", "70.0", "-", "-"]
    found = probed(page, browser, "--window-size=1200,900")
    assert (found["errors"], found["up"], found["address"]) == (
        [],
        "ascending",
        "#sort=results%2C2%2Cdescending&method=mezo&words=no+such+word",
    )
    assert found["texts"] == ["70.0", "80.0", "90.0", "-", "-"]
    assert (found["counts"], found["others"]) == ([5, 1, 0], True)
    assert found["told"] == ["1 of 5 runs", False]
    tips = found["tips"]
    assert isinstance(tips, list) and "test" not in tips and any("dev loss 0." in tip for tip in tips)
    assert tips[0].startswith("rte (sample), tiny: mezo")
    drawn = found["drawn"]
    assert isinstance(drawn, list) and len(drawn) == 23 and all(drawn)


def test_a_phone_needs_no_scrolling_sideways_and_dark_is_dark(folder: Path, browser: Browser) -> None:
    page = folder / "report.html"
    light = probed(page, browser, "--window-size=500,900")
    dark = probed(page, browser, "--window-size=500,900", "--blink-settings=preferredColorScheme=0")
    assert (light["wide"], dark["wide"]) == (False, False)
    assert (light["ink"], dark["ink"]) == ("rgb(28, 30, 33)", "rgb(230, 232, 235)")


def test_a_printed_tables_heads_are_not_buttons_which_chromium_prints_once_only(folder: Path) -> None:
    style = (folder / "report.html").read_text().partition("@media print {")[2].split("</style>")[0]
    assert "th button { display: contents; }" in style.partition("@media")[0]


class Elements(HTMLParser):
    """Every element of a page with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_nothing_comes_from_elsewhere_and_nothing_from_files_is_markup(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    elements = Elements(page).found
    assert sum(tag == "script" for tag, _ in elements) == 1
    assert not {tag for tag, _ in elements} & {"img", "b", "iframe", "object", "embed"}
    links = [
        value or ""
        for _, given in elements
        for name, value in given.items()
        if name in ("src", "href", "xlink:href")
    ]
    outer = {link for link in links if not link.startswith(("#", "data:,"))}
    assert {link.partition("/")[0] for link in outer} == {"runs"}
    assert "runs/evil%3Cb%3E/" in outer
    assert not [name for _, given in elements for name in given if name.startswith("on")]
    assert "@import" not in page and "\x1b" not in page
    assert "evil&lt;b&gt;" in page and "document.title=&#x27;owned&#x27;" in page


def test_the_page_reloads_itself_only_while_watching() -> None:
    assert '<meta http-equiv="refresh" content="5">' in page("runs", "", [], [], [], 5)
    assert "refresh" not in page("runs", "", [], [], [], None)
