"""`GET /api/v1/history`: what was kept, the books as they are now, and sentences for what makes no sense."""

import pytest
from tests.support.snapshots import NOW_NS

from jouled.model.history import EngineChange, EngineMark, History


async def test_what_was_kept_and_the_books_as_they_are_now(serve):
    async def history(since_ns: int) -> History:
        return await served.store.history(since_ns)

    served = await serve(history=history)
    bare = await served.get("/api/v1/history")
    assert bare["changes"] == []
    now = bare["marks"]
    assert now, "the snapshot has books"
    change = EngineChange(engine="e", since_ns=NOW_NS, facts={"version": "1"})
    await served.store.note([change], [EngineMark(engine="e", model="m", t_ns=5)], NOW_NS)
    whole = await served.get("/api/v1/history?since_ns=0")
    assert whole["changes"] == [{"engine": "e", "since_ns": NOW_NS, "facts": {"version": "1"}}]
    assert whole["marks"] == [{"engine": "e", "model": "m", "t_ns": 5}, *now]


@pytest.mark.parametrize(
    "query", ["since_ns=-1", "since_ns=1h", "since_ns=99999999999999999999", "until=3", "since_ns="]
)
async def test_what_makes_no_sense_is_refused(serve, query):
    served = await serve()
    answer = await served.get(f"/api/v1/history?{query}", status=400)
    assert "since_ns" in answer["error"]
