"""`star doctor`: what a configuration needs, what is there, and what to do about the rest, one line each.

A check is (fine, line); a line that is not fine ends with what to do.
"""

from itertools import chain

from star.config import Config
from star.doctor import machine, packages, prompts, weights


def examine(config: Config) -> int:
    """Print one line a check; returns 0 when everything needed is there, else 1."""
    good = True
    for fine, line in chain.from_iterable(part.check(config) for part in (packages, weights, prompts, machine)):
        print(f"{'ok  ' if fine else 'FAIL'} {line}", flush=True)
        good &= fine
    return 0 if good else 1
