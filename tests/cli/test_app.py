"""The program: its help, its version, shell completion, and the commands' flags and examples."""

from __future__ import annotations

import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer.main

from hpstudy.analysis.overview import OVERVIEW
from hpstudy.cli import app
from hpstudy.cli.check_command import CHECK
from hpstudy.cli.json_reference import json_markdown
from hpstudy.study import load_study
from hpstudy.study.reference import reference_markdown
from tests.helpers.command_line import PROGRAM, REPOSITORY, hpstudy
from tests.helpers.stores import LOWER, ends, results_of, stored

ROOT = typer.main.get_command(app)
COMMANDS = ROOT.commands
PARSERS = (ROOT, *COMMANDS.values())
HEAVY = {"torch", "pandas", "pyarrow", "scipy", "optuna", "wandb", "plotly", "pydantic", "numpy", "rich", "pygments"}


def test_root_help_lists_every_command_and_an_example() -> None:
    assert {
        *("check", "run", "confirm", "status", "export", "report", "sync", "compare", "results", "workspace"),
        *("replay", "dashboard", "reference", "schema", "corpora", "prepare", "doctor", "bench", "new", "ladder"),
    } == COMMANDS.keys()
    for result in (hpstudy(), hpstudy("--help")):
        assert result.code == 0
        assert all(name in result.out for name in COMMANDS)
        assert all(command.help in " ".join(result.out.split()) for command in COMMANDS.values())
        assert "Example: hpstudy run quickstart" in result.out


@pytest.mark.parametrize("args", [(), *((name,) for name in COMMANDS)], ids=["hpstudy", *COMMANDS])
def test_h_prints_what_help_prints(args: tuple[str, ...]) -> None:
    result = hpstudy(*args, "-h")
    assert (result.code, result.err) == (0, "")
    assert result == hpstudy(*args, "--help")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_an_example_that_parses(name: str) -> None:
    result = hpstudy(name, "--help")
    assert (result.code, result.err) == (0, "")
    assert COMMANDS[name].help.split()[0] in result.out
    (example,) = (line.strip() for line in result.out.splitlines() if "Example:" in line)
    assert example == COMMANDS[name].epilog
    words = shlex.split(example.removeprefix("Example: "))
    if ">" in words:  # a shell writes the output to a file
        words = words[: words.index(">")]
    assert words[:2] == ["hpstudy", name]
    COMMANDS[name].make_context(name, words[2:])  # raises if a flag or a value does not exist


def test_every_option_and_argument_has_a_help_text() -> None:
    helps = {f"{command.name} {parameter.name}": parameter.help for command in PARSERS for parameter in command.params}
    assert {"hpstudy version", "run name", "run trials", "compare names", "dashboard port"} <= helps.keys()
    assert [name for name, text in helps.items() if not text] == []


def test_help_imports_no_large_package() -> None:
    program = f"import sys, hpstudy.cli.app; print(*{HEAVY!r} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_importtime_shows_no_large_package_while_the_program_prints_its_help() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "hpstudy", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert {"hpstudy", "typer"} <= imported
    assert not imported & HEAVY


def test_version_is_the_version_of_the_installed_package() -> None:
    assert hpstudy("--version") == (0, f"hpstudy {version('hpstudy')}\n", "")


def test_python_m_hpstudy_is_the_program() -> None:
    results = [
        subprocess.run([*program, "--version"], capture_output=True, text=True, check=True)
        for program in ([PROGRAM], [sys.executable, "-m", "hpstudy"])
    ]
    assert [(result.stdout, result.stderr) for result in results] == [(f"hpstudy {version('hpstudy')}\n", "")] * 2


def test_the_completion_that_bash_is_shown_completes_commands(tmp_path: Path) -> None:
    script = 'eval "$(hpstudy --show-completion)"; COMP_WORDS=(hpstudy re); COMP_CWORD=1; _hpstudy_completion hpstudy;'
    done = subprocess.run(
        ["bash", "--norc", "-c", f'{script} echo "${{COMPREPLY[@]}}"'],
        env={"PATH": f"{Path(PROGRAM).parent}:/usr/bin:/bin", "HOME": str(tmp_path), "SHELL": "/bin/bash"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout.split(), done.stderr) == (["report", "results", "replay", "reference"], "")


def test_reference_prints_every_key_and_metric() -> None:
    page = REPOSITORY / "studies" / "README.md"
    printed = hpstudy("reference")
    assert printed == (0, f"{reference_markdown()}\n{json_markdown()}", "")
    assert page.read_text(encoding="utf-8") == printed.out, "run `hpstudy reference > studies/README.md`"
    for keys in (OVERVIEW, CHECK):
        assert all(f"| `{key}` | {doc} |" in printed.out for key, doc in keys.items())


def loaded_by_status(folder: Path, *args: str) -> set[str]:
    """What `hpstudy status` loads in a folder: modules, and the packages that hold them."""
    command = [sys.executable, "-X", "importtime", "-m", "hpstudy", "status", *args]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    names = [line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {str(parent).replace("/", ".") for name in names for parent in Path(name.replace(".", "/"), "_").parents}


def test_status_loads_only_the_light_parts_of_large_packages(tmp_path: Path, tiny_file) -> None:
    (tmp_path / "empty").mkdir()
    empty = loaded_by_status(tmp_path / "empty")
    assert "hpstudy.cli.status_command" in empty
    assert not empty & {"torch", "pandas", "pyarrow", "scipy", "optuna", "wandb", "plotly", "tiktoken"}
    study = load_study(str(tiny_file(more="[confirm]\nseeds = [101, 102, 103, 104, 105]\n")))
    results_of(study, stored(tmp_path, ends({"search-0003": LOWER})), tmp_path)
    for args in ((), ("tiny",)):
        loaded = loaded_by_status(tmp_path, *args)
        assert {"pandas", "scipy.special"} <= loaded
        assert not loaded & {"torch", "optuna", "wandb", "plotly", "tiktoken"}
        assert not loaded & {"scipy.stats", "scipy.optimize", "scipy.linalg", "pyarrow.parquet", "pyarrow.json"}
