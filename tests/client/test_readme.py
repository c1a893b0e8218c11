"""What the client's README shows works."""

from __future__ import annotations

import os
import sys

import pytest

from tests.client.readme import blocks, play


@pytest.mark.usefixtures("unmeasured_processes")
def test_every_block_of_the_readme_runs_against_a_server() -> None:
    done = play(sys.executable, with_extras=True, python_path=os.pathsep.join(path for path in sys.path if path))
    assert "go ahead, acme" in done.stdout
    assert "PERMITTED 0" in done.stdout


def test_some_need_an_extra_and_most_do_not() -> None:
    assert 4 < len(blocks(with_extras=False)) < len(blocks(with_extras=True))
