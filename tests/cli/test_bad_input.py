"""Wrong input gives one message that names place, rule and remedy, and exit code 2; recorded runs stay as they are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hpstudy.files import to_json
from hpstudy.study import list_studies
from hpstudy.study.frozen import source_of
from tests.helpers.command_line import PROGRAM, contents, hpstudy

PROGRESS = ("tiny: Does the smallest study there is run?", "tokenizing ", "starting ", "search: ")


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., None]:
    """Runs `hpstudy ARGS` and asserts one message that holds all of `parts`, and an unchanged runs folder."""
    runs = tmp_path / "runs"

    def check(*args: object, parts: tuple[str, ...]) -> None:
        before = contents(runs)
        result = hpstudy(*args, "--runs", runs)
        assert (result.code, result.out) == (2, "")
        *earlier, message = result.err.splitlines()
        assert all(part in message for part in parts), result.err
        assert all(line.startswith(PROGRESS) for line in earlier)
        assert "Traceback" not in result.err
        assert contents(runs) == before

    return check


STUDY_MISTAKES = {
    "unknown key": ({"evals = 4": "eval = 4"}, ("[trainer]", 'unknown key "eval"', 'did you mean "evals"?')),
    "misspelt hyperparameter": (
        {"micro_batch = 16": "micro_bach = 16"},
        ("[hparams]", 'unknown key "micro_bach"', 'did you mean "micro_batch"?'),
    ),
    "misspelt searched key": ({"lr = {": "learning_rate = {"}, ("[search]", 'unknown key "learning_rate"')),
    "missing question": ({'question = "Does the smallest study there is run?"': ""}, ("question", "missing")),
    "missing budget": ({"tokens = 5120": ""}, ("[trainer] tokens", "exactly one, but got neither")),
    "low not below high": (
        {"low = 0.9, high = 0.999": "low = 0.99, high = 0.9"},
        ("[search] beta2", "`low < high` must hold, but got low=0.99, high=0.9"),
    ),
    "beta of one": ({"high = 0.999": "high = 1.0"}, ("[search] beta2", "high must be in (0, 1), but got 1.0")),
    "beta below zero": (
        {"micro_batch = 16": "micro_batch = 16\nbeta1 = -0.1"},
        ("[hparams] beta1", "must be in (0, 1), but got -0.1"),
    ),
    "lr of zero": ({"low = 1e-4": "low = 0"}, ("[search] lr", "low must be in (0, inf), but got 0")),
    "lr below zero": ({"low = 1e-4": "low = -1e-4"}, ("[search] lr", "low must be in (0, inf), but got -0.0001")),
    "batch that no micro-batch fits": (
        {"batch_tokens = 256": "batch_tokens = 300"},
        ("[hparams] batch_tokens", "multiple of micro_batch x context", "300", "the nearest that work: 256, 512"),
    ),
    "not TOML": ({"format = 1": "format ="}, ("line 3",)),
}


@pytest.mark.parametrize(("replace", "parts"), STUDY_MISTAKES.values(), ids=STUDY_MISTAKES)
def test_a_mistake_in_a_study_file_is_reported_with_place_rule_and_remedy(refused, tiny_file, replace, parts) -> None:
    path = tiny_file(replace=replace)
    refused("run", path, parts=(f"{path}: ", *parts))


def test_all_mistakes_of_a_file_are_reported_together(tiny_file) -> None:
    path = tiny_file(replace={"low = 1e-4": "low = 0", "high = 0.999": "high = 1.0", "evals = 4": "eval = 4"})
    result = hpstudy("check", path)
    assert (result.code, result.out) == (2, "")
    assert [line.partition(": ")[0] for line in result.err.splitlines()] == [str(path)] * 3


@pytest.mark.parametrize("command", ["check", "run"])
def test_an_unknown_study_lists_the_known_ones(tiny_file, tmp_path, monkeypatch, command: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("studies").mkdir()
    tiny_file().rename("studies/tiny.toml")
    result = hpstudy(command, "tinny")
    assert (result.code, result.out) == (2, "")
    known = ", ".join(name for name, _ in list_studies())
    assert known.endswith(", tiny, warmup, weight-decay")  # the folder's own study and those that hpstudy ships
    assert result.err == f'studies/tinny.toml: no such study; did you mean "tiny"?; known are {known}\n'
    assert not Path("runs").exists()


@pytest.mark.parametrize("command", ["status", "export"])
def test_a_study_that_has_not_begun_lists_those_that_have(refused, finished, tmp_path, command: str) -> None:
    shutil.copytree(finished.runs, tmp_path / "runs")
    refused(command, "tinny", parts=('no study "tinny" has begun', 'did you mean "tiny"?', "begun are tiny"))


def test_dashboard_before_the_search_names_the_command_that_begins_it(refused, tmp_path) -> None:
    place = str(tmp_path / "runs" / "tiny" / "optuna.journal")
    refused("dashboard", "tiny", parts=(place, "no search has begun; start it with `hpstudy run tiny --runs "))


@pytest.mark.parametrize("name", ["../tiny", "a/b", "..", ".", "", "a b", "tiny\n"])
@pytest.mark.parametrize("command", ["run", "status", "export"])
def test_a_name_never_leaves_its_folder(tmp_path, monkeypatch, command: str, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    result = hpstudy(command, name)
    assert (result.code, result.out) == (2, "")
    assert "study" in result.err
    assert "Traceback" not in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_file_whose_stem_is_not_a_name_is_refused_with_the_rule(refused, tiny_file) -> None:
    refused("run", tiny_file("ti ny"), parts=('study "ti ny"', "at most 64 letters, digits", "rename the file"))


TEXTS = {
    "missing": (None, ("must be a file or a folder, but does not exist", "correct the path")),
    "empty": (b"", ("must hold text, but is empty", "remove the file")),
    "not UTF-8": (b"abc\xff" * 9999, ("must be UTF-8, but byte 0xff at offset 3 is not", "convert the file")),
    "no validation": (b"to be " * 10, ("must hold val_tokens and one more", "but holds 60 ", "lower val_tokens")),
    "no batch": (b"to be " * 100, ("at least one batch of 256 tokens", "hold 80 to train on", "lower batch_tokens")),
}


@pytest.mark.parametrize(("content", "parts"), TEXTS.values(), ids=TEXTS)
def test_a_text_too_small_or_damaged_is_refused(refused, tiny_file, tmp_path, content: bytes | None, parts) -> None:
    text = tmp_path / "corpus.txt"
    if content is not None:
        text.write_bytes(content)
    path = tiny_file(replace={'"asv"': f'"text:{text}"', '"gpt2:256"': '"bytes"'})
    refused("run", path, parts=(f'corpus "text:{text}"', *parts))


def shard(magic: int = 20240520, version: int = 1, num_tokens: int = 2000) -> bytes:
    """A file in the format of the public GPT-2 corpora that has 2000 tokens, whatever number its header states."""
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, num_tokens
    return header.tobytes() + np.full(2000, 65, "<u2").tobytes()


SHARDS = {
    "magic": (
        shard(magic=1),
        ("must begin with the number 20240520, but got 1; if it holds uint16 ids without a header",),
    ),
    "version": (shard(version=2), ("version must be 1, but got 2", "write it again")),
    "truncated": (shard()[:-500], ("must have 5,024 bytes for 2,000 tokens, but has 4,524", "fetch or write it again")),
    "no header": (shard()[:100], ("must hold a header of 1,024 bytes", "has 100 bytes")),
}


@pytest.mark.parametrize(("content", "parts"), SHARDS.values(), ids=SHARDS)
def test_a_file_that_is_not_a_whole_shard_is_refused(refused, tiny_file, tmp_path, content: bytes, parts) -> None:
    file = tmp_path / "train.bin"
    file.write_bytes(content)
    refused("run", tiny_file(replace={'"asv"': f'"shards:{file}"'}), parts=(f"{file}: ", *parts))


@pytest.mark.parametrize("place", ["tiny.toml", "/proc"])
def test_a_runs_folder_that_is_not_writable_is_refused(tiny_file, tmp_path, place: str) -> None:
    path, runs = tiny_file(), tmp_path / place  # an absolute place replaces tmp_path
    result = hpstudy("run", path, "--runs", runs)
    assert (result.code, result.out) == (2, "")
    assert f"{runs / 'tiny'}: the folder of runs must be writable" in result.err
    assert "name another with --runs" in result.err
    assert "Traceback" not in result.err


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def test_cuda_without_a_gpu_is_refused_and_leaves_no_files(refused, tiny_file) -> None:
    if has_gpu():
        pytest.skip("this machine has a GPU")
    remedy = "use --device cpu, or leave the flag out"
    refused("run", tiny_file(), "--device", "cuda", parts=("--device cuda: no CUDA GPU was found", remedy))


def test_an_unknown_wandb_mode_is_refused_and_leaves_no_files(tiny_file, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    command = [PROGRAM, "run", str(tiny_file()), "--runs", str(runs)]
    environment = os.environ | {"WANDB_MODE": "ofline"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "WANDB_MODE: must be one of online, offline, disabled" in done.stderr
    assert 'but got "ofline"; or pass --wandb' in done.stderr
    assert contents(runs) == {}


def test_resuming_in_another_environment_is_refused_with_all_that_differs(refused, finished, tmp_path) -> None:
    runs = Path(shutil.copytree(finished.runs, tmp_path / "runs"))
    path = runs / "tiny" / "environment.json"
    environment = json.loads(path.read_text())
    path.write_text(json.dumps(environment | {"device": "cuda:0", "precision": "bf16", "threads": 7}))
    (runs / "tiny" / "source.json").write_text(to_json(source_of(finished.path, runs / "tiny")))
    place = f"{runs / 'tiny'}: the study began in another environment"
    differences = "device was cuda:0, is cpu; precision was bf16, is fp32; threads was 7, is 1"
    more = ("--device", "cpu", "--trials", 6)  # a study that is finished trains nothing and depends on no environment
    refused("run", finished.path, *more, parts=(place, differences, "or resume here with --accept-"))


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["run", "quickstart", "--frob"], "No such option: --frob"),
        (["run"], "Missing argument 'NAME'"),
        (["run", "quickstart", "--trials", "0"], "'--trials': Input should be greater than or equal to 1"),
        (["run", "quickstart", "--wandb", "maybe"], "'maybe' is not one of 'auto', 'online', 'offline', 'disabled'"),
        (["export", "quickstart", "--format", "xlsx"], "'xlsx' is not one of 'parquet', 'csv'"),
    ],
)
def test_a_command_line_that_does_not_parse_names_the_wrong_part(tmp_path, monkeypatch, args, part: str) -> None:
    monkeypatch.chdir(tmp_path)
    result = hpstudy(*args)
    assert (result.code, result.out) == (2, "")
    assert part in " ".join(result.err.split())
    assert "-h' for help" in result.err
    assert list(tmp_path.iterdir()) == []


def test_the_program_itself_ends_with_exit_code_2_and_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run([PROGRAM, "check", "nowhere"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    known = ", ".join(name for name, _ in list_studies())
    assert done.stderr == f"studies/nowhere.toml: no such study; known are {known}\n"


def test_trials_beyond_the_limit_are_refused_on_the_command_line_too(tiny_file) -> None:
    for trials in ("1000001", "9223372036854775807", "99999999999999999999999"):
        result = hpstudy("check", tiny_file(), "--trials", trials)
        assert (result.code, "1000000" in result.err) == (2, True), result.err


def test_a_file_that_is_too_long_for_a_study_is_refused_at_once(refused, tiny_file) -> None:
    path = tiny_file()
    path.write_text(path.read_text() + "\n".join(f"[t{number}]" for number in range(60_000)))
    refused("run", path, parts=(f"{path}: must have at most 262,144 bytes, but has ",))


def test_seconds_for_more_steps_than_any_run_has_are_refused_by_check(tiny_file) -> None:
    result = hpstudy("check", tiny_file(replace={"tokens = 5120": "seconds = 1e9"}))
    assert result.code == 2
    assert "[trainer] seconds: a run may hold at most 10,000,000 steps, but would have " in result.err
