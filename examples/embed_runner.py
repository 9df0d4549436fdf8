"""Embed the Runner: ten lines, no torch. Usage: python examples/embed_runner.py BUNDLE"""

import sys
from pathlib import Path

from nemo_trt import Runner, SamplingParams

with Runner.open(Path(sys.argv[1]), max_seq_len=2048) as runner:
    question = [{"role": "user", "content": "What is the capital of France?"}]
    for event in runner.chat(question, SamplingParams(max_tokens=64)):
        print(event.text, end="", flush=True)
print()
