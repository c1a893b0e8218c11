"""The example service answers its customers as it should: what `make example` shows."""

from __future__ import annotations

import pytest

from tests import example


@pytest.mark.usefixtures("unmeasured_processes")
def test_every_line_of_the_example_is_as_it_should_be(capsys: pytest.CaptureFixture[str]) -> None:
    assert example.main() == 0, capsys.readouterr().out
    printed = capsys.readouterr().out
    assert "0 wrong" in printed
    assert "txk_" not in printed
