"""docs/losses.md is what docs/build.py writes, names every loss, and its links lead somewhere."""

import doctest
import re
import runpy
from pathlib import Path

import pytest

from fastloss.catalogue import LOSSES

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "losses.md"

pytestmark = pytest.mark.skipif(not PAGE.exists(), reason="docs/ is not here: the tests run without the checkout")


@pytest.fixture(scope="module")
def text():
    return PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def build():
    return runpy.run_path(str(DOCS / "build.py"))


def anchors(text):
    """As GitHub makes them of headings."""
    return {
        re.sub(r"[^\w\- ]", "", line).strip().lower().replace(" ", "-") for line in re.findall("^#+ (.*)", text, re.M)
    }


def test_page_is_up_to_date(build, capsys):
    status = build["main"](["--check"])
    assert status == 0, capsys.readouterr().err


def test_check_says_how_to_rebuild(build, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(build["main"].__globals__, "PAGE", tmp_path / "losses.md")
    assert build["main"](["--check"]) == 1
    assert "python docs/build.py" in capsys.readouterr().err


def test_a_loss_without_an_entry_is_named(build, monkeypatch):
    monkeypatch.setitem(LOSSES, "another_loss", LOSSES["cross_entropy"])
    with pytest.raises(SystemExit, match=r'add ENTRIES\["another_loss"\]'):
        build["main"](["--check"])


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_a_section_and_a_picture(name, text):
    assert f"\n### {name}\n" in text
    assert f"](losses/{name}.png)" in text
    assert (DOCS / "losses" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_links_and_images_lead_somewhere(text):
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(links) > 2 * len(LOSSES)
    for link in links:
        path, _, anchor = link.partition("#")
        if not re.match(r"\w+:", link):
            assert not path or (DOCS / path).exists(), link
            assert not anchor or anchor in anchors(text), link


def test_the_guide_s_examples(build):
    test = doctest.DocTestParser().get_doctest(build["GUIDE"], {}, "GUIDE", str(DOCS / "build.py"), 0)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0
