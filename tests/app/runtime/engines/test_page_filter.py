"""One replica's part of a page that tells of several."""

import pytest

from jouled.app.runtime.engines.page_filter import of_replica
from jouled_collectors.engines.vllm import VllmCollector

PAGE = b"""# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="m"} 5.0
vllm:generation_tokens_total{model_name="m",engine="1"} 7.0
vllm:generation_tokens_total{engine="10",model_name="m"} 100.0
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 1.0
vllm:num_requests_running{engine="1",model_name="m"} 2.0
process_cpu_seconds_total 3.0
"""


@pytest.mark.parametrize(("replica", "tokens", "running"), [("0", 5, 1), ("1", 7, 2), ("", 112, 3)])
def test_a_replica_has_its_own_series(replica, tokens, running):
    page = VllmCollector().page(of_replica(PAGE, replica))
    assert (page.generation_tokens, page.requests_running, page.model) == (tokens, running, "m")


def test_series_without_the_label_are_kept():
    assert b"process_cpu_seconds_total 3.0" in of_replica(PAGE, "1")
    assert of_replica(PAGE, "") is PAGE
