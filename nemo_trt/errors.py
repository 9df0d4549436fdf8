"""The exception tree: one class per thing that a caller handles differently.

    NemoTrtError
    ├── CheckpointError    a checkpoint is damaged, incomplete or not supported
    ├── BundleError        a bundle is missing, damaged, or not the one that was expected
    ├── ExportError        an export cannot start or continue (target exists, disk full, ...)
    ├── BuildError         an engine cannot be built, or does not match its bundle
    ├── RequestError       a prompt or a sampling parameter is out of its range
    ├── CapacityError      a request does not fit the KV cache; nothing was written
    ├── QueueFullError     the queue is full; try again later
    ├── DeadlineError      a request timed out before its answer was complete
    ├── StateError         a call is not allowed in the object's state (a closed runner)
    ├── FaultError         an internal error ended one request; the others continue
    ├── ServerError        a remote server does not answer, or answers incorrectly
    └── MachineError       this machine lacks something (a library, a GPU, memory)

Wording: "<thing> must <condition>, got <value>. <remedy>."
"""

DAMAGED_JSON = (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What reading a JSON file of ours raises when it is damaged: no JSON, or of other fields."""


class NemoTrtError(Exception):
    """Base of every error that nemo-trt raises on purpose; its text is one or two sentences."""


class CheckpointError(NemoTrtError):
    """A checkpoint is damaged, incomplete, or not supported."""


class BundleError(NemoTrtError):
    """A bundle is missing, damaged, or not the one that was expected."""


class ExportError(NemoTrtError):
    """An export cannot start or continue."""


class BuildError(NemoTrtError):
    """An engine cannot be built, does not fit its GPU, or does not match its bundle."""


class RequestError(NemoTrtError):
    """A prompt or a sampling parameter is out of its range."""


class CapacityError(NemoTrtError):
    """A request does not fit the KV cache. Nothing was written."""


class QueueFullError(NemoTrtError):
    """The queue is full and the request was not accepted. Try again later."""


class DeadlineError(NemoTrtError):
    """A request timed out before its answer was complete."""


class StateError(NemoTrtError):
    """A call is not allowed in the object's state."""


class FaultError(NemoTrtError):
    """An internal error, the `__cause__`, ended one request. The others continue."""


class ServerError(NemoTrtError):
    """A remote server does not answer, or answers incorrectly."""


class MachineError(NemoTrtError):
    """This machine lacks something that the call needs."""
