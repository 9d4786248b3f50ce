"""Several ranks that train one run together: one process for each GPU, or several processes on a CPU.

Every rank holds the whole model and takes an equal range of each batch's windows. Their gradients become one sum after
the accumulation, so that clipping and the update are those of one process, on every rank alike. Torch's
DistributedDataParallel is not used: it sums in other pieces after its first backward, so that a resumed run would have
other bits.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store, TCPStore  # torch.distributed's, which it hides from type checkers

LOOPBACK = "127.0.0.1"
PATIENCE = timedelta(days=100)  # for another rank; the driver ends what hangs


class PeerLost(Exception):
    """Another rank is gone, so that no sum can be made. The cause is that rank's to report."""


class CannotJoin(PeerLost):
    """The other ranks cannot be joined: one is gone, or this machine does not connect them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """One rank's view of the ranks that train together. By default it is alone."""

    rank: int = 0
    count: int = 1
    group: dist.ProcessGroup | None = None  # None: alone
    device: str = "cpu"

    @property
    def alone(self) -> bool:
        """Whether no other rank takes part, so that nothing is summed."""
        return self.group is None

    def sum_(self, tensor: Tensor) -> None:
        """Replaces a tensor by its sum over all ranks, with the same bits on each. Raises PeerLost."""
        if self.group is None:
            return
        try:
            self.group.allreduce([tensor]).wait()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise PeerLost(f"rank {self.rank} of {self.count} has lost another: {error}") from error

    def gather(self, *values: float) -> list[list[float]]:
        """The values of every rank, by rank."""
        if self.group is None:
            return [list(values)]
        found = torch.zeros(self.count, len(values), dtype=torch.float64, device=self.device)
        found[self.rank] = torch.tensor(values, dtype=torch.float64)
        self.sum_(found)
        rows: list[list[float]] = found.tolist()
        return rows

    def of_first(self, value: float) -> float:
        """The first rank's value, which decides where clocks or files could differ."""
        return self.gather(value)[0][0]


ALONE = Ranks()


def open_store() -> TCPStore:
    """Where the ranks of one machine find each other: a store that only this machine reaches."""
    listening = socket.create_server((LOOPBACK, 0))
    port: int = listening.getsockname()[1]
    return TCPStore(
        LOOPBACK, port, is_master=True, wait_for_workers=False, timeout=PATIENCE, master_listen_fd=listening.detach()
    )


def find_store(port: int) -> TCPStore:
    """The store that rank 0 has opened."""
    return TCPStore(LOOPBACK, port, is_master=False, wait_for_workers=False, timeout=PATIENCE)


def join(store: Store, rank: int, count: int, device: str) -> Ranks:
    """Joins the other ranks, and waits for them: by NCCL on GPUs, by Gloo on CPUs. Raises CannotJoin."""
    backend = "nccl" if device.startswith("cuda") else "gloo"
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=PATIENCE)
    except RuntimeError as error:
        variable = f"{backend.upper()}_SOCKET_IFNAME"
        raise CannotJoin(
            f"rank {rank} of {count} cannot join the others by {variable}={os.environ.get(variable, '')}: "
            f"{str(error).splitlines()[0]}; unset {variable}, or name an interface of this machine"
        ) from error
    return Ranks(rank=rank, count=count, group=dist.group.WORLD, device=device)
