"""The site of the benchmarks: built from the results in the repository, and looked at in a browser."""

import functools
import http.server
import importlib
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ASV_BENCH = ROOT / "asv_bench"

pytestmark = pytest.mark.skipif(
    not (ASV_BENCH / "results").exists() or not (ROOT / ".git").exists(),
    reason="results or history are not here: the tests run without the checkout",
)

WIDTHS = {"desktop": (1280, 800), "phone": (390, 844)}
CHROMIUM = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
CHROMIUM += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]

# Whether a graph shows more than axes: those are grey.
HAS_COLOR = """
    const canvas = arguments[0].querySelector('canvas.flot-base');
    if (!canvas) return false;
    const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    for (let i = 0; i < data.length; i += 4) {
        const [low, high] = [Math.min(data[i], data[i + 1], data[i + 2]), Math.max(data[i], data[i + 1], data[i + 2])];
        if (data[i + 3] > 100 && high - low > 40) return true;
    }
    return false;"""


def load(name, monkeypatch):
    """A script of asv_bench/."""
    monkeypatch.syspath_prepend(str(ASV_BENCH))
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    """The site, built."""
    try:
        import asv  # noqa: F401
    except ImportError:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("asv is not installed")
    target = tmp_path_factory.mktemp("site") / "html"
    code = f"from pathlib import Path; import publish as s; s.publish(Path({str(target)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ASV_BENCH, capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def environment():
    path = os.pathsep.join([str(ASV_BENCH), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path.rstrip(os.pathsep)}


@pytest.fixture(scope="module")
def address(html):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=html)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    missing = [program for program in ("chromium", "chromedriver") if shutil.which(program) is None]
    try:
        from selenium import webdriver
    except ImportError:
        missing.append("selenium")
    if missing:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"not installed: {', '.join(missing)}")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in [*CHROMIUM, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


class Page:
    """The site in the browser, at a width."""

    def __init__(self, browser, address, width):
        self.browser, self.address = browser, address
        metrics = {"width": width[0], "height": width[1], "deviceScaleFactor": 1, "mobile": width[0] < 700}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def open(self, fragment):
        self.browser.get("about:blank")
        self.browser.get_log("browser")  # what others have left there
        self.browser.get(f"{self.address}index.html#{fragment}")
        # asv asks for graphs in the background: wait until nothing is under way.
        self.wait("return !!window.jQuery && document.readyState === 'complete' && jQuery.active === 0")

    def wait(self, script, *arguments):
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.browser, 20, poll_frequency=0.05).until(
            lambda driver: driver.execute_script(script, *arguments), f"the page did not get so far: {script}"
        )

    def find(self, selector):
        return self.browser.find_elements("css selector", selector)

    def check(self):
        """No script failed, everything came from the site, and nothing lies beside the window."""
        script = "return performance.getEntriesByType('resource').map(entry => entry.name)"
        assert [url for url in self.browser.execute_script(script) if not url.startswith(self.address)] == []
        assert self.browser.get_log("browser") == []
        width, seen = self.browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
        assert width <= seen


@pytest.fixture(params=WIDTHS)
def page(browser, address, request):
    return Page(browser, address, WIDTHS[request.param])


def test_the_grid_draws_every_graph(page, html):
    page.open("/")
    names = set(json.loads((html / "index.json").read_text())["benchmarks"])
    plots = page.find(".benchmark-plot")
    assert len(plots) == len(names) > 0
    for plot in plots:
        page.browser.execute_script("arguments[0].scrollIntoView(); jQuery(window).trigger('scroll')", plot)
        page.wait(HAS_COLOR, plot)
    page.check()


def test_each_group_has_a_graph_with_a_legend_and_a_unit(page, html):
    benchmarks = json.loads((html / "index.json").read_text())["benchmarks"]
    first = {name.split(".")[0]: name for name in reversed(sorted(benchmarks))}
    assert {"losses", "limit", "options"} <= set(first)
    for name in first.values():
        page.open(name)
        (graph,) = page.find("#main-graph")
        page.wait(HAS_COLOR, graph)
        assert graph.size["width"] > 250 and graph.size["height"] > 200
        assert benchmarks[name]["unit"] and benchmarks[name]["pretty_name"]
        assert len(page.find("#main-graph .legendLabel")) > 0 or not benchmarks[name]["params"]
        assert [title.text for title in page.find("#title")] == [name]
        page.check()


def test_the_list_has_a_value_for_each_line(page):
    page.open("/summarylist")
    page.wait("return document.querySelectorAll('#summarylist-body td.value').length > 0")
    values = [cell.text for cell in page.find("#summarylist-body td.value")]
    assert len(values) > 10 and any(value.endswith(("s", "×", "copies", "k", "M")) for value in values)
    page.check()


def test_regressions_are_listed(page):
    page.open("/regressions")
    page.wait("return document.querySelectorAll('#regressions-body table').length > 0")
    page.check()


def test_a_script_that_asv_loads_from_elsewhere_must_have_a_copy(monkeypatch):
    site = load("publish", monkeypatch)
    page = '<script src="https://example.org/new.min.js" integrity="x"></script>'
    with pytest.raises(SystemExit, match="asv's page loads https://example.org/new.min.js, of which vendor/ has no"):
        site.offline(page)


def test_results_are_merged_and_short(monkeypatch, tmp_path):
    site = load("publish", monkeypatch)
    file = {
        "commit_hash": "0123456789", "python": "/usr/bin/python", "env_name": "py_usr_bin_python", "durations": {},
        "params": {"python": "/usr/bin/python"}, "result_columns": ["result", "params", "version", "samples"],
        "results": {"a": [[1.23456, None, float("nan")], [["1", "2", "3"]], "1", [1, 2, 3]]},
    }  # fmt: skip
    path = tmp_path / "01234567-x.json"
    path.write_text(json.dumps(file))
    site.merge(path, tmp_path / "results")
    file["results"] = {"a": [[None, 2.5, None], [["1", "2", "3"]], "1"], "b": [[7.0], [], "1"]}
    path.write_text(json.dumps(file))
    site.merge(path, tmp_path / "results")
    (written,) = (tmp_path / "results").iterdir()
    merged = json.loads(written.read_text())
    assert merged["results"] == {"a": [[1.235, 2.5, None], [["1", "2", "3"]], "1"], "b": [[7.0], [], "1"]}
    assert "/usr/bin" not in written.read_text() and written.name.startswith("01234567-py3.")


def test_lines_of_the_site_are_of_the_parameters_that_all_commits_have(monkeypatch, tmp_path):
    site = load("publish", monkeypatch)
    axes = [["'64 x 10'", "'4096 x 1000'"], ["1", "2"]]
    quick = {"a": [[1.0, None, 2.0, None], axes, "1"], "b": [[5.0], [], "1"], "failed": [None, axes, "1"]}
    whole = {"a": [[1.0, 9.0, 2.0, 8.0], axes, "1"], "new": [[None, 7.0], [["1", "2"]], "1"]}
    for name, results in (("1-py3.json", quick), ("2-py3.json", whole)):
        (tmp_path / name).write_text(json.dumps({"results": results}))
    site.keep_common(tmp_path)
    assert json.loads((tmp_path / "1-py3.json").read_text())["results"] == quick
    kept = json.loads((tmp_path / "2-py3.json").read_text())["results"]
    assert kept == {"a": [[1.0, None, 2.0, None], axes, "1"], "new": whole["new"]}


def test_results_are_of_three_commits_and_tell_no_paths():
    files = list((ASV_BENCH / "results").glob("*/*-py*.json"))
    assert len({json.loads(file.read_text())["commit_hash"] for file in files}) >= 3
    for file in (ASV_BENCH / "results").rglob("*.json"):
        assert "/bin/" not in file.read_text() and "/root" not in file.read_text(), file


def test_the_summary_page_is_what_the_results_give(monkeypatch):
    summary = load("summary", monkeypatch)
    assert summary.PAGE.read_text() == summary.page(), "write it again: python asv_bench/publish.py"
    assert summary.PICTURE.read_bytes().startswith(b"\x89PNG")
    assert summary.PICTURE.name in summary.PAGE.read_text()
