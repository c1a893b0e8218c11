from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.domain.exposure import Context, Exposure, assess

CHROME = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/138.0.0.0 Safari/537.36"
)
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
SAFARI = (
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/15.6 Safari/605.1.15"
)
IPHONE_APP = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 15_8 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148"
)
ANDROID_APP = (
    "Mozilla/5.0 (Linux; Android 14; Pixel 8 Build/AP2A; wv) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Version/4.0 Chrome/138.0.0.0 Mobile Safari/537.36"
)


@pytest.mark.parametrize(
    "context",
    [
        pytest.param(
            Context(
                user_agent=CHROME,
                origin="https://shop.example",
                sec_fetch_site="cross-site",
                sec_fetch_mode="cors",
                sec_fetch_dest="empty",
            ),
            id="Chromium fetches across origins",
        ),
        pytest.param(Context(sec_fetch_site="cross-site"), id="Sec-Fetch-Site and nothing else"),
        pytest.param(
            Context(user_agent="curl/8.9.1", sec_fetch_site="cross-site"), id="Sec-Fetch-Site with a script's agent"
        ),
        pytest.param(
            Context(user_agent=SAFARI, origin="https://shop.example"), id="Safari from before it sent Sec-Fetch"
        ),
        pytest.param(Context(user_agent=CHROME, origin="null"), id="a page in a sandboxed frame, over plain http"),
        pytest.param(
            Context(user_agent=IPHONE_APP, origin="capacitor://localhost"), id="a web view in an app on an old iPhone"
        ),
        pytest.param(Context(user_agent=IPHONE_APP, origin="file://"), id="a web view that shows a file"),
        pytest.param(
            Context(
                user_agent=ANDROID_APP,
                origin="https://localhost",
                sec_fetch_site="cross-site",
                sec_fetch_mode="cors",
                sec_fetch_dest="empty",
            ),
            id="a web view in an app on Android",
        ),
        pytest.param(
            Context(user_agent="ShopApp/3.1", origin="https://shop.example", sec_fetch_dest="empty"),
            id="an app that hides its agent, behind a gateway that drops Sec-Fetch-Site",
        ),
        pytest.param(
            Context(origin="https://shop.example", sec_fetch_user="?1"), id="Origin with a navigation by a person"
        ),
    ],
)
def test_a_browser_or_a_web_view_is_certain(context: Context) -> None:
    assert assess(context) is Exposure.CERTAIN


@pytest.mark.parametrize(
    "context",
    [
        pytest.param(
            Context(user_agent=CHROME, sec_fetch_site="same-origin", sec_fetch_mode="cors", sec_fetch_dest="empty"),
            id="Chromium gets from its own origin and sends no Origin",
        ),
        pytest.param(
            Context(
                user_agent=FIREFOX,
                origin="https://app.shop.example",
                sec_fetch_site="same-site",
                sec_fetch_mode="cors",
                sec_fetch_dest="empty",
            ),
            id="Firefox fetches from a sister domain",
        ),
        pytest.param(
            Context(
                user_agent=CHROME,
                sec_fetch_site="none",
                sec_fetch_mode="navigate",
                sec_fetch_dest="document",
                sec_fetch_user="?1",
            ),
            id="a person types the address",
        ),
        pytest.param(
            Context(
                user_agent=CHROME,
                sec_fetch_site="cross-site",
                sec_fetch_mode="no-cors",
                sec_fetch_dest="image",
            ),
            id="a page embeds an image",
        ),
        pytest.param(
            Context(
                user_agent=FIREFOX, origin="https://a.example", sec_fetch_site="cross-site", sec_fetch_mode="websocket"
            ),
            id="a page opens a WebSocket",
        ),
        pytest.param(
            Context(
                user_agent=CHROME,
                origin="https://a.example",
                sec_fetch_site="cross-site",
                sec_fetch_mode="navigate",
                sec_fetch_dest="document",
            ),
            id="a form on another page, or a server that passes on what it was asked with",
        ),
        pytest.param(Context(sec_fetch_site="Same-Origin"), id="in another case"),
        pytest.param(Context(sec_fetch_site="same-origin, same-site"), id="two proxies in a row"),
    ],
)
def test_where_a_proxy_must_have_added_the_key_it_is_denied_and_not_taken_for_a_leak(context: Context) -> None:
    assert assess(context) is Exposure.UNCLEAR


@pytest.mark.parametrize(
    "context",
    [
        pytest.param(Context(), id="nothing is known"),
        pytest.param(Context(client_ip=ip_address("203.0.113.7")), id="only an address is known"),
        pytest.param(Context(user_agent="node", sec_fetch_mode="cors"), id="Node's own fetch"),
        pytest.param(Context(sec_fetch_mode="cors"), id="Sec-Fetch-Mode alone"),
        pytest.param(Context(sec_fetch_dest="empty"), id="Sec-Fetch-Dest alone"),
        pytest.param(Context(sec_fetch_user="?1"), id="Sec-Fetch-User alone"),
        pytest.param(Context(user_agent="python-requests/2.32.4"), id="requests"),
        pytest.param(Context(user_agent="python-httpx/0.28.1"), id="httpx"),
        pytest.param(Context(user_agent="curl/8.9.1"), id="curl"),
        pytest.param(Context(user_agent="Go-http-client/2.0"), id="Go"),
        pytest.param(Context(user_agent="okhttp/4.12.0"), id="okhttp"),
        pytest.param(Context(user_agent="Java-http-client/21.0.4"), id="Java"),
        pytest.param(Context(user_agent="axios/1.11.0"), id="axios"),
        pytest.param(Context(user_agent="PostmanRuntime/7.44.1"), id="Postman"),
        pytest.param(
            Context(user_agent="Mozilla/5.0 (Windows NT; Windows NT 10.0; en-US) WindowsPowerShell/5.1.19041.1"),
            id="PowerShell, which calls itself Mozilla",
        ),
        pytest.param(Context(user_agent="Mozilla/5.0"), id="a library that calls itself Mozilla"),
        pytest.param(Context(origin="https://shop.example"), id="a backend that sets Origin only"),
        pytest.param(
            Context(origin="https://shop.example", user_agent="python-requests/2.32.4"),
            id="requests in a backend that sets Origin",
        ),
        pytest.param(
            Context(origin="https://shop.example", user_agent="Go-http-client/2.0", sec_fetch_mode="anything"),
            id="Sec-Fetch-Mode with a value that no browser sends",
        ),
        pytest.param(
            Context(origin="https://shop.example", sec_fetch_user="?0"), id="Sec-Fetch-User with another value"
        ),
        pytest.param(Context(sec_fetch_site="everywhere"), id="Sec-Fetch-Site with a value that no browser sends"),
        # Node's fetch adds Sec-Fetch-Mode to whatever a backend sends, so beside Origin it proves as little as alone.
        pytest.param(
            Context(user_agent="node", origin="https://shop.example", sec_fetch_mode="cors"),
            id="Node's own fetch in a backend that sets Origin",
        ),
    ],
)
def test_a_backend_is_no_browser(context: Context) -> None:
    assert assess(context) is Exposure.NONE


@pytest.mark.parametrize("agent", [CHROME, FIREFOX, SAFARI, IPHONE_APP, ANDROID_APP])
def test_a_browsers_agent_alone_is_suspected_since_anybody_can_send_it(agent: str) -> None:
    assert assess(Context(user_agent=agent)) is Exposure.SUSPECTED
    assert assess(Context(user_agent=agent, sec_fetch_mode="cors")) is Exposure.SUSPECTED


@pytest.mark.parametrize("mode", ["", "cors", "same-origin", "anything"])
@pytest.mark.parametrize("site", ["cross-site", "none", "Cross-Site", "cross-site, same-origin", "same-site , none"])
@pytest.mark.parametrize("agent", ["", "node", CHROME])
@pytest.mark.parametrize("origin", ["", "https://shop.example"])
def test_sec_fetch_site_of_another_site_is_proof_whatever_else_is_sent(
    site: str, mode: str, agent: str, origin: str
) -> None:
    context = Context(sec_fetch_site=site, sec_fetch_mode=mode, user_agent=agent, origin=origin)
    assert assess(context) is Exposure.CERTAIN


headers = st.text(max_size=20)
contexts = st.builds(
    Context,
    user_agent=headers | st.sampled_from([CHROME, FIREFOX, "node", "curl/8.9.1"]),
    origin=headers | st.just("https://shop.example"),
    sec_fetch_mode=headers | st.just("cors"),
    sec_fetch_dest=headers | st.just("empty"),
    sec_fetch_user=headers | st.just("?1"),
)


@given(contexts, headers | st.sampled_from(["", "cors", "navigate", "no-cors", "websocket"]))
def test_sec_fetch_mode_is_no_sign_at_all(context: Context, mode: str) -> None:
    assert assess(replace(context, sec_fetch_mode=mode)) is assess(context)


@given(contexts, st.sampled_from(["cross-site", "same-origin", "same-site", "none"]))
def test_each_value_of_sec_fetch_site_is_denied_whatever_else_is_sent(context: Context, site: str) -> None:
    assert assess(replace(context, sec_fetch_site=site)) >= Exposure.UNCLEAR


@given(contexts, headers)
def test_what_is_no_value_of_sec_fetch_site_is_no_sign(context: Context, noise: str) -> None:
    assert assess(replace(context, sec_fetch_site=f"x{noise.replace(',', '')}")) is assess(context)


@given(contexts, st.sampled_from(["user_agent", "origin"]))
def test_without_sec_fetch_site_no_single_header_is_enough_to_be_certain(context: Context, name: str) -> None:
    alone = Context(**{name: getattr(context, name)})
    assert assess(alone) is not Exposure.CERTAIN


@given(contexts)
def test_without_sec_fetch_site_and_origin_nothing_is_certain(context: Context) -> None:
    assert assess(replace(context, origin="")) is not Exposure.CERTAIN


def test_an_agent_of_the_greatest_length_is_weighed_at_once() -> None:
    assert assess(Context(user_agent="Mozilla/5.0 (" + "AppleWebKit Gecko " * 450)) is Exposure.NONE


def test_degrees_of_exposure_can_be_compared() -> None:
    assert Exposure.NONE < Exposure.SUSPECTED < Exposure.UNCLEAR < Exposure.CERTAIN
