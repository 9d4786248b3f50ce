"""What keeps a GPU busy: step figures read while it works on, and micro-batches launched as one CUDA graph.

The maths is that of the plain path. On CPUs readings work the same way and nothing is captured.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

WARMUPS = 3  # runs before a capture: compilation, cuBLAS workspaces, autograd's buffers
GRAPH_FLOPS = 2e12  # of a micro-batch: 3 to 10 ms on a large GPU, about what launching its kernels singly takes

log = logging.getLogger(__name__)


class Reading:
    """The figures of one step, copied from the device while the host launches the next step.

    Create it when the step begins. The seconds are the device's own. A step's time starts when the step before has
    ended and the host has launched this one, so that the times of steps never overlap.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = _Mark(device)

    def send(self, figures: Tensor) -> None:
        """Ends the step: starts the copy of its figures without waiting for it."""
        self._figures = figures.to("cpu", non_blocking=True)  # pinned memory if they come from a GPU
        self._end = _Mark(self._device)

    def read(self) -> tuple[list[float], float]:
        """The figures and the step's seconds. Waits until the device has finished the step."""
        self._end.wait()
        figures: list[float] = self._figures.tolist()
        return figures, self._end.seconds_since(self._start)


class _Mark:
    """A point in a device's work. On a CPU, which works synchronously, the current time."""

    def __init__(self, device: torch.device) -> None:
        self._time = time.perf_counter()
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._event.record()

    def wait(self) -> None:
        if self._event is not None:
            self._event.synchronize()

    def seconds_since(self, start: _Mark) -> float:
        if self._event is not None and start._event is not None:
            milliseconds: float = start._event.elapsed_time(self._event)
            return milliseconds / 1000
        return self._time - start._time


class Backward(Protocol):
    """Adds `share` times the gradient of a micro-batch's mean loss to the gradients; returns `share` times the loss."""

    def __call__(self, inputs_BT: Tensor, targets_BT: Tensor, share: float | Tensor) -> Tensor: ...


def captured(backward: Backward, grads: Tensor, inputs_BT: Tensor, targets_BT: Tensor) -> Backward:
    """`backward` as one CUDA graph for inputs of this shape. If that fails, `backward` itself, and a log line.

    A small model's kernels end before the host has launched the next one; a graph launches them all at once.
    `grads` is the buffer that `backward` adds to. It is overwritten here: the graph is used only if it gives the same
    bits as `backward`.
    """
    x, y = inputs_BT.clone(), targets_BT.clone()  # the graph reads these and `factor` at every replay
    factor = torch.ones((), device=grads.device)
    try:
        _on_a_side_stream(lambda: [backward(x, y, factor) for _ in range(WARMUPS)])
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = backward(x, y, factor)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        log.warning("micro-batches are launched kernel by kernel, which is slower: no CUDA graph: %s", error)
        return backward

    def replay(inputs_BT: Tensor, targets_BT: Tensor, share: float | Tensor) -> Tensor:
        x.copy_(inputs_BT)
        y.copy_(targets_BT)
        factor.fill_(share)
        graph.replay()
        return loss  # valid until the next replay

    if not same_bits(backward, replay, grads, inputs_BT, targets_BT):
        log.warning("micro-batches are launched kernel by kernel, which is slower: the CUDA graph gave other numbers")
        return backward
    return replay


def same_bits(one: Backward, other: Backward, grads: Tensor, inputs_BT: Tensor, targets_BT: Tensor) -> bool:
    """Whether both give the same loss and gradients to the last bit. Overwrites `grads`."""
    found = []
    for backward in (one, other):
        grads.zero_()
        loss = backward(inputs_BT, targets_BT, 0.5)
        found.append((loss.clone(), grads.clone()))
    return all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


def _on_a_side_stream(work: Callable[[], object]) -> None:
    """Runs work on another stream, as torch requires before a capture."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
