"""The exceptions that end a command with one line instead of a traceback."""


class InputError(ValueError):
    """Bad configuration, prompt, checkpoint or missing weights; the message is one line with file, key and remedy.

    Nothing was started. Exit code 2.
    """


class Diverged(ArithmeticError):
    """A number that training cannot go on from; the weights are untouched and the last checkpoint stands. Exit code 1."""


class Stalled(RuntimeError):
    """A training that no longer learns; a checkpoint of its last epoch is kept. Exit code 1."""


class ScorerFailed(RuntimeError):
    """A scorer that is wrong on a golden picture, gives no finite numbers or has died; what is written stands. Exit code 1."""


class Preempted(Exception):
    """The run was asked to stop, by SIGTERM or Ctrl-C, and has written a checkpoint; the same command goes on. Exit code 75."""
