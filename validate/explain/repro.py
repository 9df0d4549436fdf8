"""Writes one place of a graph as a model, inputs and expected outputs for `polygraphy run`."""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, numpy_helper

from nemo_trt.atomic import new_directory
from nemo_trt.bundle import Bundle
from nemo_trt.engines.ort_graph import promote_array
from nemo_trt.engines.ort_lowering import lower_model
from nemo_trt.passes.weights import map_weight

from .bridge import wide_ends
from .findings import PlaceError
from .places import Array

MODEL, STORED_MODEL = "model.onnx", "model-as-stored.onnx"
INPUTS, REFERENCE, SCRIPT = "inputs.json", "reference.json", "run.sh"


class Place:
    """A place that is kept while a graph is explained, until it is written.

    Attributes:
        error: how far it was off.
        model: the place alone, its weights in the bundle's files.
        feeds: input name -> values.
        output: the graph's name of the place.
        expected, got: the reference's values, and those of what was explained.
        runner: the name of the latter: its results are `RUNNER.json`.
    """

    def __init__(
        self,
        error: PlaceError,
        model: onnx.ModelProto,
        feeds: dict[str, Array],
        output: str,
        expected: Array,
        got: Array,
        runner: str,
    ) -> None:
        self.error, self.model, self.feeds = error, model, feeds
        self.output, self.expected, self.got, self.runner = output, expected, got, runner

    def write(self, folder: Path, bundle: Bundle) -> None:
        """Write the place into a new folder.

        - `model.onnx`: as ONNX Runtime's CPU provider ran it. BF16 is fp32.
        - `model-as-stored.onnx`: in the bundle's own types, fp32 at its ends, because NumPy, and so
          Polygraphy's files, have neither BF16 nor FP8.
        - `inputs.json`, `reference.json`, `RUNNER.json`: Polygraphy's inputs and RunResults.
        - `run.sh`: compares each with the reference.

        Raises:
            ExportError: the folder is there already.
        """
        from polygraphy.comparator import RunResults
        from polygraphy.json import save_json
        from polygraphy.logger import G_LOGGER

        quiet = G_LOGGER.verbosity(G_LOGGER.CRITICAL)
        with new_directory(folder, replace=False) as target, quiet:
            stored = onnx.ModelProto.FromString(self.model.SerializeToString())
            outside = TensorProto.EXTERNAL
            for weight in (w for w in stored.graph.initializer if w.data_location == outside):
                tensor = ir.from_proto(weight)
                assert isinstance(tensor, ir.ExternalTensor)
                array = map_weight(tensor, bundle.path)
                weight.ClearField("external_data")
                weight.data_location = TensorProto.DEFAULT
                weight.raw_data = array.tobytes()
            wide_ends(stored)
            _save(stored, target / STORED_MODEL)
            graph, weights = lower_model(self.model, bundle.path)
            lowered = onnx.ModelProto.FromString(graph)
            for one in weights:
                (found,) = (i for i in lowered.graph.initializer if i.name == one.name)
                array = promote_array(one.array)  # a table that stays as it is stored
                found.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), one.name))
            _save(lowered, target / MODEL)
            save_json([OrderedDict(self.feeds)], str(target / INPUTS))
            for file, values in ((REFERENCE, self.expected), (f"{self.runner}.json", self.got)):
                results = RunResults()
                results.add([{self.output: values}], runner_name=file.removesuffix(".json"))
                results.save(str(target / file))
            script = target / SCRIPT
            script.write_text(self._script(bundle), encoding="utf-8")
            script.chmod(0o755)

    def _script(self, bundle: Bundle) -> str:
        threshold = self.error.limit * float(np.linalg.norm(self.expected.astype(np.float64)))
        compare = f"--load-inputs {INPUTS} --load-outputs {REFERENCE} --compare l2"
        return (
            "#!/bin/sh\n"
            f"# {self.error.where}: {self.error.words or 'sound'}.\n"
            f"# Cut from bundle {bundle.bundle_id}, {bundle.precision}.\n"
            "# Polygraphy exits with 1 when the place is off.\n"
            "# On a machine with a GPU and TensorRT: ./run.sh trt\n"
            'cd "$(dirname "$0")" || exit 2\n'
            'if [ "$1" = trt ]; then\n'
            f"  exec polygraphy run {STORED_MODEL} --trt --strongly-typed {compare} "
            f"--l2-threshold {threshold:.6g}\n"
            "fi\n"
            f"exec polygraphy run {MODEL} --onnxrt {compare} --l2-threshold {threshold:.6g}\n"
        )


def _save(model: onnx.ModelProto, path: Path) -> None:
    onnx.save_model(
        model, path, save_as_external_data=True, location=path.with_suffix(".weights").name
    )
