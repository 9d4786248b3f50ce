"""The command line: argv -> calls, errors -> exit codes. stdout carries the result, stderr the progress."""

from hpstudy.cli.app import app, main

__all__ = ["app", "main"]
