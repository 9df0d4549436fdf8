"""Patterns of adapters: those that take exponential time are refused; those of users are not."""

import json
from pathlib import Path
from typing import Any

import pytest

from nemo_trt.errors import CheckpointError
from nemo_trt.export.checkpoints.lora_config import AdapterConfig
from nemo_trt.export.checkpoints.patterns import num_paths

pytestmark = pytest.mark.unit
MODULE = "model.layers.12.self_attn.q_proj"
FULL_NAMES = [
    f"model.layers.{layer}.self_attn.{part}_proj" for layer in range(40) for part in "qkvo"
]
UNSLOTH = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?"
    r"(?:k_proj|v_proj|q_proj|out_proj|fc1|fc2|o_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\."
    r"(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)\.(?:(?:k_proj|v_proj|q_proj)))"
)


def config(folder: Path, **fields: Any) -> AdapterConfig:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 16, **fields}))
    return AdapterConfig(path)


@pytest.mark.parametrize(
    "pattern",
    [
        ".?" * 22 + "Z",
        "(.|.)" * 20 + "Z",
        "(?:a|.)" * 22 + "Z",
        "(m|mo|mod|o|od|d|e|el|l)" * 14 + "Z",
        "(?=" + ".?" * 22 + "Z).*",
        ".*.*.*.*(.|.)(.|.)(.|.)(.|.)(.|.)Z",
        "(x)?(?(1)a|b)",
        "(?x:(?:a{0,2}) {30})",
        "a|" * 2**16,
    ],
)
def test_patterns_of_many_choices_are_refused(pattern: str, tmp_path: Path) -> None:
    for fields in ({"target_modules": pattern}, {"exclude_modules": pattern}):
        with pytest.raises(CheckpointError, match="must have patterns that are quick to match"):
            config(tmp_path, **fields).require_target(MODULE)
    with pytest.raises(CheckpointError, match=r"rank_pattern in .* quick to match"):
        config(tmp_path, rank_pattern={pattern: 4}).rank(MODULE)


def test_many_patterns_are_refused_together(tmp_path: Path) -> None:
    slow = {f".*.*.*.*Z{number}": 4 for number in range(100)}
    with pytest.raises(CheckpointError, match=r"alpha_pattern in .* quick to match"):
        config(tmp_path, alpha_pattern=slow).scaling(MODULE, 8)


@pytest.mark.parametrize(
    "pattern",
    [
        r".*layers\.(0|1|2|12)\..*(q|v)_proj",
        r".*\.layers\.(" + "|".join(map(str, range(40))) + r")\.(self_attn|mlp)\.(q|k|v|o|up)_proj",
        r"^(?!.*visual).*(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj).*",
        "|".join(name.replace(".", r"\.") for name in FULL_NAMES),
        UNSLOTH,
        ".*" * 5,
    ],
)
def test_patterns_that_users_write_are_matched(pattern: str, tmp_path: Path) -> None:
    adapter = config(tmp_path, target_modules=pattern)
    for _ in range(2):
        adapter.require_target(MODULE)


def test_a_rank_for_every_module_is_read(tmp_path: Path) -> None:
    ranks = {name: number + 1 for number, name in enumerate(FULL_NAMES)}  # as EVA writes them
    adapter = config(tmp_path, rank_pattern=ranks)
    assert [adapter.rank(name) for name in FULL_NAMES] == list(ranks.values())


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("abc", 1),
        ("a?b?", 4),
        (".*", 11),
        ("[ab]*c*", 66),
        ("(ab|ac|d)", 2),  # ab and ac never both
        ("(ab|ab)", 2),
        ("(ab|.)(ab|.)", 4),
        ("a{2,5}", 4),
        ("(?:a{0,2}){20}", 3**20),
        (r"(.)\1", 10),
        ("(?!a?b?)c", 4),
        ("(?>a?b?)", 4),
    ],
)
def test_ways_through_ten_characters_are_counted(pattern: str, paths: int) -> None:
    found = num_paths(pattern, 10)
    assert found == paths if paths < 100 else found > 10**6


class Counted(str):
    """A name that counts how often it is compared."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_many_names_cost_one_look_each(tmp_path: Path) -> None:
    fields = ("target_modules", "exclude_modules", "modules_to_save")
    adapter = config(tmp_path, **{field: ["q_proj"] for field in fields})
    for field in fields:
        adapter._fields.raw[field] = [Counted(f"x{number}") for number in range(1000)]
    for name in FULL_NAMES:
        with pytest.raises(CheckpointError, match="must target"):
            adapter.require_target(name)
    with pytest.raises(CheckpointError, match="it lacks 'x0'"):
        adapter.require_saved(set(FULL_NAMES))
    assert Counted.compared < 1000
