"""Scraping, as Prometheus does it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.harness import Service, running_service
from tests.operate.process import wait_until

AUTHORIZE = "/texture.auth.v1.AuthorizeService/Authorize"
# No proxy of the surroundings has anything to do with it.
_ask = build_opener(ProxyHandler({})).open


def scrape(address: str | None) -> str:
    """Return what is there to scrape."""
    with _ask(f"http://{address}/metrics", timeout=10) as response:
        body: bytes = response.read()
    return body.decode()


def refusal(address: str | None, path: str, method: str = "GET") -> tuple[int, str | None, bytes]:
    """Make another request, which must fail, and return its status, what is allowed instead, and its text."""
    with pytest.raises(HTTPError) as caught:
        _ask(Request(f"http://{address}{path}", method=method), timeout=10)
    with caught.value as answer:
        return answer.code, answer.headers["Allow"], answer.read()


def samples(text: str) -> list[Sample]:
    """Return the samples of a scrape."""
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def value(text: str, name: str, **labels: str) -> float | None:
    """Return the sum of the samples of this name with these labels, and any others; None where there is none."""
    found = [
        sample.value
        for sample in samples(text)
        if sample.name == f"texture_auth_{name}" and labels.items() <= sample.labels.items()
    ]
    return sum(found) if found else None


def shows(address: str | None, wanted: float | None, name: str, **labels: str) -> bool:
    """Wait until a scrape shows a value: metrics are written down every second."""
    what = f"{name} {labels} is {wanted}"
    return bool(wait_until(lambda: value(scrape(address), name, **labels) == wanted, what))


def appears(address: str | None, name: str, **labels: str) -> bool:
    """Wait until a scrape shows that something has happened, however often."""
    return bool(wait_until(lambda: value(scrape(address), name, **labels), f"{name} {labels} is there"))


@contextmanager
def measured(folder: Path, **settings: Any) -> Iterator[Service]:
    """Run a server that is scraped."""
    with running_service(folder, metrics_listen="127.0.0.1:0", **settings) as service:
        yield service


def tell_of_a_lease(service: Service) -> None:
    """Tell of what a server on SQLite has none of."""
    service.app._resources.telemetry.lease_left(1.5)
