"""What every test has: private folders, no W&B account, and the smallest study there is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hpstudy.study import Study, load_study

TINY = """
question = "Does the smallest study there is run?"
format = 1

[trainer]
model = {{ layers = 1, heads = 2, width = 16 }}
corpus = "asv"
tokenizer = "gpt2:256"
context = 16
tokens = 5120
evals = 4
val_tokens = 512
precision = "fp32"

[hparams]
batch_tokens = 256
micro_batch = 16

[search]
lr = {{ low = 1e-4, high = 3e-2, scale = "log" }}
beta2 = {{ low = 0.9, high = 0.999, scale = "log1m" }}

[budget]
trials = 5
parallel = 2
sampler = {{ name = "tpe", startup = 2 }}
{more}
"""


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def private_folders(monkeypatch: pytest.MonkeyPatch, cache_folder: Path, tmp_path: Path) -> None:
    """No test writes into the user's home or finds a login there; children inherit this."""
    monkeypatch.setenv("HPSTUDY_CACHE", str(cache_folder))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_SERVICE", "WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("DIR", "CONFIG_DIR", "CACHE_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / "wandb-home"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


@pytest.fixture
def tiny_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes the smallest study: 20 steps a run. `replace` maps old text to new, `more` is appended to [budget]."""

    def write(name: str = "tiny", *, replace: dict[str, str] | None = None, more: str = "") -> Path:
        text = TINY.format(more=more)
        for old, new in (replace or {}).items():
            assert old in text, f"{old!r} is not in the tiny study"
            text = text.replace(old, new)
        if "[confirm]" not in text:
            text += "\n[confirm]\nseeds = []\n"  # nothing runs on fresh seeds but where a test asks for it
        path = tmp_path / f"{name}.toml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def tiny(tiny_file: Callable[..., Path]) -> Callable[..., Study]:
    """The smallest study, loaded; takes what `tiny_file` takes."""
    return lambda *args, **kwargs: load_study(str(tiny_file(*args, **kwargs)))
