"""The README's lines in other languages are those of the programs that `make languages` builds and runs."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

import pytest

from tests.operate.readme import blocks

TESTS = Path(__file__).parents[1]
_SHOWN = re.compile(r"^[ \t]*// README: begin\n(.*?)^[ \t]*// README: end$", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(
    ("language", "source"), [("go", "go/ask.go"), ("typescript", "typescript/ask.ts"), ("java", "java/Ask.java")]
)
def test_what_the_readme_shows_is_what_is_compiled(language: str, source: str) -> None:
    (shown,) = blocks("In other languages", language)
    (compiled,) = _SHOWN.findall((TESTS / source).read_text("utf-8"))
    assert shown.strip() == dedent(compiled).strip()
