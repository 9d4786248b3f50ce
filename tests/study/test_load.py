"""How a study is found by name or path, the defaults that are filled in, and the warnings."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpstudy.errors import UserError
from hpstudy.study import FloatRange, list_studies, load_study
from tests.helpers.study_files import parse, text

SHIPPED = Path(__file__).parents[2] / "studies"
SHIPPED_NAMES = sorted(path.stem for path in SHIPPED.glob("*.toml"))

# Defaults and warnings


def test_the_defaults_are_those_of_the_documents() -> None:
    study = parse(
        'question = "?"\nformat = 1\n[trainer]\nmodel = "gpt-125m"\ntokens = 1_000_000_000\n'
        "[search]\nlr = { low = 1e-4, high = 1e-2 }"
    )
    spec = study.spec
    assert (spec.corpus, spec.tokenizer, spec.context, spec.evals) == ("asv", "gpt2", 1024, 20)
    assert (spec.seed, spec.threads, spec.precision, spec.val_tokens) == (0, 1, "auto", 2**16)
    assert (study.trials, study.budget.trials, study.budget.parallel) == (16, 16, 4)
    assert study.budget.sampler.model_dump() == {"name": "tpe", "startup": 10, "seed": 0}
    pruner = {"name": "none", "startup": 5, "from_fraction": 0.3, "reduction": 3}
    assert study.budget.pruner.model_dump() == pruner
    assert study.confirm.model_dump() == {
        "seeds": (101, 102, 103, 104, 105),
        "top": 1,
        "margin": 0.01,
        "design": "paired",
        "speedup": False,
    }
    assert (study.metrics, study.directions) == (("val/loss",), ["minimize"])
    assert (study.project, study.entity, study.vocab_size) == ("hpstudy", None, 50257)
    assert study.space == {"lr": FloatRange(low=1e-4, high=1e-2, scale="linear")}
    assert study.warnings == ()


def test_a_search_of_the_micro_batch_for_the_loss_is_a_warning() -> None:
    search = {"micro_batch": {"choices": [8, 16]}}
    assert parse(text(search=search)).warnings == (
        "[search] micro_batch: changes speed and rounding only, never the loss; search it for train/tok_per_sec, for "
        "both metrics, or with a budget in seconds",
    )
    assert parse(text(search=search, trainer__tokens=None, trainer__seconds=60)).warnings == ()
    assert parse(text(search=search, objective__metric=["val/loss", "train/tok_per_sec"])).warnings == ()


def test_more_evaluations_than_steps_and_a_single_seed_are_warnings() -> None:
    assert parse(text(trainer__tokens=40_960, confirm__seeds=[7])).warnings == (
        "[trainer] evals: 20 evaluations, but the baseline has 10 steps",
        "[confirm] seeds: a single seed gives no error bar, so it cannot decide anything",
    )


# Names and files


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local folder of studies, below the working folder."""
    folder = tmp_path / "studies"
    folder.mkdir()
    (folder / "alpha.toml").write_text(text(), encoding="utf-8")
    (folder / "beta.toml").write_text("question = ", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return Path("studies")


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_study_is_found_by_name_and_by_path(local: Path) -> None:
    assert load_study("alpha") == load_study(str(local / "alpha.toml"))
    assert (load_study("alpha").name, load_study("alpha").path) == ("alpha", local / "alpha.toml")


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize("name", SHIPPED_NAMES)
def test_a_shipped_study_is_found_from_an_empty_folder(name: str) -> None:
    study = load_study(name)
    assert study.path.read_bytes() == (SHIPPED / f"{name}.toml").read_bytes()
    assert not study.path.is_relative_to(Path.cwd())


def test_a_local_study_wins_over_a_shipped_one_of_the_same_name(local: Path) -> None:
    (local / "quickstart.toml").write_text(text(question="Is mine read?"), encoding="utf-8")
    assert load_study("quickstart").question == "Is mine read?"
    assert load_study("quickstart").path == local / "quickstart.toml"
    assert dict(list_studies())["quickstart"] == "Is mine read?"
    assert load_study("betas").path.parent.resolve() == SHIPPED  # the other shipped studies are still found


def test_an_invalid_local_study_does_not_fall_back_to_the_shipped_one(local: Path) -> None:
    (local / "quickstart.toml").write_text("question = ", encoding="utf-8")
    with pytest.raises(UserError, match=r"^studies/quickstart\.toml: not valid TOML"):
        load_study("quickstart")


@pytest.mark.usefixtures("local")
def test_an_unknown_name_gives_the_nearest_and_all_local_and_shipped_studies() -> None:
    with pytest.raises(UserError) as caught:
        load_study("alhpa")
    known = ", ".join(sorted(["alpha", "beta", *SHIPPED_NAMES]))
    assert str(caught.value) == f'studies/alhpa.toml: no such study; did you mean "alpha"?; known are {known}'


@pytest.mark.usefixtures("empty")
def test_an_unknown_name_gives_the_shipped_studies_where_there_are_no_local_ones() -> None:
    with pytest.raises(UserError) as caught:
        load_study("quikstart")
    known = ", ".join(SHIPPED_NAMES)
    assert str(caught.value) == f'studies/quikstart.toml: no such study; did you mean "quickstart"?; known are {known}'


def test_an_unknown_path_gives_the_studies_of_its_folder(local: Path, empty: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_study(str(local / "alhpa.toml"))
    assert str(caught.value) == 'studies/alhpa.toml: no such study; did you mean "alpha"?; known are alpha, beta'
    (empty / "other").mkdir()
    for folder in ("other", "absent"):
        with pytest.raises(UserError) as caught:
            load_study(f"{folder}/alpha.toml")
        assert str(caught.value) == f"{folder}/alpha.toml: no such study; {folder} holds no study"


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize("name", ["../alpha", "a/b", "..", "", ".hidden", "-x", "a b", "a" * 300, "alpha\n"])
def test_a_name_cannot_lead_out_of_the_folder(name: str) -> None:
    with pytest.raises(UserError, match="a name has at most 64 letters"):
        load_study(name)


def test_a_file_whose_stem_is_no_name_is_refused(local: Path) -> None:
    path = local / "my study.toml"
    path.write_text(text(), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_study(str(path))
    assert str(caught.value) == (
        'study "my study": a name has at most 64 letters, digits, "-" and "_", a letter or digit first; rename the file'
    )


def test_a_file_that_is_not_utf8_is_refused_with_the_byte(local: Path) -> None:
    (local / "latin.toml").write_bytes(b'question = "caf\xe9"')
    with pytest.raises(UserError) as caught:
        load_study("latin")
    assert str(caught.value) == "studies/latin.toml: must be UTF-8, but byte 15 is not; save it as UTF-8"


@pytest.mark.parametrize(("pack", "num_warnings"), [(1, 0), (4, 1), ("auto", 1)])
def test_the_pack_of_an_earlier_version_is_ignored_with_a_line(local: Path, pack: object, num_warnings: int) -> None:
    (local / "old.toml").write_text(text(budget__pack=pack), encoding="utf-8")
    study = load_study("old")
    assert [line.partition(":")[0] for line in study.warnings] == ["[budget] pack"] * num_warnings
    assert study.resolved()["budget.pack"] == pack  # the frozen values of an earlier version stay equal


def test_a_byte_order_mark_is_ignored(local: Path) -> None:
    (local / "marked.toml").write_bytes(b"\xef\xbb\xbf" + text().encode())
    assert load_study("marked").question == "Is it right?"


def test_the_list_has_each_question_or_the_first_error_of_the_file(local: Path) -> None:
    listed = dict(list_studies())
    assert list(listed) == sorted(["alpha", "beta", *SHIPPED_NAMES])
    assert listed["alpha"] == "Is it right?"
    assert listed["beta"].startswith(f"{local / 'beta.toml'}: not valid TOML")


@pytest.mark.usefixtures("empty")
def test_the_list_of_an_empty_folder_has_the_shipped_studies() -> None:
    assert [name for name, _ in list_studies()] == SHIPPED_NAMES
