"""The arithmetic of a race, and small races between real processes."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hpstudy.errors import UserError
from tests.bench.__main__ import main
from tests.bench.race import FUSED_FP32, Built, Name, Race, Result, Turn, peers_here, race, taking_turns
from tests.helpers.running import run_at_start
from tests.helpers.tiny import TINY_SETTING


def result(*turns: tuple[float, ...], tokens: int = 0, flops: int = 0) -> Result:
    built = Built(device="here", precision="fp32", tokens_per_step=tokens, flops_per_step=flops)
    return Result(built=built, turns=tuple(Turn(seconds=seconds, peak_memory_gib=0.0) for seconds in turns))


def test_mfu_is_the_median_rate_over_the_fastest_matrix_product():
    gemm = result((0.02, 0.01), (0.04,), flops=1_000_000_000)  # 100 GFLOP/s at best
    # 2, 1 and 4 steps a second; a step of 10 GFLOP and 500 tokens
    ours = result((0.5, 0.5), (1.0,), (0.25,), tokens=500, flops=10_000_000_000)
    done = Race(setting=TINY_SETTING, gemm=gemm, results={"hpstudy": ours})
    assert done.limit == pytest.approx(100e9)
    assert done.mfu("hpstudy") == pytest.approx(0.2)
    assert ours.tok_per_sec == pytest.approx(1000)


def test_speedup_compares_the_turns_of_one_round():
    # the machine has half its speed in the second round, which changes both rates but not their ratio
    ours, theirs = result((1.0,), (2.0,), (1.0,)), result((2.0,), (4.0,), (3.0,))
    done = Race(setting=TINY_SETTING, gemm=result((1.0,)), results={"hpstudy": ours, "notebook": theirs})
    assert done.speedup("notebook") == pytest.approx((2.0, 2.0, 3.0))


def test_contenders_take_turns():
    order = [name for _, name, _ in taking_turns({"gemm": 0, "hpstudy": 1, "notebook": 2}, 2)]
    assert order == ["gemm", "hpstudy", "notebook"] * 2


UNCOMPILED = "import torch\n\ntorch.compile = lambda model: model\n"
FIELD: list[Name] = ["hpstudy", "build-nanogpt", FUSED_FP32]


def test_a_race_times_every_contender_in_every_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run_at_start(tmp_path / "site", UNCOMPILED, monkeypatch)  # compiling takes a minute
    monkeypatch.chdir(tmp_path)  # the contenders are found from any folder
    lines: list[str] = []
    done = race(TINY_SETTING, FIELD, device="cpu", rounds=2, turn_seconds=0.02, say=lines.append)
    assert list(done.results) == FIELD
    assert done.results[FUSED_FP32].built.precision == "fp32"
    assert done.results["build-nanogpt"].built.precision == done.gemm.built.precision
    assert done.results["hpstudy"].built.repeats
    for each in (done.gemm, *done.results.values()):
        assert [len(turn.seconds) > 0 for turn in each.turns] == [True, True]
        assert each.peak_memory_gib > 0.05  # torch alone takes more
    assert done.results["hpstudy"].built.tokens_per_step == 4 * 16
    assert 0 < done.mfu("hpstudy") < 1
    speedup = done.speedup("build-nanogpt")
    assert 0 < speedup.low <= speedup.median <= speedup.high
    assert lines == ["tiny: warming up", "tiny: round 1 of 2", "tiny: round 2 of 2"]


CRAMPED = """
import torch


def cramped(*_, **__):
    raise torch.OutOfMemoryError


torch.nn.utils.clip_grad_norm_ = cramped  # which the peers' loops call
"""


def test_a_peer_that_does_not_fit_is_left_out_with_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run_at_start(tmp_path / "site", CRAMPED, monkeypatch)
    lines: list[str] = []
    done = race(TINY_SETTING, ["hpstudy", "notebook"], rounds=1, turn_seconds=0.02, say=lines.append)
    assert list(done.results) == ["hpstudy"]
    assert lines[-1] == "tiny: notebook does not fit into memory beside the others and is left out"


def test_a_device_that_is_not_there_is_the_users_error():
    with pytest.raises(UserError, match="--device cuda:99: "):
        race(TINY_SETTING, ["hpstudy"], device="cuda:99", say=lambda _: None)


def test_a_cpu_without_a_compiler_leaves_out_the_peer_that_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CXX", str(tmp_path / "g++"))
    peers, left_out = peers_here("cpu")
    assert "build-nanogpt" not in peers
    assert left_out["build-nanogpt"] == "is compiled, but a C++ compiler or Python's headers are missing"
    assert {"notebook", FUSED_FP32} <= set(peers)


def test_peers_race_in_fp32_on_cpus_only():
    assert FUSED_FP32 in peers_here("cpu")[0]
    peers, left_out = peers_here("cuda:0")
    assert FUSED_FP32 not in peers
    assert "build-nanogpt" in peers
    assert set(peers) | set(left_out) == {"notebook", "transformers", "litgpt", "build-nanogpt"}


@pytest.mark.slow
@pytest.mark.skipif("build-nanogpt" not in peers_here("cpu")[0], reason="needs a C++ compiler")
def test_the_recipe_races_compiled():
    done = race(
        TINY_SETTING, ["hpstudy", "build-nanogpt"], device="cpu", rounds=1, turn_seconds=0.02, say=lambda _: None
    )
    assert done.results["build-nanogpt"].tok_per_sec > 0


@pytest.mark.slow
def test_transformers_races_too():
    done = race(TINY_SETTING, ["hpstudy", "transformers"], rounds=1, turn_seconds=0.02, say=lambda _: None)
    assert done.results["transformers"].tok_per_sec > 0


@pytest.mark.slow
def test_the_program_prints_a_row_per_model_and_contender(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", "--quick"])
    monkeypatch.setattr("tests.bench.__main__.QUICK", [TINY_SETTING, replace(TINY_SETTING, name="tiny-too")])
    main()
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows[2:-1]] == ["tiny", "tiny-too"]
    assert all("%" in row for row in rows[2:-1])
    assert rows[-1] == "the same numbers to the last bit when trained again: yes"


def test_the_program_exits_with_2_and_the_presets_if_one_is_unknown(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", "--preset", "gpt-4"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "--preset gpt-4: must be one of gpt-2x64, gpt-4x128, gpt-6x256, gpt-125m\n"
