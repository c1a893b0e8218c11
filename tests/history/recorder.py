"""Writers change keys and devices, readers ask every process about them, and all of it is recorded."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import uuid4

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from texture.auth.v1 import authorize_service_pb2 as pb
from texture.auth.v1 import device_service_pb2 as device_pb
from texture.auth.v1 import key_service_pb2 as key_pb
from texture.auth.v1.key_pb2 import KEY_KIND_SERVER

from tests.harness import Client
from tests.history.checker import Asked, Change, History, Kind, Question
from tests.history.cluster import Cluster, Process
from tests.wire import links_helpers as wire

# The longest that a reader waits, so that what was asked of a process that is stopped is answered after that.
CALL_SECONDS = 8.0
# What a writer gives a change for its proof, which may take as long as a lease; and now and then, to have none.
_PROOF_SECONDS = 3.0
_HASTY_SECONDS = 0.7
_HASTE = 0.1
# How often a change is not to be waited for at all.
_IMMEDIATELY = 0.3
# How often a process to which something is being done is asked for a change as soon as any other.
_BLINDLY = 0.15
# How often a reader asks for an answer that is recent enough.
_DEMANDING = 0.4
# How often a batch is of so few questions that a process which is cut off may remember all that they are about.
_BRIEFLY = 0.4
_FEW = 3
_PAUSE_SECONDS = 0.05
_OVERLAP_SECONDS = 1.0
# Ten old secrets of a key are remembered.
_MOST_GENERATIONS = 8
_KEYS_A_WRITER = 5
_DEVICES_A_WRITER = 3
_HOT_QUESTIONS = 64
_RECENT_TOKENS = 16
# What may be asked of one process and not be answered yet, besides by readers.
_PROBES = 32
_WORKSPACES = ("grid-one", "grid-two")
# Nothing was done, and the same may be sent again.
_NOTHING_DONE = frozenset({"STORE_UNAVAILABLE", "OVERLOADED", "DEADLINE_TOO_SHORT"})
# What a change is refused with that another one has made impossible.
_IN_VAIN = frozenset({"KEY_IS_REVOKED", "ROTATION_IN_PROGRESS"})
_UNKNOWN = frozenset({"OUTCOME_UNKNOWN", "CANCELLED", "UNAVAILABLE", "DEADLINE_EXCEEDED"})

Chosen = Literal["suspend", "resume", "suspend and resume", "rotate", "rotate with overlap", "revoke", "transfer"]
_WEIGHTS: dict[Chosen, int] = {
    "suspend": 22,
    "resume": 22,
    "suspend and resume": 8,
    "rotate": 16,
    "rotate with overlap": 8,
    "revoke": 14,
    "transfer": 22,
}


@dataclass(frozen=True)
class Scale:
    """How much is asked. Batches have a random size up to `batch`; `pause` is a reader's, between two calls.

    Each kind of fault comes so many times, with about `fault_pause` seconds from the begin of one to that of the next.
    """

    decisions: int
    batch: int
    readers: int  # of each process
    writers: int
    pause: float
    seconds: float  # the longest that is asked
    faults: int
    fault_pause: float


@dataclass
class Numbers:
    """What came of a run, in numbers."""

    answers: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    longest: dict[str, float] = field(default_factory=dict)
    answered_by: Counter[int] = field(default_factory=Counter)

    @property
    def decisions(self) -> int:
        """How many questions were answered."""
        return self.answers.total()

    def reaches(self, decisions: int) -> bool:
        """Tell whether so much was decided, after changes of every kind."""
        return self.decisions >= decisions and all(self.changes[kind.value] for kind in Kind)

    def add(self, other: Numbers) -> None:
        """Add those of another run."""
        self.answers.update(other.answers)
        self.changes.update(other.changes)
        self.errors.update(other.errors)
        self.answered_by.update(other.answered_by)
        for kind, seconds in other.longest.items():
            self.longest[kind] = max(seconds, self.longest.get(kind, 0.0))


@dataclass
class _Key:
    """A key of one writer, who alone changes it. `secrets` are those that it learned."""

    key_id: str
    secrets: dict[int, str]
    reach: frozenset[str]
    foreign: int
    generation: int = 1
    overlap_ends: float = 0.0


class Recorder:
    """Puts a cluster under load. `unexpected` are errors that nothing done to it explains."""

    def __init__(self, cluster: Cluster, history: History, scale: Scale, seed: int) -> None:
        self.history = history
        self.numbers = Numbers()
        self.unexpected: list[str] = []
        self.scale = scale
        self.cluster = cluster
        self._seed = seed
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._messages: list[Any] = []
        self._hot: deque[int] = deque(maxlen=_HOT_QUESTIONS)
        self._current: deque[int] = deque(maxlen=1000)
        self._tokens: deque[str] = deque(maxlen=_RECENT_TOKENS)
        self._clients: list[Client] = []
        self._probes = [threading.Semaphore(_PROBES) for _ in cluster.processes]
        self._probing = [0]
        self._probed = threading.Condition(self._lock)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Ask and change until the block ends and what was begun is done."""
        with ExitStack() as stack:
            self._clients = [stack.enter_context(process.client()) for process in self.cluster.processes]
            for workspace_id in _WORKSPACES:
                wire.create_workspace(self._clients[0], workspace_id)
            writers = [_Writer(self, number, self._seed) for number in range(self.scale.writers)]
            work: list[Callable[[], None]] = [writer.run for writer in writers]
            work += [
                lambda process=process, number=number: self._read(process, number)  # type: ignore[misc]
                for process in self.cluster.processes
                for number in range(self.scale.readers)
            ]
            with ThreadPoolExecutor(len(work)) as pool:
                list(pool.map(_Writer.prepare, writers))
                futures = [pool.submit(each) for each in work]
                try:
                    yield
                finally:
                    self._stopping.set()
                for future in futures:
                    future.result()
            with self._probed:
                self._probed.wait_for(lambda: not self._probing[0], 2 * CALL_SECONDS)

    def ask_all(self) -> None:
        """Ask every process about everything once."""
        every = range(len(self.history.questions))
        for process in self.cluster.processes:
            with process.client() as client:
                for first in range(0, len(every), 1000):
                    self._ask(process.number, client, list(every[first : first + 1000]), "")

    @property
    def stopping(self) -> bool:
        """Whether nothing new is to be begun."""
        return self._stopping.is_set()

    def wait(self, seconds: float) -> None:
        """Wait, unless it is to end."""
        self._stopping.wait(seconds)

    def client(self, process: Process) -> Client:
        """Return the client of a process that writers share."""
        return self._clients[process.number]

    def question(self, question: Question, api_key: str) -> int:
        """Make a question known, and return its index."""
        asked = pb.Question(
            api_key=api_key,
            permission="devices:read" if question.device else "devices:list",
            device_id=question.device,
        )
        with self._lock:
            self._messages.append(asked)
            self.history.questions.append(question)
            index = len(self.history.questions) - 1
        self._current.append(index)
        return index

    def changed(self, change: Change) -> None:
        """Take note of a change."""
        self.history.changes.append(change)
        if change.revision:
            self._tokens.append(change.revision)
        with self._lock:
            self.numbers.changes[change.kind.value] += 1
            if change.ended is None:
                self.numbers.changes["of which never answered"] += 1
            elif not change.exact:
                self.numbers.changes["of which repeated"] += 1
            else:
                took, longest = change.ended - change.began, self.numbers.longest
                longest[change.kind.value] = max(took, longest.get(change.kind.value, 0.0))

    def heat(self, questions: Sequence[int]) -> None:
        """Have readers ask more of these."""
        self._hot.extend(questions)

    def probe(self, questions: Sequence[int], chance: random.Random) -> None:
        """Ask every process one of these questions now, and wait for no answer."""
        for number, client in enumerate(self._clients):
            if not self._probes[number].acquire(blocking=False):
                continue
            question = chance.choice(questions)
            asked = self._messages[question]
            at_least = self._at_least(chance)
            request = pb.AuthorizeRequest(
                api_key=asked.api_key,
                permission=asked.permission,
                device_id=asked.device_id,
                at_least_revision=at_least,
            )
            with self._lock:
                self._probing[0] += 1
            began = time.monotonic()
            future = client.authorize.Authorize.future(request, timeout=CALL_SECONDS)
            future.add_done_callback(
                lambda done, number=number, question=question, at_least=at_least, began=began: self._probe_done(  # type: ignore[misc]
                    done, number, question, at_least, began
                )
            )

    def failed(self, error: grpc.RpcError, expected: frozenset[str] = _NOTHING_DONE | _UNKNOWN) -> str:
        """Count an error, and return its reason: this service's, or where it has none, the code."""
        reason = _reason(error)
        with self._lock:
            self.numbers.errors[reason] += 1
        if reason not in expected:
            self.unexpected.append(f"{reason}: {error}")
        return reason

    def _probe_done(self, done: Any, number: int, question: int, at_least: str, began: float) -> None:
        ended = time.monotonic()
        try:
            answer = done.result()
        except grpc.RpcError as error:
            self.failed(error)
        except grpc.FutureCancelledError:
            pass
        else:
            answers = bytes([_verdict(answer)])
            self._record(Asked(began, ended, number, at_least, answer.revision, (question,), answers))
        finally:
            self._probes[number].release()
            with self._probed:
                self._probing[0] -= 1
                self._probed.notify_all()

    def _read(self, process: Process, number: int) -> None:
        chance = random.Random(f"{self._seed} reader {process.number} {number}")
        with process.client() as client:
            while not self._stopping.wait(self.scale.pause):
                if len(self._hot) < 2:
                    self._stopping.wait(_PAUSE_SECONDS)
                    continue
                size = chance.randint(1, _FEW if chance.random() < _BRIEFLY else self.scale.batch)
                hot, current = _copied(self._hot), _copied(self._current)
                questions = chance.choices(hot, k=(size + 1) // 2) + chance.choices(current, k=size // 2)
                if not self._ask(process.number, client, questions, self._at_least(chance)):
                    self._stopping.wait(_PAUSE_SECONDS)

    def _at_least(self, chance: random.Random) -> str:
        tokens = _copied(self._tokens)
        return chance.choice(tokens) if tokens and chance.random() < _DEMANDING else ""

    def _ask(self, process: int, client: Client, questions: Sequence[int], at_least: str) -> bool:
        messages = self._messages
        request = pb.BatchAuthorizeRequest(
            questions=[messages[index] for index in questions], at_least_revision=at_least
        )
        began = time.monotonic()
        try:
            response = client.authorize.BatchAuthorize(request, timeout=CALL_SECONDS)
        except grpc.RpcError as error:
            self.failed(error)
            return False
        ended = time.monotonic()
        answers = bytes([_verdict(each.answer) for each in response.answers])
        self._record(Asked(began, ended, process, at_least, response.revision, tuple(questions), answers))
        return True

    def _record(self, asked: Asked) -> None:
        self.history.asked.append(asked)
        # What one process has seen, another may be asked for.
        if not self._tokens or self._tokens[-1] != asked.revision:
            self._tokens.append(asked.revision)
        counted = Counter(asked.reasons)
        with self._lock:
            self.numbers.answered_by[asked.process] += len(asked.reasons)
            for reason, count in counted.items():
                name = pb.Reason.Name(pb.Reason.ValueType(reason)).removeprefix("REASON_")
                self.numbers.answers[name] += count


@dataclass
class _Attempted:
    """What came of a change that was sent until it was answered. `answer` is None where it was lost."""

    began: float
    ended: float | None
    answer: Any
    exact: bool


class _Writer:
    """Changes keys and devices of its own, so that it knows what each of its changes was made to."""

    def __init__(self, recorder: Recorder, number: int, seed: int) -> None:
        self._recorder = recorder
        self._chance = random.Random(f"{seed} writer {number}")
        self._number = number
        # Two end users of one workspace, and one of another, which the devices go round.
        self._owners = [(_WORKSPACES[0], f"user-{number}-a"), (_WORKSPACES[0], f"user-{number}-b")]
        self._owners.append((_WORKSPACES[1], f"user-{number}-c"))
        self._devices = {f"device-{number}-{each}": self._owners[0] for each in range(_DEVICES_A_WRITER)}
        self._keys: list[_Key] = []
        self._questions: dict[str, list[int]] = {}

    def prepare(self) -> None:
        """Make what is changed: before anything is done to the processes."""
        client = self._recorder.client(self._recorder.cluster.processes[0])
        wire.register(client, self._owners[0][1], *self._devices)
        self._recorder.history.owners.update({device: _owner(where) for device, where in self._devices.items()})
        for workspace_id, reference_id in self._owners[:2]:
            self._create_scoped(client, workspace_id, reference_id)
        while len(self._keys) < _KEYS_A_WRITER:
            self._create()

    def run(self) -> None:
        """Change one thing after another until it is to end."""
        while not self._recorder.stopping:
            if len(self._keys) < _KEYS_A_WRITER:
                self._create()
            else:
                self._change()

    def _change(self) -> None:
        chosen = self._chance.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        if chosen == "transfer":
            self._transfer()
            return
        key = self._chance.choice(self._keys)
        if chosen == "suspend and resume":
            self._both(key)
        elif chosen in ("rotate", "rotate with overlap"):
            self._rotate(key, _OVERLAP_SECONDS if chosen == "rotate with overlap" else 0.0)
        else:
            kind = Kind(chosen)
            self._switch(kind, key, self._narrowing(kind, key))
            if kind is Kind.REVOKE:
                self._keys.remove(key)

    def _create(self) -> None:
        request = key_pb.CreateKeyRequest(
            workspace_id=_WORKSPACES[0], kind=KEY_KIND_SERVER, display_name="Backend", request_id=str(uuid4())
        )
        done = self._insist(lambda client: client.keys.CreateKey, request)
        if done is not None and done.answer is not None:
            reach = frozenset(map(_owner, self._owners[:2]))
            self._keep(done, done.answer.key.key_id, done.answer.api_key, reach, pb.REASON_DEVICE_NOT_FOUND)

    def _create_scoped(self, client: Client, workspace_id: str, reference_id: str) -> None:
        began = time.monotonic()
        made = wire.scoped_key(client, reference_id, [f"{reference_id}-first"], workspace_id)
        done = _Attempted(began, time.monotonic(), None, exact=False)
        reach = frozenset({_owner((workspace_id, reference_id))})
        self._keep(done, made.key_id, made.api_key, reach, pb.REASON_DEVICE_NOT_PERMITTED)

    def _keep(self, done: _Attempted, key_id: str, api_key: str, reach: frozenset[str], foreign: int) -> None:
        key = _Key(key_id, {1: api_key}, reach, foreign)
        self._note(done, Kind.CREATE, key_id)
        self._know(key)
        self._keys.append(key)
        self._look(key)

    def _know(self, key: _Key) -> None:
        """Let readers ask about the newest secret of a key, now that there is one."""
        api_key = key.secrets[key.generation]
        for device in ("", *self._devices):
            asked = Question(key.key_id, key.generation, device, key.reach, key.foreign)
            index = self._recorder.question(asked, api_key)
            self._questions.setdefault(key.key_id, []).append(index)
            if device:
                self._questions.setdefault(device, []).append(index)

    def _narrowing(self, kind: Kind, key: _Key) -> Message:
        """Return the request that switches a key, which now and then waits for nobody."""
        request_id = str(uuid4())
        if kind is Kind.RESUME:
            return key_pb.ResumeKeyRequest(key_id=key.key_id, request_id=request_id)
        made = key_pb.SuspendKeyRequest if kind is Kind.SUSPEND else key_pb.RevokeKeyRequest
        return made(key_id=key.key_id, request_id=request_id, return_immediately=self._chance.random() < _IMMEDIATELY)

    def _switch(self, kind: Kind, key: _Key, request: Message) -> None:
        self._look(key, probe=False)
        done = self._insist(lambda client: _method(client, kind), request)
        if done is not None:
            self._note(done, kind, key.key_id)
            self._look(key)

    def _both(self, key: _Key) -> None:
        """Suspend and resume a key at the same time, in two processes."""
        with ThreadPoolExecutor(2) as pool:
            futures = [
                pool.submit(self._switch, kind, key, self._narrowing(kind, key)) for kind in (Kind.SUSPEND, Kind.RESUME)
            ]
            for future in futures:
                future.result()

    def _rotate(self, key: _Key, overlap: float) -> None:
        if key.generation >= _MOST_GENERATIONS or time.monotonic() < key.overlap_ends:
            return
        request = key_pb.RotateKeyRequest(
            key_id=key.key_id, request_id=str(uuid4()), return_immediately=self._chance.random() < _IMMEDIATELY
        )
        if overlap:
            request.overlap.FromMilliseconds(int(overlap * 1000))
        self._look(key, probe=False)
        done = self._insist(lambda client: client.keys.RotateKey, request)
        if done is None:
            return
        key.generation += 1
        key.overlap_ends = time.monotonic() + 2 * overlap if overlap else 0.0
        self._note(done, Kind.ROTATE, key.key_id, generation=key.generation, overlap=overlap)
        if done.answer is not None:
            key.secrets[key.generation] = done.answer.api_key
            self._know(key)
        if done.ended is None:
            # Which of its secrets is the newest is not known any more.
            self._keys.remove(key)
        self._look(key)

    def _transfer(self) -> None:
        device = self._chance.choice(list(self._devices))
        before = self._devices[device]
        after = self._chance.choice([owner for owner in self._owners if owner != before])
        request = device_pb.TransferDevicesRequest(
            workspace_id=before[0],
            reference_id=before[1],
            device_ids=[device],
            new_workspace_id=after[0],
            new_reference_id=after[1],
            request_id=str(uuid4()),
            return_immediately=self._chance.random() < _IMMEDIATELY,
        )
        questions = self._recent(device)
        self._recorder.heat(questions)
        done = self._insist(lambda client: client.devices.TransferDevices, request)
        if done is None:
            return
        self._note(done, Kind.TRANSFER, device, owner=_owner(after))
        self._devices[device] = after
        self._recorder.heat(questions)
        self._recorder.probe(questions, self._chance)
        if done.ended is None:
            del self._devices[device]

    def _insist(self, method: Callable[[Client], Any], request: Message) -> _Attempted | None:
        """Send a change until it is answered, here or there. Return None where it was refused."""
        began, exact = time.monotonic(), True
        until = None
        while True:
            process = self._choose()
            hasty = self._chance.random() < _HASTE
            try:
                answer = method(self._recorder.client(process))(
                    request, timeout=_HASTY_SECONDS if hasty else _PROOF_SECONDS
                )
            except grpc.RpcError as error:
                reason = self._recorder.failed(error, _NOTHING_DONE | _UNKNOWN | _IN_VAIN | {"REQUEST_REPEATED"})
                if reason == "REQUEST_REPEATED":
                    return _Attempted(began, time.monotonic(), None, exact=False)
                if reason not in _NOTHING_DONE | _UNKNOWN:
                    return None
                exact = exact and reason in _NOTHING_DONE
            else:
                return _Attempted(began, time.monotonic(), answer, exact)
            if self._recorder.stopping:
                until = until or time.monotonic() + CALL_SECONDS
                if time.monotonic() > until:
                    return None if exact else _Attempted(began, None, None, exact=False)
            time.sleep(_PAUSE_SECONDS)

    def _choose(self) -> Process:
        """Return a process, more often one to which nothing is being done."""
        cluster = self._recorder.cluster
        return self._chance.choice(cluster.processes if self._chance.random() < _BLINDLY else cluster.healthy())

    def _note(self, done: _Attempted, kind: Kind, subject: str, **more: Any) -> None:
        narrows = kind is not Kind.CREATE and kind is not Kind.RESUME and not more.get("overlap")
        self._recorder.changed(
            Change(
                kind=kind,
                subject=subject,
                began=done.began,
                ended=done.ended,
                revision="" if done.answer is None else done.answer.revision,
                exact=done.exact,
                complete=narrows and done.answer is not None and done.answer.propagation.complete,
                **more,
            )
        )

    def _look(self, key: _Key, *, probe: bool = True) -> None:
        """Have every process asked about a key, before and after it changes."""
        questions = self._recent(key.key_id)
        self._recorder.heat(questions)
        if probe:
            self._recorder.probe(questions, self._chance)

    def _recent(self, subject: str) -> list[int]:
        return self._questions[subject][-3 * (_DEVICES_A_WRITER + 1) :]


def _method(client: Client, kind: Kind) -> Any:
    keys = client.keys
    return {Kind.SUSPEND: keys.SuspendKey, Kind.RESUME: keys.ResumeKey, Kind.REVOKE: keys.RevokeKey}[kind]


def _verdict(answer: Any) -> int:
    """Return the reason; 0, which nothing makes right, where the decision is another than it says."""
    allowed = answer.decision == pb.DECISION_ALLOW
    reason: int = answer.reason
    return reason if allowed == (reason == pb.REASON_PERMITTED) else 0


def _owner(where: tuple[str, str]) -> str:
    return "/".join(where)


def _copied(values: deque[Any]) -> list[Any]:
    """Return what a deque holds that others append to."""
    while True:
        try:
            return list(values)
        except RuntimeError:  # it changed meanwhile
            continue


def _reason(error: grpc.RpcError) -> str:
    if not isinstance(error, grpc.Call):
        return type(error).__name__
    info = error_details_pb2.ErrorInfo()
    status = rpc_status.from_call(error)
    for packed in () if status is None else status.details:
        if packed.Unpack(info):
            return str(info.reason)
    code: grpc.StatusCode = error.code()
    return code.name
