"""Senders hear that their events are kept once a synced commit holds them, and not before."""

import asyncio

import pytest

from jouled.app.runtime import durable as durable_module
from jouled.app.runtime.durable import Durable
from jouled.model.errors import JouledError


async def waiting(durable: Durable) -> "asyncio.Task[None]":
    task = asyncio.create_task(durable.wait())
    await asyncio.sleep(0)
    return task


async def test_the_commit_that_began_before_an_event_does_not_count():
    durable = Durable()
    durable.begin()
    task = await waiting(durable)
    durable.end(committed=True)
    await asyncio.sleep(0)
    assert not task.done()
    durable.begin()
    durable.end(committed=True)
    await task


async def test_a_commit_that_fails_is_waited_beyond():
    durable = Durable()
    task = await waiting(durable)
    for committed in (False, False, True):
        assert not task.done()
        durable.begin()
        durable.end(committed=committed)
        await asyncio.sleep(0)
    await task


async def test_nobody_waits_for_ever(monkeypatch):
    monkeypatch.setattr(durable_module, "LONGEST_WAIT_SECONDS", 0.01)
    durable = Durable()
    with pytest.raises(JouledError, match="cannot be committed"):
        await durable.wait()
    durable.begin()
    durable.end(committed=True)


async def test_the_end_sends_everybody_away():
    durable = Durable()
    early, late = await waiting(durable), None
    durable.begin()
    late = await waiting(durable)
    durable.refuse()
    for task in (early, late, await waiting(durable)):
        with pytest.raises(JouledError, match="jouled ends"):
            await task
    durable.end(committed=True)
