"""Rows, rewinding and logits: the Runner without its generation loop.

Usage: python examples/step_by_step.py BUNDLE
"""

import sys
from pathlib import Path

from nemo_trt import Runner

with Runner.open(Path(sys.argv[1]), max_batch=2, max_seq_len=512) as runner:
    encode = runner.tokenizer.encode
    prompts = {0: encode("The sun rises in the", bos=True), 1: encode("Two plus two is", bos=True)}
    logits = runner.prefill(prompts)  # (2, V): what follows each row's last token
    for _ in range(4):
        logits = runner.decode({row: int(logits[row].argmax()) for row in prompts})
    for row in prompts:
        print(runner.tokenizer.decode(runner.tokens(row)))
    runner.rewind(1, len(prompts[1]))  # drops the four tokens; nothing is copied
    print(runner.tokenizer.decode(runner.tokens(1)))
