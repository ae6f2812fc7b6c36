"""What import contracts do not say: no long circles, and no long file without a reason."""

from __future__ import annotations

from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "deepflow"
MOST_LINES = 500


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """Which module imports which, also within functions; imports for types alone are left out."""
    graph = grimp.build_graph("deepflow", exclude_type_checking_imports=True)
    return {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}


def reached(imports: dict[str, set[str]], start: str) -> set[str]:
    """Every module that a module imports, directly or through others."""
    found: set[str] = set()
    to_see = list(imports[start])
    while to_see:
        name = to_see.pop()
        if name not in found:
            found.add(name)
            to_see += imports[name]
    return found


def test_no_circle_of_files_is_longer_than_two(imports: dict[str, set[str]]) -> None:
    all_reached = {name: reached(imports, name) for name in imports}
    for name, others in all_reached.items():
        circle = {other for other in others if name in all_reached[other]}
        assert len(circle - {name}) <= 1, f"{name} is in a circle with {sorted(circle - {name})}"


def test_a_file_of_more_than_500_lines_says_why_at_its_top() -> None:
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        if len(text.splitlines()) > MOST_LINES:
            top = text.split('"""', 2)[1]
            assert "in one file" in top, (
                f"{path.relative_to(ROOT)}: say at its top why it is one file"
            )
