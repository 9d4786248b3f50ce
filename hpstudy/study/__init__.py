"""A study file in TOML -> `Study`: the question, what varies, what is fixed, and the budget.

schema.py holds the tables and keys, parse.py reads them, checks.py has the rules between them, and load.py makes a
`Study` (study.py) of them. frozen.py keeps a study that has begun from changing, and ranking.py orders its trials.
"""

from hpstudy.study.frozen import (
    as_begun,
    changed_keys,
    frozen_text,
    load_frozen,
    refuse_changes,
    run_command,
    seeds_of_others,
    study_argument,
    study_file,
)
from hpstudy.study.load import list_studies, load_study, parse_study, study_name
from hpstudy.study.schema import Budget, Confirm, MetricName, Pruner, Sampler
from hpstudy.study.study import (
    GROWING,
    Choices,
    Dimension,
    FloatRange,
    OrderedChoices,
    Study,
    Value,
    num_trials,
    study_sha256,
)

__all__ = [
    "GROWING",
    "Budget",
    "Choices",
    "Confirm",
    "Dimension",
    "FloatRange",
    "MetricName",
    "OrderedChoices",
    "Pruner",
    "Sampler",
    "Study",
    "Value",
    "as_begun",
    "changed_keys",
    "frozen_text",
    "list_studies",
    "load_frozen",
    "load_study",
    "num_trials",
    "parse_study",
    "refuse_changes",
    "run_command",
    "seeds_of_others",
    "study_argument",
    "study_file",
    "study_name",
    "study_sha256",
]
