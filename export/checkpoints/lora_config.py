"""adapter_config.json: every field of PEFT's LoraConfig is known here, or refused by name.

Source: PEFT 0.21, tuners/lora/config.py and layer.py; which modules an adapter is for is decided as
by `check_target_module_exists` in tuners/tuners_utils.py.
"""

import math
import re
from pathlib import Path
from typing import Any

from nemo_trt.errors import CheckpointError
from nemo_trt.shown import shown

from .fields import Fields
from .patterns import num_paths
from .text_files import read_json

CONFIG = "adapter_config.json"
# Fields that change what is computed, and the values with which they change nothing.
_ONLY: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "use_dora": (None, False),
    "bias": (None, "none"),
    "lora_bias": (None, False),
    "fan_in_fan_out": (None, False),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None, []),
    "use_qalora": (None, False),
    "use_bdlora": (None, False),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "velora_config": (None,),
    "megatron_config": (None,),
    "ensure_weight_tying": (None, False),
}
# Fields that are read here, or that say how an adapter was trained and not what it computes.
_KNOWN = {
    "r",
    "lora_alpha",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "exclude_modules",
    "modules_to_save",
    "layers_to_transform",
    "layers_pattern",
    "init_lora_weights",
    "task_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "lora_dropout",
    "runtime_config",
    "megatron_core",
    "qalora_group_size",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "loftq_config",
}
# Initialisations that leave the base weights alone. All others (pissa, olora, corda, loftq,
# lora_ga, ...) take something off them, which PEFT takes off again when it loads the adapter.
_PLAIN = (True, False, "gaussian", "eva", "orthogonal", "mica")
_MOST_REPEATS = 5  # a pattern with many takes exponential time to match nothing
_MAX_PATHS = 2**20  # that all patterns together can take through one name: about 30 ms
_NAME_LENGTH = 36  # at least that of every module which a pattern is matched with
_PATTERN_LENGTH = 2**16
_REPEAT = re.compile(r"[*+{]")


class AdapterConfig:
    """The fields of an adapter that say how it is merged.

    Raises:
        CheckpointError: the file is damaged, or asks for what is not plain LoRA.
    """

    def __init__(self, path: Path) -> None:
        raw = read_json(path)
        self._fields = Fields(raw, path)
        self._sets: dict[str, frozenset[str]] = {}
        self._patterns: dict[str, re.Pattern[str]] = {}
        self._characters, self._paths = 0, 0.0  # of the patterns that are compiled
        for name, allowed in _ONLY.items():
            self._fields.only(name, *allowed, why="only plain LoRA is merged")
        for name, value in raw.items():
            if name not in _ONLY and name not in _KNOWN and value:
                raise self._fields.error(name, "is not known: it may change what is computed")
        self._require_plain_initialisation()

    def _require_plain_initialisation(self) -> None:
        value = self._fields.raw.get("init_lora_weights", True)
        if not any(type(value) is type(one) and value == one for one in _PLAIN):
            raise self._fields.error(
                "init_lora_weights",
                f"must be one of {', '.join(map(repr, _PLAIN))}, which leave the base weights as "
                "they are. Other initialisations change them: convert the adapter in PEFT with "
                "save_pretrained(path_initial_model_for_weight_conversion=...), or merge it there "
                "with merge_and_unload and export the result",
            )

    def require_saved(self, modules: set[str]) -> None:
        """Refuse a module of modules_to_save whose weights the adapter lacks."""
        stored = {end for module in modules for end in _ends(module)}
        for name in sorted(self._names("modules_to_save") - stored):
            raise self._fields.error(
                "modules_to_save",
                f"must name modules that the adapter stores; it lacks {shown(name)}",
            )

    def rank(self, module: str) -> float:
        """The rank of a module."""
        return self._patterned("rank_pattern", "r", module)

    def scaling(self, module: str, rank: int) -> float:
        """What B @ A of a module is multiplied by: alpha / r, or alpha / sqrt(r)."""
        alpha = self._patterned("alpha_pattern", "lora_alpha", module)
        return alpha / (math.sqrt(rank) if self._fields.flag("use_rslora") else rank)

    def require_target(self, module: str) -> None:
        """Refuse weights of a module that the config does not target: PEFT ignores them."""
        if not self._is_target(module):
            raise CheckpointError(
                f"{self._fields.where} must target {module}, which the adapter holds weights for. "
                "Correct target_modules, exclude_modules or layers_to_transform."
            )

    def _is_target(self, module: str) -> bool:
        raw = self._fields.raw
        wanted, excluded = raw.get("target_modules"), raw.get("exclude_modules")
        if isinstance(excluded, str):
            if self._compiled("exclude_modules", excluded).fullmatch(module):
                return False
        elif not self._names("exclude_modules").isdisjoint(_ends(module)):
            return False
        if wanted is None:  # PEFT's default of the model's type, q_proj and v_proj
            return True
        if wanted == "all-linear":
            return module != "model.embed_tokens"
        if isinstance(wanted, str):
            return bool(self._compiled("target_modules", wanted).fullmatch(module))
        names = self._names("target_modules")
        if module in names:
            return True
        return not names.isdisjoint(_ends(module)) and self._is_layer(module)

    def _is_layer(self, module: str) -> bool:
        """Whether the layer of a module is among layers_to_transform."""
        layers = self._fields.raw.get("layers_to_transform")
        if layers is None or layers == []:
            return True
        wanted = layers if isinstance(layers, list) else [layers]
        if not all(isinstance(one, int) and not isinstance(one, bool) for one in wanted):
            raise self._fields.error("layers_to_transform", "must be layer numbers")
        given = self._fields.raw.get("layers_pattern")
        patterns = {given} if isinstance(given, str) else self._names("layers_pattern")
        layer = re.match(r".*?\.(?P<list>[^.]*)\.(?P<index>\d+)\.", module)
        return (
            layer is not None
            and (not patterns or layer["list"] in patterns)
            and int(layer["index"]) in wanted
        )

    def _names(self, field: str) -> frozenset[str]:
        if field not in self._sets:
            found = self._fields.raw.get(field)
            found = [] if found is None else found
            if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
                raise self._fields.error(field, "must be a list of names")
            self._sets[field] = frozenset(found)
        return self._sets[field]

    def _patterned(self, patterns: str, default: str, module: str) -> float:
        """A number for a module: that of the first pattern its name ends in, else the default."""
        found = self._fields.raw.get(patterns) or {}
        if not isinstance(found, dict):
            raise self._fields.error(patterns, "must be an object")
        for pattern, value in found.items():
            if self._compiled(patterns, rf"(.*\.)?({pattern})$", extra=1).match(module):
                where = f"{patterns} of {self._fields.where}"
                return Fields({pattern: value}, where).number(pattern)
        return self._fields.number(default)

    def _compiled(self, field: str, pattern: str, extra: int = 0) -> re.Pattern[str]:
        """A pattern that is matched in bounded time, as are all patterns of the file together."""
        if pattern in self._patterns:
            return self._patterns[pattern]
        too_many = len(_REPEAT.findall(pattern)) > _MOST_REPEATS + extra
        if too_many or re.search(r"\)[*+{]", pattern):
            raise self._fields.error(
                field, f"must have patterns of at most {_MOST_REPEATS} repeats and none of a group"
            )
        self._characters += len(pattern)
        try:
            if self._characters <= _PATTERN_LENGTH:
                self._paths += num_paths(pattern, _NAME_LENGTH)
                self._patterns[pattern] = re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise self._fields.error(field, f"must have regular expressions ({error})") from error
        if self._characters > _PATTERN_LENGTH or self._paths >= _MAX_PATHS:
            raise self._fields.error(
                field,
                "must have patterns that are quick to match: fewer of them, and fewer choices",
            )
        return self._patterns[pattern]


def _ends(module: str) -> list[str]:
    """The names that a module answers to: its own, and what remains of it after each dot."""
    parts = module.split(".")
    return [".".join(parts[first:]) for first in range(len(parts))]
