"""Everything edgegemma raises on purpose.

EdgeGemmaError
├── InputError             what the user gave cannot be used: an option, a prompt, an audio file
├── CheckpointError        a source checkpoint is not what its config says
├── PackageError           a package on disk is damaged, unsafe or inconsistent
│   └── UnsupportedError   a package asks for a function, version or op this engine does not know
├── BudgetError            the plan would not fit the memory it was given
├── DeviceError            no microphone, or it went away
└── MissingExtraError      an optional dependency is not installed; says how to install it

The command line turns each of these into one line on stderr and exit status 2. Anything else is a bug
and keeps its traceback. Messages read *place: got X; want Y; do Z*.
"""

import sys


class EdgeGemmaError(Exception):
    """Base of all errors raised on purpose."""


class InputError(EdgeGemmaError):
    """What the user gave cannot be used: an option, a prompt, an audio file."""


class CheckpointError(EdgeGemmaError):
    """A source checkpoint is not what its config says."""


class PackageError(EdgeGemmaError):
    """A package on disk is damaged, unsafe or inconsistent."""


class UnsupportedError(PackageError):
    """A package asks for a function, version or op this engine does not know."""


class BudgetError(EdgeGemmaError):
    """The plan would not fit the memory it was given."""


class DeviceError(EdgeGemmaError):
    """No microphone, or it went away."""


class MissingExtraError(EdgeGemmaError):
    """An optional dependency is not installed; the message says how to install it.

    Parameters
    ----------
    what : str
        What is wanted, and of what.
    extra : str
        Where `pyproject.toml` lists it.
    """

    def __init__(self, what: str, extra: str) -> None:
        pip = f"{sys.executable} -m pip install -e '.[{extra}]'"
        super().__init__(
            f"{what}; in the folder of the source: {pip}, or uv tool install --force '.[{extra}]'"
        )
