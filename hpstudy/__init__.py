"""Hyperparameter studies for language-model training, compared with the GPT-3 baseline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpstudy.notebook import load as load

__version__ = "0.2.0"
__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """`hpstudy.load`, imported on first use: pandas and pyarrow take a second."""
    if name == "load":
        from hpstudy.notebook import load

        return load
    raise AttributeError(f"module 'hpstudy' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
