"""Numbers as people read them."""

import pytest

from nemo_trt.cli.console import num_bytes

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (24_495_564_800, "24.50 GB"),
        (1_500_000, "1.50 MB"),
        (2 * 10**13, "20000.00 GB"),
    ],
)
def test_bytes_have_decimal_units_and_no_fractions_of_a_byte(count: int, text: str) -> None:
    assert num_bytes(count) == text
