"""Changes single bytes of a finished study's files: `python -m tests.bench.flips` prints what its readers answer.

Each changed file gives the same answer, or one that names what was left out, or a refusal by name. Another answer, or a
traceback, is a fault.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hpstudy.analysis.results import load
from hpstudy.errors import HpstudyError
from tests.bench.faults import run_without_faults

SUFFIXES = (".json", ".jsonl", ".toml", ".journal")
ENDS = ("same answer", "left out by name", "refused by name", "another answer", "traceback")
Answer = tuple[str, str, str, tuple[str, ...]]


def flip_bytes(root: Path, times: int, seed: int) -> Counter[tuple[str, str]]:
    """Changes one byte of a random file of a study, reads the study, and puts the byte back, `times` times.

    Returns how often each (file name, end) came.
    """
    rng = random.Random(seed)
    files = [path for path in sorted(root.rglob("*")) if path.suffix in SUFFIXES and path.stat().st_size]
    names = sorted({path.name for path in files})
    whole, ends = _answer(root), Counter[tuple[str, str]]()
    assert not whole[3]
    for _ in range(times):
        name = rng.choice(names)
        path = rng.choice([path for path in files if path.name == name])
        content = path.read_bytes()
        at = rng.randrange(len(content))
        byte = bytes([rng.choice([rng.randrange(256), *b"0123456789"])])
        path.write_bytes(content[:at] + byte + content[at + 1 :])
        ends[name, _end(root, whole)] += 1
        path.write_bytes(content)
    return ends


def _answer(root: Path) -> Answer:
    """All that a reader learns: the verdict, both tables, and what was left out."""
    results = load(root.name, root.parent)
    return results.verdict().sentence, results.trials.to_csv(), results.steps.to_csv(), results.frames.problems


def _end(root: Path, whole: Answer) -> str:
    try:
        answer = _answer(root)
    except HpstudyError:
        return "refused by name"
    except Exception:
        return "traceback"
    if answer[3]:
        return "left out by name"
    return "same answer" if answer == whole else "another answer"


def main() -> int:
    """Prints the table; returns 1 if there was another answer or a traceback."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.flips", description=__doc__)
    parser.add_argument("--times", type=int, default=1000, metavar="N", help="bytes to change, one at a time (1000)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        ends = flip_bytes(run_without_faults(Path(name)).root, args.times, seed=0)
    table = Table("file", *ENDS, box=None, header_style="", pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for file in sorted({file for file, _ in ends}):
        table.add_row(file, *(str(ends[file, end]) for end in ENDS))
    Console(width=100).print(table)
    return int(any(end in ENDS[3:] for _, end in ends))


if __name__ == "__main__":
    sys.exit(main())
