"""Tests of differences between runs on fresh seeds, and the race that trains no more seeds than an answer needs.

difference.py compares two sides once, levels.py says what several looks at growing data are worth, and race.py decides.
"""
