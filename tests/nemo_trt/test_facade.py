"""The public interface: what `from nemo_trt import ...` gives, and what it costs."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

import nemo_trt

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
FUNCTIONS = ("build_engine", "create_app", "export_checkpoint", "measure", "plan_engine")
WITHOUT_TORCH = {"Report", "export_checkpoint", "Fp8Options", "validate_bundle"}
BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {packages!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
import nemo_trt
for name in nemo_trt.__all__:
    try:
        getattr(nemo_trt, name)
        print(name)
    except ImportError as error:
        print(name, error, sep=": ")
"""


def names_without(*packages: str) -> dict[str, str]:
    """Name -> why it is not there, or nothing, in an interpreter without these packages."""
    code = BLOCK.format(packages=set(packages))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = (line.partition(": ") for line in done.stdout.splitlines())
    return {name: why for name, _, why in found}


def test_every_name_is_there() -> None:
    for name in nemo_trt.__all__:
        assert getattr(nemo_trt, name) is not None
    assert nemo_trt.errors.NemoTrtError.__module__ == "nemo_trt.errors"
    assert set(nemo_trt.__all__) <= set(dir(nemo_trt))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        nemo_trt.nothing  # noqa: B018


def test_without_torch_all_but_export_and_validate_is_there() -> None:
    found = names_without("torch", "transformers")
    assert {name for name, why in found.items() if why} == WITHOUT_TORCH
    assert found["export_checkpoint"].endswith("Install it: pip install 'nemo-trt[export]'.")
    assert found["validate_bundle"].endswith("pip install 'nemo-trt[cpu,validate]'.")


def test_a_missing_runtime_is_named_with_its_extra() -> None:
    found = names_without("onnxruntime", "fastapi")
    assert not found["Bundle"] and not found["SamplingParams"]
    assert not found["build_engine"]  # the extras of TensorRT bring no ONNX Runtime
    assert "needs onnxruntime" in found["Runner"] and "'nemo-trt[cpu]'" in found["Runner"]
    assert "'nemo-trt[cpu,serve]'" in found["create_app"]


def test_importing_the_package_loads_nothing_else() -> None:
    code = "import sys; before = set(sys.modules); import nemo_trt; print(set(sys.modules)-before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in eval(done.stdout)}
    assert loaded - sys.stdlib_module_names == {"nemo_trt"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_say_what_they_take(name: str) -> None:
    function = getattr(nemo_trt, name)
    kinds = {one.kind for one in inspect.signature(function).parameters.values()}
    assert inspect.Parameter.VAR_KEYWORD not in kinds
    assert "Any" not in str(list(get_type_hints(function).values()))


def test_the_stability_page_lists_the_public_names() -> None:
    page = (ROOT / "docs" / "stability.md").read_text(encoding="utf-8")
    listed = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
    assert listed == set(nemo_trt.__all__) | {"errors"}
