"""Quantises a checkpoint with ModelOpt and exports it: `modelopt_export.py SOURCE FOLDER LOGITS`.

A process of its own, because ModelOpt warns of much that warnings-as-errors would stop at. Its
export rounds a weight to BF16 between the division by its scale and E4M3, its simulation does not;
so the logits are those of the exported weights, with ModelOpt's own quantisers on the activations.
Scales are rounded to BF16 as in a bundle: another scale, as good, rounds other numbers up.
"""

import sys
from pathlib import Path

import modelopt.torch.quantization as mtq
import numpy as np
import torch
import transformers
from modelopt.torch.export import export_hf_checkpoint
from safetensors.torch import load_file

TOKENS = np.random.default_rng(3).integers(0, 512, (1, 48))


def main(source: str, folder: str, logits: str) -> None:
    tokens = torch.from_numpy(TOKENS)
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    mtq.quantize(model, mtq.FP8_DEFAULT_CFG, lambda quantised: quantised(tokens))
    simulated = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    mtq.quantize(simulated, mtq.FP8_DEFAULT_CFG, lambda quantised: quantised(tokens))
    export_hf_checkpoint(model, export_dir=folder)
    stored = load_file(Path(folder) / "model.safetensors")
    scales = {n: t.bfloat16().float() for n, t in stored.items() if n.endswith("_scale")}
    for name, module in simulated.named_modules():
        if f"{name}.weight_scale" in scales:
            weight = stored[f"{name}.weight"].float() * scales[f"{name}.weight_scale"]
            module.weight.data.copy_(weight)
            module.weight_quantizer.disable()
            module.input_quantizer.amax = scales[f"{name}.input_scale"] * 448
    with torch.no_grad():
        np.save(logits, simulated(tokens).logits.numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
