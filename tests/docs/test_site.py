"""The site is built without a warning, fetches nothing, and looks right in a real browser."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import pytest

from tests.chromium import CHROMIUM, Page, chromium
from tests.docs.markdown import ROOT

DESKTOP, PHONE = (1440, 1000), (390, 844)
LOOKED_AT = ("index.html", "placement.html", "parity.html", "reference/api.html")

needs_mkdocs = pytest.mark.skipif(
    find_spec("material") is None,
    reason="mkdocs-material is not installed; `pip install -e '.[docs]' -c constraints.txt`",
)
pytestmark = needs_mkdocs


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_is_built_without_a_warning_and_has_every_page(site: Path) -> None:
    docs = ROOT / "docs"
    pages = {
        path.relative_to(docs) for path in docs.rglob("*.md") if path.parent.name != "pictures"
    }
    missing = [page for page in pages if not (site / page.with_suffix(".html")).is_file()]
    assert not missing
    assert not list(site.rglob("*.py"))


def test_the_site_fetches_nothing_from_elsewhere(site: Path) -> None:
    fetched = set()
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        fetched |= set(re.findall(r"<(?:script|img|iframe)[^>]+src=\"?(https?:[^\" >]+)", text))
        for link in re.findall(r"<link[^>]+>", text):
            if "canonical" not in link:
                fetched |= set(re.findall(r"href=\"?(https?:[^\" >]+)", link))
    for sheet in site.rglob("*.css"):
        fetched |= set(re.findall(r"url\(\"?(https?:[^\")]+)", sheet.read_text(encoding="utf-8")))
    assert fetched == set()


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_pages_fit_the_screen_in_light_and_dark_on_a_desktop_and_a_phone(
    site: Path, tmp_path: Path
) -> None:
    with chromium(tmp_path / "profile") as page:
        for (width, height), scheme in product((DESKTOP, PHONE), ("light", "dark")):
            page.call(
                "Emulation.setDeviceMetricsOverride",
                width=width,
                height=height,
                deviceScaleFactor=1,
                mobile=False,
            )
            page.call(
                "Emulation.setEmulatedMedia",
                features=[{"name": "prefers-color-scheme", "value": scheme}],
            )
            for name in LOOKED_AT:
                look_at(page, (site / name), width, scheme)


def look_at(page: Page, path: Path, width: int, scheme: str) -> None:
    """The page is no wider than the screen, and its ground is as light or dark as was asked."""
    address = path.as_uri()
    page.open(address)
    is_there = f"location.href === {address!r} && document.readyState === 'complete'"
    page.until(lambda: page.evaluate(is_there), f"{path.name} is there")
    picture(page, f"docs-{path.stem}-{scheme}-{width}.png")
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width, f"{path.name} is {wide} px wide"
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    channels = [float(number) for number in re.findall(r"[\d.]+", ground)][:3]
    assert (sum(channels) / 3 < 128) == (scheme == "dark"), ground


def picture(page: Page, name: str) -> None:
    """Kept where somebody wants to look."""
    folder = os.environ.get("DEEPFLOW_PICTURES")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.picture(Path(folder) / name)
