"""Noise: whatever bytes arrive at whichever RPC, the answer is one of the contract's, and the service goes on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from server.domain.errors import ErrorReason
from server.domain.token import holds_token
from tests.harness import Service, as_refused, first_answer, running_service, untraced
from tests.wire.helpers import make_key, make_workspace, reason_for
from tests.wire.noise import Known, damaged, noise, populate, put_noise
from tests.wire.rpcs import METHODS, new_message, parts, short, valid_request

# The noise is the same on every run: a build that turns red was turned red by a change, and goes red for whoever looks
# into it. To search on, ask for more examples by this variable; then they are new ones each time.
_EXAMPLES = os.environ.get("NOISE_EXAMPLES", "")
NOISY = settings(
    max_examples=int(_EXAMPLES or 6),
    derandomize=not _EXAMPLES,
    database=None,
    deadline=None,
    # What fails is small enough to read, and making it smaller takes minutes.
    phases=[Phase.generate],
    # All examples of a test share a server on purpose: each meets what those before it left.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
# No answer to noise while all is well: a fault of this service, gRPC's own words for one, a store that is said to be
# away since it choked on a value, and a call that hangs.
FAULTS = {
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}
EACH_METHOD = pytest.mark.parametrize("method", METHODS, ids=short)


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def noisy(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Service]:
    """A server for all tests of this module, on each kind of database."""
    folder = tmp_path_factory.mktemp("noise")
    chosen = {}
    if request.param == "postgres":
        chosen["database"] = request.getfixturevalue("postgres").new_database()
    # Whatever noise gets to, other tests get to on purpose.
    with untraced(with_threads=True), running_service(folder, **chosen) as service:
        yield service


@pytest.fixture(scope="module")
def known(noisy: Service) -> Known:
    return populate(noisy)


@pytest.fixture(scope="module")
def good_key(noisy: Service) -> str:
    """A key of a workspace that no noise names."""
    make_workspace(noisy, "quiet")
    return make_key(noisy, workspace_id="quiet").api_key


def send(service: Service, method: str, raw: bytes) -> str:
    """Send bytes, and return OK or the reason of the error, which must be as the contract promises."""
    as_they_are = (lambda given: given, lambda given: given)
    try:
        answer = first_answer(service.operator.channel, method, raw, *as_they_are, timeout=30)
    except grpc.RpcError as error:
        return reason_of_the_contract(error, raw)
    new_message(METHODS[method].output_type).ParseFromString(answer)
    return "OK"


def reason_of_the_contract(error: Any, raw: bytes) -> str:
    """Return the reason of an error, which must be a good one: no fault, no secret, and something to read."""
    found = as_refused(error)
    assert found.code not in FAULTS, (found, raw)
    assert found.reason in ErrorReason.__members__, (found, raw)
    assert found.message, (found, raw)
    assert found.message.isprintable(), (found, raw)
    assert all(found.violations.values()), (found, raw)
    assert not holds_token(repr(error) + repr(error.trailing_metadata())), (found, raw)
    return found.reason


def assert_well(service: Service, good_key: str) -> None:
    assert reason_for(service, good_key) == "PERMITTED"


@EACH_METHOD
@NOISY
@given(raw=st.binary(max_size=300))
def test_random_bytes_get_an_answer(noisy: Service, good_key: str, method: str, raw: bytes) -> None:
    reason = send(noisy, method, raw)

    try:
        new_message(METHODS[method].input_type).ParseFromString(raw)
    except DecodeError:
        assert reason == "MESSAGE_MALFORMED"
    assert_well(noisy, good_key)


@EACH_METHOD
@NOISY
@given(data=st.data())
def test_a_damaged_message_gets_an_answer(
    noisy: Service, known: Known, good_key: str, method: str, data: st.DataObject
) -> None:
    raw = noise(data.draw, METHODS[method].input_type, known).SerializeToString(deterministic=True)

    send(noisy, method, damaged(data.draw, raw))

    assert_well(noisy, good_key)


@EACH_METHOD
@NOISY
@given(data=st.data())
def test_a_message_of_random_fields_gets_an_answer(
    noisy: Service, known: Known, good_key: str, method: str, data: st.DataObject
) -> None:
    request = noise(data.draw, METHODS[method].input_type, known)

    send(noisy, method, request.SerializeToString())

    assert_well(noisy, good_key)


@EACH_METHOD
@NOISY
@given(data=st.data())
def test_a_valid_message_with_one_field_changed_gets_an_answer(
    noisy: Service, known: Known, good_key: str, method: str, data: st.DataObject
) -> None:
    request = valid_request(noisy, method)
    places = [(part, field) for part in parts(request) for field in part.DESCRIPTOR.fields]
    if places:
        part, field = places[data.draw(st.integers(0, len(places) - 1))]
        put_noise(data.draw, part, field, known)

    send(noisy, method, request.SerializeToString())

    assert_well(noisy, good_key)


@EACH_METHOD
def test_the_messages_that_are_changed_in_one_field_are_valid_before(noisy: Service, known: Known, method: str) -> None:
    request: Any = valid_request(noisy, method)

    assert send(noisy, method, request.SerializeToString()) == "OK", f"a field of {method} lacks a value in rpcs.py"
