"""Imported first by every Python that finds it on its path: what it sends to another process then takes 20 ms."""

import time
from multiprocessing.connection import Connection

_send = Connection.send


def _send_slowly(self: Connection, obj: object) -> None:
    _send(self, obj)
    time.sleep(0.02)


Connection.send = _send_slowly  # type: ignore[method-assign]
