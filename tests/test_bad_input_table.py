"""The table of bad input names tests that exist, for every row."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "tests" / "bad_input.md"
_TEST = re.compile(r"`(tests/[\w/]+\.py)::([\w:]+)`")


def rows(table: str) -> dict[str, str]:
    """Return the cell of tests of every row, by its input; headings and rules are no rows."""
    found: dict[str, str] = {}
    for line in table.splitlines():
        if not line.startswith("|") or line.startswith(("| input |", "|---")):
            continue
        given, _, tests = (cell.strip() for cell in line.strip("|").split(" | "))
        assert given not in found, f"{given!r} stands there twice"
        found[given] = tests
    return found


@cache
def names_in(path: Path) -> frozenset[str]:
    """Return the names of the tests of a file, those of a class after its name. It need not be imported for that."""
    if not path.exists():
        return frozenset()
    found: set[str] = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return frozenset(name for name in found if name.rpartition("::")[2].startswith("test_"))


def missing(tests: str) -> list[str]:
    """Return the tests that a cell names and that do not exist; a cell that names none lacks one."""
    named = _TEST.findall(tests)
    if not named or _TEST.sub("", tests).strip():
        return [f"a test, in {tests!r}"]
    return [f"{path}::{name}" for path, name in named if name not in names_in(ROOT / path)]


ROWS = rows(TABLE.read_text("utf-8"))


@pytest.mark.parametrize("given", ROWS)
def test_a_row_names_tests_that_exist(given: str) -> None:
    assert missing(ROWS[given]) == []


def test_there_are_rows() -> None:
    assert len(ROWS) > 40


@pytest.mark.parametrize(
    "tests",
    [
        "",
        "by hand",
        "`tests/test_bad_input_table.py`",
        "`tests/test_bad_input_table.py::test_nothing`",
        "`tests/test_bad_input_table.py::rows`",
        "`tests/nowhere.py::test_there_are_rows`",
        "`tests/test_bad_input_table.py::test_there_are_rows` and others",
    ],
)
def test_a_row_without_a_test_that_exists_is_found(tests: str) -> None:
    assert missing(tests)
