"""From run store to verdict.

frames.py makes tables of the run store, fresh_runs.py takes the runs on fresh seeds from them, stats.py tests them, and
verdict.py answers in the values of answers.py and the sentences of wording.py. results.py joins all that a study found.
"""
