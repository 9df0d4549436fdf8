"""`nemo-trt inspect`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nemo_trt.errors import CheckpointError

from .shared_options import dequantise_option, format_option

if TYPE_CHECKING:
    from nemo_trt.bundle import Bundle
    from nemo_trt.cache_scales import CacheScales
    from nemo_trt.config import ModelConfig
    from nemo_trt.precision import DType
    from nemo_trt.quantization import Quantization
    from nemo_trt.tensors import LazyTensor


@click.command(epilog="Example: nemo-trt inspect ./bundle --json")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--tensors", is_flag=True, help="List every tensor.")
@click.option(
    "--digest",
    is_flag=True,
    help="Print a digest of a checkpoint's weights, which is the same in every format.",
)
@format_option
@dequantise_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    path: Path, tensors: bool, digest: bool, format: str | None, dequantise: bool, as_json: bool
) -> None:
    """Show the contents of PATH, a checkpoint or a bundle.

    Reads only headers; with --digest, every weight.
    """
    from nemo_trt.manifest import is_bundle

    if not path.exists():
        raise CheckpointError(f"{path} must exist, got nothing there. Check the spelling.")
    # A folder may hold both, a bundle made in place: --format and --digest mean the checkpoint.
    checkpoint = digest or format is not None or not is_bundle(path)
    facts = _checkpoint(path, format, dequantise, digest) if checkpoint else _bundle(path)
    listing = facts.pop("tensors")
    if as_json:
        click.echo(json.dumps({**facts, **({"tensors": listing} if tensors else {})}, indent=2))
        return
    import rich.table

    from .console import OUT, escaped

    table = rich.table.Table(box=None, show_header=False, title=escaped(path), title_justify="left")
    for name, value in _rows(facts):
        table.add_row(f"[bold]{escaped(name)}[/]", escaped(value))
    OUT.print(table)
    if tensors:
        listed = rich.table.Table(box=None)
        listed.add_column("tensor", overflow="fold")
        for heading in ("dtype", "shape", "bytes", "where"):
            listed.add_column(heading, overflow="fold")
        for row in listing:
            listed.add_row(*(escaped(value) for value in row.values()))
        OUT.print(listed)


def _checkpoint(path: Path, format: str | None, dequantise: bool, digest: bool) -> dict[str, Any]:
    from nemo_trt.digest import weights_digest
    from nemo_trt.export.checkpoints import open_checkpoint

    from .console import Bar

    checkpoint = open_checkpoint(path, format, dequantise=dequantise, keep_fp8=not dequantise)
    found = {}
    if digest:
        with Bar() as bar:
            found = {"weights_digest": weights_digest(checkpoint.ordered_tensors, bar)}
    dtypes = checkpoint.stored_dtypes
    return {
        "kind": f"checkpoint ({checkpoint.format})",
        **_model(checkpoint.config, dtypes[0]),
        "stored": list(dtypes),
        "weight_bytes": checkpoint.num_bytes,
        **found,
        "tokenizer": [file.name for file in checkpoint.tokenizer_files],
        "tensors": [_tensor(ref) for ref in checkpoint.ordered_tensors],
    }


def _bundle(path: Path) -> dict[str, Any]:
    from nemo_trt.bundle import Bundle
    from nemo_trt.safetensors import read_layout
    from nemo_trt.verdict import read_verdict
    from nemo_trt.where import CUDA

    bundle = Bundle.open(path)
    manifest = bundle.manifest
    refs = [ref for file in bundle.weight_paths for ref in read_layout(file).values()]
    return {
        "kind": "bundle",
        **_model(manifest.config, manifest.precision),
        "precision": manifest.precision,
        "stored": list(manifest.stored_dtypes),
        "weight_bytes": manifest.weight_bytes,
        "weight_files": [weight.file for weight in manifest.weights],
        "weights_mode": manifest.weights_mode,
        "tokenizer": list(manifest.tokenizer_files),
        "bundle_id": manifest.bundle_id,
        "contract_version": manifest.contract_version,
        **_quantization(manifest.quantization),
        "validation": read_verdict(bundle).words,
        "validation_cuda": read_verdict(bundle, CUDA).words,
        "engines": _engines(bundle),
        "source": manifest.source,
        "tools": manifest.tools,
        "tensors": [_tensor(ref) for ref in refs],
    }


def _engines(bundle: "Bundle") -> list[dict[str, Any]]:
    """What engine.json says of each engine, and whether a verdict is of its very plans."""
    from nemo_trt.engines.trt.engine_record import read_record
    from nemo_trt.errors import BuildError
    from nemo_trt.verdict import read_verdict
    from nemo_trt.where import Where

    found = []
    for name in bundle.engines():
        try:
            record = read_record(bundle, name, verify=False)
        except BuildError as error:
            found.append({"name": name, "error": str(error)})
            continue
        verdict = read_verdict(bundle, Where("engine", name))
        found.append({**json.loads(record.to_json()), "validation": verdict.words})
    return found


def _quantization(found: "Quantization | None") -> dict[str, Any]:
    if found is None:
        return {}
    measured, cache = len(found.activations), found.cache
    return {
        "fp8": {
            "groups": f"{measured - len(found.kept)} of {measured}",
            "weights": found.weight_scales,
            "clip": found.method,
            **({} if found.kl is None else {"kl_of_all": f"{found.kl:.3g}"}),
            **({} if found.max_kl is None else {"max_kl": f"{found.max_kl:g}"}),
            **found.calibration,
            **({} if cache is None else {"cache": _cache(cache)}),
        }
    }


def _cache(found: "CacheScales") -> str:
    layers = len(found.layers)
    return f"{layers - len(found.kept)} of {layers} layers, kl_of_all {found.kl:.3g}"


def _model(config: "ModelConfig", cache: "DType") -> dict[str, Any]:
    return {
        "config": config.to_dict(),
        "num_parameters": config.num_parameters,
        "kv_bytes_per_token": config.kv_bytes_per_token(cache),
    }


def _tensor(tensor: "LazyTensor") -> dict[str, Any]:
    from nemo_trt.tensors import TensorRef

    where = "made of others"
    if isinstance(tensor, TensorRef):
        where = f"{tensor.path.name} at {tensor.offset}"
    return {
        "name": tensor.name,
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "num_bytes": tensor.num_bytes,
        "where": where,
    }


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The facts as people read them."""
    from .console import num_bytes

    rows = []
    for name, value in facts.items():
        if name == "config":
            rows += [(key, str(item)) for key, item in value.items()]
        elif name == "num_parameters":
            rows.append(("parameters", f"{value:,}"))
        elif name == "weight_bytes":
            rows.append(("weights", num_bytes(value)))
        elif name == "kv_bytes_per_token":
            rows.append(("KV cache", f"{value / 1024:.1f} KiB a token"))
        elif name == "engines":
            rows += [("engine", _engine_line(engine)) for engine in value] or [("engines", "none")]
        elif isinstance(value, dict):
            rows.append((name, ", ".join(f"{key} {item}" for key, item in value.items())))
        elif isinstance(value, list):
            rows.append((name, ", ".join(map(str, value)) or "none"))
        else:
            rows.append((name.replace("_", " "), str(value)))
    return rows


def _engine_line(engine: dict[str, Any]) -> str:
    """An engine in a line."""
    from .console import num_bytes

    if "error" in engine:
        return f"{engine['name']}: {engine['error']}"
    options = engine["options"]
    kernels = [
        f"{profile} {count:g}"
        for plan in engine["plans"]
        for profile, count in plan["launches_per_layer"].items()
    ]
    return (
        f"{engine['name']}: {engine['toolkit']} {engine['toolkit_version']}, sm_{options['sm']}, "
        f"{options['max_batch']} x {options['max_seq_len']} tokens, "
        f"{num_bytes(sum(plan['num_bytes'] for plan in engine['plans']))}, kernels a layer: "
        f"{', '.join(kernels)}; validation {engine['validation']}"
    )
