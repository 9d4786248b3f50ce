"""Programs that measure hpstudy; none is a test.

`python -m tests.bench` races it against other trainers (race.py) and sweep agents (trials.py); `python -m
tests.bench.NAME` measures one thing: faults, load, scale, overhead.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CLI = (sys.executable, "-c", "import hpstudy.cli; hpstudy.cli.main()")
