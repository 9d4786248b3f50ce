"""What keeps a GPU busy: step figures read while it works on, and steps or micro-batches launched as one CUDA graph.

The maths is that of the plain path. On CPUs readings work the same way and nothing is captured.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

WARMUPS = 3  # runs before a capture: compilation, cuBLAS workspaces, autograd's buffers
GRAPH_FLOPS = 2e12  # of what is captured: 3 to 10 ms on a large GPU, about what launching its kernels singly takes
CLOSE = 0.05  # relative difference of two results that need not have the same bits

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


Step = Callable[[Tensor], Tensor]
"""Trains one step on inputs and targets, [2, B, T], and returns its figures."""


def captured_step(
    step: Step, windows_2BT: Tensor, *, backward: Callable[[], object], state: Sequence[Tensor], exact: bool
) -> Step | None:
    """`step` as one CUDA graph for windows of this shape. None, and a log line, if that fails.

    `state` is all that `step` changes: the graph is used only if it gives the `outcome` of `step` (see `agree`).
    `backward` is the part that autograd runs, to be warmed up before the capture. An empty state skips both, for a
    shape that was captured before.
    """
    try:
        expected = outcome(step, windows_2BT, state) if state else []
        if state:
            warm_up(backward)
        inside = windows_2BT.to("cuda")  # the graph reads this at every replay
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            figures = step(inside)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        log.warning("steps are launched in parts, which is slower: no CUDA graph: %s", error)
        return None

    def replay(windows_2BT: Tensor) -> Tensor:
        inside.copy_(windows_2BT, non_blocking=True)
        graph.replay()
        return figures  # valid until the next replay

    if state:
        found = outcome(replay, windows_2BT, state)
        if not all(agree(ours, theirs, exact=exact) for ours, theirs in zip(found, expected, strict=True)):
            log.warning("steps are launched in parts, which is slower: the CUDA graph gave other numbers")
            return None
    return replay


def outcome(step: Step, windows_2BT: Tensor, state: Sequence[Tensor]) -> list[Tensor]:
    """The figures of a step and what it makes of each tensor of `state`, which is then put back."""
    before = [tensor.clone() for tensor in state]
    found = [step(windows_2BT).clone(), *(tensor.clone() for tensor in state)]
    for tensor, old in zip(state, before, strict=True):
        tensor.copy_(old)
    return found


def agree(ours: Tensor, theirs: Tensor, *, exact: bool) -> bool:
    """Whether two fp32 tensors have the same bits, NaN included; unless `exact`, whether they are about equal."""
    if exact:
        return torch.equal(ours.view(torch.int32), theirs.view(torch.int32))
    ours, theirs = ours.nan_to_num(), theirs.nan_to_num()
    return bool(torch.linalg.vector_norm(ours - theirs) <= CLOSE * torch.linalg.vector_norm(theirs))


def captured(
    backward: Backward, grads: Tensor, inputs_BT: Tensor, targets_BT: Tensor, *, exact: bool = True
) -> Backward:
    """`backward` as one CUDA graph for inputs of this shape. If that fails, `backward` itself, and a log line.

    A small model's kernels end before the host has launched the next one; a graph launches them all at once.
    `grads` is the buffer that `backward` adds to. It is overwritten here: the graph is used only if it gives the
    results of `backward` (see `agree`).
    """
    x, y = inputs_BT.clone(), targets_BT.clone()  # the graph reads these and `factor` at every replay
    factor = torch.ones((), device=grads.device)
    try:
        warm_up(lambda: backward(x, y, factor))
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

    if not same_gradients(backward, replay, grads, inputs_BT, targets_BT, exact=exact):
        log.warning("micro-batches are launched kernel by kernel, which is slower: the CUDA graph gave other numbers")
        return backward
    return replay


def same_gradients(
    one: Backward, other: Backward, grads: Tensor, inputs_BT: Tensor, targets_BT: Tensor, *, exact: bool
) -> bool:
    """Whether both give the same loss and gradients. Overwrites `grads`."""
    found = []
    for backward in (one, other):
        grads.zero_()
        loss = backward(inputs_BT, targets_BT, 0.5)
        found.append((loss.clone(), grads.clone()))
    return all(agree(ours, theirs, exact=exact) for ours, theirs in zip(*found, strict=True))


def warm_up(work: Callable[[], object]) -> None:
    """Runs work a few times on another stream, as torch requires before a capture."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARMUPS):
            work()
    torch.cuda.current_stream().wait_stream(side)
