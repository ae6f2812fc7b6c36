"""Every link between files of the project leads somewhere, to the very heading."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.markdown import ROOT, anchors, links, pages

ONLY = ("only-light", "only-dark")
"""Behind a picture's name: the site shows it on such pages alone."""
OUTSIDE = ("http://", "https://", "mailto:")


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_to_files_and_headings(page: Path) -> None:
    wrong = []
    for link in links(page):
        if link.startswith((*OUTSIDE, "data:")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists():
            wrong.append(f"{link}: there is no such file")
        elif anchor in ONLY and target.suffix == ".png":
            continue
        elif anchor and (target.suffix != ".md" or anchor not in anchors(target)):
            wrong.append(f"{link}: there is no such heading")
    assert not wrong, "\n".join(wrong)


def test_pages_of_the_site_link_to_each_other_only() -> None:
    """What lies outside of `docs/` is not on the site: it is named, as `examples/`."""
    docs = ROOT / "docs"
    wrong = []
    for page in docs.rglob("*.md"):
        for link in links(page):
            name = link.partition("#")[0]
            if name and not link.startswith(OUTSIDE):
                target = (page.parent / name).resolve()
                if not target.is_relative_to(docs):
                    wrong.append(f"{page.relative_to(ROOT)}: {link}")
    assert not wrong, "\n".join(wrong)
