"""The decoder's FP8 product on tensor cores against its own simulation, and its speed over BF16.

The simulation is what the decoder and every exported graph compute: operands rounded to E4M3, the
product in BF16. A tensor core multiplies the rounded numbers themselves.
"""

from typing import Any

import torch
from torch import Tensor

from nemo_trt.e4m3 import scale_of
from nemo_trt.export import ops
from nemo_trt.export.checkpoints import open_checkpoint
from nemo_trt.export.tensors import load
from on_gpu.clock import seconds
from on_gpu.scale import Work

GROUPS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate, up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
_LEAST_ROWS = 16  # a tensor core's tile; fewer are padded, as an engine would


class Fp8Product:
    """One group's merged weight (N, K), in BF16 and in E4M3 with one scale."""

    def __init__(self, weight: Tensor, amax: float) -> None:
        device = weight.device
        self.weight = weight
        self.weight_scale = torch.tensor(scale_of(float(weight.abs().max())), device=device)
        self.input_scale = torch.tensor(scale_of(amax), device=device)
        self.codes = ops.to_e4m3(weight, self.weight_scale)  # (N, K)
        self.rounded = (self.codes.float() * self.weight_scale).to(weight.dtype)

    def real(self, x: Tensor) -> Tensor:
        """(M, K) on tensor cores: rounded to codes, multiplied as such."""
        rows = len(x)
        if rows < _LEAST_ROWS:
            x = torch.nn.functional.pad(x, (0, 0, 0, _LEAST_ROWS - rows))
        return self.multiplied(ops.to_e4m3(x, self.input_scale))[:rows]

    def multiplied(self, codes: Tensor) -> Tensor:
        """The product of codes alone, (M, K)."""
        return torch._scaled_mm(
            codes,
            self.codes.t(),
            scale_a=self.input_scale,
            scale_b=self.weight_scale,
            out_dtype=torch.bfloat16,
        )

    def simulated(self, x: Tensor) -> Tensor:
        """What the decoder computes."""
        return ops.quantize_dequantize(x, self.input_scale) @ self.rounded.t()

    def exact(self, x: Tensor) -> Tensor:
        """The same rounded operands, multiplied in float64."""
        rounded = ops.to_e4m3(x, self.input_scale).double() * self.input_scale.double()
        return rounded @ (self.codes.double() * self.weight_scale.double()).t()


@torch.inference_mode()
def run(work: Work) -> dict[str, Any]:
    """Every group of the first layer, on activations of the model itself."""
    scale = work.scale
    checkpoint = open_checkpoint(work.checkpoint)
    found = []
    for group, activations in layer_inputs(work, max(scale.rows)).items():
        weight = torch.cat(
            [load(checkpoint.tensors[f"model.layers.0.{name}.weight"]) for name in GROUPS[group]]
        ).to(scale.device, torch.bfloat16)
        product = Fp8Product(weight, float(activations.abs().max()))
        for rows in scale.rows:
            x = activations[:rows].contiguous()
            exact, real = product.exact(x), product.real(x).double()
            simulated, bf16 = product.simulated(x).double(), (x @ weight.t()).double()
            padded = x if rows >= _LEAST_ROWS else x.repeat(_LEAST_ROWS // rows, 1)
            codes = ops.to_e4m3(padded, product.input_scale)
            times = {
                "bf16_s": seconds(lambda x=x, w=weight: x @ w.t(), scale, inner=20),
                "fp8_s": seconds(lambda c=codes, p=product: p.multiplied(c), scale, inner=20),
                "fp8_with_rounding_s": seconds(lambda x=x, p=product: p.real(x), scale, inner=20),
            }
            found.append(
                {
                    "group": group,
                    "n": weight.shape[0],
                    "k": weight.shape[1],
                    "rows": rows,
                    "simulated_vs_real": relative(simulated, real),
                    "real_vs_exact": relative(real, exact),
                    "simulated_vs_exact": relative(simulated, exact),
                    "fp8_vs_bf16": relative(real, bf16),
                    **times,
                }
            )
    return {"products": found}


def relative(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected|."""
    return float((found - expected).norm() / expected.norm())


def layer_inputs(work: Work, rows: int) -> dict[str, Tensor]:
    """Inputs (rows, K) of the first layer's four groups, by transformers' own layer, in BF16."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(work.checkpoint, local_files_only=True)
    config.num_hidden_layers = 1
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(config, attn_implementation="sdpa")
    checkpoint, device = open_checkpoint(work.checkpoint), work.scale.device
    state = {
        name: load(checkpoint.tensors[f"model.{name}"]).to(device, torch.bfloat16)
        for name in model.state_dict()
    }
    model.load_state_dict(state, assign=True)
    model.rotary_emb = type(model.rotary_emb)(config=config).to(device)
    layer, seen = model.layers[0], {}
    sites = {
        "qkv": layer.self_attn.q_proj,
        "o": layer.self_attn.o_proj,
        "gate, up": layer.mlp.gate_proj,
        "down": layer.mlp.down_proj,
    }
    for group, module in sites.items():
        module.register_forward_pre_hook(
            lambda _, inputs, group=group: seen.update({group: inputs[0][0]})
        )
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, work.scale.config.vocab_size, (1, rows), generator=generator)
    model.eval()(input_ids=ids.to(device), use_cache=False)
    return seen


def table(found: dict[str, Any]) -> str:
    """A row a shape and number of rows."""
    lines = [
        "| group | N x K | rows | simulation from tensor core | tensor core from exact "
        "| FP8 from BF16 | BF16 us | FP8 us | with rounding us | speed-up | with rounding |",
        "|---|---|" + "---:|" * 9,
    ]
    for one in found["products"]:
        bf16, fp8, whole = (one[key] for key in ("bf16_s", "fp8_s", "fp8_with_rounding_s"))
        lines.append(
            f"| {one['group']} | {one['n']} x {one['k']} | {one['rows']} "
            f"| {one['simulated_vs_real']:.1e} | {one['real_vs_exact']:.1e} "
            f"| {one['fp8_vs_bf16']:.1e} | {bf16 * 1e6:.1f} | {fp8 * 1e6:.1f} "
            f"| {whole * 1e6:.1f} | {bf16 / fp8:.2f} | {bf16 / whole:.2f} |"
        )
    return "\n".join(lines)
