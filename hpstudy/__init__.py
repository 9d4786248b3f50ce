"""Hyperparameter studies for language-model training that end in a verdict with an error bar."""

__version__ = "0.1.0"
