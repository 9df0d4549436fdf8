"""Which extra of the package brings which import, for errors that say what to install."""

_EXTRAS = {
    "torch": "export",
    "onnxscript": "export",
    "safetensors": "export",
    "yaml": "export",
    "gguf": "export",
    "indexed_gzip": "export",
    "ml_dtypes": "export",
    "onnxruntime": "cpu",
    "matplotlib": "plots",
    "triton": "paged",
    "peft": "validate",
    "polygraphy": "validate",
    "transformers": "validate",
    "cryptography": "sign",
    "fastapi": "serve",
    "pydantic": "serve",  # of fastapi, as starlette is
    "starlette": "serve",
    "uvicorn": "serve",
    "llguidance": "serve",
    "msgpack": "serve",
    "prometheus_client": "serve",
    "ray": "ray",
}


def remedy(error: ImportError) -> str:
    """A sentence that says how to install what an import did not find."""
    extra = _EXTRAS.get((error.name or "").split(".")[0])
    return f"Install it: pip install 'nemo-trt[{extra}]'." if extra else "Install it with pip."
