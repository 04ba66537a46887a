"""The exceptions that cross module borders, each with the exit code or HTTP status that it becomes.

A message names what was expected, what came, and the remedy (a flag, a limit, a file). Anything else that escapes is a
bug of ours and is reported as such.
"""

from __future__ import annotations


class PyengineError(Exception):
    """Base of everything raised on purpose. ``exit_code`` is what a command-line program ends with."""

    exit_code = 1


class ConfigError(PyengineError):
    """A flag or a combination of flags cannot work on this machine or with this model."""

    exit_code = 2


class ModelError(PyengineError):
    """A model file is missing, corrupt or of an unsupported kind; the text names the file and, if any, the tensor."""

    exit_code = 3


class BuildError(PyengineError, ImportError):
    """The compiled extension is missing or was built for something else; the text says how to rebuild it."""

    exit_code = 4


class RequestError(PyengineError):
    """One request is wrong. It fails alone, as an HTTP error in OpenAI's shape or an exception from ``LLM``.

    Attributes:
        status: HTTP status, 400 unless told otherwise.
        param: dotted path of the offending field, or None.
        code: machine-readable reason, or None.
    """

    def __init__(self, message: str, *, param: str | None = None, status: int = 400, code: str | None = None):
        super().__init__(message)
        self.message = message
        self.param = param
        self.status = status
        self.code = code
