"""Time as processes estimate it: some are ahead of others, and none of that lets a secret live on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from server.domain.decision import ask
from server.domain.errors import Refusal
from server.domain.exposure import Context
from server.domain.kinds import KeyKind
from server.domain.lifecycle import Rotation
from server.domain.reasons import Reason
from server.service.authorization import AuthorizationService, DecisionIds
from server.service.barrier import Barrier
from server.service.base import Call, Resources
from server.service.exposures import ExposureService
from server.service.facts import FactCache, SharedClock, boottime
from server.service.keys import KeyFields, KeyService
from server.service.rehashing import Rehashing
from server.store.contract import Store
from server.store.peewee_store import PeeweeStore
from tests.builders import PEPPERS, WORKSPACE_ID, make_workspace
from tests.store.files import new_engine


def process(store: Store, ahead: timedelta) -> Resources:
    """Return what a process works with whose estimate of the store's time is so far ahead."""
    clock = SharedClock()
    clock.set(datetime.now(UTC) + ahead, boottime())
    cache = FactCache(store, keys=100, devices=100, loads=4)
    return Resources(store, PEPPERS, clock, cache, Barrier(store))


def test_a_secret_that_ends_at_once_has_ended_for_processes_whose_time_is_behind_that_of_the_one_that_was_asked(
    tmp_path: Path,
) -> None:
    store = PeeweeStore(new_engine(tmp_path / "auth.db"))
    with store.write() as writer:
        writer.add_workspace(make_workspace())
    early, late = process(store, timedelta(hours=1)), process(store, timedelta())
    made = KeyService(early).create_key(
        Call(caller_id="dashboard", method="CreateKey"), WORKSPACE_ID, KeyKind.SERVER, KeyFields(display_name="Backend")
    )
    deciding = AuthorizationService(late, ExposureService(late), Rehashing(late), DecisionIds())
    asked = [ask(made.value.secret, "devices:list", "", Context())]

    def reason() -> Reason:
        (answer,) = deciding.answer(asked, "", "device-api").answers
        assert not isinstance(answer, Refusal)
        return answer.decision.reason

    assert reason() is Reason.PERMITTED
    KeyService(early).rotate_key(Call(caller_id="dashboard", method="RotateKey"), made.value.entity.key_id, Rotation())
    assert reason() is Reason.KEY_RETIRED
    store.close()
