"""What the store promises about webhook endpoints and deliveries."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import wait
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from server.domain.events import Event, EventType, Origin, describe
from server.domain.model import (
    WebhookDelivery,
    WebhookDeliveryState,
    WebhookDisableReason,
    WebhookEndpoint,
    WebhookEndpointState,
    WebhookSecret,
)
from server.domain.webhooks import GIVE_UP_AFTER, failed, new_delivery, succeeded
from server.store.contract import Duplicate, PepperUsage, Store, WebhookOutcome, WebhookReplay
from server.store.peewee_store import Engine
from tests.builders import NOW, make_key
from tests.store.files import SOON
from tests.store.support import OTHER_WORKSPACE_ID, PATIENCE, Threads, abandoned, changes_of, dump, populate, read_all

MOMENT = timedelta(microseconds=1)
MINUTE = timedelta(minutes=1)
ENDPOINT_ID = "WebhookEndpoint1"
WORKSPACE_ID = "grid-one"


def secret(number: int = 1, **changes: Any) -> WebhookSecret:
    given: dict[str, Any] = {"pepper_id": "pepper-1", "sealed": bytes(range(60)), "create_time": NOW}
    return WebhookSecret(number=number, **given | changes)


def endpoint(webhook_endpoint_id: str = ENDPOINT_ID, **changes: Any) -> WebhookEndpoint:
    given: dict[str, Any] = {
        "workspace_id": WORKSPACE_ID,
        "url": "https://hooks.example/",
        "secrets": (secret(),),
        "create_time": NOW,
        "update_time": NOW,
    }
    return WebhookEndpoint(webhook_endpoint_id=webhook_endpoint_id, **given | changes)


FULL = endpoint(
    "FullEndpoint0001",
    url="https://hooks.example:8443/a?b=ü",
    description="für ⚡",
    event_types=frozenset({"key.revoked", "key.created"}),
    state=WebhookEndpointState.DISABLED,
    disable_reason=WebhookDisableReason.GONE,
    secrets=(secret(1, retire_time=NOW + MINUTE), secret(2, pepper_id="other", sealed=b"\0\xff")),
    update_time=NOW + MINUTE,
)


def add(store: Store, *endpoints: WebhookEndpoint) -> None:
    with store.write() as writer:
        for one in endpoints:
            writer.add_webhook_endpoint(one)


def event(**changes: Any) -> Event:
    origin = Origin(caller_id="dashboard")
    return replace(describe(EventType.KEY_CREATED, origin, None, make_key(), NOW), **changes)


def record(store: Store, *events: Event) -> None:
    with store.write() as writer:
        writer.record(events)


def make(store: Store, limit: int = 100, now: datetime = NOW) -> bool:
    with store.note() as notes:
        return notes.make_webhook_deliveries(ENDPOINT_ID, now, limit)


def claim(store: Store, now: datetime = NOW, limit: int = 100) -> list[WebhookDelivery]:
    with store.note() as notes:
        return list(notes.claim_webhook_deliveries(ENDPOINT_ID, now, now + MINUTE, limit))


def note(store: Store, *deliveries: WebhookDelivery, told: bool = True) -> int:
    with store.note() as notes:
        return notes.note_webhook_outcomes(ENDPOINT_ID, [WebhookOutcome(one, told) for one in deliveries])


def deliveries(store: Store, state: WebhookDeliveryState | None = None) -> list[WebhookDelivery]:
    return read_all(store, lambda reader, after: reader.list_webhook_deliveries(ENDPOINT_ID, state, after, 2))


def standing(store: Store) -> Any:
    with store.read() as reader:
        (one,) = reader.webhook_standings()
    return one


class WebhookPromises:
    """Holds for every store."""

    @pytest.fixture
    def telling(self, store: Store) -> Store:
        """A store with an endpoint."""
        populate(store)
        add(store, endpoint())
        return store

    def test_an_endpoint_is_read_as_it_was_written(self, store: Store) -> None:
        populate(store)
        add(store, endpoint(), FULL)
        with store.read() as reader:
            assert reader.webhook_endpoint(ENDPOINT_ID) == endpoint()
            assert reader.webhook_endpoint(FULL.webhook_endpoint_id) == FULL
            for unknown in ("", "nobody", ENDPOINT_ID.lower(), "\0"):
                assert reader.webhook_endpoint(unknown) is None

    def test_an_endpoint_is_replaced_with_its_secrets_and_noted(self, telling: Store, engine: Engine) -> None:
        after = replace(FULL, webhook_endpoint_id=ENDPOINT_ID)
        with telling.write() as writer:
            writer.replace_webhook_endpoint(after)
        with telling.read() as reader:
            assert reader.webhook_endpoint(ENDPOINT_ID) == after
            number = reader.head().number
        assert {change[1:] for change in changes_of(engine, number)} == {("webhook_endpoint", ENDPOINT_ID)}

    def test_an_endpoint_that_was_not_read_is_not_replaced_and_none_is_added_twice(self, telling: Store) -> None:
        with telling.write() as writer:
            with pytest.raises(Duplicate):
                writer.add_webhook_endpoint(endpoint())
            with pytest.raises(LookupError):
                writer.replace_webhook_endpoint(FULL)

    def test_an_abandoned_transaction_leaves_nothing(self, telling: Store, engine: Engine) -> None:
        before = dump(engine)
        with abandoned(telling) as writer:
            writer.add_webhook_endpoint(FULL)
            writer.remove_webhook_endpoint(ENDPOINT_ID)
        assert dump(engine) == before

    def test_a_removed_endpoint_takes_everything_along(self, telling: Store, engine: Engine) -> None:
        record(telling, event())
        make(telling)
        with telling.write() as writer:
            writer.remove_webhook_endpoint(ENDPOINT_ID)
        left = dump(engine)
        assert {name: left[name] for name in left if name.startswith("webhook")} == {
            "webhook_endpoint": [],
            "webhook_secret": [],
            "webhook_progress": [],
            "webhook_delivery": [],
        }

    def test_endpoints_are_listed_by_workspace_in_order_of_creation(self, store: Store) -> None:
        populate(store)
        for name in "cab":
            add(store, endpoint(name), endpoint(name.upper(), workspace_id=OTHER_WORKSPACE_ID))
        found = read_all(store, lambda reader, after: reader.list_webhook_endpoints(WORKSPACE_ID, after, 1))
        assert [one.webhook_endpoint_id for one in found] == ["c", "a", "b"]

    def test_the_secrets_that_sign_count_under_their_pepper(self, store: Store) -> None:
        populate(store)
        with store.read() as reader:
            before = reader.pepper_usage(NOW)
        secrets = (secret(1, retire_time=NOW), secret(2, retire_time=NOW + MOMENT), secret(3, pepper_id="other"))
        add(store, endpoint(secrets=secrets))
        with store.read() as reader:
            usage = dict(reader.pepper_usage(NOW))
        assert usage.pop("other") == PepperUsage(webhooks=1)
        assert usage.pop("pepper-1").webhooks == before.get("pepper-1", PepperUsage()).webhooks + 1

    # Deliveries

    def test_an_endpoint_is_told_of_what_comes_after_it(self, store: Store) -> None:
        populate(store)
        record(store, event())
        add(store, endpoint())
        assert not standing(store).behind
        assert not make(store)
        record(store, event(), event(workspace_id=OTHER_WORKSPACE_ID), event(workspace_id=None))
        assert standing(store).behind
        assert not make(store)
        (made,) = deliveries(store)
        assert made == replace(
            new_delivery(ENDPOINT_ID, made.event_id, "key.created", NOW), webhook_delivery_id=made.webhook_delivery_id
        )
        assert not standing(store).behind
        assert standing(store).next_attempt_time == NOW
        with store.read() as reader:
            assert reader.webhook_delivery(made.webhook_delivery_id) == made
            assert reader.webhook_delivery("msg_\0") is None

    def test_no_event_has_two_deliveries_and_none_is_passed_over(self, telling: Store) -> None:
        record(telling, *(event() for _ in range(5)))
        more = [make(telling, 2) for _ in range(4)]
        assert more == [True, True, False, False]
        ids = [made.event_id or 0 for made in deliveries(telling)]
        assert ids == sorted(set(ids), reverse=True)
        assert len(ids) == 5

    def test_events_of_other_types_are_passed_over_for_good(self, telling: Store) -> None:
        with telling.write() as writer:
            writer.replace_webhook_endpoint(endpoint(event_types=frozenset({"key.revoked"})))
        record(telling, event(), event(type=EventType.KEY_REVOKED), event())
        make(telling)
        assert [made.event_type for made in deliveries(telling)] == ["key.revoked"]
        assert not standing(telling).behind
        with telling.write() as writer:
            writer.replace_webhook_endpoint(endpoint())
        assert not make(telling)
        assert len(deliveries(telling)) == 1

    def test_a_disabled_endpoint_is_told_later_of_what_happens_meanwhile(self, telling: Store) -> None:
        disabled: dict[str, Any] = {
            "state": WebhookEndpointState.DISABLED,
            "disable_reason": WebhookDisableReason.REQUESTED,
        }
        with telling.write() as writer:
            writer.replace_webhook_endpoint(endpoint(**disabled))
        record(telling, event())
        with telling.read() as reader:
            assert reader.webhook_standings() == []
        assert not make(telling)
        assert deliveries(telling) == []
        with telling.write() as writer:
            writer.replace_webhook_endpoint(endpoint())
        make(telling)
        assert len(deliveries(telling)) == 1

    def test_making_deliveries_for_nobody_makes_none(self, telling: Store) -> None:
        with telling.note() as notes:
            assert not notes.make_webhook_deliveries("nobody", NOW, 10)

    def test_nothing_noted_moves_the_revision(self, telling: Store) -> None:
        record(telling, event())
        with telling.read() as reader:
            before = reader.head()
        make(telling)
        (claimed,) = claim(telling)
        note(telling, succeeded(claimed, 200, NOW))
        with telling.read() as reader:
            assert reader.head() == before

    def test_what_is_claimed_is_nobody_elses_until_its_lease_is_over(self, telling: Store) -> None:
        record(telling, event())
        make(telling)
        (claimed,) = claim(telling)
        assert (claimed.attempts, claimed.next_attempt_time) == (1, NOW + MINUTE)
        assert claim(telling, NOW + MINUTE - MOMENT) == []
        (again,) = claim(telling, NOW + MINUTE)
        assert (again.webhook_delivery_id, again.attempts) == (claimed.webhook_delivery_id, 2)

    def test_those_that_are_due_the_longest_are_claimed_first_and_no_others(self, telling: Store) -> None:
        with telling.write() as writer:
            for minutes in (3, 1, 2, 4):
                due = NOW + minutes * MINUTE
                made = replace(new_delivery(ENDPOINT_ID, None, "webhook.test", NOW), next_attempt_time=due)
                writer.add_webhook_delivery(replace(made, webhook_delivery_id=f"msg_{minutes}"))
        taken = [claim(telling, NOW + 3 * MINUTE, 2) for _ in range(2)]
        assert [{one.webhook_delivery_id for one in some} for some in taken] == [{"msg_1", "msg_2"}, {"msg_3"}]

    def test_of_many_who_claim_at_once_each_delivery_is_one_claimants(self, telling: Store, threads: Threads) -> None:
        record(telling, *(event() for _ in range(40)))

        def work(_number: int) -> list[str]:
            taken: list[str] = []
            for _ in range(20):
                with telling.note() as notes:
                    notes.make_webhook_deliveries(ENDPOINT_ID, NOW, 10)
                    some = notes.claim_webhook_deliveries(ENDPOINT_ID, NOW, NOW + MINUTE, 3)
                taken += [one.webhook_delivery_id for one in some]
            return taken

        claimed = [one for some in threads.together(4, work) for one in some]
        # A turn may be passed over while another is at it.
        make(telling)
        claimed += [one.webhook_delivery_id for one in claim(telling)]
        assert len(claimed) == len(set(claimed)) == 40

    @pytest.mark.parametrize(
        "become", [lambda one: succeeded(one, 204, NOW), lambda one: failed(one, 500, "", NOW, part=1)]
    )
    def test_an_outcome_is_kept_as_it_is_noted(
        self, telling: Store, become: Callable[[WebhookDelivery], WebhookDelivery]
    ) -> None:
        record(telling, event())
        make(telling)
        outcome = become(claim(telling)[0])
        assert note(telling, outcome)
        assert deliveries(telling) == [outcome]

    def test_an_outcome_that_comes_after_another_attempt_began_is_not_noted(self, telling: Store) -> None:
        record(telling, event())
        make(telling)
        (late,) = claim(telling)
        (current,) = claim(telling, NOW + MINUTE)
        assert not note(telling, succeeded(late, 200, NOW))
        assert deliveries(telling) == [current]
        assert note(telling, succeeded(current, 200, NOW))
        assert not note(telling, failed(current, 500, "", NOW, part=1))
        assert [one.state for one in deliveries(telling)] == [WebhookDeliveryState.DELIVERED]

    def test_who_notes_outcomes_and_who_removes_the_endpoint_do_not_wait_in_a_circle(
        self, telling: Store, threads: Threads
    ) -> None:
        record(telling, *(event() for _ in range(3)))
        make(telling)
        first, last, other = claim(telling)
        note(telling, failed(other, 500, "", NOW, part=1))

        def remove() -> None:
            with telling.write() as writer:
                writer.remove_webhook_endpoint(ENDPOINT_ID)

        with threads.another() as pool:
            with telling.note() as notes:
                # In the order in which they ended, with time for the other to get in between.
                assert notes.note_webhook_outcomes(ENDPOINT_ID, [WebhookOutcome(failed(last, 500, "", NOW, part=1))])
                removing = pool.submit(remove)
                wait([removing], SOON)
                assert notes.note_webhook_outcomes(ENDPOINT_ID, [WebhookOutcome(failed(first, 500, "", NOW, part=1))])
            removing.result(PATIENCE)
        assert deliveries(telling) == []

    def test_who_prunes_and_who_replays_do_not_wait_in_a_circle(self, telling: Store, threads: Threads) -> None:
        with telling.write() as writer:
            for number in (1, 2):
                made = replace(new_delivery(ENDPOINT_ID, number, "key.created", NOW), next_attempt_time=None)
                writer.add_webhook_delivery(
                    replace(made, webhook_delivery_id=f"msg_{number}", state=WebhookDeliveryState.FAILED)
                )

        def prune() -> int:
            with telling.note() as notes:
                return notes.prune_webhook_deliveries(NOW + MOMENT, 10)

        with threads.another() as pool:
            with telling.write() as writer:
                for number in (2, 1):
                    wanted = WebhookReplay(webhook_endpoint_id=ENDPOINT_ID, webhook_delivery_ids=(f"msg_{number}",))
                    writer.replay_webhook_deliveries(wanted, NOW, NOW + GIVE_UP_AFTER, 1)
                    if number == 2:
                        pruning = pool.submit(prune)
                        wait([pruning], SOON)
            pruning.result(PATIENCE)

    def test_deliveries_that_are_not_made_because_another_has_the_turn_are_said_to_be_left(
        self, telling: Store, threads: Threads
    ) -> None:
        record(telling, *(event() for _ in range(2)))
        make(telling, 1)
        (claimed,) = claim(telling)
        with threads.another() as pool:
            with telling.note() as notes:
                notes.note_webhook_outcomes(ENDPOINT_ID, [WebhookOutcome(failed(claimed, 500, "", NOW, part=1))])
                making = pool.submit(make, telling)
                wait([making], SOON)
            left = making.result(PATIENCE)
        # Where transactions follow one another, they were made; where not, whoever asked is to ask again.
        assert left or len(deliveries(telling)) == 2
        make(telling)
        assert len(deliveries(telling)) == 2

    def test_an_endpoint_fails_since_the_first_failure_that_no_delivery_came_after(self, telling: Store) -> None:
        record(telling, *(event() for _ in range(5)))
        make(telling)
        one, two, three, four, five = claim(telling)
        note(telling, failed(one, None, "secret_unreadable", NOW, part=1), told=False)
        assert standing(telling).failing_since is None
        note(telling, failed(two, 500, "", NOW + MINUTE, part=1))
        note(telling, failed(three, 500, "", NOW + 2 * MINUTE, part=1))
        assert standing(telling).failing_since == NOW + MINUTE
        note(telling, succeeded(four, 200, NOW + 3 * MINUTE))
        assert standing(telling).failing_since is None
        note(telling, failed(five, 500, "", NOW + 4 * MINUTE, part=1))
        assert standing(telling).failing_since == NOW + 4 * MINUTE
        assert len({one.last_attempt_time for one in deliveries(telling)}) == 5
        with telling.write() as writer:
            writer.replace_webhook_endpoint(endpoint(description="as it was"))
        assert standing(telling).failing_since == NOW + 4 * MINUTE
        with telling.write() as writer:
            writer.replace_webhook_endpoint(endpoint(url="https://mended.example/"))
        assert standing(telling).failing_since is None

    @pytest.mark.parametrize("succeeds", [0, 1, 2])
    def test_outcomes_that_are_noted_together_count_in_their_order(self, telling: Store, succeeds: int) -> None:
        record(telling, *(event() for _ in range(3)))
        make(telling)
        outcomes = [
            succeeded(one, 200, NOW) if number == succeeds else failed(one, 500, "", NOW + number * MINUTE, part=1)
            for number, one in enumerate(claim(telling))
        ]
        assert note(telling, *outcomes) == 3
        assert deliveries(telling) == outcomes[::-1]
        later = [number for number in range(3) if number > succeeds]
        assert standing(telling).failing_since == (NOW + later[0] * MINUTE if later else None)

    def test_an_endpoint_that_becomes_active_is_not_failing(self, telling: Store) -> None:
        record(telling, event())
        make(telling)
        note(telling, failed(claim(telling)[0], 500, "", NOW, part=1))
        with telling.write() as writer:
            writer.replace_webhook_endpoint(replace(FULL, webhook_endpoint_id=ENDPOINT_ID, url=endpoint().url))
            writer.replace_webhook_endpoint(endpoint())
        assert standing(telling).failing_since is None

    def test_endpoints_are_found_by_the_peppers_of_their_secrets(self, store: Store) -> None:
        populate(store)
        add(store, FULL, endpoint(), endpoint("b"), endpoint("a", secrets=(secret(pepper_id="third"),)))
        with store.read() as reader:
            for peppers, limit, found in (
                ({"other"}, 9, [FULL.webhook_endpoint_id]),
                ({"pepper-1"}, 9, sorted((FULL.webhook_endpoint_id, ENDPOINT_ID, "b"))),
                ({"pepper-1", "third"}, 2, sorted((FULL.webhook_endpoint_id, ENDPOINT_ID, "b", "a"))[:2]),
                ({"unknown"}, 9, []),
                (set(), 9, []),
            ):
                under = reader.webhook_endpoints_under(peppers, limit)
                assert [one.webhook_endpoint_id for one in under] == found
            assert FULL in reader.webhook_endpoints_under({"other"}, 9)

    def test_deliveries_are_listed_newest_first_and_by_state(self, telling: Store) -> None:
        record(telling, *(event() for _ in range(5)))
        make(telling)
        first, second, *_ = claim(telling)
        note(telling, succeeded(first, 200, NOW))
        note(telling, failed(second, 410, "", NOW, part=1, final=True))
        ids = [one.event_id for one in deliveries(telling)]
        assert ids == sorted(ids, key=lambda one: -(one or 0))
        for state, count in zip(WebhookDeliveryState, (3, 1, 1), strict=True):
            assert [one.state for one in deliveries(telling, state)] == [state] * count

    def test_what_ended_is_replayed_by_id_or_since_a_time(self, telling: Store) -> None:
        ended = []
        with telling.write() as writer:
            for minutes, state in enumerate((*[WebhookDeliveryState.FAILED] * 3, WebhookDeliveryState.DELIVERED)):
                made = new_delivery(ENDPOINT_ID, None, "webhook.test", NOW + minutes * MINUTE)
                ended.append(replace(made, state=state, next_attempt_time=None, attempts=9, retries=9))
                writer.add_webhook_delivery(ended[-1])
            pending = new_delivery(ENDPOINT_ID, None, "webhook.test", NOW)
            writer.add_webhook_delivery(pending)
        later = NOW + timedelta(days=9)

        def replay(limit: int = 10, **which: Any) -> int:
            with telling.write() as writer:
                wanted = WebhookReplay(webhook_endpoint_id=ENDPOINT_ID, **which)
                return writer.replay_webhook_deliveries(wanted, later, later + GIVE_UP_AFTER, limit)

        assert replay(failed_since=NOW + 3 * MINUTE) == 0
        assert replay(failed_since=NOW + MINUTE, limit=1) == 1
        assert replay(failed_since=NOW + MINUTE) == 1
        ids = [one.webhook_delivery_id for one in (ended[0], ended[1], ended[3], pending)]
        assert replay(webhook_delivery_ids=[*ids, "nothing", "\0"]) == 2
        by_id = {one.webhook_delivery_id: one for one in deliveries(telling)}
        for one in ended:
            assert by_id[one.webhook_delivery_id] == replace(
                one,
                state=WebhookDeliveryState.PENDING,
                next_attempt_time=later,
                give_up_time=later + GIVE_UP_AFTER,
                retries=0,
            )
        assert by_id[pending.webhook_delivery_id] == pending

    def test_old_deliveries_that_ended_are_pruned_and_no_others(self, telling: Store) -> None:
        with telling.write() as writer:
            for number, state in enumerate(WebhookDeliveryState):
                for time in (NOW - MOMENT, NOW):
                    made = new_delivery(ENDPOINT_ID, number * 2 + (time == NOW), "key.created", time)
                    due = time if state is WebhookDeliveryState.PENDING else None
                    writer.add_webhook_delivery(replace(made, state=state, next_attempt_time=due))
        with telling.note() as notes:
            assert notes.prune_webhook_deliveries(NOW, 1) == 1
        with telling.note() as notes:
            assert notes.prune_webhook_deliveries(NOW, 10) == 1
        assert len(deliveries(telling)) == 4
        assert len(deliveries(telling, WebhookDeliveryState.PENDING)) == 2
