"""Where webhooks may go, and when a failed one is tried again."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from ipaddress import IPv4Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.domain.model import WebhookDeliveryState, WebhookEndpoint, WebhookSecret
from server.domain.webhooks import (
    EVENT_TYPES,
    GIVE_UP_AFTER,
    LEAST_PAUSE,
    LONGEST_RETRY,
    LONGEST_RETRY_AFTER,
    MAXIMUM_SECRETS,
    failed,
    is_public,
    longest_pause,
    new_delivery,
    rotate_secrets,
    succeeded,
    url_fault,
)
from tests.builders import NOW

HOUR = timedelta(hours=1)
PRIVATE = [
    *("127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "192.0.2.1"),
    *("198.18.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "192.0.0.1"),
    *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "ff02::1", "fec0::1", "2001:db8::1", "::127.0.0.1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b:1::1", "2002:7f00:1::"),
    *("2002:a00:1::", "2001:0:4136:e378:8000:63bf:80ff:fffe", "100::1", "fe80::"),
    *("", "localhost", "127.1", "0x7f000001", "2130706433", "1.2.3.4:443"),
]
PUBLIC = ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "2a00:1450::1", "::ffff:1.1.1.1", "64:ff9b::101:101"]


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_of_the_internet_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(address)


@given(st.ip_addresses(v=4))
def test_an_address_that_stands_for_another_is_no_better_than_that(address: IPv4Address) -> None:
    mapped, translated = (ip_address(int(ip_address(prefix)) | int(address)) for prefix in ("::ffff:0:0", "64:ff9b::"))
    assert is_public(str(mapped)) == is_public(str(translated)) == is_public(str(address))
    sixth = ip_address(int(ip_address("2002::")) | int(address) << 80)
    assert not is_public(str(sixth))


@given(
    st.sampled_from(["10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "192.168.0.0/16", "fc00::/7", "fe80::/10"]),
    st.data(),
)
def test_no_address_of_a_private_network_is_public(network: str, data: st.DataObject) -> None:
    assert not is_public(str(data.draw(st.ip_addresses(network=ip_network(network)))))


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example",
        "https://hooks.example/",
        "https://hooks.example:443/a/b?c=d&e=%20",
        "https://a-b.c_d.example:8443/",
        "https://1.1.1.1/",
        "https://[2606:4700::1111]:8443/x",
        "https://xn--bcher-kva.example/",
        "https://hooks.example:65535/",
        "https://inside/exempted",
        "https://127.0.0.9:9000/exempted",
    ],
)
def test_a_url_that_may_be_posted_to(url: str) -> None:
    assert url_fault(url, {"inside", "127.0.0.9"}) is None


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hooks.example",
        "http://hooks.example/",
        "HTTPS://hooks.example/",
        "https:///x",
        "https://",
        "https://user@hooks.example/",
        "https://user:word@hooks.example/",
        "https://hooks.example/#part",
        "https://hooks.example/a b",
        "https://hooks.example/\r\nHost: other",
        "https://hooks.example\\@other.example/",
        "https://Hooks.example/",
        "https://bücher.example/",
        "https://hooks.example:80/",
        "https://hooks.example:22/",
        "https://hooks.example:0/",
        "https://hooks.example:65536/",
        "https://hooks.example:/",
        "https://hooks.example:8443x/",
        "https://localhost/",
        "https://inside/",
        "https://127.0.0.1/",
        "https://10.0.0.1/",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://[fe80::1%25eth0]/",
        "https://2130706433/",
        "https://0x7f.1/",
        "https://127.1/",
        "https://169.254.169.254/latest/meta-data",
        "https://-hooks.example/",
        "https://hooks..example/",
        "https://[hooks.example/",
        "https://hooks.example/" + "x" * 2048,
        "https://hooks.example/?key=txk_srv_0123456789abcdef_0123456789abcdef",
    ],
)
def test_a_url_that_may_not_be_posted_to(url: str) -> None:
    assert url_fault(url, ()) is not None


def test_an_endpoint_is_told_of_no_event_that_is_of_no_workspace() -> None:
    assert "key.revoked" in EVENT_TYPES
    assert not any(event_type.startswith("caller.") for event_type in EVENT_TYPES)


# --- Attempts -----------------------------------------------------------------------------------------------------

DELIVERY = replace(new_delivery("endpoint", 7, "key.revoked", NOW), attempts=1)


def test_a_delivery_is_due_at_once_under_an_id_of_its_own() -> None:
    one, other = (new_delivery("endpoint", 7, "key.revoked", NOW) for _ in range(2))
    assert one.webhook_delivery_id.startswith("msg_")
    assert one.webhook_delivery_id != other.webhook_delivery_id
    assert (one.state, one.next_attempt_time) == (WebhookDeliveryState.PENDING, NOW)


def test_pauses_double_from_five_seconds_to_six_hours() -> None:
    assert [longest_pause(retries).total_seconds() for retries in range(1, 6)] == [5, 10, 20, 40, 80]
    assert longest_pause(14) == longest_pause(10_000) == LONGEST_RETRY
    assert longest_pause(13) < LONGEST_RETRY


@given(st.integers(0, 100), st.floats(0, 1), st.timedeltas(timedelta(), timedelta(days=400)))
def test_the_next_attempt_is_after_a_part_of_the_longest_pause_or_when_the_receiver_says(
    retries: int, part: float, after: timedelta
) -> None:
    done = failed(replace(DELIVERY, retries=retries), 503, "", NOW, part=part, retry_after=after)
    assert done.next_attempt_time is not None
    pause = done.next_attempt_time - NOW
    assert pause >= LEAST_PAUSE
    assert pause >= min(after, LONGEST_RETRY_AFTER)
    assert pause <= max(LEAST_PAUSE, longest_pause(retries + 1), min(after, LONGEST_RETRY_AFTER))
    assert (done.state, done.retries, done.last_http_status_code) == (WebhookDeliveryState.PENDING, retries + 1, 503)


def test_a_delivery_is_given_up_once_the_next_attempt_would_be_too_late() -> None:
    last = NOW + GIVE_UP_AFTER - LEAST_PAUSE
    before = failed(DELIVERY, None, "timed_out", last - timedelta(microseconds=1), part=0)
    assert before.state is WebhookDeliveryState.PENDING
    done = failed(DELIVERY, None, "timed_out", last, part=0)
    assert (done.state, done.next_attempt_time) == (WebhookDeliveryState.FAILED, None)
    assert (done.last_error, done.last_attempt_time) == ("timed_out", last)


def test_a_failure_that_is_final_and_one_of_a_test_are_not_tried_again() -> None:
    assert failed(DELIVERY, 410, "", NOW, part=0, final=True).state is WebhookDeliveryState.FAILED
    trial = replace(DELIVERY, event_id=None)
    assert failed(trial, 500, "", NOW, part=0).state is WebhookDeliveryState.FAILED


def test_what_has_arrived_is_not_tried_again_and_forgets_the_last_error() -> None:
    done = succeeded(failed(DELIVERY, None, "timed_out", NOW, part=0), 204, NOW + HOUR)
    assert (done.state, done.next_attempt_time) == (WebhookDeliveryState.DELIVERED, None)
    assert (done.last_http_status_code, done.last_error, done.last_attempt_time) == (204, "", NOW + HOUR)


# --- Secrets ------------------------------------------------------------------------------------------------------


def secret(number: int, retires_in: timedelta | None = None) -> WebhookSecret:
    retire_time = None if retires_in is None else NOW + retires_in
    return WebhookSecret(number=number, pepper_id="p", sealed=b"sealed", create_time=NOW, retire_time=retire_time)


def endpoint(*secrets: WebhookSecret) -> WebhookEndpoint:
    return WebhookEndpoint(
        webhook_endpoint_id="e",
        workspace_id="w",
        url="https://hooks.example/",
        secrets=secrets,
        create_time=NOW,
        update_time=NOW,
    )


def ends_of(rotated: WebhookEndpoint) -> dict[int, timedelta | None]:
    return {one.number: None if one.retire_time is None else one.retire_time - NOW for one in rotated.secrets}


def test_an_old_secret_signs_beside_the_new_one_until_the_overlap_ends() -> None:
    rotated = rotate_secrets(endpoint(secret(1)), secret(2), HOUR, NOW)
    assert ends_of(rotated) == {1: HOUR, 2: None}
    (old, _) = rotated.secrets
    assert not old.retired(NOW + HOUR - timedelta(microseconds=1))
    assert old.retired(NOW + HOUR)


def test_without_an_overlap_every_old_secret_ends_at_once() -> None:
    rotated = rotate_secrets(endpoint(secret(1, HOUR), secret(2)), secret(3), timedelta(), NOW)
    assert ends_of(rotated) == {3: None}


def test_no_secret_gains_time_by_another_rotation() -> None:
    rotated = rotate_secrets(endpoint(secret(1, HOUR), secret(2)), secret(3), 2 * HOUR, NOW)
    assert ends_of(rotated) == {1: HOUR, 2: 2 * HOUR, 3: None}
    again = rotate_secrets(rotated, secret(4), HOUR / 2, NOW)
    assert ends_of(again) == {1: HOUR / 2, 2: HOUR / 2, 3: HOUR / 2, 4: None}


def test_of_many_secrets_in_their_overlap_the_newest_few_are_kept() -> None:
    made = endpoint(secret(1))
    for number in range(2, 20):
        made = rotate_secrets(made, secret(number), HOUR, NOW)
    assert [one.number for one in made.secrets] == list(range(20 - MAXIMUM_SECRETS, 20))


def test_a_secret_is_never_shown_by_repr() -> None:
    assert "sealed" not in repr(endpoint(secret(1)))
