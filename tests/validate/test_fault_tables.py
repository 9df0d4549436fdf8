"""The tables of faults in docs/validation.md name what the tests plant, no more and no less."""

from pathlib import Path

import pytest

from . import test_scales, test_seeded_faults, test_tokens
from .faults_of_use import FAULTS as OF_USE
from .reading import test_reading

pytestmark = pytest.mark.model

PAGE = Path(__file__).parents[2] / "docs" / "validation.md"
APART = {  # tests of their own beside the parametrised ones
    "## What it catches": {"positions rounded to FP16 (exact up to 2048)"},
    "### Faults of use": {"positions 200 to 2,500 stand one too far"},
    "### Faults of reading and of tokenizers": {
        "layers in another order, for engine and reference alike",
        "streamed text that is not the decoded text",
    },
}
PLANTED = {
    "## What it catches": [test_seeded_faults.TINY],
    "### Faults of use": [OF_USE],
    "### Faults of reading and of tokenizers": [
        test_reading.FAULTS, test_tokens.FAULTS, test_tokens.CHATS,
    ],
}  # fmt: skip


def rows(heading: str) -> set[str]:
    """The first column of the first table behind a heading."""
    page = PAGE.read_text(encoding="utf-8")
    section = page[page.index(f"{heading}\n") :]
    lines = section[section.index("\n| fault |") + 1 :].split("\n\n")[0].splitlines()
    return {line.split("|")[1].strip() for line in lines[2:]}


@pytest.mark.parametrize("heading", PLANTED)
def test_a_table_names_what_is_planted(heading: str) -> None:
    planted = {name for faults in PLANTED[heading] for name in faults}
    assert rows(heading) == planted | APART[heading]


def test_the_table_of_scales_has_a_row_for_each_planted_one() -> None:
    assert len(rows("### FP8's scales")) == 5 and len(test_scales.FAULTS) == 4
