"""What to install is told for every package that an extra brings."""

import re
import tomllib
from pathlib import Path

import pytest

from nemo_trt.extras import remedy

pytestmark = pytest.mark.unit
PROJECT = tomllib.loads(Path("pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
IMPORTS = {"pyyaml": "yaml"}  # others are imported by their own name
OWN_WORDS = ("onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "cuda-python")  # of engines/


def name_of(requirement: str) -> str:
    return re.split(r"[\[<>=;]", requirement)[0]


def packages(extra: str) -> list[str]:
    names = [name_of(one) for one in EXTRAS[extra]]
    return [name for name in names if name != "nemo-trt" and name not in OWN_WORDS]


@pytest.mark.parametrize("extra", [name for name in EXTRAS if name not in ("demo", "docs", "dev")])
def test_an_import_that_fails_names_its_extra(extra: str) -> None:
    for package in packages(extra):
        module = IMPORTS.get(package, package.replace("-", "_"))
        if package == "onnxruntime" and extra != "cpu":
            continue
        for name in (module, f"{module}.part.of_it"):
            assert remedy(ImportError(name=name)) == f"Install it: pip install 'nemo-trt[{extra}]'."


def test_the_base_install_brings_what_the_documentation_says() -> None:
    rows = re.findall(r"^\| (.*) \| – \|", Path("docs/dependencies.md").read_text(), re.M)
    named = {name for row in rows for name in row.split(", ")}
    assert {name_of(one) for one in PROJECT["dependencies"]} == named


def test_an_import_of_no_extra_is_told_plainly() -> None:
    assert remedy(ImportError(name="unheard_of")) == "Install it with pip."
