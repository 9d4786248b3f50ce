"""The smallest study, of 20 steps a run, and the smallest training to time."""

from hpstudy.running.bench import BenchSetting
from hpstudy.spec import ModelShape

TINY = """
question = "Does the smallest study there is run?"
format = 1

[trainer]
model = {{ layers = 1, heads = 2, width = 16 }}
corpus = "asv"
tokenizer = "gpt2:256"
context = 16
tokens = 5120
evals = 4
val_tokens = 512
precision = "fp32"

[hparams]
batch_tokens = 256
micro_batch = 16

[search]
lr = {{ low = 1e-4, high = 3e-2, scale = "log" }}
beta2 = {{ low = 0.9, high = 0.999, scale = "log1m" }}

[budget]
trials = 5
parallel = 2
sampler = {{ name = "tpe", startup = 2 }}
{more}
"""

TINY_SETTING = BenchSetting(
    name="tiny",
    model=ModelShape(layers=1, heads=2, width=16),
    tokenizer="bytes",
    context=16,
    sequences={"cpu": 4, "cuda": 4},
    micro_batch={"cpu": 2, "cuda": 2},
)
