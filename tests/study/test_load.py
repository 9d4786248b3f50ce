"""How a study is found by name or path, the defaults that are filled in, and the warnings."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpstudy.errors import UserError
from hpstudy.study import Choices, FloatRange, OrderedChoices, list_studies, load_study, parse_study
from tests.helpers.study_files import BASE, parse, problems_of, text

SHIPPED = Path(__file__).parents[2] / "studies"
SHIPPED_NAMES = sorted(path.stem for path in SHIPPED.glob("*.toml"))

# Defaults and warnings


def test_the_defaults_are_those_of_the_documents() -> None:
    study = parse(
        'question = "?"\nformat = 2\n[trainer]\nmodel = "gpt-125m"\ntokens = 1_000_000_000\n'
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
        "looks": (3, 5, 8, 12, 20),
        "seeds": study.seeds,
        "top": 1,
        "margin": None,
        "design": "paired",
        "speedup": False,
    }
    assert (study.metrics, study.directions) == (("val/loss",), ["minimize"])
    assert (study.project, study.entity, study.vocab_size) == ("hpstudy", None, 50257)
    assert study.space == {"lr": FloatRange(low=1e-4, high=1e-2, scale="linear")}
    assert study.warnings == ()


NATURAL = {
    "lr": (1e-4, 1e-2, "log"),
    "beta1": (0.5, 0.98, "log1m"),
    "beta2": (0.9, 0.999, "log1m"),
    "eps": (1e-10, 1e-4, "log"),
    "weight_decay": (1e-3, 1.0, "log"),
    "grad_clip": (0.1, 10.0, "log"),
    "warmup_fraction": (0.0, 0.3, "linear"),
    "min_lr_fraction": (0.0, 0.2, "linear"),
}
WITHOUT_SCALE = {key: {"low": low, "high": high} for key, (low, high, _) in NATURAL.items()}


@pytest.mark.parametrize("format", [None, 3])
def test_a_range_without_a_scale_has_its_keys_natural_one(format: int | None) -> None:
    space = parse(text(format=format, search=WITHOUT_SCALE)).space
    assert space == {key: FloatRange(low=low, high=high, scale=scale) for key, (low, high, scale) in NATURAL.items()}
    stated = parse(text(format=format, search__lr={"low": 1e-4, "high": 1e-2, "scale": "linear"})).space
    assert stated["lr"] == FloatRange(low=1e-4, high=1e-2, scale="linear")


@pytest.mark.parametrize("format", [1, 2])
def test_before_format_3_a_range_without_a_scale_was_linear(format: int) -> None:
    space = parse(text(format=format, search=WITHOUT_SCALE)).space
    assert all(isinstance(found, FloatRange) and found.scale == "linear" for found in space.values())


def test_a_weight_decay_from_zero_states_the_linear_scale() -> None:
    """Silently linear, half the trials would lie above half of `high`."""
    from_zero = {"low": 0.0, "high": 0.3}
    assert problems_of(text(format=3, search={"weight_decay": from_zero})) == [
        '[search] weight_decay: scale "log", which is the default of weight_decay, needs low > 0, but got low=0; raise '
        'low or use scale = "linear"'
    ]
    for format in (1, 2):
        assert parse(text(format=format, search={"weight_decay": from_zero})).space
    assert parse(text(format=3, search={"weight_decay": {**from_zero, "scale": "linear"}})).space


def test_since_format_4_numbers_to_choose_from_are_ordered_and_the_sampler_has_other_defaults() -> None:
    listed = {"lr": {"choices": [1e-3, 1e-4]}, "clip_mode": {"choices": ["global", "none"]}}
    old, new = (parse(text(format=format, search=listed)) for format in (3, 4))
    assert old.space["lr"] == Choices(values=(1e-3, 1e-4))
    assert new.space["lr"] == OrderedChoices(values=(1e-3, 1e-4))
    assert new.space["clip_mode"] == Choices(values=("global", "none"))
    assert old.budget.sampler.model_dump() == {"name": "tpe", "startup": 10, "seed": 0}
    assert new.budget.sampler.model_dump() == {"name": "gp", "startup": 5, "seed": 0}
    stated = parse(text(format=4, budget__sampler={"name": "tpe", "seed": 3})).budget.sampler
    assert stated.model_dump() == {"name": "tpe", "startup": 5, "seed": 3}
    both = {"name": "tpe", "startup": 10}
    assert parse(text(format=4, budget__sampler=both)).budget.sampler == old.budget.sampler
    assert old.seeds == new.seeds


@pytest.mark.parametrize("format", [3, 4])
def test_an_old_default_that_is_stated_derives_the_seeds_of_one_that_is_not(format: int) -> None:
    assert derived(format=format, budget__sampler={"name": "tpe", "startup": 10}, budget__parallel=4) == derived(
        format=format
    )


def test_a_file_without_a_format_has_the_newest() -> None:
    study, stated = parse(text(format=None)), parse(text(format=4))
    assert study.resolved() == stated.resolved()
    assert (study.format, study.states_format, stated.states_format) == (4, False, True)


def test_a_file_of_format_1_has_the_seeds_and_the_margin_that_it_had_before() -> None:
    assert parse(text(format=1)).confirm.model_dump() == {
        "looks": None,
        "seeds": (101, 102, 103, 104, 105),
        "top": 1,
        "margin": 0.01,
        "design": "paired",
        "speedup": False,
    }
    assert parse(text(format=1, confirm__margin=0.5)).confirm.margin == 0.5
    assert parse(text(format=1, confirm__seeds=[7])).seeds == (7,)


@pytest.mark.parametrize(
    "edits",
    [
        {"confirm__design": "independent"},
        {"objective__metric": "train/tok_per_sec"},
        {"objective__metric": ["val/loss", "train/tok_per_sec"]},
        {"search": {}},
    ],
    ids=["Welch's test", "a speed", "two objectives", "no search"],
)
def test_what_has_no_race_has_five_seeds_of_its_own(edits: dict[str, Any]) -> None:
    study = parse(text(format=2, **edits))
    assert (study.confirm.looks, study.confirm.margin, len(set(study.seeds))) == (None, None, 5)


def test_stated_seeds_are_a_fixed_number_without_a_race() -> None:
    study = parse(text(format=2, confirm__seeds=[7, 8, 9]))
    assert (study.confirm.looks, study.seeds) == (None, (7, 8, 9))
    both = parse(text(format=2, confirm={"seeds": [7, 8, 9, 10], "looks": [3, 4]}))
    assert (both.confirm.looks, both.seeds) == ((3, 4), (7, 8, 9, 10))


# Seeds that follow from the study


def derived(name: str = "x", **edits: Any) -> tuple[int, ...]:
    """The seeds of a study of this name that states none."""
    return parse_study(text(**{"format": 2, **edits}), name=name, path=Path(f"{name}.toml")).seeds


def test_seeds_follow_from_the_studys_name_and_values_so_that_no_two_studies_share_them() -> None:
    others = [
        derived("y"),
        derived(search__lr__low=2e-4),
        derived(hparams__weight_decay=0.2),
        derived(trainer__seed=1),
        derived(confirm__margin=0.02),
        derived(confirm__top=2),
    ]
    assert derived() == derived()
    shared = [set(a) & set(b) for a, b in itertools.combinations([derived(), *others], 2)]
    assert not any(shared)  # 20 of 900,000: by chance in 1% of 21 pairs


def test_no_release_changes_the_seeds_of_a_study() -> None:
    """As version 0.2.0 derives them: whoever began a study then resumes it on the same seeds."""
    assert derived()[:3] == (303320, 650370, 417957)
    other = derived("y", search={"eps": {"choices": [1e-8, 1e-6]}}, hparams__lr=1e-3, confirm__design="independent")
    assert other == (185513, 942849, 698399, 960626, 161080)


@pytest.mark.parametrize("edits", [{}, {"format": 3}, {"search__lr__scale": "log"}])
def test_no_release_changes_the_seeds_of_a_study_without_a_format(edits: dict[str, Any]) -> None:
    """As the first version with format 3 derives them, also if the file spells out its format or a default scale."""
    assert derived(**{"format": None, "search__lr__scale": None, **edits})[:3] == (404631, 753022, 630323)


@pytest.mark.usefixtures("later_format")
def test_a_later_format_with_other_defaults_leaves_the_seeds_of_a_file_as_they_are() -> None:
    assert parse(text(format=None, search__lr__scale=None)).space["lr"] == FloatRange(
        low=1e-4, high=1e-2, scale="linear"
    )
    assert derived(format=None, search__lr__scale=None)[:3] == (404631, 753022, 630323)
    assert derived()[:3] == (303320, 650370, 417957)


def test_the_same_study_has_the_same_seeds_however_it_is_spelled_and_however_far_it_has_grown() -> None:
    assert derived(budget__trials=99) == derived(budget__trials=8) == derived()
    assert derived(trainer__seed=0, confirm__design="paired", confirm__looks=[3, 5, 8, 12, 20]) == derived()


@given(
    st.text("abc", min_size=1, max_size=9),
    st.lists(st.integers(3, 60), min_size=1, max_size=20, unique=True).map(sorted),
)
def test_derived_seeds_have_six_digits_and_are_as_many_as_the_last_look_needs(name: str, looks: list[int]) -> None:
    seeds = derived(name, confirm__looks=looks)
    assert len(seeds) == len(set(seeds)) == looks[-1]
    assert all(100_000 <= seed <= 999_999 for seed in seeds)


@pytest.mark.parametrize("format", [1, 2])
def test_a_race_has_the_seeds_of_its_last_look_in_either_format(format: int) -> None:
    study = parse(text(format=format, confirm__looks=[3, 5, 8]))
    assert len(study.seeds) >= 8


def test_a_derived_seed_is_never_that_of_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "dumps", lambda *_, **__: "the same for every study")
    seeds = derived()
    assert derived(trainer__seed=seeds[3])[:19] == (*seeds[:3], *seeds[4:])


def test_a_search_of_the_micro_batch_for_the_loss_is_a_warning() -> None:
    search = {"micro_batch": {"choices": [8, 16]}}
    assert parse(text(search=search)).warnings == (
        "[search] micro_batch: changes speed and rounding only, never the loss; search it for train/tok_per_sec, for "
        "both metrics, or with a budget in seconds",
    )
    assert parse(text(search=search, trainer__tokens=None, trainer__seconds=60)).warnings == ()
    assert parse(text(search=search, objective__metric=["val/loss", "train/tok_per_sec"])).warnings == ()


def test_a_speed_of_too_few_full_batches_is_a_warning() -> None:
    speed = {"objective__metric": "train/tok_per_sec", "trainer__evals": 1}
    few = [
        warning
        for tokens in (5 * 4096, 6 * 4096)
        for warning in parse(text(**speed, trainer__tokens=tokens, hparams__batch_ramp_fraction=0.0)).warnings
        if warning.startswith("[objective]")
    ]
    assert few == [
        "[objective] metric: a run's speed leaves out its first 5 full batches, which may compile, but the baseline "
        "has 5, so its speed holds them; give [trainer] more tokens"
    ]
    ramped = parse(text(**speed, trainer__tokens=20 * 4096, hparams__batch_ramp_fraction=0.8)).warnings
    assert any("but the baseline has 4, so" in warning for warning in ramped)


def test_more_evaluations_than_steps_and_fewer_than_three_seeds_are_warnings() -> None:
    assert parse(text(trainer__tokens=40_960, confirm__seeds=[7])).warnings == (
        "[trainer] evals: 20 evaluations, but the baseline has 10 steps",
        "[hparams] batch_tokens: the baseline has 10 steps of 4,096 tokens, too few to learn in; take e.g. 256 (160 "
        "steps)",
        "[confirm] seeds: a verdict takes 3 fresh seeds, but the file states 1",
    )
    assert len(parse(text(confirm__seeds=[7, 8])).warnings) == 1
    assert parse(text(confirm__seeds=[7, 8, 9])).warnings == parse(text(confirm__seeds=[])).warnings == ()


def test_a_vocabulary_that_is_most_of_the_model_is_a_warning_with_one_that_fits() -> None:
    (warning,) = parse(text(trainer__tokenizer="gpt2")).warnings
    assert warning == (
        '[trainer] tokenizer: the embeddings of "gpt2" are 97% of the model\'s 3,324,736 parameters; take fewer, '
        'such as "gpt2:512"'
    )
    assert parse(text(trainer__tokenizer="gpt2:512")).warnings == ()
    assert parse(text(trainer={**BASE["trainer"], "tokenizer": "gpt2", "model": "gpt-125m"})).warnings == ()
    assert parse(text(trainer__tokenizer="gpt2", trainer__corpus="shards:*.bin")).warnings == ()  # theirs is fixed


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
@pytest.mark.parametrize("name", [name for name in SHIPPED_NAMES if name != "ladder"])
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
