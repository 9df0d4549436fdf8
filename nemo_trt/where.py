"""Where a bundle runs: ONNX Runtime on the CPU, ONNX Runtime on CUDA, or a TensorRT engine."""

from dataclasses import dataclass
from typing import Literal, Self

from nemo_trt.errors import RequestError


@dataclass(frozen=True, slots=True)
class Where:
    """The backend that runs a bundle.

    Its text is "cpu", "cuda", or the name of one of the bundle's engines, such as "h100-fp8".
    Engine names end in a precision, so none of them is "cpu" or "cuda".

    Attributes:
        kind: "cpu" or "cuda", ONNX Runtime's providers, or "engine", a TensorRT engine.
        engine: name of the TensorRT engine; empty for the other kinds.
    """

    kind: Literal["cpu", "cuda", "engine"] = "cpu"
    engine: str = ""

    def __post_init__(self) -> None:
        if (self.kind == "engine") != bool(self.engine):
            raise RequestError(
                f"An engine must be given by its name, got {self.kind} {self.engine!r}."
            )

    @classmethod
    def of(cls, value: Self | str) -> Self:
        """Parse the text form; a `Where` is returned unchanged.

        Raises:
            RequestError: the text is empty.
        """
        if not isinstance(value, str):
            return value
        match value:
            case "cpu" | "cuda":
                return cls(value)
            case _:
                return cls("engine", value)

    def __str__(self) -> str:
        return self.engine or self.kind

    @property
    def option(self) -> str:
        """The matching command-line option, with a leading space; empty for the CPU."""
        match self.kind:
            case "cpu":
                return ""
            case "cuda":
                return " --backend cuda"
            case "engine":
                return f" --engine {self.engine}"


CPU = Where("cpu")
CUDA = Where("cuda")
