"""What one process answers, an engine behind a front end answers, too: the same tests of both."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.http import conftest, test_hang_up, test_middleware
from tests.serve.http.conftest import Server
from tests.serve.http.test_hang_up import (  # noqa: F401
    client,
    test_a_client_that_does_not_wait_for_its_answer_cancels_it,
    test_a_request_whose_time_is_over_is_an_error_whole_or_streamed,
    test_a_stream_that_nobody_reads_is_cancelled,
)
from tests.serve.http.test_middleware import (  # noqa: F401
    guarded,
    test_a_full_queue_says_when_to_come_again,
    test_each_key_opens_it,
    test_page_health_and_metrics_need_none,
    test_the_log_has_a_line_a_request_without_text_or_key,
)
from tests.serve.http.test_openai_client import (  # noqa: F401
    runner,
    test_a_conversation_whole_and_streamed_is_the_runners,
    test_a_prediction_is_drafted_from,
    test_errors_have_openais_form,
    test_json_that_follows_a_schema,
    test_logprobs_are_the_samplers,
    test_other_formats,
    test_plain_completions,
    test_several_answers_differ_and_a_seed_repeats_them,
    test_stop_strings_are_not_shown,
    test_the_prompt_that_several_answers_share_counts_once,
)
from tests.serve.http.test_scores_reference import (  # noqa: F401
    test_an_echoed_prompt_has_the_log_probabilities_of_transformers,
)
from tests.serve.http.test_tool_calls import (  # noqa: F401
    test_a_chosen_function_is_called_with_arguments_that_fit,
    test_a_model_that_calls_by_itself_is_understood,
    test_a_strict_schema_that_cannot_be_enforced_is_named,
    test_of_a_schema_that_is_not_strict_the_rest_is_enforced_and_said,
)
from tests.serve.processes.apart import create_app_apart

pytestmark = pytest.mark.model


@pytest.fixture(scope="module", autouse=True)
def _apart() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (conftest, test_hang_up, test_middleware):
            patch.setattr(module, "create_app", create_app_apart)
        yield


@pytest.fixture(scope="module")
def sample(_apart: None, sample_bundle: Any, served: Any) -> Iterator[Server]:
    """SmolLM2 in three slots."""
    yield from conftest.run(served, sample_bundle.bundle, max_batch=3)


@pytest.fixture(scope="module")
def tekken(_apart: None, tekken_bundle: Path, served: Any) -> Iterator[Server]:
    """The tiny model in two slots."""
    yield from conftest.run(served, tekken_bundle, max_batch=2)
