"""Every command does what its help says: results on stdout, progress on stderr, exit code 0."""

from __future__ import annotations

import json
import math
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import typer.main

from hpstudy.analysis.frames import load
from hpstudy.cli import app

COMMANDS = typer.main.get_command(app).commands
BATCH = 256  # tokens, of the tiny study


def test_these_are_the_commands_and_root_help_shows_them(hpstudy) -> None:
    assert {
        "check",
        "run",
        "status",
        "export",
        "report",
        "dashboard",
        "corpora",
        "prepare",
        "doctor",
    } <= COMMANDS.keys()
    for told in (hpstudy(), hpstudy("--help")):
        assert told.code == 0
        assert all(name in told.out for name in COMMANDS)
        assert "Example: hpstudy run quickstart" in told.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_an_example_that_parses(hpstudy, name: str) -> None:
    told = hpstudy(name, "--help")
    assert (told.code, told.err) == (0, "")
    assert COMMANDS[name].help.split()[0] in told.out
    (example,) = (line.strip() for line in told.out.splitlines() if "Example:" in line)
    words = shlex.split(example.removeprefix("Example: "))
    assert words[:2] == ["hpstudy", name]
    COMMANDS[name].make_context(name, words[2:])  # raises on a flag or a value that does not exist


def test_help_answers_before_any_heavy_import() -> None:
    program = "import sys, hpstudy.cli; print(*{'torch', 'pandas', 'optuna', 'wandb', 'scipy'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_version_is_the_packages(hpstudy) -> None:
    assert hpstudy("--version") == (0, f"hpstudy {version('hpstudy')}\n", "")


def test_check_prints_space_baseline_departures_and_cost_and_leaves_nothing(hpstudy, tiny_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tiny_file(replace={"low = 1e-4": "low = 1e-3"})  # GPT-3's 6e-4 lies outside
    told = hpstudy("check", path, "--trials", 7)
    assert told.code == 0
    rows = [line.split() for line in told.out.splitlines()]
    assert ["lr", "0.001", "0.03", "log", "0.0006"] in rows
    assert ["beta2", "0.9", "0.999", "log", "of", "1", "-", "value", "0.95"] in rows
    # warm-up: 10 steps of 20
    assert "departs from GPT-3 in: warmup_fraction 0.5 (GPT-3: 0.00125), batch_tokens 256 (GPT-3: 524288)" in told.out
    # vocabulary 256 x 16, positions 16 x 16, block 12 x 16^2 + 13 x 16, last norm 2 x 16
    assert f"{256 * 16 + 16 * 16 + 12 * 16**2 + 13 * 16 + 2 * 16:,} parameters" in told.out
    # 7 trials and the baseline, 5,120 / 256 steps each
    assert "cost     8 runs of 20 steps, 40,960 tokens in all, about " in told.out
    assert "tok/s" in told.out
    assert told.err.startswith("warning: [search] lr: no trial can have the baseline's value")
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny.toml"]


def figures(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    return tuple(json.loads((folder / name).read_text()) for name in ("header.json", "result.json"))


def test_run_prints_baseline_and_best_trials_as_the_store_has_them(finished) -> None:
    assert finished.told.code == 0
    folders = sorted((finished.runs / "tiny").glob("search-*"))
    baseline, *others = [(folder.name, *figures(folder)) for folder in folders]
    expected = []
    for name, header, result in [baseline, *sorted(others, key=lambda run: run[2]["val_loss"])]:
        hparams, loss = header["run"]["hparams"], result["val_loss"]
        halflives = [BATCH * math.log(0.5) / math.log(hparams[beta]) for beta in ("beta1", "beta2")]
        difference = "baseline" if name == baseline[0] else f"{loss - baseline[2]['val_loss']:+.4f}"
        cells = [name, f"{loss:.4f}", difference, short(result["tok_per_sec"]), f"{hparams['lr']:.3g}"]
        betas = [f"{hparams['beta1']:.4g}", short(halflives[0]), f"{hparams['beta2']:.5g}", short(halflives[1])]
        expected.append([*cells, *betas, f"{hparams['weight_decay']:.4g}", str(hparams["micro_batch"])])
    printed = [line.split() for line in finished.told.out.splitlines() if line.startswith("search-")]
    assert printed == expected
    for heading in ("loss", "difference", "tok/s", "lr", "beta1", "beta2", "life", "decay", "batch"):
        assert heading in finished.told.out


def short(value: float) -> str:
    return f"{value / 1000:.3g}k"


def test_run_says_where_everything_is_and_what_comes_next(finished) -> None:
    files, page, wandb, following, longer = finished.told.out.splitlines()[-5:]
    assert files.split() == ["files", str(finished.runs / "tiny")]
    assert page.split() == ["report", str(finished.runs / "tiny" / "report" / "index.html")]
    assert "No verdict: it takes two fresh seeds" in finished.told.out
    assert wandb.startswith(f"W&B runs {finished.runs / 'tiny' / 'wandb'}")
    assert len(list((finished.runs / "tiny" / "wandb").glob("offline-run-*"))) == 5
    assert following.startswith("next ")
    assert following.endswith(f"hpstudy export tiny --runs {finished.runs}")
    assert longer.split(maxsplit=2)[:2] == ["hpstudy", "run"]
    assert f"{finished.path} --runs {finished.runs}" in longer
    assert longer.endswith(" --trials 10")


def test_run_keeps_progress_off_stdout(finished) -> None:
    out, err = finished.told.out, finished.told.err
    assert "tiny: Does the smallest study there is run?" in err
    assert "search 1/5  search-0000 (baseline): val loss" in err
    assert "search 5/5" in err
    assert "5/5" not in out
    assert "\x1b" not in out + err


def test_status_counts_the_runs_of_a_study_and_names_the_unfinished(hpstudy, finished, tmp_path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(finished.runs, runs)
    losses = {folder.name: figures(folder)[1]["val_loss"] for folder in (runs / "tiny").glob("search-*")}
    best, worst = min(losses, key=losses.get), max(losses, key=losses.get)
    told = hpstudy("status", "tiny", "--runs", runs)
    assert ["search", "5", "5", "0", "0", "0", "0", "0"] in [line.split() for line in told.out.splitlines()]
    assert f"lowest val loss of the search {losses[best]:.4f} ({best}, one seed)" in told.out
    assert "No verdict: it takes two fresh seeds" in told.out
    (runs / "tiny" / worst / "result.json").unlink()
    told = hpstudy("status", finished.path, "--runs", runs)
    assert ["search", "5", "4", "0", "0", "0", "0", "1"] in [line.split() for line in told.out.splitlines()]
    assert f"unfinished: {worst}; `hpstudy run tiny` goes on with it" in told.out


def test_status_without_a_name_lists_begun_and_waiting_studies(hpstudy, finished, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "waiting.toml").write_text(finished.path.read_text())
    losses = [figures(folder)[1]["val_loss"] for folder in (finished.runs / "tiny").glob("search-*")]
    told = hpstudy("status", "--runs", finished.runs)
    assert (told.code, told.err) == (0, "")
    rows = {row.split()[0]: row.split(maxsplit=4)[1:] for row in told.out.splitlines()[1:]}
    assert [cell.strip() for cell in rows["tiny"]] == ["5", "5", f"{min(losses):.4f}", "(no study file here)"]
    assert [cell.strip() for cell in rows["waiting"]] == ["-", "-", "-", "Does the smallest study there is run?"]


def test_status_of_a_place_where_nothing_began_is_no_error(hpstudy, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hpstudy("status").code == 0
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def copied(finished, tmp_path: Path) -> Path:
    """A folder of runs that a test may write into."""
    return Path(shutil.copytree(finished.runs, tmp_path / "copied"))


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe\0", b"question = "], ids=["emptied", "binary", "cut"])
def test_a_damaged_copy_of_the_study_file_is_named(hpstudy, copied: Path, damage: bytes) -> None:
    (copied / "tiny" / "study.toml").write_bytes(damage)
    for command in ("status", "report"):
        told = hpstudy(command, "tiny", "--runs", copied)
        assert told.code == 2
        assert f"{copied / 'tiny' / 'study.toml'}: " in told.err


def test_exported_parquet_reads_back_as_the_tables(hpstudy, copied: Path) -> None:
    told = hpstudy("export", "tiny", "--runs", copied)
    assert (told.code, told.err) == (0, "")
    frames = load("tiny", runs=copied)
    trials, steps = map(Path, told.out.splitlines())
    pd.testing.assert_frame_equal(pd.read_parquet(trials), frames.trials)
    pd.testing.assert_frame_equal(pd.read_parquet(steps), frames.steps)
    assert (len(frames.trials), len(frames.steps)) == (5, 100)


def test_exported_csv_reads_back_as_the_tables(hpstudy, copied: Path) -> None:
    told = hpstudy("export", "tiny", "--runs", copied, "--format", "csv")
    assert (told.code, told.err) == (0, "")
    frames = load("tiny", runs=copied)
    for path, frame in zip(map(Path, told.out.splitlines()), (frames.trials, frames.steps), strict=True):
        read = pd.read_csv(path, keep_default_na=False, na_values=[""])
        assert list(read.columns) == list(frame.columns)
        pd.testing.assert_frame_equal(read.astype(frame.dtypes.to_dict()), frame)


@pytest.fixture
def busy() -> Iterator[int]:
    """A port of 127.0.0.1 that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_the_dashboard_answers_on_loopback_until_ctrl_c(finished, program: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # free again at the end of this block
    command = [program, "dashboard", str(finished.path), "--runs", str(finished.runs), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        studies = json.loads(answer(f"http://127.0.0.1:{port}/api/studies", process))
        assert [study["study_name"] for study in studies["study_summaries"]] == ["tiny"]
        assert b"<html" in answer(f"http://127.0.0.1:{port}/dashboard", process)
        with pytest.raises(ConnectionRefusedError):  # as it would be at any address but the one it is bound to
            socket.create_connection(("127.0.0.2", port))
    finally:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert f"optuna-dashboard on http://127.0.0.1:{port}/" in err
    assert "Traceback" not in err


def answer(url: str, process: subprocess.Popen[str]) -> bytes:
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10) as response:
                assert response.status == 200
                return response.read()
        except urllib.error.URLError:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_dashboard_on_a_busy_port_says_which(hpstudy, finished, busy: int) -> None:
    told = hpstudy("dashboard", finished.path, "--runs", finished.runs, "--port", busy)
    assert told.code == 2
    assert f"--port {busy}: must be an address that is free here, but got: Address already in use" in told.err


def test_corpora_lists_what_a_study_may_name(hpstudy) -> None:
    told = hpstudy("corpora")
    assert (told.code, told.err) == (0, "")
    rows = [line.split() for line in told.out.splitlines()]
    assert ["asv", "yes", "1,009,473"] in [row[:3] for row in rows]
    assert {row[0] for row in rows[1:]} == {"asv", "text:PATH", "shards:GLOB", "fineweb-edu"}


def test_prepare_prints_the_shards_it_left(hpstudy, cache_folder: Path, tmp_path: Path) -> None:
    told = hpstudy("prepare", "asv", "--tokenizer", "gpt2:256")
    assert told.code == 0
    paths = [Path(line) for line in told.out.splitlines()]
    assert paths
    assert all(path.is_file() and path.is_relative_to(cache_folder) for path in paths)
    text = tmp_path / "text.txt"
    text.write_text("to be")
    (shard,) = hpstudy("prepare", f"text:{text}", "--tokenizer", "bytes").out.splitlines()
    assert Path(shard).read_bytes()[1024:] == b"\0".join(bytes([letter]) for letter in b"to be") + b"\0"


def test_doctor_finds_what_a_study_needs(hpstudy, tmp_path: Path) -> None:
    told = hpstudy("doctor", "--device", "cpu", "--runs", tmp_path / "runs")
    assert told.code == 0, told
    assert "missing" not in told.out
    for what in ("packages", "cores", "training", "W&B", "cache folder", "runs folder"):
        assert what in told.out
    assert not (tmp_path / "runs").exists()


def test_report_writes_both_pages_and_prints_the_path_alone(hpstudy, finished) -> None:
    told = hpstudy("report", finished.path, "--runs", finished.runs)
    folder = finished.runs / "tiny" / "report"
    assert told == (0, f"{folder / 'index.html'}\n", "")
    assert sorted(path.name for path in folder.iterdir()) == ["index.html", "report.md"]
    assert "Does the smallest study there is run?" in (folder / "report.md").read_text()
