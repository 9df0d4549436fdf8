"""What pages bring, computed: the real scheduler over a session whose steps take no time but count it.

python benchmarks/pages.py [--gpu NAME ...] [--requests N]

Mistral-NeMo in FP8 on each GPU, requests of ShareGPT's mean lengths (161 tokens of prompt and 338 of
answer; Kwon et al. 2023, section 6.1), exponentially distributed, all waiting from the start. A step
lasts as long as the GPU reads what the step must read: weights, and of the cache what the attention
reads (native: the capacity of every row of the step; pages: the tokens that the rows hold). Prompts
add their products at half of the GPU's speed in FP8. Kernels that are slower than that, launches
and the host are not counted: the tokens a second are upper bounds, their ratios are the result.
"""

import argparse
from types import SimpleNamespace
from typing import Any

import numpy as np
from paced_session import Pace

from nemo_trt.engines.planner import engine_budget, kv_bytes_per_token, step_bytes
from nemo_trt.engines.sampling import SamplingParams
from nemo_trt.engines.session import Logits, PageView, Tokens
from nemo_trt.engines.step_result import WholeLogits
from nemo_trt.engines.targets import Target, target_named
from nemo_trt.serve import Request, Scheduler

PROMPT, ANSWER = 161, 338
PAGE = 64
