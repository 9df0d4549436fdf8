"""Where the limits of BF16 and FP8 come from: transformers' own model in the engine's arithmetic.

transformers computes the validation's texts in BF16, and in BF16 with FP8 matmuls: the input and
weights of every FP8 group of the bundle are rounded to E4M3 with the manifest's scales and
multiplied, and the result is rounded to BF16. Both are compared with its own fp32 model. No engine
takes part: what is measured is what the arithmetic costs a sound one.

    python benchmarks/fp8_limits.py CHECKPOINT FP8_BUNDLE
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nemo_trt.bundle import Bundle
from nemo_trt.e4m3 import E4M3_MAX
from nemo_trt.engines.ort_session import OrtSession
from nemo_trt.engines.tokenizers import open_tokenizer
from nemo_trt.quantization import Quantization, groups
from nemo_trt.validate.metrics import compare, negative_log_likelihood
from nemo_trt.validate.sequences import make_sequences

FEW = 24
"""Positions of the small cases: agreement is the worst of any so many neighbours of a text."""


def fake_fp8(x: torch.Tensor, scale: float) -> torch.Tensor:
    """Round to E4M3 as a Q/DQ pair does; fp32."""
    scaled = (x.float() / scale).clamp(-E4M3_MAX, E4M3_MAX)
    return scaled.to(torch.float8_e4m3fn).float() * scale


def simulate_fp8(model: Any, bundle: Bundle, quantization: Quantization) -> int:
    """Make the linear layers of FP8 groups multiply in simulated FP8; how many there are."""
    modules = dict(model.named_modules())
    count = 0
    for group, weights in groups(bundle.config):
        if not quantization.is_fp8(group):
            continue
        of_input, of_weights = (
            quantization.activation_scale(group),
            quantization.weight_scale(weights),
        )
        for name in weights:
            linear = modules[name.removesuffix(".weight")]
            linear.weight.data = fake_fp8(linear.weight.data, of_weights)

            def forward(
                x: torch.Tensor, linear: Any = linear, scale: float = of_input
            ) -> torch.Tensor:
                return torch.nn.functional.linear(fake_fp8(x, scale), linear.weight).to(x.dtype)

            linear.forward = forward
            count += 1
    return count


@torch.no_grad()
def logits_of(model: Any, sequences: list[tuple[int, ...]]) -> list[np.ndarray]:
    """(S, V) float32 of each sequence, in one pass."""
    return [model(torch.tensor([ids])).logits[0].float().numpy() for ids in sequences]


def figures(
    found: list[np.ndarray], exact: list[np.ndarray], ids: list[tuple[int, ...]]
) -> dict[str, float]:
    """The validator's figures, the worst of any text."""
    every = [compare(one, other, noise=0.0) for one, other in zip(found, exact, strict=True)]
    joined = {
        name: np.concatenate([getattr(one, name) for one in every])
        for name in ("relative_l2", "cosine", "kl", "top1", "top5")
    }

    def worst_of_few(name: str) -> float:
        means = [
            np.convolve(values, np.ones(FEW) / FEW, "valid").min()
            for one in every
            if len(values := getattr(one, name)) >= FEW
        ]
        return float(min(means))

    likelihoods = [
        np.concatenate(
            [
                negative_log_likelihood(one[:-1], np.array(tokens[1:]))
                for one, tokens in zip(which, ids, strict=True)
            ]
        ).mean()
        for which in (found, exact)
    ]
    return {
        "relative L2, worst": float(joined["relative_l2"].max()),
        "1 - cosine, worst": float(1 - joined["cosine"].min()),
        "KL, worst": float(joined["kl"].max()),
        "KL, mean": float(joined["kl"].mean()),
        "KL, mean of the worst text": max(float(one.kl.mean()) for one in every),
        "top-1": float(joined["top1"].mean()),
        f"top-1, worst {FEW} neighbours": worst_of_few("top1"),
        "top-5": float(joined["top5"].mean()),
        f"top-5, worst {FEW} neighbours": worst_of_few("top5"),
        "perplexity ratio": float(np.exp(likelihoods[0] - likelihoods[1])),
    }


def main() -> None:
    """Print one row a figure."""
    from transformers import AutoModelForCausalLM

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundle", type=Path)
    asked = parser.parse_args()
    bundle = Bundle.open(asked.bundle)
    quantization = bundle.manifest.quantization
    assert quantization is not None, f"{bundle} must be an FP8 bundle"
    with OrtSession.open(bundle, max_seq_len=1024) as session:
        sequences = make_sequences(session, open_tokenizer(asked.checkpoint))
    ids = [one.tokens for one in (*sequences.texts, sequences.long)]

    def model(dtype: torch.dtype) -> Any:
        return AutoModelForCausalLM.from_pretrained(asked.checkpoint, dtype=dtype).eval()

    exact = logits_of(model(torch.float32), ids)
    in_bf16 = figures(logits_of(model(torch.bfloat16), ids), exact, ids)
    quantised = model(torch.bfloat16)
    count = simulate_fp8(quantised, bundle, quantization)
    in_fp8 = figures(logits_of(quantised, ids), exact, ids)
    print(f"{sum(map(len, ids))} positions; {count} matmuls in FP8")
    print("| | BF16 | BF16 with FP8 matmuls |\n|---|---:|---:|")
    for name, value in in_bf16.items():
        print(f"| {name} | {value:.4g} | {in_fp8[name]:.4g} |")


if __name__ == "__main__":
    main()
