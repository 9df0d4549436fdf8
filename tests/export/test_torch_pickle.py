"""Pickles that cost more than their size: each is refused, and what is shared is never copied."""

import pickle
import struct
import tracemalloc
from collections import OrderedDict

import pytest

from nemo_trt.errors import CheckpointError
from nemo_trt.export.checkpoints.torch_pickle import Record, record_class, size_of, unpickle

pytestmark = pytest.mark.unit
NAMES = {"x.Thing": record_class("x.Thing"), "torch.Size": size_of}


def tuple_of(count: int) -> bytes:
    """A tuple of small integers, memoised."""
    return b"(" + b"K\x01" * count + b"t\x94"


def read(body: bytes) -> object:
    return unpickle(b"\x80\x04" + body + b".", "a file", NAMES)


@pytest.mark.parametrize(
    "body",
    [
        tuple_of(2000),
        tuple_of(900) + b"h\x00\x86",
        b"(" + tuple_of(500) + b"h\x00" * 4 + b"t",
        tuple_of(1000) + b"h\x00\x850" * 200,  # each is small, their sum is not
    ],
    ids=["long", "of two", "of many", "one again and again"],
)
def test_tuples_are_counted_with_all_that_they_hold(body: bytes) -> None:
    with pytest.raises(CheckpointError, match="too deep or too many"):
        read(body)


def test_tuples_as_large_as_a_generator_of_random_numbers_are_read() -> None:
    state = (3, tuple(range(625)), None)
    assert unpickle(pickle.dumps(state, 4), "a file", {}) == state


def test_a_dict_is_filled_item_by_item_and_takes_no_arguments() -> None:
    wanted = OrderedDict([("b", 1), ("a", OrderedDict())])
    wanted._metadata = {"version": 1}  # as of a state_dict
    found = unpickle(pickle.dumps(wanted, 2), "a file", {})
    assert found == wanted and list(found) == ["b", "a"]
    pairs = b"]\x94(" + b"K\x01K\x02\x86" * 9 + b"e"
    with pytest.raises(CheckpointError, match="no intact pickle: TypeError"):
        read(b"ccollections\nOrderedDict\n" + pairs + b"\x85R")


def test_many_records_share_one_state() -> None:
    count = 2000
    state = b"}\x94(" + b"".join(b"J" + struct.pack("<i", n) + b"N" for n in range(count)) + b"u"
    body = b"cx\nThing\n\x94" + state + b"(" + b"h\x00)\x81h\x01b" * count + b"l"
    tracemalloc.start()
    try:
        read(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20


def test_records_keep_no_arguments() -> None:
    found = read(b"cx\nThing\n" + tuple_of(999) + b"R")
    assert isinstance(found, Record) and not vars(found)


def test_a_state_reads_as_attributes_and_of_slots_too() -> None:
    for state in ({"a": 1}, ({"a": 0, "b": 2}, {"a": 1}), (None, {"a": 1})):
        found = read(b"cx\nThing\n)\x81" + pickle.dumps(state, 4)[2:-1] + b"b")
        assert found.a == 1
        assert getattr(found, "missing", None) is None


def test_a_state_is_given_to_records_alone() -> None:
    state = pickle.dumps((None, {"__defaults__": ((7,),)}), 2)[2:-1]
    with pytest.raises(CheckpointError, match="gives a state to what has none"):
        read(b"ctorch\nSize\n" + state + b"b")
    assert size_of() == ()


@pytest.mark.parametrize("value", [bytearray(b"x"), 2**3000], ids=["bytearray", "integer"])
def test_opcodes_that_allocate_what_a_file_states_are_not_known(value: object) -> None:
    with pytest.raises(CheckpointError, match="no intact pickle"):
        unpickle(pickle.dumps(value, 5), "a file", {})
