"""`export`, `report` and `dashboard` on a finished study."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from hpstudy.analysis.frames import load
from tests.helpers.command_line import PROGRAM, hpstudy


def test_exported_parquet_reads_back_as_the_tables(copied: Path) -> None:
    result = hpstudy("export", "tiny", "--runs", copied)
    assert (result.code, result.err) == (0, "")
    frames = load("tiny", runs=copied)
    trials, steps = map(Path, result.out.splitlines())
    pd.testing.assert_frame_equal(pd.read_parquet(trials), frames.trials)
    pd.testing.assert_frame_equal(pd.read_parquet(steps), frames.steps)
    assert (len(frames.trials), len(frames.steps)) == (5, 100)


def test_exported_csv_reads_back_as_the_tables(copied: Path) -> None:
    result = hpstudy("export", "tiny", "--runs", copied, "--format", "csv")
    assert (result.code, result.err) == (0, "")
    frames = load("tiny", runs=copied)
    for path, frame in zip(map(Path, result.out.splitlines()), (frames.trials, frames.steps), strict=True):
        table = pd.read_csv(path, keep_default_na=False, na_values=[""])
        assert list(table.columns) == list(frame.columns)
        pd.testing.assert_frame_equal(table.astype(frame.dtypes.to_dict()), frame)


def test_report_writes_both_pages_and_prints_only_the_path(finished) -> None:
    result = hpstudy("report", finished.path, "--runs", finished.runs)
    folder = finished.runs / "tiny" / "report"
    assert result == (0, f"{folder / 'index.html'}\n", "")
    assert sorted(path.name for path in folder.iterdir()) == ["index.html", "report.md", "trials.csv"]
    assert "Does the smallest study there is run?" in (folder / "report.md").read_text()


def test_the_dashboard_answers_on_loopback_until_ctrl_c(finished) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # free again at the end of this block
    command = [PROGRAM, "dashboard", str(finished.path), "--runs", str(finished.runs), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        studies = json.loads(answer(f"http://127.0.0.1:{port}/api/studies", process))
        assert [study["study_name"] for study in studies["study_summaries"]] == ["tiny"]
        assert b"<html" in answer(f"http://127.0.0.1:{port}/dashboard", process)
        for host, status in (
            (f"localhost:{port}", 200),
            (f"evil.example:{port}", 403),
            ("evil.example", 403),
            ("", 403),
        ):
            assert (host, asked_as(host, port, "DELETE" if status == 403 else "GET")) == (host, status)
        with pytest.raises(ConnectionRefusedError):  # as at every address except its own
            socket.create_connection(("127.0.0.2", port))
    finally:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert f"optuna-dashboard on http://127.0.0.1:{port}/" in err
    assert "Traceback" not in err


def asked_as(host: str, port: int, method: str) -> int:
    """The status of a request for the studies with this Host header, as after DNS rebinding."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest(method, "/api/studies", skip_host=True)
    connection.putheader("Host", host)
    connection.endheaders()
    status = connection.getresponse().status
    connection.close()
    return status


def answer(url: str, process: subprocess.Popen[str]) -> bytes:
    """What a server answers, as soon as it does."""
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


@pytest.fixture
def busy() -> Iterator[int]:
    """A port of 127.0.0.1 that is in use."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_dashboard_on_a_busy_port_names_the_port(finished, busy: int) -> None:
    result = hpstudy("dashboard", finished.path, "--runs", finished.runs, "--port", busy)
    assert result.code == 2
    assert f"--port {busy}: must be an address that is free here, but got: Address already in use" in result.err
