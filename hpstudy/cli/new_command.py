"""`new`: writes a study of a corpus, sized to this machine."""

from __future__ import annotations

from pathlib import Path

from hpstudy.analysis.numbers import duration
from hpstudy.cli.common import out, say
from hpstudy.errors import UserError, did_you_mean
from hpstudy.files import RUNS, command, write_atomic
from hpstudy.running.sizing import size_study
from hpstudy.spec import PRESETS
from hpstudy.study import list_studies, parse_study, study_name
from hpstudy.study.json_schema import schema_text
from hpstudy.study.load import LOCAL
from hpstudy.study.template import SCHEMA_FILE, study_text

REMEDY = "go to a folder that can be written"


def new(name: str, corpus: str, minutes: float, device: str, model: str | None) -> None:
    """Writes studies/NAME.toml, and the schema for editors beside it, and prints what comes next."""
    stem = study_name(name)
    path = Path(name) if name.endswith(".toml") else LOCAL / f"{stem}.toml"
    if path.exists():
        raise UserError(f"{path}: exists already, and `new` overwrites no study; take another name")
    if path.parent == LOCAL and stem in dict(list_studies()):
        raise UserError(f'study "{stem}": is the name of a study that comes with hpstudy; take another name')
    if model is not None and model not in PRESETS:
        raise UserError(f"--model {model}: must be one of {', '.join(PRESETS)}{did_you_mean(model, PRESETS)}")
    sizes = size_study(corpus, minutes=minutes, device=device, model=model, say=say)
    text = study_text(sizes)
    parse_study(text, name=stem, path=path)
    write_atomic(path.parent / SCHEMA_FILE, schema_text(), remedy=REMEDY)
    write_atomic(path, text, remedy=REMEDY)
    if sizes.limit == "text":
        say(f"the text, not the time, limits the study: more than {sizes.epochs:.2g} epochs of it would teach little")
    console, workers = out(), f"{sizes.workers} worker{'s' if sizes.workers > 1 else ''}"
    for line in (
        f"file     {path}",
        f"time     about {duration(sizes.study_seconds)} on {workers}",
        f"next     {command('check', name, RUNS)}",
        f"         {command('run', name, RUNS)}",
    ):
        console.print(line, soft_wrap=True)
