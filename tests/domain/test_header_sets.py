"""What real clients send, and how it is weighed: captured from the clients, or as their makers document it.

Captured were all headers of each request as they reached a server on the same machine; kept are those that a gateway
passes on. The browsers ran without a screen, and loaded a page that calls its own site and another one in every way
there is. WebKitGTK stands for Safari and for web views on iPhones, whose engine it shares.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from server.domain.exposure import Context, Exposure, assess

SETS: list[dict[str, Any]] = json.loads(Path(__file__).with_name("header_sets.json").read_text())
FIELDS = {
    "User-Agent": "user_agent",
    "Origin": "origin",
    "Sec-Fetch-Site": "sec_fetch_site",
    "Sec-Fetch-Mode": "sec_fetch_mode",
    "Sec-Fetch-Dest": "sec_fetch_dest",
    "Sec-Fetch-User": "sec_fetch_user",
}
BROWSERS = {"Chromium", "Firefox", "WebKitGTK"}


@pytest.mark.parametrize("sent", SETS, ids=lambda one: f"{one['client']} {one['version']}: {one['what']}")
def test_what_a_real_client_sends_is_weighed_as_what_it_is(sent: dict[str, Any]) -> None:
    context = Context(**{FIELDS[name]: value for name, value in sent["headers"].items()})
    assert assess(context) is Exposure[sent["weight"]]


def test_every_weight_and_every_client_that_matters_is_among_them() -> None:
    captured = {one["client"] for one in SETS if one["source"] == "captured"}
    assert captured >= BROWSERS | {"Node", "requests", "httpx", "curl", "Go net/http", "nginx in front of Chromium"}
    assert Counter(one["weight"] for one in SETS).keys() == {weight.name for weight in Exposure}


def test_a_browser_that_may_have_sent_the_key_is_never_passed_over() -> None:
    for sent in SETS:
        if sent["client"] in BROWSERS:
            assert sent["weight"] != "NONE", sent["what"]
