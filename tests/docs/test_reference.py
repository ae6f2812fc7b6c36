"""The reference says what the code says."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest

import deepflow
from deepflow.cli import main
from tests.docs.markdown import ROOT


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["reference"] = module
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_up_to_date(reference: ModuleType) -> None:
    outdated = [path.name for path in reference.outdated()]
    assert not outdated, "run `python docs/reference.py`"


def test_every_public_name_and_every_command_is_in_them(reference: ModuleType) -> None:
    api, commands = reference.PAGES["api.md"](), reference.PAGES["commands.md"]()
    assert [name for name in deepflow.__all__ if f"### {name}\n" not in api] == []
    names = main.list_commands(None)  # type: ignore[arg-type]
    assert [name for name in names if f"## deepflow {name}\n" not in commands] == []


def test_an_outdated_page_is_told(
    reference: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reference, "PAGES", {"settings.md": lambda: "other\n"})
    monkeypatch.setattr(sys, "argv", ["reference.py", "--check"])
    assert reference.main() == 1
    assert "out of date: docs/reference/settings.md" in capsys.readouterr().out
    assert (ROOT / "docs" / "reference" / "settings.md").read_text() != "other\n"
