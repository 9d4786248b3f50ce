"""`hpstudy confirm`, and where the noise and the verdict are shown."""

from __future__ import annotations

from pathlib import Path

from hpstudy import load


def test_confirm_refuses_before_the_search_is_done_and_without_seeds(hpstudy, tiny_file, tmp_path: Path) -> None:
    told = hpstudy("confirm", tiny_file(), "--runs", tmp_path / "runs")
    assert told.code == 2
    assert "0 of 5 trials of the search are done" in told.err
    assert not (tmp_path / "runs").exists()


def test_confirm_refuses_a_study_without_fresh_seeds_and_names_the_key(hpstudy, finished) -> None:
    told = hpstudy("confirm", finished.path, "--runs", finished.runs)
    assert (told.code, told.out) == (2, "")
    assert "[confirm] seeds: must hold fresh seeds to confirm on, but is empty" in told.err


def test_seeds_added_to_a_finished_search_are_confirmed_and_noise_and_verdict_shown(hpstudy, tiny_file, tmp_path):
    runs, few = tmp_path / "runs", {"trials = 5": "trials = 2"}
    flags = ("--runs", runs, "--device", "cpu", "--wandb", "disabled", "--workers", 1)
    begun = tiny_file(replace=few, more="[confirm]\nseeds = []\nspeedup = true")
    assert "No verdict" in hpstudy("run", begun, *flags).out
    path = tiny_file(replace=few, more="[confirm]\nseeds = [7, 8]\nspeedup = true")
    told = hpstudy("confirm", path, *flags)
    assert told.code == 0
    results = load("tiny", runs)
    assert " ".join(results.verdict().sentence.split()) in " ".join(told.out.split())
    assert f"~ marks what two seeds of one setting differ by too, up to {results.noise.one_seed:.2g} nats" in " ".join(
        told.out.split()
    )
    assert "confirm 8/8" in told.err
    again = hpstudy("run", path, *flags)
    assert again.out == told.out
    assert "confirm: 8 of 8 are done, from an earlier session" in again.err
    assert f"noise: {results.noise}" in hpstudy("status", "tiny", "--runs", runs).out
    checked = hpstudy("check", path, "--runs", runs, "--device", "cpu").out
    assert f"noise    {results.noise}" in checked
    # 2 trials; the baseline and the winner on two seeds, each 20 steps; and the winner at 10 and 15 steps
    assert "cost     10 runs of up to 20 steps, 43,520 tokens in all" in checked
    assert "2 search, 2 baseline, 6 confirm" in checked
