from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.operate.certificates import Authority, Certificate
from tests.webhooks.receiver import HOST, Receiver, receiving


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that nobody trusts but those who are told to."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def certificate(authority: Authority) -> Certificate:
    """A certificate for the receivers."""
    return authority.issue("receiver", hosts=(HOST,))


@pytest.fixture
def ca(authority: Authority) -> Path:
    return authority.certificate


@pytest.fixture
def receiver(certificate: Certificate) -> Iterator[Receiver]:
    with receiving(certificate) as running:
        yield running
