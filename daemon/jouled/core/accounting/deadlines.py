"""Deadline goodput: tokens that were there in time, each by its own deadline, whatever became of the others.

Token i of a request (from 0) is due at arrival + ttft + i · tpot. With decode even in time it came at
first token + i · (last − first) / (g − 1): both are straight lines, so the tokens in time are a run from the first
one on, or up to the last one, and counting them takes one division.
"""

from jouled.core.accounting.verdicts import limit_ns
from jouled.model.requests import Outcome, RequestEvent


def tokens_in_time(event: RequestEvent, ttft: float, tpot: float) -> int:
    """Generated tokens that came by their deadlines, exact in whole nanoseconds; limits are milliseconds.

    Tokens of a request that was cancelled or failed are never in time.
    """
    generated = event.generation_tokens
    if event.outcome is not Outcome.COMPLETED or generated < 1:
        return 0
    slack_ns = event.arrival_ns + limit_ns(ttft) - event.first_token_ns
    if generated == 1:
        return int(slack_ns >= 0)
    # Everything times g − 1, so that it stays whole: token i is in time if slack + i · gain ≥ 0.
    slack = slack_ns * (generated - 1)
    gain = limit_ns(tpot) * (generated - 1) - (event.last_token_ns - event.first_token_ns)
    if slack >= 0:
        return generated if gain >= 0 else min(generated, slack // -gain + 1)
    first_in_time = -(slack // gain) if gain > 0 else generated
    return max(0, generated - first_in_time)
