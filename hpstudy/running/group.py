"""The ranks that train one run together: rank 0, which is the driver's worker, and the processes that it starts.

The driver knows rank 0 alone. Rank 0 passes its orders on, so that every rank does the same, and alone reports. A rank
that fails sends rank 0 its report, which goes to the driver in place of rank 0's own; a rank that dies ends rank 0 in
the same way. A rank that has only lost another waits for that one to do so, and then says itself what it knows.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import NoReturn, Protocol

from hpstudy.running.local import spawn
from hpstudy.running.messages import Join, Order, Refused, Report, Save, Setup, failed
from hpstudy.system import end_with_parent
from hpstudy.training.device import Placement, require_ranks
from hpstudy.training.ranks import CannotJoin, PeerLost, Ranks, find_store, join, open_store

CAUSE_SECONDS = 5.0  # for the rank that is the cause to end, once another has lost it
LOST = 75  # exit code of a rank that lost another, and has said so in the log

Joined = Callable[[Placement], Ranks]
"""Joins the other ranks once this one's device and corpus are there, and returns its view of them."""


class Line(Protocol):
    """Where a rank's orders come from and its reports go: the driver's pipe, if the rank is alone."""

    def recv(self) -> Order: ...
    def poll(self) -> bool: ...
    def send(self, report: Report) -> None: ...


class FirstRank:
    """Rank 0's line, to the driver and to the other ranks, which it starts and watches."""

    def __init__(self, driver: Connection) -> None:
        self._driver = driver
        self._others: dict[Connection, subprocess.Popen[bytes]] = {}  # in the order of their ranks
        self._lock = threading.Lock()  # of the driver's pipe; held for good once this process ends
        self._failed = False  # whether a rank's failure has been reported, which is the last report

    def join(self, setup: Setup, placement: Placement) -> Ranks:
        """Starts the other ranks and joins them. Raises UserError if this machine has no room for them, CannotJoin."""
        spec = setup.spec
        require_ranks(placement, gpus=spec.gpus, processes=spec.processes)
        store = open_store()
        for rank in range(1, spec.ranks):
            process, pipe = spawn(spec.threads)
            self._others[pipe] = process
            theirs_setup = replace(setup, device=placement.device_of(rank))
            pipe.send(Join(setup=theirs_setup, rank=rank, port=store.port))
        threading.Thread(target=self._watch, name="ranks-watch", daemon=True).start()
        return join(store, 0, spec.ranks, placement.device)

    def recv(self) -> Order:
        """The driver's next order, passed on to the other ranks unless only rank 0 obeys it."""
        order: Order = self._driver.recv()
        if not isinstance(order, Save):
            for pipe in self._others:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the watching thread notices
                    pipe.send(order)
        return order

    def poll(self) -> bool:
        """Whether the driver has sent an order."""
        return self._driver.poll()

    def send(self, report: Report) -> None:
        """Reports to the driver, unless a rank has failed before."""
        with self._lock:
            if not self._failed:
                self._driver.send(report)
            self._failed = self._failed or failed(report)

    def end(self, code: int) -> NoReturn:
        """Ends the other ranks and this process, with an exit code as subprocess states it."""
        self._lock.acquire()
        self._kill(code)

    def _watch(self) -> None:
        """Waits until another rank fails or dies, and ends this process with its report or its exit code."""
        ranks = {pipe: rank for rank, pipe in enumerate(self._others, start=1)}
        pipe = wait(list(ranks))[0]
        assert isinstance(pipe, Connection)
        try:
            report = pipe.recv()
        except (EOFError, OSError):
            code = self._others[pipe].wait()
            self._lock.acquire()
            if code != LOST:
                print(f"rank {ranks[pipe]} died (exit code {code})", file=sys.stderr, flush=True)
            self._kill(code)
        self.send(report)
        self.end(1)

    def _kill(self, code: int) -> NoReturn:
        for process in self._others.values():
            process.kill()
        for process in self._others.values():
            process.wait()
        if code < 0:
            os.kill(os.getpid(), -code)
        os._exit(code if code > 0 else 0)


class OtherRank:
    """A further rank's line to rank 0, which is sent failures alone."""

    def __init__(self, first: Connection) -> None:
        self.recv = first.recv
        self._first = first

    def poll(self) -> bool:
        """False: what may come at any time is for rank 0."""
        return False

    def send(self, report: Report) -> None:
        """Reports a failure to rank 0, and drops what rank 0 knows itself."""
        if failed(report):
            self._first.send(report)


def serve_first(driver: Connection, setup: Setup, serve: Callable[[Line, Setup, Joined], None]) -> NoReturn:
    """Serves the driver as rank 0 of several, then ends all ranks and this process."""
    line, code = FirstRank(driver), 1
    try:
        serve(line, setup, lambda placement: line.join(setup, placement))
        code = 0
    except (EOFError, BrokenPipeError, ConnectionResetError):
        code = 0  # the driver is gone
    except PeerLost as error:
        _after_the_cause(error, line)
    except Exception:
        traceback.print_exc()
    line.end(code)


def serve_other(first: Connection, order: Join, serve: Callable[[Line, Setup, Joined], None]) -> NoReturn:
    """Serves rank 0 as another rank, until a failure or the end of rank 0, then ends this process."""
    end_with_parent()
    line, code, count = OtherRank(first), 1, order.setup.spec.ranks
    try:
        serve(
            line,
            order.setup,
            lambda placement: join(find_store(order.port), order.rank, count, placement.device),
        )
    except (EOFError, BrokenPipeError, ConnectionResetError):
        code = 0  # rank 0 is gone
    except PeerLost as error:
        code = LOST
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            _after_the_cause(error, line)
    except Exception:
        traceback.print_exc()
    os._exit(code)


def _after_the_cause(error: PeerLost, line: Line) -> None:
    """Says that this rank has lost another, unless that one's end is the end of all before."""
    time.sleep(CAUSE_SECONDS)
    print(error, file=sys.stderr, flush=True)
    if isinstance(error, CannotJoin):
        line.send(Refused(problems=(str(error),), by_user=False))
