"""A gallery of studies with made-up training, one for each way in which a study can stand.

`python -m tests.helpers.gallery DIR` writes their stores and reports into the folder DIR, for a person to look at.
`--shots OUT` takes pictures of the reports besides.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import hpstudy
from hpstudy.cli.report_commands import report_page
from hpstudy.records import Outcome
from tests.helpers.made_up import MadeUp, train

TRAINER = """
format = 2

[trainer]
model      = "gpt-2x64"
tokenizer  = "gpt2:512"
context    = 128
tokens     = 300_000
evals      = 10
val_tokens = 8192
"""
TWO_KEYS = """
[hparams]
batch_tokens        = 2048
batch_ramp_fraction = 0.0

[search]
lr    = { low = 3e-4, high = 3e-2, scale = "log" }
beta2 = { low = 0.9, high = 0.999, scale = "log1m" }
"""
GALLERY: dict[str, MadeUp] = {
    "decided": MadeUp(
        text=f"""
question = "Are GPT-3's learning rate and betas right for a tiny model?"
yes      = ["equivalent", "worse"]
{TRAINER}
[hparams]
batch_tokens        = 2048
batch_ramp_fraction = 0.0

[search]
lr    = {{ low = 3e-4, high = 3e-2, scale = "log" }}
beta1 = {{ low = 0.8, high = 0.98, scale = "log1m" }}
beta2 = {{ low = 0.9, high = 0.999, scale = "log1m" }}

[budget]
trials  = 12
sampler = {{ name = "tpe", startup = 6 }}
"""
    ),
    "undecided": MadeUp(
        text=f"""
question = "Is another weight decay better than GPT-3's 0.1?"
yes      = "better"
{TRAINER}
[hparams]
batch_tokens        = 2048
batch_ramp_fraction = 0.0

[search]
weight_decay = {{ low = 0.0, high = 1.0 }}

[budget]
trials = 8

[confirm]
looks = [3, 5, 8, 12, 20]
seeds = {list(range(201, 221))}
""",
        noise=0.01,  # the best of the search is worse by half a standard deviation, which 20 seeds leave open
    ),
    "two-objectives": MadeUp(
        text=f"""
question = "Which batch is both fast and good?"
{TRAINER}
[baseline]
overrides = {{ batch_tokens = 8192, micro_batch = 1 }}

[hparams]
batch_ramp_fraction = 0.0

[search]
lr           = {{ low = 3e-4, high = 3e-2, scale = "log" }}
batch_tokens = {{ choices = [1024, 2048, 4096, 8192] }}
micro_batch  = {{ choices = [1, 2, 4, 8] }}

[objective]
metric = ["val/loss", "train/tok_per_sec"]

[budget]
trials = 24
"""
    ),
    "failures": MadeUp(
        text=f"""
question = "Which learning rates does a tiny model bear?"
{TRAINER}{TWO_KEYS}
[budget]
trials              = 12
smaller_micro_batch = false
""",
        lost={"search-0003": Outcome.DIVERGED, "search-0005": Outcome.FAILED, "search-0008": Outcome.OUT_OF_MEMORY},
    ),
    "pruned": MadeUp(
        text=f"""
question = "Are as good values found if bad trials are stopped early?"
{TRAINER}{TWO_KEYS}
[budget]
trials = 24
pruner = {{ name = "median", startup = 4, from_fraction = 0.2 }}
"""
    ),
    "foresight": MadeUp(
        text=f"""
question = "Are as good values found if trials are stopped by a forecast of their end?"
{TRAINER}{TWO_KEYS}
[budget]
trials = 40
pruner = "foresight"
"""
    ),
    "hundred": MadeUp(
        text=f"""
question = "Are five of GPT-3's values right for a tiny model?"
{TRAINER}
[baseline]
overrides = {{ batch_tokens = 4096 }}

[hparams]
micro_batch         = 8
batch_ramp_fraction = 0.0

[search]
lr              = {{ low = 3e-4, high = 3e-2, scale = "log" }}
beta2           = {{ low = 0.9, high = 0.999, scale = "log1m" }}
min_lr_fraction = {{ low = 0.0, high = 0.3 }}
batch_tokens    = {{ choices = [1024, 2048, 4096, 8192] }}
clip_mode       = {{ choices = ["global", "per_tensor", "none"] }}

[budget]
trials = 100

[confirm]
top = 3
"""
    ),
    "opponents": MadeUp(
        text=f"""
question = "Is tuning everything at once better than tuning the learning rate alone?"
yes      = "better"
{TRAINER}
[baseline]
overrides = {{ batch_tokens = 8192 }}
also      = ["tuned-lr", "batch"]

[hparams]
micro_batch         = 8
batch_ramp_fraction = 0.0

[search]
lr           = {{ low = 3e-4, high = 3e-2, scale = "log" }}
beta2        = {{ low = 0.9, high = 0.999, scale = "log1m" }}
batch_tokens = {{ choices = [1024, 2048, 4096, 8192] }}

[budget]
trials = 12

[confirm]
speedup = true
"""
    ),
    "interim": MadeUp(
        text=f"""
question = "Are GPT-3's learning rate, betas and weight decay right for a tiny model?"
yes      = ["equivalent", "worse"]
{TRAINER}
[hparams]
batch_tokens        = 2048
batch_ramp_fraction = 0.0

[search]
lr           = {{ low = 3e-4, high = 3e-2, scale = "log" }}
beta2        = {{ low = 0.9, high = 0.999, scale = "log1m" }}
weight_decay = {{ low = 1e-3, high = 1.0, scale = "log" }}

[budget]
trials = 12
""",
        stopped="search-0002",
    ),
    "speed": MadeUp(
        text=f"""
question = "Is the largest micro-batch the fastest?"
yes      = "slower"
{TRAINER}
[baseline]
overrides = {{ micro_batch = 64 }}

[hparams]
batch_tokens        = 8192
batch_ramp_fraction = 0.0

[search]
micro_batch = {{ choices = [1, 2, 4, 8, 16, 32, 64] }}

[objective]
metric = "train/tok_per_sec"

[budget]
parallel = 1
sampler  = "grid"
"""
    ),
    "baseline-only": MadeUp(
        text=f"""
question = "What loss do GPT-3's values reach with a small model?"
{TRAINER}
[hparams]
batch_tokens = 4096

[search]

[confirm]
seeds = [101, 102, 103, 104, 105]
"""
    ),
}
"""Name -> study."""


def build(name: str, runs: Path) -> Path:
    """Writes a study's store and its report into the folder `runs`, and returns the path of the page."""
    train(name, GALLERY[name], runs)
    return report_page(hpstudy.load(name, runs))


def main() -> None:
    """Builds the gallery; of studies that are there already only the reports are written again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, metavar="DIR", help="folder of run stores")
    parser.add_argument("--shots", type=Path, metavar="OUT", help="folder for pictures of the reports")
    parser.add_argument("--only", nargs="+", choices=GALLERY, default=list(GALLERY), help="these studies alone")
    args = parser.parse_args()
    for name in args.only:
        there = (args.runs / name).exists()
        page = report_page(hpstudy.load(name, args.runs)) if there else build(name, args.runs)
        print(page)
        if args.shots:
            from tests.helpers.shots import take_shots  # needs playwright

            take_shots(page, args.shots / name)


if __name__ == "__main__":
    main()
