"""What one script stores, another reads as it was stored, whatever the other defines itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_DEFINED = """
import dataclasses, enum, functools
FACTOR = {factor}

def price(x=1): return FACTOR * x

def outer(x): return price(x) + 1

def closed():
    by = FACTOR
    def inner(x): return by * x
    return inner

class Tariff:
    factor = FACTOR
    def of(self, x): return self.factor * x
    @classmethod
    def on(cls, x): return cls.factor * x
    @staticmethod
    def plain(x): return FACTOR * x

class Special(Tariff):
    def of(self, x): return super().of(x)

@dataclasses.dataclass
class Point:
    x: int = 1
    def scaled(self): return FACTOR * self.x

class Kind(enum.Enum):
    ONE = FACTOR
    def value_of(self): return self.value

class Refused(Exception):
    code = FACTOR

def counted(n):
    @functools.wraps(price)
    def wrapper(x): return price(x)
    return wrapper
"""

STORED = {
    "a function": ("price", "v(2)", 84),
    "in a dict": ("{'f': [price]}", "v['f'][0](1)", 42),
    "one that calls another": ("outer", "v(1)", 43),
    "a lambda": ("lambda x: price(x)", "v(1)", 42),
    "a partial": ("functools.partial(price, 3)", "v()", 126),
    "a closure": ("closed()", "v(1)", 42),
    "a wrapper": ("counted(1)", "v(1)", 42),
    "a class": ("Tariff", "v().of(1)", 42),
    "an object": ("Tariff()", "v.of(1)", 42),
    "an object of a subclass": ("Special()", "v.of(1)", 42),
    "a class method": ("Tariff.on", "v(1)", 42),
    "a static method": ("Tariff.plain", "v(1)", 42),
    "a bound method": ("Tariff().of", "v(1)", 42),
    "a dataclass": ("[Point(2)]", "v[0].scaled()", 84),
    "an enum": ("Kind.ONE", "v.value_of()", 42),
    "an error": ("Refused('no')", "v.code", 42),
    "in an array": ("__import__('numpy').array([price, None], dtype=object)", "v[0](1)", 42),
    "in a frame": ("__import__('pandas').DataFrame({'f': [price] * 3})", "v['f'][0](1)", 42),
}
"""What is stored, what a reader asks of it, and the answer."""

_WRITE = """
import sys
from pathlib import Path
from deepflow.intermediates import stored
for number, text in enumerate({texts!r}):
    Path(str(number)).write_bytes(bytes(stored.pack(eval(text))))
"""
_READ = """
import sys
from pathlib import Path
from deepflow.intermediates import stored
for number, text in enumerate({texts!r}):
    try:
        v = stored.unpack(Path(str(number)).read_bytes())
        print(eval(text))
    except Exception as exc:
        print(repr(exc))
"""


def _run(text: str, folder: Path) -> str:
    script = folder / "script.py"
    script.write_text(text)
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=folder,
        env={"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("reader", ["another version", "nothing"])
def test_another_script_reads_what_was_stored(reader: str, tmp_path: Path) -> None:
    wrote = [text for text, _, _ in STORED.values()]
    asked = [text for _, text, _ in STORED.values()]
    _run(_DEFINED.format(factor=42) + _WRITE.format(texts=wrote), tmp_path)
    mine = _DEFINED.format(factor=-1) if reader == "another version" else ""
    said = _run(mine + _READ.format(texts=asked), tmp_path).splitlines()
    found = dict(zip(STORED, said, strict=True))
    assert found == {name: str(answer) for name, (_, _, answer) in STORED.items()}
