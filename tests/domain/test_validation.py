from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.domain.errors import ErrorReason, Refusal, Violation
from server.domain.kinds import Environment
from server.domain.token import TokenKind
from server.domain.validation import (
    DESCRIPTION_LENGTH,
    LABEL_FILTERS,
    LONGEST_LINK_LIFETIME,
    LONGEST_SCOPED_KEY_LIFETIME,
    Fields,
    is_device_id,
    is_slug,
    parse_address,
)
from tests.builders import NOW, make_token

SECOND = timedelta(seconds=1)


def faults(check: Callable[[Fields], object]) -> list[str]:
    """Return the fields at which a check finds fault."""
    fields = Fields()
    check(fields)
    return [violation.field for violation in fields.violations]


# --- Collecting ---------------------------------------------------------------------------------------------------


def test_a_request_without_a_fault_is_not_refused() -> None:
    Fields().refuse_if_invalid()


def test_a_request_with_one_fault_is_refused_for_it() -> None:
    fields = Fields()
    fields.fault("a.b", "is wrong")
    with pytest.raises(Refusal, match=r"^a\.b: is wrong$") as refused:
        fields.refuse_if_invalid()
    assert refused.value.reason is ErrorReason.FIELD_INVALID
    assert refused.value.violations == (Violation("a.b", "is wrong"),)


def test_a_caller_hears_of_all_faults_at_once() -> None:
    fields = Fields()
    for name in "abc":
        fields.required(name, "")
    with pytest.raises(Refusal, match=r"^a: is required \(and 2 more\)$") as refused:
        fields.refuse_if_invalid()
    assert refused.value.violations == tuple(Violation(name, "is required") for name in "abc")


# --- Words and names ----------------------------------------------------------------------------------------------


def test_what_is_required_must_be_there_in_any_form() -> None:
    assert faults(lambda fields: fields.required("id", "")) == ["id"]
    assert faults(lambda fields: fields.required("id", "?")) == []
    assert Fields().required("id", "?") == "?"


@pytest.mark.parametrize("value", ["", "a", "a" * 5, "\N{EURO SIGN}" * 5, "a b \xa0", "\N{GRINNING FACE}" * 5])
def test_words_may_hold_anything_that_can_be_seen_and_are_counted_in_characters(value: str) -> None:
    assert faults(lambda fields: fields.text("words", value, maximum=5)) == []
    assert Fields().text("words", value, maximum=5) == value


@pytest.mark.parametrize("character", ["\0", "\t", "\n", "\r", "\x1b", "\x1f", "\x7f", "\x80", "\x9f"])
def test_words_hold_no_control_characters(character: str) -> None:
    assert faults(lambda fields: fields.text("words", f"a{character}b", maximum=5)) == ["words"]


@pytest.mark.parametrize(
    ("check", "minimum", "maximum"),
    [
        pytest.param(lambda fields, value: fields.text("f", value, minimum=2, maximum=4), 2, 4, id="text"),
        pytest.param(lambda fields, value: fields.display_name("f", value), 1, 120, id="display name"),
        pytest.param(lambda fields, value: fields.reason("f", value), 0, 500, id="reason"),
        pytest.param(lambda fields, value: fields.visible("f", value), 1, 128, id="visible"),
        pytest.param(lambda fields, value: fields.visible("f", value, maximum=7), 1, 7, id="visible, shorter"),
        pytest.param(lambda fields, value: fields.client_state("f", value), 0, 1024, id="client state"),
        pytest.param(lambda fields, value: fields.header("f", value), 0, 8192, id="header"),
        pytest.param(lambda fields, value: fields.slug("f", value), 3, 63, id="slug"),
        pytest.param(lambda fields, value: fields.device_id("f", value), 1, 128, id="device id"),
        pytest.param(lambda fields, value: fields.manufacturer("f", value), 0, 64, id="manufacturer"),
    ],
)
def test_a_length_is_accepted_from_its_least_to_its_greatest(
    check: Callable[[Fields, str], object], minimum: int, maximum: int
) -> None:
    for length in (minimum, maximum):
        assert faults(lambda fields, length=length: check(fields, "a" * length)) == []  # type: ignore[misc]
    assert faults(lambda fields: check(fields, "a" * (maximum + 1))) == ["f"]
    if minimum:
        assert faults(lambda fields: check(fields, "a" * (minimum - 1))) == ["f"]


@pytest.mark.parametrize("value", ["grid-one", "abc", "a-1", "a--b"])
def test_a_slug_is_small_letters_digits_and_hyphens(value: str) -> None:
    assert faults(lambda fields: fields.slug("id", value)) == []


@pytest.mark.parametrize("value", ["Grid-one", "1grid", "-grid", "grid-", "grid_one", "grid one", "gr\xfcn", "grid\n"])
def test_anything_else_is_no_slug(value: str) -> None:
    assert faults(lambda fields: fields.slug("id", value)) == ["id"]


@pytest.mark.parametrize("value", ["end-user-1", "!", "~", "texture-generated:1", "a/b?c=d&e"])
def test_an_id_that_others_choose_is_visible_ascii(value: str) -> None:
    assert faults(lambda fields: fields.visible("id", value)) == []


@pytest.mark.parametrize("value", ["a b", " a", "a\n", "a\0", "\x7f", "caf\xe9"])
def test_an_id_that_others_choose_has_nothing_that_cannot_be_seen(value: str) -> None:
    assert faults(lambda fields: fields.visible("id", value)) == ["id"]


def test_a_client_state_may_hold_spaces_and_nothing_beyond_printable_ascii() -> None:
    assert faults(lambda fields: fields.client_state("state", " a ~")) == []
    for value in ("a\n", "\t", "\x7f", "caf\xe9"):
        assert faults(lambda fields, value=value: fields.client_state("state", value)) == ["state"]  # type: ignore[misc]


def test_a_header_may_hold_anything() -> None:
    assert faults(lambda fields: fields.header("user_agent", "\0\n\N{SNOWMAN}")) == []


KEY = make_token(TokenKind.SERVER, "ServerKey0000001")


@pytest.mark.parametrize(
    "check",
    [
        pytest.param(lambda fields, value: fields.text("f", value, maximum=200), id="text"),
        pytest.param(lambda fields, value: fields.display_name("f", value), id="display name"),
        pytest.param(lambda fields, value: fields.reason("f", value), id="reason"),
        pytest.param(lambda fields, value: fields.visible("f", value), id="visible"),
        pytest.param(lambda fields, value: fields.client_state("f", value), id="client state"),
        pytest.param(lambda fields, value: fields.device_id("f", value), id="device id"),
        pytest.param(lambda fields, value: fields.manufacturer("f", value), id="manufacturer"),
        pytest.param(lambda fields, value: fields.slug("f", value), id="slug"),
        pytest.param(lambda fields, value: fields.labels("f", {"a": value}), id="value of a label"),
        pytest.param(lambda fields, value: fields.labels("f", {value: ""}), id="name of a label"),
    ],
)
@pytest.mark.parametrize(
    "value",
    [
        pytest.param(KEY, id="a key"),
        pytest.param(make_token(TokenKind.LINK, "ConnectLink00001"), id="a link's token"),
        pytest.param(f"x{KEY}", id="a key in a word"),
        pytest.param(KEY[:-1], id="a key cut short"),
    ],
)
def test_a_key_is_not_written_down_by_mistake_and_not_quoted_either(
    check: Callable[[Fields, str], object], value: str
) -> None:
    fields = Fields()
    check(fields, value)
    assert len(fields.violations) == 1
    assert value[-20:] not in f"{fields.violations}"


def test_a_key_in_place_of_a_path_is_not_quoted() -> None:
    fields = Fields()
    fields.mask("mask", [KEY], "abc")
    assert fields.violations == [Violation("mask", "'txk_srv_…' cannot be set; the paths are a, b, c")]


@pytest.mark.parametrize(("text", "expected"), [("grid-one", True), ("a-1", True), ("ab", False), ("Grid", False)])
def test_a_slug_is_recognised_without_a_request(text: str, expected: bool) -> None:
    assert is_slug(text) is expected


# --- Devices ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["a", "0", "inverter-1", "A.b_c:d-e"])
def test_a_device_id_is_letters_digits_and_a_few_signs(value: str) -> None:
    assert is_device_id(value)
    assert faults(lambda fields: fields.device_id("id", value)) == []


@pytest.mark.parametrize("value", ["", "-a", ".a", ":a", "a b", "a/b", "a\n", "caf\xe9", "a%20", "\0"])
def test_nothing_else_is_a_device_id(value: str) -> None:
    assert not is_device_id(value)
    assert faults(lambda fields: fields.device_id("id", value)) == ["id"]


def test_a_batch_names_at_least_one_device_and_at_most_a_thousand() -> None:
    assert faults(lambda fields: fields.batch("ids", [])) == ["ids"]
    assert faults(lambda fields: fields.batch("ids", ["a"])) == []
    assert faults(lambda fields: fields.batch("ids", [str(number) for number in range(1000)])) == []
    assert faults(lambda fields: fields.batch("ids", [str(number) for number in range(1001)])) == ["ids"]


def test_a_batch_names_each_device_once() -> None:
    assert faults(lambda fields: fields.batch("ids", ["a", "b", "a", "A", "a"])) == ["ids[2]", "ids[4]"]


@pytest.mark.parametrize("value", ["", "acme", "0", "acme-solar_2"])
def test_a_manufacturer_is_small_letters_or_unknown(value: str) -> None:
    assert faults(lambda fields: fields.manufacturer("maker", value)) == []


@pytest.mark.parametrize("value", ["Acme", "-acme", "_acme", "acme solar", "acme\n", "?"])
def test_anything_else_is_no_manufacturer(value: str) -> None:
    assert faults(lambda fields: fields.manufacturer("maker", value)) == ["maker"]


def test_a_list_of_manufacturers_names_known_ones_only() -> None:
    assert Fields().manufacturers("makers", ["acme", "globex", "acme"]) == frozenset({"acme", "globex"})
    assert faults(lambda fields: fields.manufacturers("makers", ["acme", "", "Globex"])) == ["makers[1]", "makers[2]"]
    assert faults(lambda fields: fields.manufacturers("makers", [])) == []


@pytest.mark.parametrize(
    "name",
    [
        "device-api",
        "device-api.prod.internal",
        "_grpc.internal",
        "a" * 255,
        "spiffe://prod.example/ns/devices/sa/device-api",
        "urn:example:device-api",
    ],
)
def test_a_certificate_name_is_a_dns_name_or_a_uri(name: str) -> None:
    assert Fields().certificate_names("names", [name, name]) == frozenset({name})


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Device-API.internal",
        "*.internal",
        "-a.internal",
        "a-.internal",
        "a..internal",
        "a.internal.",
        "device api",
        "spiffe://prod.example/ä",
        "spiffe:",
        "a" * 256,
        "urn:" + make_token(TokenKind.SERVICE, "CallerKey0000001"),
    ],
)
def test_any_other_certificate_name_is_refused(name: str) -> None:
    assert faults(lambda fields: fields.certificate_names("names", ["good.internal", name])) == ["names[1]"]


def test_a_caller_has_at_most_sixteen_certificate_names() -> None:
    names = [f"name-{number}.internal" for number in range(17)]
    assert faults(lambda fields: fields.certificate_names("names", names[:16])) == []
    assert faults(lambda fields: fields.certificate_names("names", names)) == ["names"]


# --- Counts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "maximum"),
    [
        pytest.param(lambda fields, n: fields.manufacturers("f", [f"m{i}" for i in range(n)]), 64, id="manufacturers"),
        pytest.param(lambda fields, n: fields.networks("f", [f"10.0.{i}.0/24" for i in range(n)]), 64, id="networks"),
        pytest.param(lambda fields, n: fields.labels("f", {f"l{i}": "" for i in range(n)}), 32, id="labels"),
        pytest.param(
            lambda fields, n: fields.labels("f", {f"l{i}": "" for i in range(n)}, maximum=8), 8, id="label filters"
        ),
        pytest.param(
            lambda fields, n: fields.redirect_uris("f", [f"https://a/{i}" for i in range(n)], Environment.PRODUCTION),
            50,
            id="redirect URIs",
        ),
    ],
)
def test_a_list_has_a_greatest_length(check: Callable[[Fields, int], object], maximum: int) -> None:
    assert faults(lambda fields: check(fields, maximum)) == []
    assert faults(lambda fields: check(fields, maximum + 1)) == ["f"]


# --- Addresses and networks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("2001:db8::1", "2001:db8::1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("::FFFF:cb00:7107", "203.0.113.7"),
        ("::1", "::1"),
    ],
)
def test_an_address_is_read_and_a_mapped_one_counts_as_ipv4(text: str, expected: str) -> None:
    assert parse_address(text) == ip_address(expected)
    fields = Fields()
    assert fields.address("client_ip", text) == ip_address(expected)
    assert fields.violations == []


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("203.0.113.7:443", id="a port"),
        pytest.param("[2001:db8::1]", id="brackets"),
        pytest.param("fe80::1%eth0", id="a zone"),
        pytest.param("::ffff:203.0.113.7%1", id="a zone on a mapped address"),
        pytest.param("203.0.113.07", id="a leading zero, which some read as octal"),
        pytest.param("203.0.113", id="three parts"),
        pytest.param("203.0.113.256", id="a part too large"),
        pytest.param("3405803783", id="a number"),
        pytest.param("203.0.113.7/32", id="a network"),
        pytest.param("203.0.113.7, 10.0.0.1", id="a list of proxies"),
        pytest.param(" 203.0.113.7", id="a space"),
        pytest.param("localhost", id="a name"),
        pytest.param("unknown", id="a word"),
    ],
)
def test_what_is_no_plain_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_address(text)
    fields = Fields()
    assert fields.address("client_ip", text) is None
    assert [violation.field for violation in fields.violations] == ["client_ip"]


def test_no_address_is_an_unknown_one() -> None:
    fields = Fields()
    assert fields.address("client_ip", "") is None
    assert fields.violations == []


@given(st.ip_addresses(v=4))
def test_every_ipv4_address_is_the_same_when_mapped(address: object) -> None:
    assert parse_address(f"::ffff:{address}") == parse_address(str(address)) == address


def test_networks_are_read_in_order_and_each_kept_once() -> None:
    texts = ["10.0.0.0/8", "2001:db8::/32", "203.0.113.7/32", "10.0.0.0/8", "2001:DB8:0::/32", "0.0.0.0/0"]
    fields = Fields()
    assert fields.networks("cidrs", texts) == tuple(
        ip_network(text) for text in ("10.0.0.0/8", "2001:db8::/32", "203.0.113.7/32", "0.0.0.0/0")
    )
    assert fields.violations == []


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("10.1.2.3/8", id="host bits"),
        pytest.param("2001:db8::1/32", id="host bits in IPv6"),
        pytest.param("10.0.0.0", id="no length"),
        pytest.param("10.0.0.0/", id="an empty length"),
        pytest.param("10.0.0.0/33", id="a length too great"),
        pytest.param("10.0.0.0/-1", id="a length below zero"),
        pytest.param("10.0.0.0/8/8", id="two lengths"),
        pytest.param("fe80::%eth0/64", id="a zone"),
        pytest.param("10.0.0/8", id="three parts"),
        pytest.param("", id="empty"),
        pytest.param("any/0", id="a word"),
        # These are masks, and the second is one turned round: neither is a network in CIDR form.
        pytest.param("10.0.0.0/255.0.0.0", id="a mask"),
        pytest.param("10.0.0.0/0.255.255.255", id="a mask of host bits"),
        # Clients with such addresses count as IPv4, so such a network would hold nobody.
        pytest.param("::ffff:10.0.0.0/104", id="a network of mapped addresses"),
    ],
)
def test_what_is_no_network_in_cidr_form_is_refused(text: str) -> None:
    assert faults(lambda fields: fields.networks("cidrs", ["10.0.0.0/8", text])) == ["cidrs[1]"]


# --- Labels -------------------------------------------------------------------------------------------------------


def test_labels_are_given_back_as_they_are() -> None:
    labels = {"env": "production", "a.b-c_d": "", "l" * 63: "v" * 128}
    fields = Fields()
    assert fields.labels("labels", labels) == labels
    assert fields.violations == []


@pytest.mark.parametrize("name", ["", "Env", "1st", "_a", "a b", "l" * 64, "a\n", "\xe9"])
def test_the_name_of_a_label_is_small_letters_digits_and_a_few_signs(name: str) -> None:
    assert faults(lambda fields: fields.labels("labels", {name: "value"})) == ["labels"]


def test_the_name_of_a_label_is_no_key_in_small_letters_either() -> None:
    fields = Fields()
    name = f"txk_srv_{'a' * 16}_{'b' * 38}"
    fields.labels("labels", {name: "a\nb"})
    assert [violation.field for violation in fields.violations] == ["labels"]
    assert name not in str(fields.violations)


@pytest.mark.parametrize("value", ["v" * 129, "a\nb"])
def test_the_value_of_a_label_is_short_words(value: str) -> None:
    assert faults(lambda fields: fields.labels("labels", {"good": "value", "env": value})) == ["labels['env']"]


# --- Redirect URIs ------------------------------------------------------------------------------------------------


def test_redirect_uris_are_kept_in_order_and_each_once() -> None:
    fields = Fields()
    uris = fields.redirect_uris("uris", ["https://b/", "https://a/", "https://b/"], Environment.PRODUCTION)
    assert uris == ("https://b/", "https://a/")
    assert fields.violations == []


def test_a_redirect_uri_is_held_against_the_kind_of_workspace() -> None:
    uris = ["https://a/", "http://localhost/", "javascript:/"]
    assert faults(lambda fields: fields.redirect_uris("uris", uris, Environment.SANDBOX)) == ["uris[2]"]
    assert faults(lambda fields: fields.redirect_uris("uris", uris, Environment.PRODUCTION)) == ["uris[1]", "uris[2]"]


def test_the_place_of_a_wrong_redirect_uri_is_its_place_in_the_request() -> None:
    uris = ["https://a/", "https://a/", "javascript:/"]
    assert faults(lambda fields: fields.redirect_uris("uris", uris, Environment.SANDBOX)) == ["uris[2]"]


# --- Times, pages, masks ------------------------------------------------------------------------------------------


def test_an_expiry_lies_in_the_future_or_is_never() -> None:
    assert faults(lambda fields: fields.future("expire_time", None, NOW)) == []
    assert faults(lambda fields: fields.future("expire_time", NOW + SECOND, NOW)) == []
    assert faults(lambda fields: fields.future("expire_time", NOW, NOW)) == ["expire_time"]
    assert faults(lambda fields: fields.future("expire_time", NOW - SECOND, NOW)) == ["expire_time"]
    assert Fields().future("expire_time", NOW + SECOND, NOW) == NOW + SECOND


def test_the_limits_that_callers_pass_in_are_those_of_the_contract() -> None:
    assert DESCRIPTION_LENGTH == 1000
    assert LABEL_FILTERS == 8
    assert timedelta(days=3650) == LONGEST_SCOPED_KEY_LIFETIME
    assert timedelta(days=7) == LONGEST_LINK_LIFETIME


@pytest.mark.parametrize("longest", [timedelta(days=3650), timedelta(days=7)])
def test_a_lifetime_is_from_a_minute_to_the_longest(longest: timedelta) -> None:
    for value in (timedelta(minutes=1), longest):
        assert faults(lambda fields, value=value: fields.lifetime("life", value, longest)) == []  # type: ignore[misc]
    for value in (timedelta(seconds=59), longest + SECOND, timedelta(), -longest):
        assert faults(lambda fields, value=value: fields.lifetime("life", value, longest)) == ["life"]  # type: ignore[misc]
    assert Fields().lifetime("life", longest, longest) == longest


@pytest.mark.parametrize(
    ("value", "size", "wrong"), [(0, 50, []), (1, 1, []), (1000, 1000, []), (1001, 1000, []), (-1, 50, ["size"])]
)
def test_a_page_has_fifty_rows_unless_told_and_a_thousand_at_most(value: int, size: int, wrong: list[str]) -> None:
    assert Fields().page_size("size", value) == size
    assert faults(lambda fields: fields.page_size("size", value)) == wrong


def test_a_mask_names_paths_that_can_be_set() -> None:
    fields = Fields()
    assert fields.mask("mask", ["b", "a", "b"], iter("abc")) == frozenset("ab")
    assert fields.violations == []


def test_a_mask_is_required_and_names_nothing_else() -> None:
    assert faults(lambda fields: fields.mask("mask", [], "abc")) == ["mask"]
    fields = Fields()
    fields.mask("mask", ["a", "d", "*"], "abc")
    assert fields.violations == [
        Violation("mask", "'d' cannot be set; the paths are a, b, c"),
        Violation("mask", "'*' cannot be set; the paths are a, b, c"),
    ]


def test_a_long_path_is_quoted_in_part() -> None:
    fields = Fields()
    fields.mask("mask", ["x" * 101], "abc")
    assert fields.violations == [Violation("mask", f"'{'x' * 100}' cannot be set; the paths are a, b, c")]
