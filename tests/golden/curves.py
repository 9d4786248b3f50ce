"""The runs whose loss curves are recorded in this folder; no speed-up may change them.

`make golden` records them again. That is right only if the maths was meant to change, and the commit says why.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch

from hpstudy.data.corpus import corpus_of
from hpstudy.hparams import GPT3
from hpstudy.records import Run
from hpstudy.spec import PRESETS, TrainerSpec
from hpstudy.training.device import place
from hpstudy.training.trainer import Trainer

FOLDER = Path(__file__).parent
STEADY = replace(
    GPT3, lr=1e-3, batch_tokens=1024, micro_batch=4, warmup_fraction=0.1, batch_ramp_fraction=0.0, weight_decay=0.1
)
RUNS = {
    "accumulated": STEADY,
    "ramped": replace(STEADY, batch_ramp_fraction=0.4, batch_ramp_start=0.5),
    "per-tensor-clipping": replace(STEADY, clip_mode="per_tensor", grad_clip=0.1),
    "unclipped-betas": replace(STEADY, clip_mode="none", beta1=0.8, beta2=0.99, eps=1e-4),
}
PRECISIONS = ("fp32", "bf16")
KEYS = ("loss", "grad_norm", "update_to_weight", "val_loss")


def train(name: str, precision: str, device: str = "cpu") -> list[dict[str, float | None]]:
    """The figures of every step of one of RUNS."""
    spec = TrainerSpec(
        model=PRESETS["gpt-2x64"],
        corpus="asv",
        tokenizer="gpt2:1000",  # no multiple of 64, so that the padding is in play
        context=64,
        tokens=40 * 1024,
        seconds=None,
        evals=4,
        val_tokens=4096,
        seed=0,
        threads=1,
        precision="fp32" if precision == "fp32" else "bf16",
        ramp_multiple=4,
    )
    corpus = corpus_of(spec)
    trainer = Trainer(spec, corpus, place(device, spec.precision))
    run = Run(run_id=name, phase="search", trial=None, seed=0, tokens=40 * 1024, hparams=RUNS[name])
    return [{key: getattr(record, key) for key in KEYS} for record in trainer.train(run)]


def path(name: str, precision: str) -> Path:
    """The file of a curve."""
    return FOLDER / f"{name}.{precision}.json"


def main() -> None:
    """Records every curve."""
    torch.set_num_threads(1)
    for name in RUNS:
        for precision in PRECISIONS:
            rows = ",\n".join(json.dumps(row) for row in train(name, precision))
            path(name, precision).write_text(f"[\n{rows}\n]\n")
            print(path(name, precision).name)


if __name__ == "__main__":
    main()
