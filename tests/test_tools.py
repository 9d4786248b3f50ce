"""The programs and helpers of the tests import, also those that no test runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def test_every_program_and_helper_imports() -> None:
    paths = [path for folder in ("bench", "helpers") for path in sorted((TESTS / folder).glob("*.py"))]
    names = [".".join(path.relative_to(TESTS.parent).with_suffix("").parts) for path in paths]
    code = "import importlib, sys\nfor name in sys.argv[1:]:\n    importlib.import_module(name)"
    done = subprocess.run(
        [sys.executable, "-c", code, *names], cwd=TESTS.parent, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
