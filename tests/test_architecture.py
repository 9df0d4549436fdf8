"""The layers: who may import whom, what is packaged, and that the face of the package is light."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from .tiers import declared_tier

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[1]
# Stage -> the stages it may import, besides itself and the base, nemo_trt.
MAY_IMPORT = {
    "nemo_trt": set(),
    "passes": set(),
    "export": {"passes"},
    "engines": {"passes"},
    "validate": {"export", "engines", "passes"},
    "serve": {"engines"},
    "stages": {"export", "engines"},
    "acceptance": {"export", "engines", "validate", "stages"},
    "cli": {"export", "engines", "validate", "serve", "acceptance", "stages"},
}
FACADE = ROOT / "nemo_trt" / "__init__.py"  # the one file that may look up
# Stage -> packages that no module of it may import, at any depth of its code.
BANNED = {
    "nemo_trt": {"torch", "transformers", "onnx", "onnxruntime", "click", "rich", "tokenizers"},
    "passes": {"torch", "transformers", "onnxruntime", "click", "rich", "safetensors"},
    "engines": {"torch", "transformers", "click", "rich", "safetensors"},
    "export": {"transformers", "onnxruntime", "click", "rich"},
    "validate": {"click", "rich", "onnxruntime"},
    "serve": {"torch", "transformers", "onnxruntime", "click", "rich"},
    "stages": {"torch", "transformers", "onnxruntime", "click", "rich"},
    "acceptance": {"torch", "transformers", "onnxruntime", "click", "rich"},
}
HEAVY = {"torch", "onnx", "onnxruntime", "transformers", "tensorrt", "numpy", "rich"}


def modules(stage: str) -> list[Path]:
    return sorted((ROOT / stage).rglob("*.py"))


def imports(path: Path, *, module_level: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in tree.body if module_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def stage_of(name: str) -> str | None:
    parts = name.split(".")
    if parts[0] != "nemo_trt":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in MAY_IMPORT else "nemo_trt"


@pytest.mark.parametrize("stage", MAY_IMPORT)
def test_imports_only_go_down(stage: str) -> None:
    allowed = MAY_IMPORT[stage] | {"nemo_trt", stage}
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules(stage)
        if path != FACADE
        for name in imports(path)
        if (target := stage_of(name)) and target not in allowed
    }
    assert not wrong


@pytest.mark.parametrize("stage", BANNED)
def test_a_stage_does_not_import_what_it_must_do_without(stage: str) -> None:
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules(stage)
        for name in imports(path)
        if name.split(".")[0] in BANNED[stage]
    }
    assert not wrong


def test_the_command_line_imports_nothing_heavy_when_it_starts() -> None:
    light = {"cli/console.py", "cli/acceptance_view.py"}  # loaded by commands, when they run
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules("cli")
        if str(path.relative_to(ROOT)) not in light
        for name in imports(path, module_level=True)
        if name.split(".")[0] in HEAVY
    }
    assert not wrong


def test_every_folder_with_code_is_packaged_and_has_a_face() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    mapping = project["tool"]["setuptools"]["package-dir"]
    folders = {str(p.parent.relative_to(ROOT)) for stage in MAY_IMPORT for p in modules(stage)}
    assert set(mapping.values()) == folders
    assert set(project["tool"]["setuptools"]["packages"]) == set(mapping)
    assert all((ROOT / folder / "__init__.py").is_file() for folder in folders)


def test_one_place_makes_the_command_of_a_process_of_ours() -> None:
    """The others would import what lies in the working directory: see `child.module_command`."""
    named = ("sys.executable", '"-m", ')
    found = {
        path.relative_to(ROOT).as_posix()
        for stage in MAY_IMPORT
        for path in modules(stage)
        if any(one in path.read_text(encoding="utf-8") for one in named)
    }
    assert found == {"nemo_trt/child.py", "cli/chat.py"}  # the latter has an option -m


def test_no_file_is_longer_than_four_hundred_lines() -> None:
    files = [
        p
        for folder in (*MAY_IMPORT, "tests", "benchmarks", "examples")
        for p in sorted((ROOT / folder).rglob("*.py"))
    ]
    long = {
        str(p.relative_to(ROOT)): n
        for p in files
        if (n := len(p.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert not long


def test_every_test_file_states_its_tier() -> None:
    files = (ROOT / "tests").rglob("test_*.py")
    without = [str(path.relative_to(ROOT)) for path in files if declared_tier(path) is None]
    assert not without, "add `pytestmark = pytest.mark.unit` (or model, or e2e) below the imports"


def loaded_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after `code`."""
    show = "import sys; print(' '.join({name.split('.')[0] for name in sys.modules}))"
    result = subprocess.run(
        [sys.executable, "-c", f"{code}\n{show}"], capture_output=True, text=True, check=True
    )
    return set(result.stdout.splitlines()[-1].split())


@pytest.mark.e2e
def test_help_loads_click_and_nothing_heavy() -> None:
    code = "from nemo_trt.cli.main import run\nrun(['--help'])"
    assert not loaded_after(code) & HEAVY


@pytest.mark.e2e
def test_the_runner_loads_neither_torch_nor_transformers() -> None:
    loaded = loaded_after("import nemo_trt.engines.runner")
    assert "onnxruntime" in loaded
    assert not loaded & {"torch", "transformers", "click", "rich"}
