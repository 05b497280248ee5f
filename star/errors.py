"""The one exception that means: the input is wrong, nothing was started, here is what to do (exit code 2)."""


class InputError(ValueError):
    """Bad configuration, prompt, checkpoint or missing weights; the message is one line with file, key and remedy."""
