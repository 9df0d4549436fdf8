"""The same kernels compiled, on a real GPU: TRITON_INTERPRET=0 python -m pytest -m gpu."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from nemo_trt.engines.machine import gpus
from nemo_trt.engines.trt.attention.tiling import Tiling

from .paged import POISON, Case, as_stored, draw, error, exact, fill, softmax_scale
from .test_numerics import CASES, E4M3, LIMITS

triton = pytest.importorskip("triton")
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.gpu,
    pytest.mark.skipif(not gpus(), reason="needs an NVIDIA GPU; none answers here"),
    pytest.mark.skipif(
        triton.knobs.runtime.interpret, reason="kernels are interpreted: set TRITON_INTERPRET=0"
    ),
]
NEMO = {"kv_heads": 8, "head_dim": 128, "page": 64}
LONG = {
    "long": Case(lengths=(5000, 1, 777, 0, 2049), **NEMO),
    "one row": Case(lengths=(9001,), **NEMO),
    "an fp8 cache, long": Case(lengths=(5000, 777), cache=E4M3, key_scale=0.01, **NEMO),
}


@pytest.fixture(params=[*CASES, *LONG])
def case(request: pytest.FixtureRequest) -> Case:
    return (CASES | LONG)[request.param]


def on_gpu(case: Case, launch: Any) -> Any:
    """The case on the GPU. It is drawn and filled on the CPU."""
    drawn = draw(case, launch)
    fill(case, drawn)
    moved = {n: t.cuda() for n in ("keys", "values", "table", "starts", "lengths")
             if (t := getattr(drawn.pages, n)) is not None}  # fmt: skip
    drawn.pages = replace(drawn.pages, **moved)
    return drawn


def limit(case: Case) -> float:
    """FP32 products are done in TF32."""
    return 2e-3 if case.dtype == torch.float32 else LIMITS[case.dtype]


def test_decode(case: Case, launch: Any) -> None:
    scale = softmax_scale(case)
    for tokens in (1, 4):
        asked = replace(case, tokens=tokens)
        drawn = on_gpu(asked, launch)
        expected, query = exact(asked, drawn, scale), drawn.query.cuda()
        for tile, programs in ((64, 264), (32, 7), (128, 1000)):
            tiling = Tiling(tile=tile, programs=programs)
            ours = launch.Decode(query, drawn.pages, tiling)
            for tensor in (ours.partial, ours.summary, out := torch.empty_like(query)):
                tensor.fill_(POISON)
            found = ours(query, drawn.pages, out, scale).cpu()
            assert error(found, expected) < limit(case), (tokens, tile, programs)


def test_prefill(case: Case, launch: Any) -> None:
    scale = softmax_scale(case)
    for tokens in (1, 40, 700):
        asked = replace(case, tokens=tokens)
        drawn = on_gpu(asked, launch)
        expected, query = exact(asked, drawn, scale), drawn.query.cuda()
        for tile, queries, warps in ((64, 128, 8), (32, 64, 4)):
            tiling = Tiling(tile=tile, queries=queries, num_warps=warps)
            out = torch.full_like(query, POISON)
            found = launch.prefill_attention(query, drawn.pages, out, scale, tiling).cpu()
            assert error(found, expected) < limit(case), (tokens, tile)


def test_every_bf16_number_is_rounded_to_e4m3_as_pytorch_rounds_it(launch: Any) -> None:
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    case = Case(lengths=(512,), tokens=512, head_dim=128, cache=E4M3, key_scale=0.37)
    drawn = draw(case, launch)
    pages = replace(drawn.pages, **{n: getattr(drawn.pages, n).cuda()
                    for n in ("keys", "values", "table", "starts", "lengths")})  # fmt: skip
    new = every.view(1, 1, 512, 128).cuda()
    launch.write_pages(pages, new, new.clone())
    found = pages.keys.cpu()[drawn.pages.table[0].long(), 0].flatten(0, 1)
    wanted = as_stored(every.view(512, 128), E4M3, 0.37)
    same = found.view(torch.uint8) == wanted.view(torch.uint8)
    assert bool((same | (found.float().isnan() & wanted.float().isnan())).all())
