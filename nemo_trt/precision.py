"""Number formats: their names here, in safetensors, in ONNX and their size in bytes."""

from enum import StrEnum

from nemo_trt.choices import require_choice


class DType(StrEnum):
    """An element type; the value is the name used in manifests and on the command line."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"
    FP8 = "fp8"
    INT64 = "int64"

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return {"bf16": 2, "fp16": 2, "fp32": 4, "fp8": 1, "int64": 8}[self.value]

    @property
    def onnx_code(self) -> int:
        """The number of this type in ONNX's `TensorProto.DataType`; FP8 is E4M3FN."""
        return {"bf16": 16, "fp16": 10, "fp32": 1, "fp8": 17, "int64": 7}[self.value]

    @property
    def numpy_name(self) -> str:
        """The numpy type that holds the same bytes; BF16 and FP8, which numpy lacks, are unsigned
        integers."""
        return {
            "bf16": "uint16",
            "fp16": "float16",
            "fp32": "float32",
            "fp8": "uint8",
            "int64": "int64",
        }[self.value]

    @property
    def base(self) -> "DType":
        """The dtype of activations and cache in a bundle of this precision: BF16 for FP8."""
        return DType.BF16 if self is DType.FP8 else self


SAFETENSORS_DTYPES = {
    "BF16": DType.BF16,
    "F16": DType.FP16,
    "F32": DType.FP32,
    "F8_E4M3": DType.FP8,
}
"""safetensors dtype codes of the weights that we read."""

PRECISIONS = (DType.BF16, DType.FP16, DType.FP32, DType.FP8)
"""Precisions that a bundle can be exported to."""


def precision_named(name: "DType | str") -> DType:
    """The precision of a name.

    Raises:
        RequestError: there is no such precision.
    """
    require_choice("precision", name, PRECISIONS)
    return DType(name)
