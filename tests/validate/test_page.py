"""The HTML report, looked at in a browser: whole, offline, and true."""

from pathlib import Path
from typing import Any

import pytest

from nemo_trt.cli.main import run
from nemo_trt.tolerances import CASES
from tests.browsing import Watch

from . import faults

pytestmark = pytest.mark.e2e

SHORT = ["--max-seq-len", "400", "--max-batch", "3"]


def opened(browser: Any, file: Path) -> Any:
    """The page; fails the test when the browser minds something of it."""
    watch = Watch(file.as_uri())
    page = browser.new_page(viewport={"width": 1100, "height": 900})
    watch.on(page)
    page.goto(file.as_uri())
    assert not watch.wrong
    return page


def test_a_failed_verdict_is_shown_with_its_cause(
    tiny: Any, tmp_path: Path, browser: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    faulty = faults.copy_with(tiny.bundle, tmp_path / "b", weights=faults.one_tensor_zeroed)
    file = tmp_path / "report.html"
    assert run(["validate", str(faulty), *SHORT, "--explain", "--report", str(file)]) == 1
    assert "layer 1 self_attn.v_proj: all zeros." in capsys.readouterr().out
    page = opened(browser, file)
    assert page.locator("h1").inner_text() == "Validation FAIL"
    assert "layer 1 self_attn.v_proj: all zeros." in page.locator("body").inner_text()
    cases = page.locator("table").first.locator("tr td:first-child")
    assert cases.all_inner_texts() == [*CASES, "limit"]
    plots = page.locator("svg")
    assert plots.count() == 2
    for index in range(2):
        box = plots.nth(index).bounding_box()
        assert box["width"] > 400 and box["height"] > 150
        assert plots.nth(index).locator("path").count() > 20
    worst = page.locator("table.text tr")
    assert worst.count() == 13  # a heading and twelve positions
    page.close()


def test_words_of_the_tokenizer_are_escaped(
    sample_tokenizer: Path, browser: Any, tmp_path: Path
) -> None:
    from nemo_trt.engines.tokenizers import open_tokenizer
    from nemo_trt.tolerances import tolerance_of
    from nemo_trt.validate.page import page
    from nemo_trt.validate.report import Disagreement, Report, broken_case

    tokenizer = open_tokenizer(sample_tokenizer)
    text = tuple(tokenizer.encode("<script>window.bad = 1</script> & ok", bos=False))
    one = Disagreement(
        sequence="text 1",
        position=3,
        kl=0.5,
        before=text,
        engine=(),
        reference=((text[0], 0.25), (text[-1], 0.125)),
    )
    from dataclasses import asdict, replace

    report = Report(
        bundle_id="<b>",
        engine={"compute_precision": "fp32", "backend": "onnxruntime"},
        reference={"transformers": "5", "dtype": "float32", "noise": 0.0, "reader": "safetensors"},
        settings={},
        limits=asdict(tolerance_of("fp32")),
        perplexity={"engine": 2.0, "reference": 2.0},
        cases=(replace(broken_case("whole prefill", "out of <memory>"), worst=(one,)),),
        failures=(),
    )
    file = tmp_path / "report.html"
    file.write_text(page(report, tokenizer), encoding="utf-8")
    shown = opened(browser, file)
    shown.locator("summary").click()
    body = shown.locator("body").inner_text()
    assert "<script>window.bad = 1</script> & ok" in body and "out of <memory>" in body
    assert "not finite" in body and "25.0%" in body
    assert shown.evaluate("window.bad") is None
    shown.close()
