# requires: guidellm==0.8.1
# shares torch; serves the sample model
"""GuideLLM: a run by the recipe of docs/load.md, with no error and all tokens counted."""

import json
import os
import subprocess
import sys
from pathlib import Path

url, model, checkpoint = sys.argv[1:]
target = url.removesuffix("/v1")
options = {
    "backend": f"kind=openai_http,target={target},model={model}",
    "tokenizer": f"kind=huggingface_auto,model={checkpoint}",
    "data": "kind=synthetic_text,prompt_tokens=32,output_tokens=8",
    "profile": "kind=concurrent,streams=4",
    "constraint": "kind=max_requests,count=12",
    "output": "kind=json,path=load.json",
}
command = [str(Path(sys.executable).with_name("guidellm")), "run"]
for name, value in options.items():
    command += [f"--{name}", value]
subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
metrics = json.loads(Path("load.json").read_text())["benchmarks"][0]["metrics"]
totals = metrics["request_totals"]
assert totals["successful"] == totals["total"] >= 12, totals
tokens = metrics["output_token_count"]["successful"]
assert tokens["min"] == tokens["max"] == 8, tokens
