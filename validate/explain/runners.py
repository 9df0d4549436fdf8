"""What runs the pieces of a graph: ONNX Runtime on the CPU or CUDA, or TensorRT, by Polygraphy."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Protocol

import numpy as np
import onnx

from nemo_trt.bundle import Bundle
from nemo_trt.engines.cuda import lowering as cuda_lowering
from nemo_trt.engines.cuda.kernels import without_kernel
from nemo_trt.engines.cuda.provider import CudaProvider, Provider
from nemo_trt.engines.device import CudaDevice
from nemo_trt.engines.ort_session import open_piece
from nemo_trt.engines.trt.engine_record import EngineRecord, read_record
from nemo_trt.engines.trt.piece import PieceNetwork, piece_network
from nemo_trt.engines.trt.toolkit import Toolkit, load_toolkit
from nemo_trt.errors import BuildError, BundleError, MachineError
from nemo_trt.precision import DType
from nemo_trt.where import Where

from .bridge import to_arrays, to_tensors, wide_ends
from .graph import with_shapes
from .places import Array

Feeds = Mapping[str, Any]
Infer = Callable[[PieceNetwork, dict[str, Any]], Mapping[str, Any]]


class Runner(Protocol):
    """Runs pieces of one bundle's graph.

    Attributes:
        name: of its results in Polygraphy's files.
        rounding: what values are rounded to, and what a sound place differs by.
        products: the same of the inputs of matmuls.
    """

    name: str
    rounding: str
    products: str

    def __str__(self) -> str:
        """What it is, in words."""

    def run(self, piece: onnx.ModelProto, feeds: Feeds) -> dict[str, Array]:
        """Run a piece, which may be altered; output name -> values in fp32.

        Args:
            feeds: values by the names of the piece's inputs, and others.

        Raises:
            BundleError: a weight cannot be read, or the piece is refused.
            BuildError: TensorRT does not compile the piece.
            MachineError: it fails.
        """

    def close(self) -> None:
        """Free what it holds."""


def open_runner(bundle: Bundle, where: Where, *, rounding: DType | None = None) -> Runner:
    """What runs the pieces of a bundle as `where` runs the whole.

    Args:
        rounding: on the CPU, round as an engine does; see `OrtSession.open`.

    Raises:
        BuildError: there is no such engine.
        MachineError: ONNX Runtime's CUDA provider, TensorRT or the GPU is not here.
    """
    match where.kind:
        case "cpu":
            return OnCpu(bundle, rounding=rounding)
        case "cuda":
            provider = CudaProvider()  # first: it says what to install
            return OnCuda(bundle, provider, CudaDevice())
        case "engine":
            record = read_record(bundle, where.engine, verify=False)
            toolkit = load_toolkit(record.toolkit)  # type: ignore[arg-type]  # the builder wrote it
            return OnTensorRt(bundle, record, toolkit)


class OnCpu:
    """`Runner` on ONNX Runtime's CPU provider, which computes BF16 in fp32."""

    name = "onnxrt"

    def __init__(self, bundle: Bundle, *, rounding: DType | None = None) -> None:
        self._bundle, self._rounding = bundle, rounding
        base = bundle.precision.base
        self.rounding = str(DType.FP32 if base is DType.BF16 and not rounding else base)
        fp8 = bundle.precision is DType.FP8
        self.products = str(DType.FP8) if fp8 else self.rounding

    def __str__(self) -> str:
        if not self._rounding:
            return "ONNX Runtime on the CPU"
        precision = self._bundle.precision
        return f"ONNX Runtime on the CPU, rounded as {precision} is, attention as {self._rounding}"

    def run(self, piece: onnx.ModelProto, feeds: Feeds) -> dict[str, Array]:
        """See `Runner.run`."""
        with_shapes(piece, feeds)
        return _infer(open_piece(piece, self._bundle.path, rounding=self._rounding), feeds)

    def close(self) -> None:
        """See `Runner.close`."""


class OnCuda:
    """`Runner` on ONNX Runtime's CUDA provider, each piece lowered as `CudaSession`'s graph is.

    Args:
        base: FP32 computes a BF16 bundle in fp32; by default the bundle's own.
    """

    name = "onnxrt-cuda"

    def __init__(
        self, bundle: Bundle, provider: Provider, device: Any, base: DType | None = None
    ) -> None:
        self._bundle, self._provider, self._device = bundle, provider, device
        self._base = base or bundle.precision.base
        self.rounding, self.products = str(self._base), str(bundle.precision)

    def __str__(self) -> str:
        return "ONNX Runtime on CUDA"

    def run(self, piece: onnx.ModelProto, feeds: Feeds) -> dict[str, Array]:
        """See `Runner.run`."""
        with_shapes(piece, feeds)
        graph = cuda_lowering.lower_model(piece, self._bundle.path, self._base)
        if missing := without_kernel(graph.model):
            raise BundleError(
                "ONNX Runtime's CUDA provider must have a kernel for every node of a piece, got "
                f"none for {', '.join(missing)}. Export the bundle again with this version."
            )
        wide_ends(graph.model)
        session = self._provider.open(
            graph.model.SerializeToString(), graph.weights, self._device.stream, use_graphs=False
        )
        return _infer(session, feeds)

    def close(self) -> None:
        """See `Runner.close`."""
        self._device.close()


class OnTensorRt:
    """`Runner` on TensorRT: each piece lowered and compiled as the engine was.

    Args:
        record: of the engine.
        toolkit: that compiled it.
        infer: compiles a network and runs it on PyTorch tensors; tests put one without a GPU here.
    """

    name = "trt"

    def __init__(
        self, bundle: Bundle, record: EngineRecord, toolkit: Toolkit, infer: Infer | None = None
    ) -> None:
        self._bundle, self._record, self._toolkit = bundle, record, toolkit
        self._infer = infer or self._on_gpu
        self.rounding, self.products = str(bundle.precision.base), str(bundle.precision)

    def __str__(self) -> str:
        return f"{self._toolkit.name} {self._toolkit.version}, as it compiled {self._record.name}"

    def run(self, piece: onnx.ModelProto, feeds: Feeds) -> dict[str, Array]:
        """See `Runner.run`."""
        with_shapes(piece, feeds)
        made = piece_network(self._toolkit, piece, self._bundle.path, self._record.options)
        tensors = to_tensors(onnx.ModelProto.FromString(made.graph.model), feeds)
        names = (made.network.get_input(index).name for index in range(made.network.num_inputs))
        return to_arrays(self._infer(made, {name: tensors[name] for name in names}))

    def close(self) -> None:
        """See `Runner.close`."""

    def _on_gpu(self, made: PieceNetwork, tensors: dict[str, Any]) -> Mapping[str, Any]:
        from polygraphy.logger import G_LOGGER

        trt = polygraphy_trt(self._toolkit)
        engine = trt.EngineFromNetwork((made.builder, made.network), config=made.config)
        with ExitStack() as stack:
            stack.enter_context(G_LOGGER.verbosity(G_LOGGER.CRITICAL))
            try:
                runner = stack.enter_context(trt.TrtRunner(engine))
            except Exception as error:  # Polygraphy's own
                raise made.log.failure("Compiling a piece of the graph") from error
            try:
                return dict(runner.infer(tensors))
            except Exception as error:
                raise MachineError(f"TensorRT failed in a piece of the graph: {error}") from error


def polygraphy_trt(toolkit: Toolkit) -> Any:
    """`polygraphy.backend.trt`, on the toolkit's library.

    Raises:
        BuildError: this process has used Polygraphy with the other library.
    """
    from polygraphy import config

    config.USE_TENSORRT_RTX = toolkit.name == "tensorrt-rtx"  # read as the next line imports
    from polygraphy.backend import trt
    from polygraphy.backend.trt import runner

    if runner.trt.__version__ != toolkit.version:
        raise BuildError(
            f"Polygraphy must run on {toolkit.name} {toolkit.version}, got {runner.trt.__version__}"
            " from before in this process. Explain one toolkit's engines a process."
        )
    return trt


def _infer(session: Any, feeds: Feeds) -> dict[str, Array]:
    """Run an ONNX Runtime session by Polygraphy."""
    from polygraphy.backend.onnxrt import OnnxrtRunner
    from polygraphy.logger import G_LOGGER

    given = {
        one.name: feeds[one.name].astype(np.float16)
        if one.type == "tensor(float16)"
        else feeds[one.name]
        for one in session.get_inputs()
    }
    try:
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL), OnnxrtRunner(session) as runner:
            outputs = runner.infer(given)
            return {name: np.asarray(value) for name, value in outputs.items()}
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        raise MachineError(f"ONNX Runtime failed in a piece of the graph: {error}") from error
