"""The kernels against attention in float64, in Triton's interpreter."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from nemo_trt.engines.trt.attention.tiling import Tiling

from .paged import POISON, Case, as_stored, draw, error, exact, fill, softmax_scale

pytestmark = pytest.mark.model
E4M3 = torch.float8_e4m3fn
LIMITS = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Of a row's error relative to its norm: the operands' rounding, in probability and sum."""

CASES = {
    "one key": Case(lengths=(1,)),
    "a page's edge": Case(lengths=(32, 33, 31)),
    "ragged, two kv heads": Case(lengths=(1, 70, 17), kv_heads=2),
    "idle rows": Case(lengths=(0, 40, 0, 5)),
    "small pages": Case(lengths=(50, 33), page=16),
    "large pages": Case(lengths=(70, 64), page=64),
    "head_dim 128": Case(lengths=(40, 7), head_dim=128),
    "head_dim 112": Case(lengths=(40, 7), head_dim=112),
    "one head a group": Case(lengths=(40, 7), group=1),
    "five heads a group": Case(lengths=(40, 7), group=5),
    "sharp": Case(lengths=(70, 31), sharpness=8.0),
    "fp16": Case(lengths=(40, 7), dtype=torch.float16),
    "fp32": Case(lengths=(40, 7), dtype=torch.float32),
    "an fp8 cache": Case(lengths=(40, 33), cache=E4M3, key_scale=0.011, value_scale=0.007),
}


def tile_of(case: Case) -> int:
    """Larger than a small page, so that a tile's keys lie in several."""
    return 32 if case.page == 16 else 16


@pytest.mark.parametrize("name", CASES)
def test_decode(name: str, launch: Any) -> None:
    for tokens, programs in ((1, 7), (3, 12)):
        case = replace(CASES[name], tokens=tokens)
        drawn = draw(case, launch)
        fill(case, drawn)
        run = launch.Decode(drawn.query, drawn.pages, Tiling(tile=tile_of(case), programs=programs))
        for tensor in (run.partial, run.summary, out := torch.empty_like(drawn.query)):
            tensor.fill_(POISON)
        found = run(drawn.query, drawn.pages, out, scale := softmax_scale(case))
        assert error(found, exact(case, drawn, scale)) < LIMITS[case.dtype], (tokens, programs)


@pytest.mark.parametrize("name", CASES)
def test_prefill(name: str, launch: Any) -> None:
    for tokens in (1, 37):
        case = replace(CASES[name], tokens=tokens)
        drawn = draw(case, launch)
        fill(case, drawn)
        out = torch.full_like(drawn.query, POISON)
        tiling = Tiling(tile=tile_of(case), queries=32)
        scale = softmax_scale(case)
        found = launch.prefill_attention(drawn.query, drawn.pages, out, scale, tiling)
        assert error(found, exact(case, drawn, scale)) < LIMITS[case.dtype], tokens


def drawn_case(seed: int) -> tuple[Case, Tiling]:
    """Any sizes that the kernels serve, and any cut."""
    random = np.random.default_rng(seed)

    def one_of(*values: Any) -> Any:
        return values[random.integers(len(values))]

    page = one_of(16, 32, 64, 128)
    dtype = one_of(torch.bfloat16, torch.float16)
    lengths = [
        int(random.integers(0, min(one_of(2, page, 3 * page), 140))) for _ in range(one_of(1, 2, 5))
    ]
    case = Case(
        lengths=(*lengths, one_of(1, page, page + 1)),
        tokens=one_of(1, 1, 2, int(random.integers(3, 24))),
        kv_heads=one_of(1, 2, 3),
        group=int(random.integers(1, 9)),
        head_dim=one_of(16, 64, 80, 96, 128),
        page=page,
        dtype=dtype,
        cache=one_of(None, E4M3),
        key_scale=float(random.uniform(0.005, 0.05)),
        value_scale=float(random.uniform(0.005, 0.05)),
        sharpness=one_of(0.1, 1.0, 4.0),
        seed=seed,
    )
    plain = {"key_scale": 1.0, "value_scale": 1.0} if case.cache is None else {}
    tiling = Tiling(
        tile=one_of(16, 32), queries=one_of(16, 32, 64), programs=int(random.integers(1, 40))
    )
    return replace(case, **plain), tiling


@pytest.mark.parametrize("seed", range(8))
def test_any_step_writes_and_attends(seed: int, launch: Any) -> None:
    """As a step does it: new tokens go to their pages, then all that is held is attended to."""
    case, tiling = drawn_case(seed)
    drawn = draw(case, launch)
    before = tuple(max(length - case.tokens, 0) for length in case.lengths)
    fill(replace(case, lengths=before), drawn)
    shape = (len(case.lengths), case.kv_heads, case.tokens, case.head_dim)
    new = [torch.full(shape, 7.0, dtype=case.dtype) for _ in range(2)]
    for row, (start, length) in enumerate(zip(before, case.lengths, strict=True)):
        for target, dense in zip(new, (drawn.keys, drawn.values), strict=True):
            target[row, :, : length - start] = dense[row, :, start:length]
    launch.write_pages(drawn.pages, *new)
    expected = exact(case, drawn, scale := softmax_scale(case))
    decode = launch.Decode(drawn.query, drawn.pages, tiling)
    for attend in (
        lambda out: decode(drawn.query, drawn.pages, out, scale),
        lambda out: launch.prefill_attention(drawn.query, drawn.pages, out, scale, tiling),
    ):
        found = attend(torch.full_like(drawn.query, POISON))
        assert error(found, expected) < LIMITS[case.dtype], (case, tiling)


@pytest.mark.parametrize("name", CASES)
def test_write(name: str, launch: Any) -> None:
    """Every new token lies where the table says, rounded as PyTorch rounds; the rest stays."""
    case = replace(CASES[name], tokens=20)
    drawn, expected = draw(case, launch), draw(case, launch)
    fill(case, expected)
    shape = (len(case.lengths), case.kv_heads, case.tokens, case.head_dim)
    new = [torch.full(shape, 7.0, dtype=case.dtype) for _ in range(2)]  # padding is numbers
    for row, length in enumerate(case.lengths):
        start = max(length - case.tokens, 0)
        for target, dense in zip(new, (drawn.keys, drawn.values), strict=True):
            target[row, :, : length - start] = dense[row, :, start:length]
        for position in range(start):  # what the row held before this step is not written again
            page = int(expected.pages.table[row, position // case.page])
            for pool in (expected.pages.keys, expected.pages.values):
                pool[page, :, position % case.page] = torch.tensor(POISON).to(pool.dtype)
    launch.write_pages(drawn.pages, *new)
    for pool in ("keys", "values"):
        found, wanted = getattr(drawn.pages, pool), getattr(expected.pages, pool)
        assert torch.equal(found.float().nan_to_num(7.5e4), wanted.float().nan_to_num(7.5e4))


def test_a_number_beyond_e4m3_is_bounded_and_a_nan_stays_one(launch: Any) -> None:
    case = Case(lengths=(4,), tokens=4, kv_heads=1, head_dim=64, cache=E4M3, key_scale=0.5)
    drawn = draw(case, launch)
    new = torch.linspace(-900, 900, 4 * 64).bfloat16().view(1, 1, 4, 64)
    new[0, 0, 1, 3] = POISON
    launch.write_pages(drawn.pages, new, new.clone())
    found = drawn.pages.keys[drawn.pages.table[0, 0], 0, :4]
    wanted = as_stored(new[0, 0], E4M3, 0.5)
    assert torch.equal(found.float().nan_to_num(7e4), wanted.float().nan_to_num(7e4))
    assert float(found.float().nan_to_num(0).abs().max()) == 448 and bool(found[1, 3].isnan())


def test_a_number_is_divided_by_its_scale_not_multiplied_by_a_reciprocal(launch: Any) -> None:
    """345 / 15 lies between two E4M3 numbers; 345 * (1 / 15) in fp32 lies above."""
    case = Case(
        lengths=(1,), tokens=1, dtype=torch.float32, cache=E4M3, key_scale=15.0, value_scale=7.0
    )
    drawn = draw(case, launch)
    ties = torch.arange(17, 32, 2).float().repeat(8)
    launch.write_pages(drawn.pages, (ties * 15).view(1, 1, 1, 64), (ties * 7).view(1, 1, 1, 64))
    page = drawn.pages.table[0, 0]
    for pool in (drawn.pages.keys, drawn.pages.values):
        assert torch.equal(pool[page, 0, 0].float(), ties.to(E4M3).float())
