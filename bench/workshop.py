"""What rows share: stores are made once, and kept for as long as a row may want them."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from google.protobuf.message import Message

from bench import facts, load
from bench.facts import Facts
from bench.load import Calls
from bench.scale import Scale
from tests.postgres import Postgres, running_postgres


class Workshop:
    """A folder, stores in it, and a Postgres, each made when it is first asked for; all gone when it is left."""

    def __init__(self, scale: Scale) -> None:
        self.scale = scale
        self._stack = ExitStack()
        self._stores: dict[tuple[str, int], Facts] = {}
        self._postgres: Postgres | None = None
        self._files = 0
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def postgres(self) -> Postgres:
        """A Postgres that loses nothing in a crash, as one in earnest."""
        if self._postgres is None:
            self._postgres = self._stack.enter_context(running_postgres(durable=True))
        return self._postgres

    def store(self, count: int, kind: str = "sqlite") -> Facts:
        """Return a store of so many keys and devices, which is the same for all who ask."""
        if (kind, count) not in self._stores:
            self._stores[kind, count] = self.new_store(count, kind)
        return self._stores[kind, count]

    def new_store(self, count: int, kind: str = "sqlite") -> Facts:
        """Return a store of so many keys and devices."""
        self._files += 1
        folder = self.folder / f"store-{self._files}"
        folder.mkdir()
        return facts.make(folder, count, self.postgres.new_database() if kind == "postgres" else None)

    def write(self, exchanges: list[tuple[Message, Message]]) -> Path:
        """Write requests and answers into a file of their own."""
        self._files += 1
        return load.write(self.folder / f"calls-{self._files}", exchanges)

    def questions(
        self, store: Facts, pairs: list[tuple[int, int]], concurrency: int = 1, connections: int = 1
    ) -> Calls:
        """Return calls that ask about keys and devices, one at a time."""
        return Calls(
            method=load.AUTHORIZE,
            file=self.write([store.exchange(key, device) for key, device in pairs]),
            vary=facts.VARYING,
            bearer=store.bearer,
            concurrency=concurrency,
            connections=max(connections, min(2, concurrency)),
        )

    def batches(self, store: Facts, batches: list[list[tuple[int, int]]]) -> Calls:
        """Return calls that ask about many keys and devices at a time.

        Two are in flight, so that the server has work while an answer is checked.
        """
        return Calls(
            method=load.BATCH_AUTHORIZE,
            file=self.write([store.batch(pairs) for pairs in batches]),
            vary=facts.VARYING_IN_BATCH,
            bearer=store.bearer,
            decisions=len(batches[0]),
            concurrency=2,
            connections=2,
        )
