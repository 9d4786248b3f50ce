"""A corpus by name -> tokens to train on and tokens to validate on.

tokenizer.py turns text into ids, shards.py keeps ids in files, catalog.py finds or makes the shards of a corpus, and
corpus.py cuts them into the windows of every step.
"""
