"""No file that hpstudy reads can run code: the syntax tree of every module of the package is checked."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "hpstudy"
PICKLERS = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "runpy", "code"}
RUNNERS = {"eval", "exec", "compile", "__import__", "system", "popen", "read_pickle", "unsafe_load", "execfile"}


def dangers(source: str) -> Iterator[str]:
    """Each expression through which data could become code."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names) if found := PICKLERS & {alias.name.split(".")[0] for alias in names}:
                yield f"imports {', '.join(found)}"
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in PICKLERS:
                yield f"imports {module}"
            case ast.Call(func=func, keywords=keywords):
                given = {word.arg: ast.unparse(word.value) for word in keywords}
                called = ast.unparse(func)
                if (isinstance(func, ast.Name) and func.id in RUNNERS) or called in {f"os.{name}" for name in RUNNERS}:
                    yield f"calls {called}"
                if called.endswith(".read_pickle") or "allow_pickle" in given or given.get("shell", "False") != "False":
                    yield f"calls {ast.unparse(node)}"
                if called == "torch.load" and given.get("weights_only") != "True":
                    yield f"calls {ast.unparse(node)}"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "pd.read_pickle(path)",
        "eval(text)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_the_check_finds_a_danger(source: str) -> None:
    assert list(dangers(source))


def test_the_check_accepts_calls_that_only_look_dangerous() -> None:
    assert list(dangers("torch.load(path, weights_only=True); torch.compile(model); re.compile('a')")) == []


def test_no_module_can_run_the_content_of_a_file() -> None:
    sources = {str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    assert "study/load.py" in sources
    assert {name: found for name, source in sources.items() if (found := list(dangers(source)))} == {}
