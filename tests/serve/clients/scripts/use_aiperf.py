# requires: aiperf==0.13.0
# shares torch; serves the sample model
"""AIPerf: a run by the recipe of docs/load.md, with no error and all tokens counted."""

import json
import os
import subprocess
import sys
from pathlib import Path

url, model, checkpoint = sys.argv[1:]
options = {
    "model": model,
    "url": url.removesuffix("/v1"),
    "endpoint-type": "chat",
    "tokenizer": checkpoint,
    "isl": "32",
    "osl": "8",
    "extra-inputs": "ignore_eos:true",
    "concurrency": "4",
    "request-count": "12",
    "output-artifact-dir": "artifacts",
    "ui": "none",
}
command = [str(Path(sys.executable).with_name("aiperf")), "profile"]
command += ["--streaming", "--use-server-token-count", "--no-gpu-telemetry"]
for name, value in options.items():
    command += [f"--{name}", value]
# With either of these, AIPerf looks for tokenizers in Hugging Face's cache alone.
offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
environment = {name: value for name, value in os.environ.items() if name not in offline}
subprocess.run(command, check=True, env=environment)
report = json.loads(Path("artifacts/profile_export_aiperf.json").read_text())
assert report["request_count"]["avg"] == 12, report["request_count"]
assert not report["error_summary"], report["error_summary"]
tokens = report["output_sequence_length"]
assert tokens["min"] == tokens["max"] == 8, tokens
