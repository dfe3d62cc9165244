"""--ray: workers on the machines of a Ray cluster. The only file that imports Ray."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout, suppress

from skyreels_v2_infer.cli.groups import LOCAL, RUNNING
from skyreels_v2_infer.console import OfMainThread, say
from skyreels_v2_infer.errors import InputError, first_line, in_one_line
from skyreels_v2_infer.progress import doing
from skyreels_v2_infer.run.cluster_room import described, needs_of, room_for, threads_of
from skyreels_v2_infer.run.cluster_worker import PASSED_ON, Place, RankWorker
from skyreels_v2_infer.run.dispatch import Outcome, counted
from skyreels_v2_infer.run.row_checks import CheckedRow

CONNECTING = 10.0  # seconds until an address has to answer
STORE = 80 * 2**20  # bytes of shared memory for a local cluster's objects, Ray's minimum: rows and records are small
LOOK_AT_NODES = 10.0  # seconds between two looks at the machines of the cluster
# Seconds after one rank of a group has failed in which it turns out whether another one is gone, which explains it.
AFTERMATH = 10.0
SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # an empty frame of HTTP/2, with which both sides begin (RFC 9113, 3.4)
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SETTINGS


class Cluster:
    """Context manager: a connection to a Ray cluster, whose workers are groups for a `Dispatcher`.

    Args:
        address: HOST:PORT, "auto", or "local" for a cluster that ends with the connection.
        script: name of the script.
        size: number of workers that share a video.
        device: as on the command line.

    Raises:
        InputError: on entering: the address cannot be reached, or the cluster has no room for a group.
    """

    def __init__(self, address: str, script: str, size: int, device: str | None):
        self.address, self.script, self.size, self.device = address, script, size, device
        self.environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        self._looked, self._room = -LOOK_AT_NODES, 0

    def __enter__(self) -> Cluster:
        with ExitStack() as opened:
            if sys.stdout is not None:  # on which Ray prints errors
                opened.enter_context(redirect_stdout(OfMainThread(sys.stdout)))
            with doing("starting a Ray cluster" if self.address == LOCAL else f"connecting to Ray at {self.address}"):
                opened.callback(disconnect)
                self.ray = connected(self.address)
            self._look_around()
            self._opened = opened.pop_all()
        return self

    def _look_around(self) -> None:
        """Finds out what a worker takes and how many there is room for, and says so."""
        machines = self._machines()
        threads = threads_of(self.environment, self.size)
        if threads is not None:
            self.environment["OMP_NUM_THREADS"] = threads
        self.needs = needs_of(machines, self.device, threads)
        room, self.packed = room_for(machines, self.needs, self.size)
        if not room:
            raise InputError("ray", self.address, self._too_small(machines))
        say(f"Ray ({self.address}): {described(machines, self.needs, self.size, threads)}")
        self.actor = self.ray.remote(concurrency_groups={"control": 1})(RayWorker)

    def __exit__(self, *error) -> None:
        self._opened.close()

    def _machines(self) -> list[Mapping[str, float]]:
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def _too_small(self, machines: Sequence[Mapping[str, float]]) -> str:
        kind = "GPU" if self.needs.gpus else "CPU"
        has = sum(machine.get(kind, 0.0) for machine in machines)
        wants = (self.needs.gpus or self.needs.cpus) * self.size
        return f"has {counted(has, kind)} on {counted(len(machines), 'machine')}; a video takes {wants:g}"

    def most(self) -> int:
        """How many groups there is room for; machines may come and go."""
        if time.monotonic() > self._looked + LOOK_AT_NODES:
            with suppress(Exception):  # the cluster does not answer at the moment
                room, packed = room_for(self._machines(), self.needs, self.size)
                self._room = room if packed == self.packed else 0
            self._looked = time.monotonic()
        return self._room

    def place(self, rank: int) -> Place:
        """Of the worker with this rank in its group."""
        device = "cuda:0" if self.needs.gpus else "cpu"
        return Place(self.script, os.getcwd(), self.environment, device, rank, self.size)

    def open(self) -> ActorGroup:
        return ActorGroup(self)

    def wait(self, groups: Sequence[ActorGroup], seconds: float) -> list[ActorGroup]:
        calls = [call for group in groups for call in group.pending()]
        if calls:
            self.ray.wait(calls, num_returns=1, timeout=seconds, fetch_local=False)
        else:
            time.sleep(seconds)
        return [group for group in groups if group.has_ended()]


class RayWorker(RankWorker):
    """A worker as Ray's actor."""

    def meeting_point(self) -> tuple[str, str]:
        import ray

        return self.free_port(ray.util.get_node_ip_address())


class ActorGroup:
    """The actors that share each video, in a placement group of their own; see `dispatch.Group`.

    Attributes:
        where: name of the first actor's machine, once the group has started.
    """

    def __init__(self, cluster: Cluster):
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        self.ray, self.where = cluster.ray, "a machine of the cluster"
        self._fraction, self._asked, self._stopping = 0.0, None, False
        needs, ranks = cluster.needs, range(cluster.size)
        bundle = {"CPU": needs.cpus} | ({"GPU": needs.gpus} if needs.gpus else {})
        self._room = self.ray.util.placement_group(
            [bundle] * cluster.size, strategy="STRICT_PACK" if cluster.packed else "PACK"
        )
        places = [PlacementGroupSchedulingStrategy(self._room, placement_group_bundle_index=rank) for rank in ranks]
        own = {"num_cpus": needs.cpus, "num_gpus": needs.gpus}
        self._actors = [cluster.actor.options(**own, scheduling_strategy=place).remote() for place in places]
        meeting = self._actors[0].meeting_point.remote() if cluster.size > 1 else None
        self._call([actor.begin.remote(cluster.place(rank), meeting) for rank, actor in enumerate(self._actors)])

    def _call(self, calls: Sequence) -> None:
        self._calls, self._ended, self._failed_at = list(calls), {}, None

    def make(self, coming: Sequence[CheckedRow]) -> None:
        coming = self.ray.put(list(coming))
        self._fraction, self._asked = 0.0, None
        self._call([actor.make.remote(coming) for actor in self._actors])

    def pending(self) -> list:
        """Ray's references to the calls that have not ended."""
        return [call for call in self._calls if call not in self._ended]

    def has_ended(self) -> bool:
        """Whether all ranks have, or the first one has stopped, or one has failed and it is known why."""
        if pending := self.pending():
            ready, _ = self.ray.wait(pending, num_returns=len(pending), timeout=0, fetch_local=False)
            self._ended |= {call: self._result(call) for call in ready}
        lost = [found for found in self._ended.values() if found.lost is not None]
        if lost and self._failed_at is None:
            self._failed_at = time.monotonic()
        late = self._failed_at is not None and time.monotonic() > self._failed_at + AFTERMATH
        stopped = self._stopping and self._calls[0] in self._ended
        return late or stopped or not self.pending() or any(found.result is None for found in lost)

    def _result(self, call) -> Outcome:
        """What a call returned; its error, or the loss of its actor, as an outcome without a record."""
        try:
            found = self.ray.get(call)
        except self.ray.exceptions.RayTaskError as error:
            return Outcome(lost=first_line(error.cause))
        except self.ray.exceptions.ActorUnavailableError:
            return Outcome(lost="it does not answer")
        except self.ray.exceptions.RayError as error:
            return Outcome(lost=reason_in(str(error)))
        if isinstance(found, str):
            self.where = found
            return Outcome()
        return found

    def outcome(self) -> Outcome:
        lost = [found for found in self._ended.values() if found.lost is not None]
        if lost:
            return min(lost, key=lambda found: found.result is not None)
        return self._ended[self._calls[0]]

    def progress(self) -> float:
        """As of the last call, so that nothing waits for the worker."""
        if self._asked is None:
            self._asked = self._control("progress")
        if self.ray.wait([self._asked], timeout=0, fetch_local=False)[0]:
            with suppress(self.ray.exceptions.RayError):  # it is gone, which its other call says
                self._fraction = self.ray.get(self._asked)
            self._asked = None
        return self._fraction

    def stop(self) -> None:
        self._stopping = True
        self._control("stop")  # of the first rank, which has the files; the others wait for it and are ended

    def _control(self, method: str):
        return getattr(self._actors[0], method).options(concurrency_group="control").remote()

    def close(self) -> None:
        for actor in self._actors:
            with suppress(self.ray.exceptions.RayError, ValueError):
                self.ray.kill(actor)
        with suppress(self.ray.exceptions.RayError, ValueError):
            self.ray.util.remove_placement_group(self._room)


def reason_in(text: str) -> str:
    """Ray's message about a lost actor in one line, without the actor's identifiers."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines and "its creation task" in lines[0]:  # above the error of the worker itself
        return lines[-1][:200]
    text = in_one_line(text)
    for mark in ("Worker exit detail: ", "The actor is dead because "):
        text = text.rpartition(mark)[2]
    if text.startswith("Worker unexpectedly exits"):  # followed by guesses
        return "its process was killed or crashed"
    return text.partition(". ")[0].rstrip(".")[:200]


def connected(address: str):
    """The module `ray`, connected.

    Raises:
        InputError: nothing answers at the address, or not as a cluster that this process can use.
        OSError: a local cluster cannot be started.
    """
    if address not in (LOCAL, RUNNING):
        check_answers(address)
    logging.getLogger("ray").setLevel(logging.ERROR)
    if address == LOCAL:  # it sends no usage statistics and lets in only those who know the user's token
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    ours = {"include_dashboard": False, "object_store_memory": STORE} if address == LOCAL else {}
    with own_handlers(), tempfile.TemporaryFile() as printed:
        try:
            with nullcontext() if address == LOCAL else standard_error_to(printed):
                ray.init(address, log_to_driver=False, configure_logging=False, logging_level=logging.ERROR, **ours)
        except Exception as error:
            if address == LOCAL:
                raise OSError(f"Ray cannot start a cluster on this machine: {first_line(error)}") from error
            printed.seek(0)
            refused = b"InvalidAuthToken" in printed.read()
            hint = "it has another token than this user, or RAY_AUTH_MODE=token is not set here"
            raise InputError(
                "ray", address, hint if refused else f"cannot be used: {in_one_line(error)[:300]}"
            ) from None
    return ray


def disconnect() -> None:
    """Ends the connection, and a local cluster; what Ray still had to say goes to nowhere."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        with open(os.devnull, "w") as nowhere, standard_error_to(nowhere), redirect_stdout(nowhere):
            ray.shutdown()


@contextmanager
def own_handlers() -> Iterator[None]:
    """Context manager after which SIGINT and SIGTERM have the handlers that they had, of which Ray replaces some."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def standard_error_to(file) -> Iterator[None]:
    """Context manager that sends what libraries, also those in C++, write to stderr into a file."""
    own = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(own, 2)
        os.close(own)


def check_answers(address: str) -> None:
    """Raises an `InputError` if nothing answers at the address, or not as gRPC does: Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECTING) as connection:
            connection.sendall(GREETING)
            answer = connection.recv(len(SETTINGS), socket.MSG_WAITALL)
    except OSError as error:
        raise InputError("ray", address, f"cannot be reached ({error.strerror or first_line(error)})") from None
    if answer[3:4] != SETTINGS[3:4]:
        raise InputError("ray", address, "is not a Ray cluster; give the address that ray start prints (port 6379)")
