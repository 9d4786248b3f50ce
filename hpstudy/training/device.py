"""Where a training runs and in what precision, and why."""

from __future__ import annotations

import contextlib
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hpstudy.errors import UserError
from hpstudy.spec import PrecisionChoice
from hpstudy.training.memory import installed_gib, keep_freed_memory, peak_gib, room_gib


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The device and the precision of every training of a study."""

    device: str  # "cpu", "cuda:0"
    precision: str  # "bf16" or "fp32"
    reason: str  # why this precision

    @property
    def kind(self) -> str:
        """ "cpu" or "cuda"; which one of several like GPUs does not matter to the numbers."""
        return self.device.partition(":")[0]

    @property
    def is_cuda(self) -> bool:
        """Whether the device is a CUDA GPU."""
        return self.kind == "cuda"

    @property
    def compiles(self) -> bool:
        """Whether the model is compiled: on GPUs, where it fuses what would be many small kernels."""
        return self.is_cuda

    @property
    def captures(self) -> bool:
        """Whether the micro-batches of small models are launched as one graph."""
        return self.is_cuda

    @property
    def steps_unread(self) -> int:
        """How many steps may wait to be read while the next is launched: one on GPUs, or they would run dry."""
        return 1 if self.is_cuda else 0

    def autocast(self) -> torch.autocast:
        """The context of a forward pass: bf16 matrix products, while weights, moments and the loss stay fp32."""
        return torch.autocast(self.kind, torch.bfloat16, enabled=self.precision == "bf16")

    def forget_memory(self) -> None:
        """Gives unused memory of a GPU back and begins its peak anew; a CPU's peak is the process's and stays."""
        if self.is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def memory_gib(self) -> tuple[float, float]:
        """(the most memory that training has taken, the most that it could: what is free and what it has)."""
        if not self.is_cuda:
            return peak_gib(), room_gib()
        free, _ = torch.cuda.mem_get_info(self.device)
        peak, now = torch.cuda.max_memory_reserved(self.device), torch.cuda.memory_reserved(self.device)
        return peak / 2**30, (free + now) / 2**30

    def _memory_gib(self) -> float:
        if not self.is_cuda:
            return installed_gib()
        total: int = torch.cuda.get_device_properties(self.device).total_memory
        return total / 2**30

    def environment(self) -> dict[str, Any]:
        """What must stay the same for a study's numbers to stay the same on this machine, and what it runs on."""
        name = torch.cuda.get_device_name(self.device) if self.is_cuda else _cpu_name()
        return {
            **asdict(self),
            "device": self.kind,
            "device_name": name,
            "num_gpus": torch.cuda.device_count() if self.is_cuda else 0,
            "threads": torch.get_num_threads(),
            "memory_gib": round(self._memory_gib()),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
        }


def prepare_process(threads: int) -> None:
    """Sets a process up for training, before its first large allocation: threads, determinism, memory."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # fills every new tensor, a debugging aid that took 6% of a small step
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def place(device: str, precision: PrecisionChoice) -> Placement:
    """Resolves `auto|cpu|cuda[:N]` and `auto|bf16|fp32` on this machine.

    Raises UserError when the device or the precision asked for is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return Placement(device="cpu", **_cpu_precision(precision))
    kind, _, index = device.partition(":")
    if kind != "cuda" or (index and not index.isdigit()):
        raise UserError(f"--device {device}: must be auto, cpu, cuda or cuda:N; use --device auto")
    count = torch.cuda.device_count()
    if int(index or 0) >= count:
        found = f"this machine has {count} CUDA device{'s' if count != 1 else ''}" if count else "no CUDA GPU was found"
        raise UserError(f"--device {device}: {found}; use --device cpu, or leave the flag out")
    torch.cuda.set_device(int(index or 0))  # or every worker would hold memory on the first GPU
    if precision == "fp32":
        return Placement(device=f"cuda:{index or 0}", precision="fp32", reason="the study asks for it")
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        if precision == "bf16":
            raise UserError('[trainer] precision: this GPU has no bf16 arithmetic; use precision = "fp32" or "auto"')
        return Placement(device=f"cuda:{index or 0}", precision="fp32", reason="this GPU has no bf16 arithmetic")
    return Placement(device=f"cuda:{index or 0}", precision="bf16", reason="the GPU has bf16 arithmetic")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out; the CPU allocator's is a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _cpu_name() -> str:
    """The processor's model, where the system tells; its architecture elsewhere."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def _cpu_precision(precision: PrecisionChoice) -> dict[str, str]:
    has_bf16 = bool(torch.cpu.get_capabilities().get("avx512_bf16") or torch.cpu.get_capabilities().get("amx_bf16"))
    if precision == "bf16" and not has_bf16:
        raise UserError('[trainer] precision: this CPU has no bf16 arithmetic; use precision = "fp32" or "auto"')
    if precision == "fp32":
        return {"precision": "fp32", "reason": "the study asks for it"}
    if has_bf16:
        return {"precision": "bf16", "reason": "the CPU has bf16 arithmetic (AVX512-BF16 or AMX)"}
    return {"precision": "fp32", "reason": "this CPU has no bf16 arithmetic (AVX512-BF16 or AMX)"}
