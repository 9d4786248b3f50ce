"""Measures what packs gain: tokens/s of 2, 4 and 8 trials as one against one trial at a time, in turns, on one core.

`python -m tests.bench.pack_speed` prints a row for each model, precision and batch, with medians over the rounds.
Keep the machine's other cores as busy as those of a study would be: start it once per core.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from dataclasses import replace

from hpstudy.data.corpus import corpus_of
from hpstudy.errors import UserError
from hpstudy.hparams import GPT3
from hpstudy.spec import PRESETS, PrecisionChoice, TrainerSpec
from hpstudy.training.device import place, prepare_process
from hpstudy.training.trainer import Trainer

CONTEXT, STEPS, ROUNDS = 128, 10, 5
PACKS = (1, 2, 4, 8)
ROWS: tuple[tuple[str, PrecisionChoice, int], ...] = (  # model, precision, tokens a step
    ("gpt-2x64", "bf16", 256),
    ("gpt-2x64", "bf16", 512),
    ("gpt-2x64", "bf16", 2048),
    ("gpt-2x64", "fp32", 512),
    ("gpt-4x128", "bf16", 512),
    ("gpt-4x128", "bf16", 2048),
)


def gains(model: str, precision: PrecisionChoice, batch_tokens: int, rounds: int) -> Iterator[dict[int, float]]:
    """The gain of each pack over one at a time, round by round. Raises UserError for a precision that is not here."""
    spec = TrainerSpec(
        model=PRESETS[model],
        corpus="asv",
        tokenizer="gpt2:512",
        context=CONTEXT,
        tokens=batch_tokens,
        seconds=None,
        evals=1,
        val_tokens=CONTEXT,
        seed=0,
        threads=1,
        precision=precision,
        ramp_multiple=1,
    )
    hparams = replace(GPT3, batch_tokens=batch_tokens, micro_batch=batch_tokens // CONTEXT)
    corpus, placement = corpus_of(spec), place("cpu", precision)
    trainer = Trainer(spec, corpus, placement)
    for number in range(rounds):
        order = PACKS if number % 2 == 0 else PACKS[::-1]
        seconds = {pack: statistics.median(trainer.time_steps(hparams, STEPS, pack)) for pack in order}
        yield {pack: pack * seconds[1] / seconds[pack] for pack in PACKS[1:]}


def main() -> None:
    """Prints the table in Markdown, as the README has it."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.pack_speed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help=f"rounds of all packs ({ROUNDS})")
    rounds = parser.parse_args().rounds
    prepare_process(threads=1)
    print(f"| model, precision, tokens a step | {' | '.join(map(str, PACKS[1:]))} |")
    for row in ROWS:
        try:
            found = list(gains(*row, rounds))
        except UserError as error:
            print(f"| {', '.join(map(str, row))} | {error} |")
            continue
        medians = [statistics.median(each[pack] for each in found) for pack in PACKS[1:]]
        print(f"| {', '.join(map(str, row))} | {' | '.join(f'{gain:.2f}' for gain in medians)} |", flush=True)


if __name__ == "__main__":
    main()
