"""Lengths, arrivals and prompts: seeded, and distributed as they are said to be."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_trt.errors import RequestError
from nemo_trt.serve.load import LoadOptions, parse_lengths
from nemo_trt.serve.load.arrivals import offsets
from nemo_trt.serve.load.workload import Scale, Workload, read_prompts

pytestmark = pytest.mark.unit

OPTIONS = LoadOptions(url="http://x", concurrency=1, num_requests=1)
COUNT = 20_000


def workload(scale: Scale | None = None, **options: Any) -> Workload:
    given = replace(OPTIONS, **options)
    return Workload(given, model="m", include_usage=True, scale=scale or Scale())


def test_poisson_arrivals_have_the_rate_and_the_spread_of_a_poisson_process() -> None:
    due = np.array(list(itertools.islice(offsets(50.0, "poisson", 7), COUNT)))
    pauses = np.diff(due, prepend=0.0)
    assert pauses.mean() == pytest.approx(1 / 50, rel=0.03)
    assert pauses.std() == pytest.approx(1 / 50, rel=0.03)  # an exponential's mean and deviation
    assert np.mean(pauses > 1 / 50) == pytest.approx(np.exp(-1), abs=0.02)
    counts = np.bincount(due.astype(int))[:-1]
    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.2)


def test_arrivals_depend_on_the_seed_alone() -> None:
    first, again, other = (
        list(itertools.islice(offsets(5.0, "poisson", seed), 50)) for seed in (1, 1, 2)
    )
    assert first == again != other


def test_constant_arrivals_are_a_beat() -> None:
    due = list(itertools.islice(offsets(4.0, "constant", 0), 5))
    assert due == [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("text", ["7", "uniform:3:9", "lognormal:100:0.5", "lognormal:100:0.5:150"])
def test_lengths_are_read_as_they_are_written(text: str) -> None:
    assert str(parse_lengths(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "0", "x", "uniform:3", "uniform:9:3", "lognormal:5:-1", "lognormal:5:x", "normal:1:2",
     "lognormal:5:nan", "uniform:1:2:3"],
)  # fmt: skip
def test_lengths_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match="must"):
        parse_lengths(text)


def test_lengths_are_distributed_as_they_are_named() -> None:
    random = np.random.default_rng(0)
    uniform = [parse_lengths("uniform:3:9").draw(random) for _ in range(COUNT)]
    assert set(uniform) == set(range(3, 10))
    lognormal = np.array([parse_lengths("lognormal:400:0.5").draw(random) for _ in range(COUNT)])
    assert np.median(lognormal) == pytest.approx(400, rel=0.03)
    assert np.log(lognormal).std() == pytest.approx(0.5, rel=0.03)
    bounded = parse_lengths("lognormal:400:0.5:450")
    assert max(bounded.draw(random) for _ in range(200)) == 450
    assert {parse_lengths("5").draw(random) for _ in range(5)} == {5}


def test_requests_depend_on_seed_and_number_alone() -> None:
    first, again = workload(seed=1), workload(seed=1)
    assert first.request(3) == again.request(3)
    assert first.request(3) != first.request(4)
    assert first.request(3) != workload(seed=2).request(3)
    assert first.request(3).body != first.request(3, warmup=True).body


def test_prompts_have_as_many_words_as_make_the_tokens() -> None:
    found = workload(Scale(fixed=20, per_word=1.5), prompt_tokens=parse_lengths("80"))
    assert len(content(found.request(0).body).split()) == 40


def test_a_shared_prefix_begins_every_prompt() -> None:
    found = workload(shared_prefix_tokens=30, prompt_tokens=parse_lengths("10"))
    prompts = [content(found.request(index).body).split() for index in range(3)]
    assert prompts[0][:30] == prompts[1][:30] == prompts[2][:30]
    assert prompts[0][30:] != prompts[1][30:]
    again = workload(shared_prefix_tokens=30, prompt_tokens=parse_lengths("10"))
    assert again.request(0) == found.request(0)
    assert {len(prompt) for prompt in prompts} == {40}


def test_the_share_that_hangs_up_is_met_and_no_warm_up_is_among_it() -> None:
    found = workload(cancel_fraction=0.3, output_tokens=parse_lengths("5"))
    after = [found.request(index).cancel_after for index in range(2000)]
    assert sum(one is not None for one in after) / 2000 == pytest.approx(0.3, abs=0.04)
    assert {one for one in after if one is not None} == set(range(5))
    assert all(found.request(i, warmup=True).cancel_after is None for i in range(50))


def test_bodies_follow_the_endpoint_and_extra_fields_win() -> None:
    chat = workload(extra_body={"temperature": 0, "max_tokens": 7}).request(0).body
    assert (chat["temperature"], chat["max_tokens"], chat["stream"]) == (0, 7, True)
    assert chat["stream_options"] == {"include_usage": True}
    plain = workload(endpoint="completions").request(0).body
    assert isinstance(plain["prompt"], str) and "messages" not in plain


def test_prompts_of_a_file_come_in_turn(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    lines = ["plain", {"prompt": "object", "max_tokens": 9}, {"messages": turns}]
    file.write_text("\n\n".join(json.dumps(line) for line in lines))
    found = workload(prompts=file, output_tokens=parse_lengths("5"))
    bodies = [found.request(index).body for index in range(4)]
    assert [content(body) for body in bodies] == ["plain", "object", "s", "plain"]
    assert [body["max_tokens"] for body in bodies] == [5, 9, 5, 5]
    assert bodies[2]["messages"] == turns
    with pytest.raises(RequestError, match="chat endpoint"):
        workload(prompts=file, endpoint="completions")


@pytest.mark.parametrize("line", ["", "7", '""', "{}", '{"prompt": "x", "max_tokens": 0}', "[1]"])
def test_a_file_without_prompts_is_refused(tmp_path: Path, line: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(line)
    with pytest.raises(RequestError, match="must"):
        read_prompts(file)


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "localhost:8000"},
        {"concurrency": None},
        {"rate": 1.0},
        {"num_requests": None},
        {"concurrency": 0},
        {"timeout_s": 0},
        {"duration_s": float("inf")},
        {"cancel_fraction": 1.5},
        {"seed": -1},
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="must"):
        replace(OPTIONS, **wrong)


@pytest.mark.parametrize("url", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"])
def test_the_address_may_end_in_v1(url: str) -> None:
    assert replace(OPTIONS, url=url).base_url == "http://h:1/v1"


def content(body: dict[str, Any]) -> str:
    found = body["messages"][0]["content"]
    assert isinstance(found, str)
    return found
