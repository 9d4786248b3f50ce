"""The device and the precision of a training."""

from __future__ import annotations

import contextlib
import os
import platform
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hpstudy.errors import UserError
from hpstudy.spec import PrecisionChoice
from hpstudy.system import cores, installed_gib, keep_freed_memory, peak_gib, room_gib

INSTRUCTIONS = ("avx2", "fma3", "avx512_f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16")
KERNEL_LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR")


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The device and the precision of every training of a study."""

    device: str  # "cpu", "cuda:0"
    precision: str  # "bf16" or "fp32"
    reason: str  # why this precision
    deterministic: bool = True  # a run trained again has the same bits

    @property
    def kind(self) -> str:
        """ "cpu" or "cuda". Which of several equal GPUs it is does not change the numbers."""
        return self.device.partition(":")[0]

    @property
    def is_cuda(self) -> bool:
        """Whether the device is a CUDA GPU."""
        return self.kind == "cuda"

    @property
    def index(self) -> int:
        """The number of the GPU, 0 on a CPU."""
        return int(self.device.partition(":")[2] or 0)

    def device_of(self, rank: int) -> str:
        """The device of another rank of this one's training."""
        return f"cuda:{self.index + rank}" if self.is_cuda else self.device

    def autocast(self) -> torch.autocast:
        """The context of a forward pass: matrix products in bf16, while weights, moments and loss stay fp32."""
        return torch.autocast(self.kind, torch.bfloat16, enabled=self.precision == "bf16")

    def forget_memory(self) -> None:
        """Frees a GPU's unused memory and resets its peak. On a CPU the peak is the process's and stays."""
        if self.is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def memory_gib(self) -> tuple[float, float]:
        """(peak memory of training, memory it could use at most: what it holds plus what is free)."""
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
        """What this training runs on. Some of it must stay the same for the numbers to stay the same."""
        name = torch.cuda.get_device_name(self.device) if self.is_cuda else _cpu_name()
        count = torch.cuda.device_count() if self.is_cuda else 0
        equal = [index for index in range(count) if torch.cuda.get_device_name(index) == name]
        return {
            **asdict(self),
            "device": self.kind,
            "device_name": name,
            "num_gpus": count,
            **({"equal_gpus": equal} if self.is_cuda else {}),  # the same for each of them
            "cpu_capability": "" if self.is_cuda else _cpu_capability(),
            "threads": torch.get_num_threads(),
            "memory_gib": round(self._memory_gib()),
            "cores": cores(),
            "torch": str(torch.__version__),  # itself it is a class of torch, which its reader would have to import
            "python": platform.python_version(),
            "platform": platform.platform(),
        }


def prepare_process(threads: int) -> None:
    """Sets threads, determinism and memory of a process. Call it before `place` and the first large allocation."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    demand_determinism(True)
    # filling every new tensor is a debugging aid, and took 6% of a small step
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def demand_determinism(demanded: bool) -> None:
    """What torch.use_deterministic_algorithms does, without its import of torch's compiler: 816 modules, 1.4 s.

    Whoever compiles has to tell the compiler too (GPT.compile_blocks).
    """
    torch._C._set_deterministic_algorithms(demanded, warn_only=False)


def place(device: str, precision: PrecisionChoice, *, deterministic: bool = True) -> Placement:
    """Resolves a device (auto, cpu, cuda, cuda:N) and a precision (auto, bf16, fp32), and makes a GPU the current one.

    Unless `deterministic`, a GPU may take kernels that do not repeat to the last bit; a CPU always repeats.

    Raises UserError if this machine does not have them.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        instructions = torch.cpu.get_capabilities()
        has_bf16 = bool(instructions.get("avx512_bf16") or instructions.get("amx_bf16"))
        return _placement("cpu", "CPU", precision, has_bf16, " (AVX512-BF16 or AMX)")
    kind, colon, index = device.partition(":")
    if kind != "cuda" or (colon and not index.isdigit()):
        raise UserError(f"--device {device}: must be auto, cpu, cuda or cuda:N; use --device auto")
    count = torch.cuda.device_count()
    if int(index or 0) >= count:
        found = f"this machine has {count} CUDA device{'s' if count != 1 else ''}" if count else "no CUDA GPU was found"
        raise UserError(f"--device {device}: {found}; use --device cpu, or leave the flag out")
    torch.cuda.set_device(int(index or 0))  # otherwise every worker would hold memory on the first GPU
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if not deterministic:
        demand_determinism(False)
    return replace(_placement(f"cuda:{index or 0}", "GPU", precision, has_bf16), deterministic=deterministic)


def require_ranks(placement: Placement, *, gpus: int, processes: int) -> None:
    """Raises UserError unless a training whose first rank is placed so can have its `gpus` or `processes`."""
    if not placement.is_cuda:
        if gpus > 1:
            raise UserError(
                f"[trainer] gpus: a training takes {gpus} CUDA GPUs, but would run on the CPU; run it where they are, "
                f"or use processes = {gpus} instead"
            )
        return
    if processes > 1:
        raise UserError(
            f"[trainer] processes: a training on a CPU has {processes}, but would run on a GPU; use --device cpu, or "
            f"gpus = {processes} instead"
        )
    count = torch.cuda.device_count()
    if placement.index + gpus > count:
        start = f" from {placement.device} on" if placement.index else ""
        raise UserError(
            f"[trainer] gpus: a training takes {gpus}{start}, but this machine has {count} CUDA "
            f"device{'s' if count != 1 else ''}; lower gpus{', or leave --device out' if placement.index else ''}"
        )


def _placement(device: str, kind: str, precision: PrecisionChoice, has_bf16: bool, how: str = "") -> Placement:
    """bf16 if the device has it, unless the study asks for fp32. `how` says which instructions that means."""
    if precision == "fp32":
        return Placement(device=device, precision="fp32", reason="the study asks for it")
    if has_bf16:
        return Placement(device=device, precision="bf16", reason=f"the {kind} has bf16 arithmetic{how}")
    if precision == "bf16":
        raise UserError(f'[trainer] precision: this {kind} has no bf16 arithmetic; use precision = "fp32" or "auto"')
    return Placement(device=device, precision="fp32", reason=f"this {kind} has no bf16 arithmetic{how}")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out. The CPU allocator raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _cpu_capability() -> str:
    """What libraries choose CPU kernels by. A machine of the same type may offer less, and then its numbers differ."""
    offered = torch.cpu.get_capabilities()
    limits = [f"{name}={os.environ[name]}" for name in KERNEL_LIMITS if name in os.environ]
    return " ".join([torch.backends.cpu.get_cpu_capability(), *filter(offered.get, INSTRUCTIONS), *limits])


def _cpu_name() -> str:
    """The processor's model, or its architecture if the system does not name the model."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()
