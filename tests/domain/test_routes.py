"""What requests need, by method and path; and which paths are read in one way only."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.domain.kinds import Permission
from server.domain.routes import Ambiguous, Route, Routes, Template, query_names_device, segments_of
from server.domain.validation import is_device_id

API = """
# An API of devices.
GET   /                                 public
GET   /v1/devices                       devices:list
GET   /v1/devices/export                keys:manage     # more specific than the next one
GET   /v1/devices/{device_id}           devices:read
POST  /v1/devices/{device_id}/commands  devices:command
GET   /v1/links/{link_id}               connect_links:create
GET   /docs/{name}                      public
"""
ROUTES = Routes.parse(API)
DEVICE_IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,20}", fullmatch=True).filter(is_device_id)


def needed(method: str, path: str, routes: Routes = ROUTES) -> tuple[Permission | None, str] | None:
    """Return permission and device of a request, None where there is no route."""
    segments = segments_of(path)
    route = routes.find(method, segments)
    return None if route is None else (route.permission, route.device_id(segments))


@pytest.mark.parametrize(
    ("request_line", "expected"),
    [
        ("GET /", (None, "")),
        ("GET /v1/devices", (Permission.DEVICES_LIST, "")),
        ("GET /v1/devices?page=2&x=/../y", (Permission.DEVICES_LIST, "")),
        ("GET /v1/devices/export", (Permission.KEYS_MANAGE, "")),
        ("GET /v1/devices/exports", (Permission.DEVICES_READ, "exports")),
        ("GET /v1/devices/vendor%3A1", (Permission.DEVICES_READ, "vendor:1")),
        ("POST /v1/devices/a/commands", (Permission.DEVICES_COMMAND, "a")),
        ("GET /v1/links/a%20b", (Permission.CONNECT_LINKS_CREATE, "")),
        ("POST /v1/devices/export", None),
        ("get /v1/devices", None),
        ("GET /v1/devices/", None),
        ("GET /v1/devices/a/commands", None),
        ("GET /v1/links/", None),
        ("GET /v1", None),
    ],
)
def test_a_request_needs_what_the_most_specific_route_of_it_says(
    request_line: str, expected: tuple[Permission | None, str] | None
) -> None:
    method, path = request_line.split(" ")
    assert needed(method, path) == expected


@given(DEVICE_IDS.filter(lambda text: text.lower() != "export"), st.booleans())
def test_any_device_id_is_read_from_a_path_as_it_was_written(device_id: str, escaped: bool) -> None:
    written = quote(device_id, safe="" if escaped else ":")

    assert needed("GET", f"/v1/devices/{written}") == (Permission.DEVICES_READ, device_id)


@given(st.text(max_size=20))
def test_what_is_no_device_id_is_never_read_as_one_that_exists(text: str) -> None:
    try:
        found = needed("GET", f"/v1/devices/{quote(text, safe='')}")
    except Ambiguous:
        return
    if found is not None and found[0] is Permission.DEVICES_READ and is_device_id(found[1]):
        assert found[1] == text


# What servers do to paths before they look at them, each of them somewhere.
LENIENT: list[Callable[[str], str]] = [
    unquote,
    lambda path: unquote(unquote(path)),
    str.lower,
    lambda path: posixpath.normpath(path) if not path.endswith("/") else path,
    lambda path: posixpath.normpath(unquote(path)) if not path.endswith("/") else unquote(path),
    lambda path: path.replace("\\", "/"),
    lambda path: re.sub("//+", "/", path),
    lambda path: re.sub(";[^/]*", "", path),
    lambda path: re.sub(";[^/]*", "", unquote(path)),
    lambda path: path.partition("#")[0],
    lambda path: path.partition("\0")[0],
]
PIECES = (
    "/ / / v1 devices Devices export EXPORT %65xport a links docs commands . .. %2e %2F %2f \\ %5C %25 %252f "
    "; %3b ;x=y : %3a %00 \0 é %c3%a9 # ~"
)


@given(st.lists(st.sampled_from(PIECES.split()), max_size=8), st.sampled_from(["", "/v1/devices/", "/docs/"]))
def test_a_path_with_a_route_has_the_same_one_for_every_server(pieces: list[str], before: str) -> None:
    path = before + "".join(pieces)
    try:
        ours = needed("GET", path)
    except Ambiguous:
        return
    if ours is None:
        return
    for lenient in LENIENT:
        theirs = tuple(lenient(path)[1:].split("/")) if path != "/" else ()
        route = ROUTES.find("GET", theirs)
        assert route is not None
        assert route.permission is ours[0]


AMBIGUOUS = (
    "* v1/devices https://api.example/v1 /a//b /a/./b /a/.. /a%2fb /a%5Cb /a\\b /a;b /%61 /%2e%2e/b /a% /a%2 /a%zz "
    "/a%00 /a%3bb /a%23b /a%3fb /é /%c3%a9 /a#b /\u212a /a%7e /V1/devices"
)


@pytest.mark.parametrize("path", ["", "/a b", *AMBIGUOUS.split()])
def test_a_path_that_servers_read_differently_is_ambiguous(path: str) -> None:
    with pytest.raises(Ambiguous):
        needed("GET", path)


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("", False),
        ("?page=2", False),
        ("?devices=1&device=2", False),
        ("?x=device_id", False),
        ("?device_id=x", True),
        ("?a=1&deviceId", True),
        ("?a=1;DEVICE-ID=x", True),
        ("?%64evice%5fid=x", True),
        ("?device_id[]=x", True),
        ("?device+id=x", True),
    ],
)
def test_a_device_in_the_query_is_found_however_it_is_spelt(query: str, names: bool) -> None:
    assert query_names_device(f"/v1/devices/a{query}") is names


def test_everything_that_is_wrong_with_a_file_is_told_at_once() -> None:
    text = """
        get /a public
        GET a public
        GET /a/{device_id} devices:all
        GET /b/{x} devices:read
        GET /c/{device_id} devices:list
        GET /d/{x}/{x} public
        GET /e/ public
        GET /f/../g public
        GET /h%20i public
        GET /j/{x public
        GET /k
        GET /l/{x}/m public
        GET /l/m/{x} public
        GET /l/{y}/m public
        GET /L/x/m public
    """
    with pytest.raises(ValueError, match="line 2") as caught:
        Routes.parse(text)

    faults = dict(fault.split(": ", 1) for fault in str(caught.value).split("; "))
    assert faults.pop("line 4").startswith("the permission must be public or one of devices:list, ")
    assert faults == {
        "line 2": "a method is in capital letters",
        "line 3": "a path begins with /",
        "line 5": "devices:read is about a device: the path must hold {device_id}",
        "line 6": "devices:list is not about a device: the path must not hold {device_id}",
        "line 7": "a placeholder stands twice",
        "line 8": "'' is neither a plain segment of a path nor a {placeholder}",
        "line 9": "'..' is neither a plain segment of a path nor a {placeholder}",
        "line 10": "'h%20i' is neither a plain segment of a path nor a {placeholder}",
        "line 11": "'{x' is neither a plain segment of a path nor a {placeholder}",
        "line 12": "a route is METHOD PATH PERMISSION",
        "line 14": "overlaps line 13, and neither of the two is the more specific one",
        "line 15": "is the same as line 13",
    }


def test_a_file_without_a_route_is_no_file_of_routes() -> None:
    with pytest.raises(ValueError, match="no route"):
        Routes.parse("# nothing\n\n")


def test_a_map_holds_routes_with_paths_only() -> None:
    with pytest.raises(ValueError, match="template"):
        Routes([("GET", Route.of("public", None))])


def test_a_route_without_a_path_is_about_no_device() -> None:
    assert Route.of("devices:list", None).device_id(("a", "b")) == ""
    with pytest.raises(ValueError, match="device_id"):
        Route.of("devices:read", Template.parse("/"))
