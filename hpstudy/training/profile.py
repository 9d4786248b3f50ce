"""Where a step's time goes, by torch's profiler: the kernels of a GPU, or torch's operations on a CPU."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from torch.profiler import ProfilerActivity, profile

from hpstudy.training.device import Placement

# The first pattern that is found in a name gives its kind. A GPU's names are of torch 2.11 on an H100. A fused
# kernel of the compiler is named after all that it does and counts as the first kind here. A CPU's are paths, as in
# "GeluBackward0/aten::gelu_backward".
KINDS = {
    "attention": r"flex_attention|flash|fmha|sdpa|cudnn|dot_product|MemEff|bmm|aten::_?softmax|SoftmaxBackward0",
    "matrix products": r"nvjet|gemm|gemv|cublas|xmma|triton_tem_fused\w*mm|aten::(add)?mm$",
    "cross-entropy": r"_softmax_gradient|_OutputLoss|log_?softmax|cunn_softmax|nll_loss",
    "LayerNorm": r"layer_?norm|GammaBeta|cuComputeGradInput",
    "GELU": r"gelu",
    "embedding gradient": r"embedding_?(dense_)?backward|RadixSort|compute_grad_weight|sum_and_scatter|krn_partial"
    r"|cub::|thrust::",
    "AdamW and norms": r"adam|multi_tensor_apply|vector_norm|NormTwoOps|NormOps",
    "sums over ranks": r"nccl|gloo|c10d|allreduce",
    "copies": r"^(?!triton_).*(copy|memcpy|memset|clone|CatArray|aten::cat)",
    "elementwise and sums": r"^triton_|elementwise|reduce_kernel|AccumulateGrad|index|gather"
    r"|aten::(add|sub|mul|div|sum|fill|zero|ones_like|clamp|stack|full|triu)_?$",
}
OTHER = "other"
REST = {"cuda": "idle", "cpu": "outside torch"}  # by kind of device
_PATTERNS = {kind: re.compile(pattern, re.IGNORECASE) for kind, pattern in KINDS.items()}


def kind_of(name: str) -> str:
    """The kind of work that a kernel or an operation does, by its name: one of KINDS, or OTHER."""
    return next((kind for kind, pattern in _PATTERNS.items() if pattern.search(name)), OTHER)


def time_shares(work: Callable[[], float], placement: Placement) -> dict[str, float]:
    """Each kind's share of the time that `work` takes; they add up to 1.

    `work` leaves nothing running and returns its wall seconds: on a GPU those that it takes without the profiler, which
    slows the launch of small kernels but not the kernels, on a CPU those that it took, as each operation takes a few
    microseconds more. Empty if the profiler recorded nothing, as on a machine that does not let it read its GPU.
    """
    activity = ProfilerActivity.CUDA if placement.is_cuda else ProfilerActivity.CPU
    with profile(activities=[activity]) as found:
        seconds = work()
    kind = placement.kind.upper()
    events = [e for e in found.events() or () if e.device_type.name == kind and not e.is_user_annotation]
    taken: Counter[str] = Counter()  # microseconds
    for event in events:
        own = event.time_range.elapsed_us() if placement.is_cuda else event.self_cpu_time_total
        taken[kind_of(_path(event))] += own
    total = sum(taken.values())
    if not total:
        return {}
    busy = min(1.0, busy_time((e.time_range.start, e.time_range.end) for e in events) / (seconds * 1e6))
    return {kind: busy * taken[kind] / total for kind in (*KINDS, OTHER)} | {REST[placement.kind]: 1 - busy}


def _path(event: Any) -> str:
    """The names of an operation and of those that called it, outermost first. A kernel has its own name only."""
    names = []
    while event is not None:
        names.append(event.name)
        event = event.cpu_parent
    return "/".join(reversed(names))


def busy_time(spans: Iterable[tuple[float, float]]) -> float:
    """The time in which at least one of the (start, end) spans lasts, which may nest or overlap."""
    busy, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return busy
