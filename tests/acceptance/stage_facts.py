"""What each stage tells, as far as a report shows it."""

from typing import Any

FACTS: dict[str, dict[str, Any]] = {
    "plan": {
        "max_batch": 3, "max_seq_len": 4096, "weight_bytes": 24_500_000_000, "kv_bytes": 2 * 10**9,
        "free_bytes": 999_999, "floor_ms": 12.5,
    },
    "build": {
        "engine": "l4-bf16", "toolkit": "tensorrt-rtx", "toolkit_version": "1.2",
        "plan_bytes": 3 * 10**9, "build_s": 61.04, "build_peak_rss_bytes": 8 * 10**9,
    },
    "validate": {
        "cases": [
            {
                "name": "whole prefill", "num_positions": 7, "max_abs": 0.5, "mean_abs": 0.25,
                "max_relative_l2": 0.01, "max_kl": 2e-3, "top1": 0.999, "top5": 0.875,
                "failures": ["kl must be less"],
            }
        ],
        "limits": {"max_relative_l2": 0.1, "max_kl": 0.45, "min_top1": 0.9, "min_top5": 0.8},
        "perplexity": {"engine": 12.5, "reference": "inf"},
        "backend": {"compute_precision": "bf16"}, "reference": {"dtype": "fp32"},
        "every_position": "validation/v.json",
    },
    "bench": {
        "prefill": [{"tokens": 1024, "step_s": 0.25, "tokens_per_s": 4096.0}],
        "decode": [
            {"tokens": 1920, "rows": 4, "step_s": 0.04, "tokens_per_s": 100.0, "floor_s": 0.03}
        ],
        "load_s": 1.5, "computes_in": "bf16", "bandwidth_bytes_per_s": 3.0e11,
        "bandwidth_source": "data sheet of l4",
    },
}  # fmt: skip
