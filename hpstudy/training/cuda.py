"""What keeps a GPU busy: figures that are read while it works on, and micro-batches launched as one graph.

The maths is that of the plain path. On CPUs the readings work the same and nothing is captured.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

WARMUPS = 3  # before a capture: compilation, cuBLAS workspaces, autograd's buffers
GRAPH_FLOPS = 2e12  # of a micro-batch: 3 to 10 ms of a large GPU, about what launching its kernels one by one takes

log = logging.getLogger(__name__)


class Reading:
    """The figures of one step, on their way from the device while the host launches the next step.

    Built as the step begins. Its seconds are the device's own, from the moment this step could begin (the step before
    it had ended and the host had come to it) to its end, so that the seconds of steps never overlap.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = _Mark(device)

    def send(self, figures: Tensor) -> None:
        """Ends the step: orders the copy of its figures, and waits for nothing."""
        self._figures = figures.to("cpu", non_blocking=True)  # into pinned memory, where it comes from a GPU
        self._end = _Mark(self._device)

    def read(self) -> tuple[list[float], float]:
        """The figures and the step's seconds; waits until the device has come so far."""
        self._end.wait()
        figures: list[float] = self._figures.tolist()
        return figures, self._end.seconds_since(self._start)


class _Mark:
    """A moment in a device's work; on a CPU, which works as it is told, simply now."""

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
    """Adds `share` of the gradient of a micro-batch's mean loss to the gradients, and returns that share of it."""

    def __call__(self, inputs_BT: Tensor, targets_BT: Tensor, share: float | Tensor) -> Tensor: ...


def captured(backward: Backward, grads: Tensor, inputs_BT: Tensor, targets_BT: Tensor) -> Backward:
    """`backward` as one CUDA graph for inputs of this shape, or as it is, with a line in the log, where that fails.

    A small model's kernels end before the host has launched the next; a graph launches them all at once. `grads` is
    the one buffer that `backward` adds to. It is overwritten: a graph is taken only if it gives the same bits.
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
        return loss  # until the next replay

    if not same_bits(backward, replay, grads, inputs_BT, targets_BT):
        log.warning("micro-batches are launched kernel by kernel, which is slower: the CUDA graph gave other numbers")
        return backward
    return replay


def same_bits(one: Backward, other: Backward, grads: Tensor, inputs_BT: Tensor, targets_BT: Tensor) -> bool:
    """Whether both give the same loss and the same gradients, to the last bit; `grads` is overwritten."""
    found = []
    for backward in (one, other):
        grads.zero_()
        loss = backward(inputs_BT, targets_BT, 0.5)
        found.append((loss.clone(), grads.clone()))
    return all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))


def _on_a_side_stream(work: Callable[[], object]) -> None:
    """As torch asks before a capture: nothing that the graph shall hold may be bound to the default stream."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
