"""Every exception that Atlantis raises on purpose; each is also a standard-library type.

The command line turns an `InputError` into exit code 2 (fix the input and run again) and a
`ResumableError` into exit code 1 (run the same command again). A message says what was given,
where, and what to do, in one line.
"""


class AtlantisError(Exception):
    """Base of all errors raised on purpose."""


class InputError(AtlantisError, ValueError):
    """The user's input or configuration is wrong; nothing was started and nothing is lost."""


class ConfigError(InputError):
    """A recipe or an option is invalid."""


class DataError(InputError):
    """A data file is missing, malformed or inconsistent."""


class ModelError(InputError):
    """A model cannot be found, or models do not fit together."""


class WeightError(InputError):
    """Weights are invalid, belong to other data, or are too uneven to train with."""


class StoreError(InputError):
    """A result on disk was made from something else, or is damaged."""


class ResumableError(AtlantisError, RuntimeError):
    """A run-time failure; running the same command again goes on where it stopped."""
