"""A study file in TOML -> `Study`: the question, what varies, what is fixed, and the budget.

file.py holds the TOML's shape, checks.py what its values must hold, load.py joins the two into a `Study` (study.py),
and changes.py compares a study that has begun with its file of today.
"""

from hpstudy.study.changes import GROWING, changed_keys, question_sha256
from hpstudy.study.file import MetricName
from hpstudy.study.load import list_studies, load_study, parse_study, study_name
from hpstudy.study.study import (
    Budget,
    Choices,
    Confirm,
    Dimension,
    FloatRange,
    Objective,
    Pruner,
    Sampler,
    Study,
    Value,
)

__all__ = [
    "GROWING",
    "Budget",
    "Choices",
    "Confirm",
    "Dimension",
    "FloatRange",
    "MetricName",
    "Objective",
    "Pruner",
    "Sampler",
    "Study",
    "Value",
    "changed_keys",
    "list_studies",
    "load_study",
    "parse_study",
    "question_sha256",
    "study_name",
]
