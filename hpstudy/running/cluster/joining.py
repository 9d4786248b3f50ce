"""Joining a Ray cluster, and the nodes that it has."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from hpstudy.errors import UserError
from hpstudy.files import own_file
from hpstudy.processes import STOP_SIGNALS
from hpstudy.running.executors import AwakeClock, EngineLost

ADDRESS = re.compile(r"[^/\s]+:\d+")
INSTALL = 'pip install "hpstudy[cluster]"'
JOIN_SECONDS = 5.0  # for a cluster's address to answer; Ray itself tries for minutes
NODES_SECONDS = 1.0  # between two questions for the cluster's nodes
HEAD_SECONDS = 20.0  # without an answer, after which the head counts as lost; Ray ends the driver after 60


def ray_module() -> Any:
    """The module ray. Raises UserError if it is not installed."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UserError(
            f"--cluster: needs Ray, which is not installed here; `{INSTALL}`, or leave the flag out to train on this "
            "machine"
        ) from error
    return ray


class Nodes:
    """The nodes of the cluster. A thread asks for them, as the answer never comes once the head is lost."""

    def __init__(self) -> None:
        self.alive = self._seen = nodes()
        self._clock, self._seen_at, self._given_up = AwakeClock(), 0.0, False
        self._closed = threading.Event()
        threading.Thread(target=self._ask, name="nodes", daemon=True).start()

    def close(self) -> None:
        """Asks no more."""
        self._closed.set()

    def _ask(self) -> None:
        while not self._closed.wait(NODES_SECONDS):
            with contextlib.suppress(ray_module().exceptions.RayError):  # is no answer
                self.alive = nodes()

    def refuse_if_silent(self) -> None:
        """Raises EngineLost, once, if there was no answer for HEAD_SECONDS."""
        now = self._clock.seconds()
        if self.alive is not self._seen:
            self._seen, self._seen_at = self.alive, now
        elif now - self._seen_at > HEAD_SECONDS and not self._given_up:
            self._given_up = True
            raise EngineLost(
                f"the cluster's head has given no answer for {HEAD_SECONDS:.0f} s, so the study stops here; nothing "
                "that is recorded is lost. Start a cluster again, and run the same command with its address: it resumes"
            )


def join(address: str, log: Path) -> None:
    """Connects to a running cluster and keeps this process's own handling of signals. Ray's lines go to `log`.

    Raises UserError if there is no such cluster.
    """
    if address != "auto":
        _refuse_unless_head(address, f"--cluster {address}: must be auto, or")
    ray = ray_module()
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        if not ray.is_initialized():
            if address == "auto" and (named := os.environ.get("RAY_ADDRESS") or "auto") != "auto":
                _refuse_unless_head(named, f"RAY_ADDRESS={named}: must be")
                address = named
            _refuse_without_token()
            if address != "auto":
                _refuse_silence(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=True)
        elif address not in ("auto", joined := ray.get_runtime_context().gcs_address):
            raise UserError(f"--cluster {address}: this process has joined {joined}; use that, or another process")
        _keep_off_stdout(log)
    except ray.exceptions.AuthenticationError as error:
        raise UserError(
            f"--cluster {address}: the cluster requires its token, which is missing here or another; set RAY_AUTH_MODE="
            "token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, as on its nodes"
        ) from error
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise UserError(
            f"--cluster {address}: no Ray cluster answers ({last_line(error)}); start one with `ray start --head`, or "
            "leave the flag out to train on this machine"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def _refuse_unless_head(address: str, rule: str) -> None:
    """Raises UserError for what is no HOST:PORT: "local", for one, starts a cluster."""
    if not ADDRESS.fullmatch(address):
        raise UserError(f"{rule} HOST:PORT of the cluster's head, such as 10.0.0.1:6379; hpstudy starts no cluster")


def _refuse_without_token() -> None:
    """Raises if a token is required and missing; Ray would abort this process."""
    from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled

    ensure_token_if_auth_enabled(create_token_if_missing=False)


def _refuse_silence(address: str) -> None:
    """Raises OSError or RayError if no head answers at HOST:PORT, for which Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), JOIN_SECONDS).close()
    answer: SimpleQueue[Exception | None] = SimpleQueue()
    threading.Thread(target=lambda: answer.put(_ask_head(address)), name="join", daemon=True).start()
    try:
        error = answer.get(timeout=JOIN_SECONDS)
    except Empty:
        raise TimeoutError(
            f"a program listens there, but gives no answer as a head of Ray in {JOIN_SECONDS:.0f} s"
        ) from None
    if error is not None:
        raise error


def _ask_head(address: str) -> Exception | None:
    try:
        ray_module()._raylet.GcsClient(address=address)
    except Exception as error:
        return error
    return None


def _keep_off_stdout(log: Path) -> None:
    """Sends what Ray prints about its nodes to a file.

    It prints to stdout, which holds hpstudy's result, whatever log_to_driver and logging_level say.
    """

    def keep(data: Mapping[str, Any], *_: object, **__: object) -> None:
        with contextlib.suppress(OSError), open(log, "a", opener=own_file) as file:
            file.writelines(f"{line}\n" for line in data["lines"])

    ray_module()._private.worker.print_to_stdstream = keep


def tokens_required() -> bool:
    """Whether the cluster that this process has joined is used with a token, which a driver needs if the nodes do."""
    ray_module()
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    return bool(is_token_auth_enabled())


def nodes() -> list[Mapping[str, Any]]:
    """The nodes of the cluster that are alive, as Ray describes them."""
    return [node for node in ray_module().nodes() if node["Alive"]]


def node_of(actor: Any) -> tuple[str, str] | None:
    """(id, host name) of the node on which an actor is or was, or None if Ray does not know."""
    ray = ray_module()
    try:
        node_id = ray._private.state.actors(actor._actor_id.hex())["Address"]["NodeID"]
        return next((node_id, node["NodeManagerHostname"]) for node in ray.nodes() if node["NodeID"] == node_id)
    except (KeyError, TypeError, StopIteration, ray.exceptions.RayError):
        return None


def last_line(error: BaseException) -> str:
    """The last line of an error, or its name: Ray's errors have whole tracebacks."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
