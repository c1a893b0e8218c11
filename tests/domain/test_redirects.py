from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from server.domain.kinds import Environment
from server.domain.redirects import KEY_PARAMETER, MAXIMUM_LENGTH, STATE_PARAMETER, fault, registered, with_scoped_key
from server.domain.token import TokenKind, mint, new_id

API_KEY = "txk_scp_0000000000000000_00000000000000000000000000000000000000"


@pytest.mark.parametrize("environment", Environment)
@pytest.mark.parametrize(
    "uri",
    [
        "https://app.example",
        "https://app.example/",
        "https://app.example/connected",
        "https://app.example:8443/connected",
        "https://app.example:1/",
        "https://app.example:65535/",
        "https://a/",
        "https://a-b.c-d.example/",
        "https://xn--bcher-kva.example/",
        "https://192.0.2.1/",
        "https://[2001:db8::1]/",
        "https://[2001:db8::1]:8443/connected",
        "https://app.example/a%20b/%E2%82%AC",
        "https://app.example/a.b/..c/...",
        "https://app.example/@me",
        "https://app.example/a;b=c,d!$&'()*+[]~",
        "https://app.example/?",
        "https://app.example?a=b",
        "https://app.example/?a=b&c",
        "https://app.example/?next=https://app.example/a?b",
        "https://app.example/?next=/../up",
        "https://app.example/?texture=1&my_client_state=2&client_states=3",
        "https://app.example/?a=texture_scoped_key",
        "com.example.app:/done",
        "com.example.app:/done?a=b",
        "com.example.app://done",
        "com.example.app://done/there",
        "com.example.app:///done",
        "my-app+2.x://done",
        "https://" + "a" * (MAXIMUM_LENGTH - len("https://")),
    ],
)
def test_an_unambiguous_https_uri_or_deep_link_may_be_registered(uri: str, environment: Environment) -> None:
    assert fault(uri, environment) is None


@pytest.mark.parametrize(
    "uri",
    [
        "http://localhost",
        "http://localhost/connected",
        "http://localhost:3000/connected?a=b",
        "http://127.0.0.1:3000/",
        "http://[::1]/",
        "http://[::1]:3000/",
    ],
)
def test_http_to_loopback_is_for_sandbox_workspaces_only(uri: str) -> None:
    assert fault(uri, Environment.SANDBOX) is None
    assert fault(uri, Environment.PRODUCTION) == "http is accepted in SANDBOX workspaces only; use https"


REFUSED = [
    ("must have 1 to 2048 characters", "empty", ""),
    ("must have 1 to 2048 characters", "one character too many", "https://" + "a" * (MAXIMUM_LENGTH - 7)),
    ("must have no fragment", "a fragment", "https://app.example/#there"),
    ("must have no fragment", "an empty fragment", "https://app.example/#"),
    ("has a character", "a space", "https://app.example/a b"),
    ("has a character", "a space before", " https://app.example/"),
    ("has a character", "a newline after", "https://app.example/\n"),
    ("has a character", "a tab that browsers drop", "https://app.ex\tample/"),
    ("has a character", "a newline that browsers drop", "java\nscript:/"),
    ("has a character", "a zero byte", "https://app.example/\0"),
    ("has a character", "a backslash, which browsers take for a slash", "https:\\\\evil.example/"),
    ("has a character", "a backslash before the host ends", "https://app.example\\@evil.example/"),
    ("has a character", "an angle bracket", "https://app.example/<script>"),
    ("has a character", "a quotation mark", 'https://app.example/"'),
    ("has a character", "a brace", "https://{tenant}.example/"),
    ("has a character", "a pipe", "https://app.example/|"),
    ("has a character", "a caret", "https://app.example/^"),
    ("has a character", "a backquote", "https://app.example/`"),
    ("has a character", "a letter of another script", "https://b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.example/"),
    ("has a character", "a slash of another script", "https://app.example\N{FULLWIDTH SOLIDUS}evil"),
    ("has a character", "a percent sign alone", "https://app.example/100%"),
    ("has a character", "a percent sign and one digit", "https://app.example/%2"),
    ("has a character", "a percent sign and a word", "https://app.example/%zz"),
    ("must be absolute", "a path", "/connected"),
    ("must be absolute", "no scheme", "//app.example/"),
    ("must be absolute", "a host alone", "app.example"),
    ("must be absolute", "no scheme before the colon", "://app.example/"),
    ("must be absolute", "a scheme in capitals", "HTTPS://app.example/"),
    ("must be absolute", "a scheme that begins with a digit", "2app://done"),
    ("must be absolute", "a scheme with an underscore", "my_app://done"),
    ("must have a slash", "a deep link without a slash", "com.example.app:done"),
    ("must be https", "a host that looks like a scheme", "localhost:3000/connected"),
    ("must have a slash", "https without a slash", "https:app.example"),
    ("must have a slash", "a scheme alone", "com.example.app:"),
    ("must have no user info", "a user", "https://user@app.example/"),
    ("must have no user info", "a user and a password", "https://user:password@app.example/"),
    ("must have no user info", "an empty user", "https://@app.example/"),
    ("must have no user info", "a host that is a user", "https://app.example&a@evil.example/"),
    ("must have no user info", "a user in a deep link", "com.example.app://user@done"),
    ("is not a URI", "a bracket that is not closed", "https://[::1/"),
    ("is not a URI", "a bracket that was not opened", "https://::1]/"),
    ("is not a URI", "brackets round a name", "https://[app.example]/"),
    ("is not a URI", "brackets round nothing of the kind", "https://[:::]/"),
    ("must have a host", "no host", "https:///connected"),
    ("must have a host", "no host and one slash", "https:/app.example/"),
    ("must have a host", "a port and no host", "https://:8443/"),
    ("must have a host", "a host in capitals", "https://App.example/"),
    ("must have a host", "a deep link with a host in capitals", "com.example.app://Done"),
    ("must have a host", "a dot after the host", "https://app.example./"),
    ("must have a host", "a dot before the host", "https://.app.example/"),
    ("must have a host", "two dots", "https://app..example/"),
    ("must have a host", "a hyphen before the host", "https://-app.example/"),
    ("must have a host", "a wildcard", "https://*.app.example/"),
    ("must have a host", "an underscore", "https://my_app.example/"),
    ("must have a host", "an encoded host", "https://app%2eexample/"),
    ("must have a host", "an encoded at sign", "https://app.example%40evil.example/"),
    ("must have a host", "a zone", "https://[fe80::1%25eth0]/"),
    ("must have a host", "an address in a form to come", "https://[v1.a]/"),
    ("must have a host", "a colon and no port", "https://app.example:/"),
    ("must have a host", "port 0", "https://app.example:0/"),
    ("must have a host", "port 65536", "https://app.example:65536/"),
    ("must have a host", "a port of six digits", "https://app.example:008443/"),
    ("must have a host", "a port that is no number", "https://app.example:port/"),
    ("must have a host", "two ports", "https://app.example:80:81/"),
    ("http is accepted to", "http to another host", "http://app.example/"),
    ("http is accepted to", "http to a host below localhost", "http://app.localhost/"),
    ("http is accepted to", "http to a host that begins as loopback", "http://127.0.0.1.evil.example/"),
    ("must have a host", "http to another spelling of loopback", "http://127.1/"),
    ("must have a host", "http to loopback as a number", "http://2130706433/"),
    ("http is accepted to", "http to another address of loopback", "http://127.0.0.2/"),
    ("http is accepted to", "http to a long spelling of loopback", "http://[0:0:0:0:0:0:0:1]/"),
    ("http is accepted to", "http to mapped loopback", "http://[::ffff:127.0.0.1]/"),
    ("http is accepted to", "http to every address", "http://0.0.0.0/"),
    ("must have no dot segments", "a step up", "https://app.example/a/../b"),
    ("must have no dot segments", "a step up at the end", "https://app.example/a/.."),
    ("must have no dot segments", "a step on the spot", "https://app.example/./a"),
    ("must have no dot segments", "a step up in a deep link", "com.example.app:/a/../b"),
    ("must have no encoded dots", "an encoded dot", "https://app.example/%2e%2e/a"),
    ("must have no encoded dots", "an encoded dot in capitals", "https://app.example/.%2E/a"),
    ("must have no encoded dots", "an encoded slash", "https://app.example/a%2Fb"),
    ("must have no encoded dots", "an encoded backslash", "https://app.example/a%5cb"),
    ("must have no encoded dots", "an encoded slash in a deep link", "com.example.app:/a%2fb"),
    ("must not hold texture_scoped_key", "our key parameter", "https://app.example/?texture_scoped_key=x"),
    (
        "must not hold texture_scoped_key",
        "our key parameter without a value",
        "https://app.example/?texture_scoped_key",
    ),
    ("must not hold texture_scoped_key", "our state parameter", "https://app.example/?a=b&client_state=x"),
    ("must not hold texture_scoped_key", "our parameter, encoded", "https://app.example/?%63lient_state=x"),
    ("must not hold texture_scoped_key", "our parameter, encoded whole", "https://app.example/?client%5Fstate=x"),
    ("must not hold texture_scoped_key", "our parameter after a semicolon", "https://app.example/?a;client_state=x"),
    ("must not hold texture_scoped_key", "our parameter in a deep link", "com.example.app:/?client_state=x"),
    # Some frameworks read parameters without regard to case, and would find two of ours.
    ("must not hold texture_scoped_key", "our parameter in capitals", "https://app.example/?Texture_Scoped_Key=x"),
]


@pytest.mark.parametrize(
    ("complaint", "uri"), [pytest.param(complaint, uri, id=name) for complaint, name, uri in REFUSED]
)
def test_a_uri_that_some_program_might_take_for_another_is_refused(complaint: str, uri: str) -> None:
    found = fault(uri, Environment.SANDBOX)
    assert found is not None
    assert found.startswith(complaint)


@pytest.mark.parametrize(
    "scheme",
    [
        "javascript",
        "data",
        "vbscript",
        "file",
        "blob",
        "about",
        "ftp",
        "intent",
        "mailto",
        "tel",
        "ws",
        "wss",
        "view-source",
        "content",
        # A single letter is a drive on Windows.
        "c",
        "smb",
        "mhtml",
        "ms-msdt",
        "search-ms",
        "ssh",
        # Any app can claim a plain word, and would be sent the scoped key.
        "acme",
    ],
)
def test_a_scheme_that_is_no_domain_name_reversed_is_refused(scheme: str) -> None:
    for rest in ("alert(1)", "/alert(1)", "//host/alert(1)", "///alert(1)"):
        found = fault(f"{scheme}:{rest}", Environment.SANDBOX)
        assert found is not None
        assert found.startswith(("must be https, or have a scheme of the app's own", "has a character"))


GOOD = ["https://app.example/connected?a=b", "http://[::1]:3000/a%20b", "com.example.app://done/there?x"]


@given(st.sampled_from(GOOD), st.integers(0, 40), st.text(max_size=3), st.integers(0, 3))
def test_whatever_is_accepted_is_plain_and_has_one_reading(uri: str, place: int, added: str, removed: int) -> None:
    changed = uri[:place] + added + uri[place + removed :]
    assume(fault(changed, Environment.SANDBOX) is None)
    parts = urlsplit(changed)
    assert changed.isascii()
    assert changed.isprintable()
    assert not set(changed) & set(' \\#<>"{}|^`')
    assert parts.scheme == changed.partition(":")[0] == parts.scheme.lower()
    assert parts.username is parts.password is None
    assert parts.netloc == parts.netloc.lower()
    assert parts.hostname or parts.scheme not in ("http", "https")
    assert parts.scheme != "http" or parts.hostname in ("localhost", "127.0.0.1", "::1")
    assert not {KEY_PARAMETER, STATE_PARAMETER} & {name for name, _ in parse_qsl(parts.query, keep_blank_values=True)}


@given(st.sampled_from(GOOD), st.integers(0, 40), st.text(max_size=2), st.integers(0, 2))
def test_a_uri_is_registered_letter_for_letter_or_not_at_all(uri: str, place: int, added: str, removed: int) -> None:
    changed = uri[:place] + added + uri[place + removed :]
    assert registered(changed, (uri,)) is (changed == uri)


def test_a_uri_may_be_any_of_those_registered() -> None:
    assert all(registered(uri, tuple(GOOD)) for uri in GOOD)
    assert not registered(GOOD[0], ())


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        pytest.param("https://a.example", f"https://a.example?{KEY_PARAMETER}={API_KEY}", id="no query"),
        pytest.param("https://a.example/b", f"https://a.example/b?{KEY_PARAMETER}={API_KEY}", id="a path"),
        pytest.param("https://a.example/?", f"https://a.example/?{KEY_PARAMETER}={API_KEY}", id="an empty query"),
        pytest.param("https://a.example/?b=c", f"https://a.example/?b=c&{KEY_PARAMETER}={API_KEY}", id="a query"),
        pytest.param(
            "https://a.example/?b=c&", f"https://a.example/?b=c&{KEY_PARAMETER}={API_KEY}", id="a query left open"
        ),
        pytest.param(
            "https://a.example/?b=c?", f"https://a.example/?b=c?&{KEY_PARAMETER}={API_KEY}", id="a value that asks"
        ),
        pytest.param("com.example.app:/b", f"com.example.app:/b?{KEY_PARAMETER}={API_KEY}", id="a deep link"),
    ],
)
def test_the_scoped_key_is_added_to_the_query(uri: str, expected: str) -> None:
    assert with_scoped_key(uri, API_KEY, "") == expected


def test_the_clients_state_is_added_after_the_key() -> None:
    added = with_scoped_key("https://a.example/?b=c", API_KEY, "s&t=u#v%w x+y")
    assert added == f"https://a.example/?b=c&{KEY_PARAMETER}={API_KEY}&{STATE_PARAMETER}=s%26t%3Du%23v%25w%20x%2By"


queries = st.text("ab=&?;%2+/:@[]", max_size=12)
states = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=40)


@given(st.sampled_from(["https://a.example", "https://a.example/b", "com.example.app:/b"]), queries, states)
@example("https://a.example", "next=b?", "")
@example("https://a.example", "?", "")
def test_the_existing_query_is_kept_letter_for_letter_and_ours_can_be_read(base: str, query: str, state: str) -> None:
    uri = f"{base}?{query}" if query else base
    assume(fault(uri, Environment.PRODUCTION) is None)
    result = with_scoped_key(uri, API_KEY, state)
    ours = [(KEY_PARAMETER, API_KEY)] + ([(STATE_PARAMETER, state)] if state else [])
    assert result.startswith(uri)
    assert parse_qsl(urlsplit(result).query, keep_blank_values=True) == [
        *parse_qsl(query, keep_blank_values=True),
        *ours,
    ]


@pytest.mark.parametrize("kind", [TokenKind.SERVER, TokenKind.LINK])
@pytest.mark.parametrize("written", ["https://app.example/{}", "https://app.example/?next={}"])
def test_a_uri_that_holds_a_key_or_a_link_token_is_refused(kind: TokenKind, written: str) -> None:
    token = mint(kind, new_id()).text
    for text in (token, token.replace("_", "%5F")):
        assert fault(written.format(text), Environment.SANDBOX) == "holds a key or a link token"
