"""JSON objects and YAML mappings from checkpoints, read with suspicion."""

import json
from pathlib import Path
from typing import Any

from nemo_trt.errors import CheckpointError
from nemo_trt.lfs import require_content
from nemo_trt.shown import said, shown

_MAX_JSON_BYTES = 16 * 2**20
_MAX_YAML_BYTES = 2**18
_MAX_YAML_DEPTH = 50


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; see `parse_json`."""
    try:
        require_content(path)
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise CheckpointError(
                f"{path} must be at most {_MAX_JSON_BYTES} bytes long, got {path.stat().st_size}. "
                "It is corrupt or not what its name says."
            )
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    return parse_json(data, str(path))


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        CheckpointError: the bytes are no UTF-8, no JSON, no object, or name a key twice.
    """
    try:
        found = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} must be JSON in UTF-8: {error}.") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{where} must hold a JSON object, got {type(found).__name__}.")
    return found


def parse_yaml(data: bytes, where: str) -> dict[str, Any]:
    """Parse a YAML mapping with the safe loader: no tag makes an object.

    Raises:
        CheckpointError: the bytes are no YAML, no mapping, or name a key twice.
    """
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        """The safe loader, which would let the second of two equal keys win."""

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
        pairs = [
            (loader.construct_object(key, deep=True), loader.construct_object(value, deep=True))
            for key, value in node.value
        ]
        return _unique(pairs)

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    # NeMo 2 names the class to build under _target_ and tags tuples and the like; the values of
    # such nodes are kept as plain data and nothing is built.
    Loader.add_multi_constructor("tag:yaml.org,2002:python/", _inert)
    try:
        if len(data) > _MAX_YAML_BYTES:
            raise ValueError(f"more than {_MAX_YAML_BYTES} bytes")
        text = data.decode("utf-8")
        depth = 0
        for event in yaml.parse(text, Loader=Loader):  # the composer recurses, in C without a limit
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_YAML_DEPTH:
                raise ValueError(f"more than {_MAX_YAML_DEPTH} levels")
        found = yaml.load(text, Loader=Loader)  # a safe loader's subclass
    except (ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise CheckpointError(f"{where} must be YAML in UTF-8: {said(error)}.") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{where} must hold a mapping, got {type(found).__name__}.")
    return found


def _inert(loader: Any, suffix: str, node: Any) -> str:
    return f"!!python/{suffix}"


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {shown(key)} stands twice")
        found[key] = value
    return found
