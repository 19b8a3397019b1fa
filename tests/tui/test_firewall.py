"""A firewall in the explorer: asked for by a key; decisions at the top, in the lens, in the router, in a message."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from geomcli import config
from geomcli.request import FIREWALL_ACTIONS
from geomcli.tui.live import State
from tests.tui.conftest import WIDE, MakeApp
from tests.tui.faulty import entry, event, serving
from tests.tui.made import made, said, settled, text_of
from tests.tui.waiting import until


def decision(status: str, score: float | None, *, halted: bool = False, action: str = "early_stop") -> dict[str, Any]:
    return {"detector": "compass", "action": action, "status": status, "score": score, "halted": halted}


SEEN = [decision("OK", None), decision("OK", 0.1), decision("WARN", 0.41), decision("HALT", 0.52, halted=True)]


def watched(decisions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    trace = made(["local"] * len(decisions))
    steps = [record for record in trace if record["record_type"] == "step"]
    for step, found in zip(steps, decisions, strict=True):
        step["firewall"] = found
    return trace


async def test_the_action_goes_round_and_into_the_request(make_app: MakeApp, settings: config.Settings) -> None:
    words = [event(f" w{n}", entry(n, f" w{n}", firewall=SEEN[n - 1])) for n in range(1, 5)]
    async with serving(*words, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}, "[DONE]") as server:
        app = make_app(settings=msgspec.structs.replace(settings, base_url=server.url))
        async with app.run_test(size=WIDE) as pilot:
            await until(lambda: app.live.state is State.READY)
            for wanted in FIREWALL_ACTIONS:
                await pilot.press("w")
                await settled(pilot)
                assert app.session.ask.firewall == wanted
                assert f"firewall {wanted}" in text_of(app, "ask-with")
            await pilot.press("w")
            assert app.session.ask.firewall is None
            await pilot.press("w", "enter", *"Hello", "enter")
            await until(lambda: bool(app.session.turns) and app.session.turns[0].saved)
            assert "The firewall halts at token 4, compass 0.52: it ended the answer. Uncalibrated." in said(app)
            assert "firewall: HALT at 4" in text_of(app, "hud")
    assert server.asked[0]["attention_firewall"] == {"action": FIREWALL_ACTIONS["stop"]}


@pytest.mark.parametrize(("action", "goes"), [("log_only", "the answer goes on"), ("re_route", "for a router to act")])
async def test_what_was_decided_is_read_from_a_trace(make_app: MakeApp, action: str, goes: str) -> None:
    app = make_app([watched([{**found, "action": action} for found in SEEN])], mode="router")
    async with app.run_test(size=(140, 60)) as pilot:
        await settled(pilot)
        evidence = text_of(app, "router-evidence")
        assert "FIREWALL ‼ HALT  compass .52" in evidence
        assert goes in evidence
        await pilot.press("home", "l", "l")
        await settled(pilot)
        assert "FIREWALL ! WARN  compass .41" in text_of(app, "router-evidence")
        await pilot.press("1", "t")
        await settled(pilot)
        assert "FIREWALL ! WARN  compass .41" in text_of(app, "lens-body")
        assert "HALT at token 4" in text_of(app, "lens-body")


@pytest.mark.parametrize("found", [7, {}, {"action": "burn"}, {"action": "log_only", "status": 3, "score": "x"}])
async def test_decisions_that_are_none_are_passed_over(make_app: MakeApp, found: Any) -> None:
    app = make_app([watched([found] * 4)], mode="router")
    async with app.run_test(size=(140, 60)) as pilot:
        await settled(pilot)
        assert "HALT" not in text_of(app, "hud")
        assert ("not judged" in text_of(app, "router-evidence")) == (isinstance(found, dict) and "status" in found)
