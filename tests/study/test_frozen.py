"""A study that has begun: which changes are allowed, and that every other edit or damage is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpstudy.errors import MachineError, UserError
from hpstudy.files import from_json, to_json
from hpstudy.study import (
    GROWING,
    Study,
    as_begun,
    changed_keys,
    frozen_text,
    load_frozen,
    load_study,
    refuse_changes,
    schema,
    study_sha256,
)
from hpstudy.tracking.store import RunStore
from tests.helpers.study_files import parse, text

FORMAT_2_KEYS = ("confirm.looks", "trainer.confirm_val")  # that came with it
REMEDY = "put the values back, or copy the file under another name for another study"

# What counts as a change


def test_a_default_that_is_written_out_is_no_change() -> None:
    plain = parse(text()).resolved()
    spelled = parse(text(hparams__weight_decay=0.1, budget__sampler="tpe", trainer__seed=0)).resolved()
    assert changed_keys(plain, spelled) == []


def test_a_changed_key_is_reported_with_both_values() -> None:
    now = parse(text(search__lr__low=1e-3, question="Is it wrong?", confirm__margin=0.02)).resolved()
    assert changed_keys(parse(text()).resolved(), now) == [
        'question: was "Is it right?", is "Is it wrong?"',
        "[confirm] margin: was 0.01, is 0.02",
        '[search] lr: was {"low": 0.0001, "high": 0.01, "scale": "log"}, '
        'is {"low": 0.001, "high": 0.01, "scale": "log"}',
    ]


def test_the_answers_that_mean_yes_are_frozen_too() -> None:
    before, now = (parse(text(yes=answers)).resolved() for answers in ("better", ["better", "equivalent"]))
    assert changed_keys(before, now) == ['yes: was ["better"], is ["better", "equivalent"]']


def test_a_key_that_joins_the_search_is_a_change() -> None:
    now = parse(text(search__eps={"choices": [1e-8, 1e-4]})).resolved()
    assert changed_keys(parse(text()).resolved(), now) == [
        "[hparams] eps: was 1e-08, is absent",
        '[search] eps: was absent, is {"values": [1e-08, 0.0001]}',
    ]


def test_trials_and_seeds_may_grow_but_not_shrink() -> None:
    small = parse(text(budget__trials=8, confirm__seeds=[1, 2])).resolved()
    large = parse(text(budget__trials=9, confirm__seeds=[1, 2, 3])).resolved()
    assert changed_keys(small, large) == []
    assert changed_keys(large, small) == [
        "[budget] trials: was 9, is 8",
        "[confirm] seeds: was [1, 2, 3], is [1, 2]",
    ]
    reordered = {**small, "confirm.seeds": [2, 1, 3]}
    assert changed_keys(small, reordered) == ["[confirm] seeds: was [1, 2], is [2, 1, 3]"]


def test_a_key_that_the_study_began_without_may_only_have_its_default() -> None:
    now = parse(text()).resolved()
    before = {key: value for key, value in now.items() if key not in ("trainer.threads", "hparams.eps")}
    assert changed_keys(before, now) == []
    assert changed_keys(before, {**now, "trainer.threads": 2}) == ["[trainer] threads: was absent, is 2"]


def test_the_hash_of_a_study_ignores_what_may_grow_and_changes_with_all_else() -> None:
    resolved = parse(text(budget__trials=8)).resolved()
    grown = parse(text(budget__trials=9, confirm__seeds=[*range(101, 107)])).resolved()
    assert study_sha256(resolved) == study_sha256(grown) == study_sha256(dict(reversed(resolved.items())))
    changed = {study_sha256({**resolved, key: "changed"}) for key in resolved}
    assert len(changed) == len(resolved) - len(GROWING) + 1  # the growing keys leave the hash as it was


# The frozen files of a run folder


@pytest.fixture
def frozen(tiny: Callable[..., Study], tmp_path: Path) -> Path:
    """The run folder of a study that has begun."""
    study = tiny()
    store = RunStore(tmp_path / "runs" / "tiny")
    store.create()
    store.freeze_study(study.path.read_text(encoding="utf-8"), study.resolved())
    store.write_json("environment.json", {"study_sha256": study_sha256(study.resolved())})
    return store.root


def edit(path: Path, old: str, new: str) -> None:
    """Replaces text that the file must contain."""
    content = path.read_text(encoding="utf-8")
    assert old in content
    path.write_text(content.replace(old, new), encoding="utf-8")


def edit_values(root: Path, **changes: Any) -> None:
    """Changes values of study.json, named like trainer__evals; None removes a key."""
    values = from_json((root / "study.json").read_bytes())
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    (root / "study.json").write_text(to_json({key: value for key, value in values.items() if value is not None}))


def store_values(store: RunStore) -> dict[str, Any]:
    """The values that a study is frozen with."""
    return from_json((store.root / "study.json").read_bytes())


def repair(root: Path) -> str:
    """The remedy for a damaged copy of the study file."""
    return f"`hpstudy run tiny --runs {root.parent}` writes this copy again from the study's own file"


def refusal(root: Path) -> str:
    """The message with which the frozen study is refused as the user's mistake."""
    with pytest.raises(UserError) as caught:
        load_frozen(root)
    return str(caught.value)


def test_a_study_without_a_warm_start_has_the_values_of_versions_that_knew_none() -> None:
    assert "budget.warm_start" not in parse(text()).resolved()
    warm = parse(text(budget__warm_start=["old"])).resolved()
    assert warm["budget.warm_start"] == ["old"]
    assert changed_keys(parse(text()).resolved(), warm) == ['[budget] warm_start: was absent, is ["old"]']


def test_a_frozen_study_loads_as_it_began(frozen: Path, tiny: Callable[..., Study]) -> None:
    study = load_frozen(frozen)
    assert study.resolved() == tiny().resolved()
    assert (study.name, study.path) == ("tiny", frozen / "study.toml")


def test_a_frozen_study_may_grow(frozen: Path) -> None:
    edit(frozen / "study.toml", "trials = 5", "trials = 9")
    edit(frozen / "study.toml", "seeds = []", "seeds = [101, 102]")
    study = load_frozen(frozen)
    assert (study.trials, study.confirm.seeds) == (9, (101, 102))


def test_an_edited_file_is_refused_with_its_path_and_key(frozen: Path) -> None:
    edit(frozen / "study.toml", "evals = 4", "evals = 5")
    assert refusal(frozen) == (
        f"{frozen / 'study.toml'}: changed after its study began: [trainer] evals: was 4, is 5; {repair(frozen)}"
    )


def test_an_invalid_edit_is_refused_with_its_path_and_key(frozen: Path) -> None:
    edit(frozen / "study.toml", "evals = 4", "evals = 0")
    assert refusal(frozen) == (
        f"{frozen / 'study.toml'}: [trainer] evals: must be greater than or equal to 1, but got 0; {repair(frozen)}"
    )


def test_a_damaged_byte_anywhere_in_the_file_is_refused_with_its_path(frozen: Path) -> None:
    path = frozen / "study.toml"
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
        problems = refusal(frozen).splitlines()
        assert all(problem.startswith(f"{path}: ") for problem in problems)


def test_a_damaged_byte_within_a_text_is_refused_with_the_key(frozen: Path) -> None:
    path = frozen / "study.toml"
    path.write_bytes(path.read_bytes().replace(b"Does the", b"Does\xffthe"))
    question = "Does the smallest study there is run?"
    assert refusal(frozen) == (
        f'{path}: changed after its study began: question: was "{question}", '
        f'is "{question.replace(" ", chr(0xFFFD), 1)}"; {repair(frozen)}'
    )


def test_a_folder_without_a_study_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty" / "tiny").mkdir(parents=True)
    for root in (tmp_path / "empty" / "tiny", tmp_path / "absent" / "tiny"):
        begin = f"hpstudy run tiny --runs {root.parent}"
        assert refusal(root) == f"{root}: no study has begun there; start it with `{begin}`"


def test_a_lost_study_file_is_named_with_the_command_that_writes_it_again(frozen: Path) -> None:
    (frozen / "study.toml").unlink()
    assert refusal(frozen) == f"{frozen / 'study.toml'}: is missing; {repair(frozen)}"


def test_edited_values_are_refused_whether_or_not_the_file_is_edited_too(frozen: Path) -> None:
    noted = from_json((frozen / "environment.json").read_bytes())["study_sha256"]
    edit_values(frozen, trainer__evals=5)
    message = (
        f"{frozen / 'study.json'}: was edited after the study began (its hash must be {noted}); put back what was "
        "edited, or start again with another --runs folder"
    )
    assert refusal(frozen) == message
    edit(frozen / "study.toml", "evals = 4", "evals = 5")
    assert refusal(frozen) == message


@pytest.mark.parametrize("name", ["study.json", "environment.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'"x"', b"3", b'{"trainer.evals": "\xff"}'])
def test_damaged_values_are_named_and_never_taken_for_missing_ones(frozen: Path, name: str, content: bytes) -> None:
    (frozen / name).write_bytes(content)
    with pytest.raises(MachineError, match=rf"^{frozen / name}: must be a file that hpstudy wrote"):
        load_frozen(frozen)


def test_a_study_frozen_by_a_version_without_some_keys_loads(frozen: Path, tiny: Callable[..., Study]) -> None:
    edit_values(
        frozen,
        yes=None,
        confirm__speedup=None,
        budget__smaller_micro_batch=None,
        budget__rules=None,
        baseline__also=None,
    )
    older = from_json((frozen / "study.json").read_bytes())
    (frozen / "environment.json").write_text(to_json({"study_sha256": study_sha256(older)}))
    assert load_frozen(frozen).resolved() == tiny().resolved()
    edit(frozen / "study.toml", "seeds = []", "seeds = []\nspeedup = true")
    assert refusal(frozen) == (
        f"{frozen / 'study.toml'}: changed after its study began: [confirm] speedup: was absent, "
        f"is true; {repair(frozen)}"
    )


def test_a_study_of_format_1_loads_as_an_earlier_version_froze_it(tiny: Callable[..., Study], tmp_path: Path) -> None:
    """Its seeds and its margin were defaults, and versions before format 2 knew no race."""
    study = tiny(more="[confirm]\ntop = 2")
    older = {key: value for key, value in study.resolved().items() if key not in FORMAT_2_KEYS}
    assert (older["confirm.seeds"], older["confirm.margin"]) == ([101, 102, 103, 104, 105], 0.01)
    store = RunStore(tmp_path / "older" / "tiny")
    store.create()
    store.freeze_study(study.path.read_text(encoding="utf-8"), older)
    store.write_json("environment.json", {"study_sha256": study_sha256(older)})
    found = load_frozen(store.root)
    assert found.resolved() == study.resolved()
    assert (found.confirm.looks, found.seeds, found.confirm.margin) == (None, (101, 102, 103, 104, 105), 0.01)


def test_a_study_that_began_keeps_the_defaults_of_its_format(tiny: Callable[..., Study]) -> None:
    before, now = (
        tiny(more="[confirm]\ntop = 2", replace={"format = 1": f"format = {version}"}).resolved() for version in (1, 2)
    )
    changed = [line.partition(":")[0] for line in changed_keys(before, now)]
    assert changed == ["[trainer] confirm_val", "[confirm] looks", "[confirm] seeds", "[confirm] margin"]


def test_another_format_is_named_as_what_changed(tmp_path: Path) -> None:
    unscaled = {"search__lr__scale": None}
    store = freeze(parse(text(format=2, **unscaled)), text(format=2, **unscaled), tmp_path)
    with pytest.raises(UserError) as caught:
        refuse_changes(parse(text(format=3, **unscaled)), store.root)
    assert str(caught.value) == (
        "studies/x.toml: changed after its study began: format: was 2, is 3, which has other defaults (different are "
        "[search] lr); write `format = 2` again, or copy the file under another name for another study"
    )
    refuse_changes(parse(text(format=3, search__lr__scale="linear")), store.root)  # the same study in another format


def test_a_begun_study_whose_format_line_is_removed_keeps_its_format(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text(format=2, search__lr__scale=None))
    began = load_study(str(path))
    store = freeze(began, path.read_text(), tmp_path)
    path.write_text(text(format=None, search__lr__scale=None))
    assert as_begun(load_study(str(path)), store.root).resolved() == began.resolved()


@pytest.mark.usefixtures("later_format")
def test_a_study_without_a_format_keeps_its_values_when_a_later_version_has_other_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text(format=None, search__lr__scale=None))
    with monkeypatch.context() as today:
        today.setattr(schema, "FORMAT", 3)
        began = load_study(str(path))
        store = freeze(began, frozen_text(began), tmp_path)
        assert from_json((store.root / "study.json").read_bytes())["search.lr"]["scale"] == "log"

    later = load_study(str(path))
    assert later.resolved() != began.resolved()  # a study that begins with the later version
    assert load_frozen(store.root).resolved() == began.resolved()
    resumed = as_begun(later, store.root)
    assert resumed.resolved() == began.resolved()
    refuse_changes(later, store.root)
    assert frozen_text(resumed) == frozen_text(began)  # which a resumed study writes again
    assert resumed.seeds == began.seeds


def freeze(study: Study, content: str, folder: Path) -> RunStore:
    """The run store of a study that has begun with this file."""
    store = RunStore(folder / "runs" / study.name)
    store.create()
    store.freeze_study(content, study.resolved())
    store.write_json("environment.json", {"study_sha256": study_sha256(study.resolved())})
    return store


def test_the_seeds_of_a_race_are_frozen_and_stay_when_the_search_grows(
    tiny: Callable[..., Study], tmp_path: Path
) -> None:
    raced = {"format = 1": "format = 2"}
    study = tiny(more="[confirm]\ntop = 2", replace=raced)
    store = RunStore(tmp_path / "race" / "tiny")
    store.create()
    store.freeze_study(study.path.read_text(encoding="utf-8"), study.resolved())
    assert store_values(store)["confirm.seeds"] == list(study.seeds)
    edit(store.root / "study.toml", "trials = 5", "trials = 9")
    assert load_frozen(store.root).seeds == study.seeds
    assert load_frozen(store.root).trials == 9


def test_the_seeds_of_a_race_stay_when_a_later_version_has_another_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = text(format=2)
    seeds, store = parse(content).seeds, RunStore(tmp_path / "x")
    store.create()
    store.freeze_study(content, parse(content).resolved())
    known = Study.resolved
    monkeypatch.setattr(Study, "resolved", lambda study: {**known(study), "trainer.of_a_later_version": None})
    assert load_frozen(store.root).seeds == seeds
    refuse_changes(parse(content), store.root)


@pytest.mark.parametrize("environment", [None, {}], ids=["no environment", "no hash"])
def test_a_study_frozen_by_a_version_without_hashes_loads(
    frozen: Path, tiny: Callable[..., Study], environment: dict[str, Any] | None
) -> None:
    (frozen / "environment.json").unlink()
    if environment is not None:
        (frozen / "environment.json").write_text(to_json(environment))
    assert load_frozen(frozen).resolved() == tiny().resolved()


def test_a_study_file_is_compared_with_the_study_that_began(frozen: Path, tiny: Callable[..., Study]) -> None:
    refuse_changes(tiny(), frozen)
    refuse_changes(tiny(replace={"evals = 4": "evals = 5"}), frozen.with_name("not-begun"))
    changed = tiny(replace={"evals = 4": "evals = 5", '"asv"': '"text:a.txt"'})
    with pytest.raises(UserError) as caught:
        refuse_changes(changed, frozen)
    began = f"{changed.path}: changed after its study began"
    assert caught.value.problems == (
        f'{began}: [trainer] corpus: was "asv", is "text:a.txt"; {REMEDY}',
        f"{began}: [trainer] evals: was 4, is 5; {REMEDY}",
    )
