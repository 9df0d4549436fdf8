"""The exception tree: one class per thing that a caller handles differently.

    NemoTrtError
    ├── CheckpointError    a checkpoint is damaged, incomplete or of a kind that we do not read
    ├── BundleError        a bundle is missing, damaged, or not the one that was expected
    ├── ExportError        an export cannot start or go on (target exists, disk full, ...)
    ├── BuildError         an engine cannot be built, or is not what the bundle means
    ├── RequestError       a prompt or a sampling parameter is out of its range
    ├── CapacityError      a request does not fit the KV cache; nothing was written
    ├── QueueFullError     as many requests wait as may; try again later
    ├── DeadlineError      a request's time was over before its answer was complete
    ├── StateError         a call does not fit the object's state (a closed runner)
    ├── FaultError         one request met a fault of ours; the others go on
    ├── ServerError        a server that we ask does not answer, or not as it should
    └── MachineError       this machine lacks something (a library, a GPU, memory)

Wording: "<thing> must <condition>, got <value>. <remedy>."
"""

DAMAGED_JSON = (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What reading a JSON file of ours raises when it is damaged: no JSON, or of other fields."""


class NemoTrtError(Exception):
    """Base of every error that nemo-trt raises on purpose; its text is one or two sentences."""


class CheckpointError(NemoTrtError):
    """A checkpoint is damaged, incomplete, or of a kind that is not read."""


class BundleError(NemoTrtError):
    """A bundle is missing, damaged, or not the one that was expected."""


class ExportError(NemoTrtError):
    """An export cannot start or go on."""


class BuildError(NemoTrtError):
    """An engine cannot be built, does not fit its GPU, or is not what its bundle means."""


class RequestError(NemoTrtError):
    """A prompt or a sampling parameter is out of its range."""


class CapacityError(NemoTrtError):
    """A request does not fit the KV cache. Nothing was written."""


class QueueFullError(NemoTrtError):
    """As many requests wait as may. Nothing was taken; try again later."""


class DeadlineError(NemoTrtError):
    """A request's time was over before its answer was complete."""


class StateError(NemoTrtError):
    """A call does not fit the object's state."""


class FaultError(NemoTrtError):
    """One request met a fault of ours, its `__cause__`. The others go on."""


class ServerError(NemoTrtError):
    """A server that we ask does not answer, or not as it should."""


class MachineError(NemoTrtError):
    """This machine lacks something that the call needs."""
