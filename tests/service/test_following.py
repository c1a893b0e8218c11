"""A follower's thread, on a real Postgres."""

from __future__ import annotations

from datetime import timedelta

from server.app import open_database
from server.service.facts import FactCache, SharedClock
from server.service.following import Follower
from server.settings import Settings
from tests.operate.process import wait_until

LISTENING = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle' AND query ~ '^LISTEN'"


def test_one_that_waits_for_news_stops_without_any_and_is_no_member_any_more(postgres_url: str) -> None:
    database = open_database(Settings(database=postgres_url))
    cache = FactCache(database.store, keys=100, devices=100, loads=1)
    # It would wait for minutes.
    follower = Follower(database.store, cache, SharedClock(), lambda: None, lease=timedelta(hours=1))

    def listens() -> bool:
        with database.engine.reading() as connection:
            return bool(connection.execute_sql(LISTENING).fetchall())

    follower.start()
    wait_until(listens, "it waits for news")
    follower.stop()

    with database.store.read() as reader:
        assert list(reader.members()) == []
    database.store.close()
