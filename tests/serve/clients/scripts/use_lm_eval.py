# requires: lm_eval[api,hf]==0.4.13
# shares torch; serves the sample model
"""lm-eval: local tasks of every output type measure what its `hf` backend measures."""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
import lm_eval
from lm_eval.tasks import TaskManager

url, model, checkpoint = sys.argv[1:]

QUESTIONS: list[tuple[str, list[str], int]] = [
    ("The capital of France is", ["Paris", "Rome", "Berlin"], 0),
    ("The sun rises in the", ["west", "east", "north"], 1),
    ("A week has seven", ["days", "hours", "feet"], 0),
    ("Two plus two is", ["five", "four", "six"], 1),
    ("Bees make", ["honey", "milk", "wool"], 0),
    ("Snow is", ["white", "black", "spicy"], 0),
]
TASKS: dict[str, dict[str, Any]] = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "right",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "words": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{question}}",
        "doc_to_target": " {{choices[right]}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}} {{choices[right]}}. Everybody learns it at school.",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "greedy": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[right]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}

lines = [json.dumps({"question": q, "choices": c, "right": r}) for q, c, r in QUESTIONS]
Path("data.jsonl").write_text("\n".join(lines) + "\n")
source = {
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "data.jsonl"}},
    "test_split": "test",
}
tasks = [{"task": name, **source, **task} for name, task in TASKS.items()]


def measured(backend: str, **arguments: object) -> dict[str, Any]:
    """The metrics of each task, and the greedy answers."""
    found = lm_eval.simple_evaluate(
        model=backend,
        model_args={"max_length": 512, **arguments},
        tasks=tasks,
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
    )
    answers = [sample["resps"] for sample in found["samples"]["greedy"]]
    return {"answers": answers, **found["results"]}


served = measured(
    "local-completions",
    model=model,
    base_url=f"{url}/completions",
    tokenizer=checkpoint,
    tokenizer_backend="huggingface",
)
reference = measured("hf", pretrained=checkpoint, dtype="float32", device="cpu")
for task in TASKS:
    for metric, value in reference[task].items():
        if isinstance(value, float):
            got = served[task][metric]
            assert abs(got - value) <= 1e-3 * abs(value), (task, metric, got, value)
assert served["choices"]["acc,none"] == reference["choices"]["acc,none"] > 0
assert served["answers"] == reference["answers"], (served["answers"], reference["answers"])
