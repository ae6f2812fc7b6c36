"""Markdown files of the project, taken apart: code blocks, headings, links, words in code.

What a test does with a code block can be said in an HTML comment before it, which no reader sees:

`<!-- not run: REASON -->`            it is checked but not run
`<!-- run: slow -->`                  it is run in the full run only
`<!-- run: with the blocks above -->` it goes on where the Python blocks above it ended
`<!-- file: NAME -->`                 it is saved under that name for the commands below it
`<!-- prints -->`                     it is what the block before it prints, or a part of that
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[2]
_MARK = re.compile(r"<!--\s*(not run|run|file|prints)\s*(?::\s*(.*?))?\s*-->", re.DOTALL)
RUN = ("slow", "with the blocks above", "slow, with the blocks above")


@dataclass(frozen=True)
class Block:
    """A code block."""

    page: Path
    line: int
    language: str
    """Empty for a block that is only set in."""
    text: str
    not_run: str
    """Why it is not run; empty: it is."""
    run: str
    file: str
    is_printed: bool

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_slow(self) -> bool:
        return "slow" in self.run


def pages() -> list[Path]:
    """Every Markdown file of the project, those not yet committed among them."""
    told = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in sorted(told.stdout.split("\0")) if name]


@cache
def tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def blocks(page: Path) -> list[Block]:
    """The code blocks of a page, in order."""
    found = []
    marks: dict[str, str] = {}
    for token in tokens(page):
        if token.type == "html_block":
            for match in _MARK.finditer(token.content):
                marks[match[1]] = " ".join((match[2] or "").split())
        elif token.type in ("fence", "code_block"):
            assert token.map is not None
            found.append(
                Block(
                    page,
                    token.map[0] + 1,
                    token.info.strip(),
                    token.content,
                    marks.get("not run", ""),
                    marks.get("run", ""),
                    marks.get("file", ""),
                    "prints" in marks,
                )
            )
            marks = {}
        elif token.nesting >= 0:
            assert not marks, f"{page}: a comment for a code block stands before something else"
    return found


def _inline(page: Path) -> Iterator[Token]:
    for token in tokens(page):
        yield from token.children or ()


def code_words(page: Path) -> Iterator[str]:
    """What is set as code within sentences and tables."""
    return (token.content for token in _inline(page) if token.type == "code_inline")


def prose(page: Path) -> str:
    """All text of a page that is not code."""
    return "\n".join(token.content for token in _inline(page) if token.type == "text")


def links(page: Path) -> Iterator[str]:
    """Targets of links and sources of pictures."""
    for token in _inline(page):
        if token.type == "link_open":
            yield str(token.attrs["href"])
        elif token.type == "image":
            yield str(token.attrs["src"])


def anchors(page: Path) -> set[str]:
    """What a link to a heading of this page may name, as GitHub and the site both make it."""
    found: dict[str, int] = {}
    all_tokens = tokens(page)
    for token, heading in pairwise(all_tokens):
        if token.type != "heading_open":
            continue
        text = "".join(
            child.content for child in heading.children or () if child.type != "link_open"
        )
        slug = re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-")
        n = found.get(slug, 0)
        found[slug] = n + 1
        if n:
            found[f"{slug}-{n}"] = 1
    return set(found)
