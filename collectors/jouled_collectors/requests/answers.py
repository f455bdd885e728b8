"""Tells answers to one prompt apart (`n` above 1): vLLM's spans have one id and one start for all of them.

The prompt's `n` is in no span either: each answer is made as a request of its own with `n` 1 (as read in
`ParentRequest` of 0.32.0 and 0.33.0). What tells them apart is the span's own id.
"""

import threading

from msgspec.structs import replace

from jouled.api import ReceivedRequest
from jouled.model.requests import RequestEvent

MOST_NUMBERED = 5_000
"""Spans that are remembered, and as many before them: some megabytes."""


class Answers:
    """Numbers the answers to one prompt that have as many tokens, as the plug-in inside vLLM does; for several threads.

    A span that is sent again keeps its number. What has been forgotten begins with 1 again, which the core takes for a
    repeat: then an answer is missing, never twice.
    """

    def __init__(self) -> None:
        self._newer: dict[int, dict[int, int]] = {}
        self._older: dict[int, dict[int, int]] = {}
        self._held = 0
        self._lock = threading.Lock()

    def numbered(self, request: ReceivedRequest) -> ReceivedRequest:
        """The request with the number of its answer, where its reader says that there may be several."""
        event = request.event
        if not isinstance(event, RequestEvent) or not event.answer:
            return request
        prompt = hash((request.hint, event.id, event.arrival_ns, event.prompt_tokens, event.generation_tokens))
        number = self._number(prompt, hash((event.trace_id, event.span_id)))
        return request if number == event.answer else replace(request, event=replace(event, answer=number))

    def _number(self, prompt: int, span: int) -> int:
        with self._lock:
            numbers = self._newer.get(prompt)
            if numbers is None:
                numbers = self._older.pop(prompt, {})
                if len(numbers) > MOST_NUMBERED:
                    numbers = {}
                self._newer[prompt] = numbers
                self._held += len(numbers)
            number = numbers.get(span)
            if number is None:
                number = numbers[span] = len(numbers) + 1
                self._held += 1
            if self._held >= MOST_NUMBERED:
                self._older, self._newer, self._held = self._newer, {}, 0
            return number
