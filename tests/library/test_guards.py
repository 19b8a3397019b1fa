"""Who may ask and how many at once: keys, widths, limits and origins, without a server."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geomcli.server_patch import flags, guards, state
from geomcli.server_patch.exchange import Exchange
from geomcli.server_patch.server_options import ServerOptions, parse_origins

KEY = "k-1"


@pytest.fixture(autouse=True)
def main_state(monkeypatch: pytest.MonkeyPatch) -> state.MainState:
    fresh = state.MainState()
    fresh.options = ServerOptions(enabled=True, max_concurrent=3)
    monkeypatch.setattr(state, "main", fresh)
    monkeypatch.setattr(guards, "_running", set())
    return fresh


def scope(**headers: str) -> guards.Scope:
    given = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return {"type": "http", "path": "/x", "method": "GET", "headers": given}


@pytest.mark.parametrize(
    ("headers", "taken", "allowed"),
    [
        ({}, False, False),
        ({"x_attention_key": KEY}, False, True),
        ({"x_attention_key": KEY + "x"}, False, False),
        ({"x_attention_key": "schl\xfcssel"}, False, False),
        ({"authorization": f"Bearer {KEY}"}, False, True),
        ({"authorization": f"bearer  {KEY}"}, False, True),
        ({"authorization": KEY}, False, False),
        ({"authorization": f"Basic {KEY}"}, False, False),
        ({"authorization": f"Bearer {KEY}"}, True, False),
        ({"authorization": "Bearer other", "x_attention_key": KEY}, True, True),
        ({"authorization": f"Bearer {KEY}", "x_attention_key": "wrong"}, False, True),
    ],
)
def test_where_the_key_may_be(main_state: state.MainState, headers: dict[str, str], taken: bool, allowed: bool) -> None:
    main_state.key, main_state.bearer_taken = KEY, taken
    asked = scope(**headers)
    if allowed:
        guards.require_key(asked)
        assert guards.headers(asked) == []
        return
    with pytest.raises(guards.Refused, match="X-Attention-Key") as refused:
        guards.require_key(asked)
    assert refused.value.status_code == 401
    assert "--attention-api-key" in str(refused.value)
    assert ("Bearer" in str(refused.value)) is not taken
    assert KEY not in str(refused.value)
    assert (b"www-authenticate", b"Bearer") in guards.headers(asked)


@pytest.mark.parametrize(
    ("body", "width"),
    [
        ({}, 1),
        ({"prompt": "Hi", "n": 3}, 3),
        ({"prompt": ["Hi", "Ho"], "n": 3}, 6),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": [[1, 2], [3]]}, 2),
        ({"text": ["a", "b"], "sampling_params": {"n": 2}}, 4),
        ({"text": ["a", "b"], "sampling_params": [{"n": 2}, {"n": 2}]}, 4),
        ({"input_ids": [[1], [2], [3]]}, 3),
        ({"input_embeds": [[0.5, 1.0], [0.5, 1.0]]}, 1),
        ({"input_embeds": [[[0.5, 1.0]], [[0.5, 1.0]]]}, 2),
        ({"n": 0}, 1),
        ({"n": -4, "prompt": []}, 1),
        ({"n": "8"}, 8),
        ({"n": 8.0, "prompt": ["a", "b"]}, 16),
        ({"input_ids": [[], [1], [2]]}, 3),
        ({"n": "many", "sampling_params": "x", "text": None}, 1),
    ],
)
def test_choices_and_prompts_count(body: dict[str, Any], width: int) -> None:
    assert guards.width_of(body) == width


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["n", "x"]), inner, max_size=2),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["n", "prompt", "text", "input_ids", "input_embeds", "sampling_params"]), JSON))
def test_any_body_has_a_width(body: dict[str, Any]) -> None:
    assert guards.width_of(body) >= 1


def test_places_are_given_back_once_and_a_request_takes_its_own_once() -> None:
    first, second, third = scope(), scope(), scope()
    guards.enter(first, 2)
    guards.enter(first, 2)
    assert guards.active() == 2
    guards.enter(second, 1)
    with pytest.raises(guards.Refused, match=r"3 captures are running .*--attention-max-concurrent-capture 3") as full:
        guards.enter(third, 1)
    assert full.value.status_code == 429
    assert guards.headers(third) == [(b"retry-after", b"1")]
    guards.leave(third)
    guards.leave(first)
    guards.leave(first)
    assert guards.active() == 1
    guards.enter(third, 2)
    with pytest.raises(guards.Refused, match="4 captures in one request") as wide:
        guards.enter(scope(), 4)
    assert wide.value.status_code == 400
    assert guards.active() == 3


def test_a_request_that_sglang_has_finished_holds_no_place_though_nobody_reads_it() -> None:
    asked, rids = scope(), set[str]()
    manager = SimpleNamespace(rid_to_state={"a": 1, "b": 1})
    guards.enter(asked, 2)
    capture = guards.capture_of(asked)
    assert capture is not None
    capture.watch(manager, rids)
    assert guards.active() == 2
    rids.add("a")
    del manager.rid_to_state["a"]
    assert guards.active() == 2, "its second choice has not begun"
    rids.add("b")
    assert guards.active() == 2
    del manager.rid_to_state["b"]
    assert guards.active() == 0
    guards.enter(scope(), 3)


def test_without_a_limit_captures_are_counted_all_the_same(main_state: state.MainState) -> None:
    main_state.options = ServerOptions(enabled=True)
    guards.enter(scope(), 1000)
    assert guards.active() == 1000


@pytest.mark.parametrize("error", [None, RuntimeError("broken"), KeyboardInterrupt()])
async def test_the_end_of_an_exchange_gives_back_what_it_held(error: BaseException | None) -> None:
    async def app(inner: guards.Scope, _receive: Any, _send: Any) -> None:
        guards.enter(inner, 1)
        assert guards.active() == 1
        if error is not None:
            raise error

    async def nothing(*_: Any) -> Any: ...

    if error is None:
        await Exchange(app)(scope(), nothing, nothing)
    else:
        with pytest.raises(type(error)):
            await Exchange(app)(scope(), nothing, nothing)
    assert guards.active() == 0


async def test_a_body_in_pieces_reaches_sglang_as_it_came() -> None:
    pieces = [b'{"text": "Hi", "return_atten', b'tion_tokens": false}', b""]
    sent = [{"type": "http.request", "body": p, "more_body": p != b""} for p in pieces]
    came, seen = iter([*sent, {"type": "http.disconnect"}]), []

    async def receive() -> Any:
        return next(came)

    async def app(_scope: Any, inner: Any, _send: Any) -> None:
        while (message := await inner())["type"] != "http.disconnect":
            seen.append(message)

    async def send(_message: Any) -> None: ...

    await Exchange(app)({**scope(), "path": "/generate", "method": "POST"}, receive, send)
    assert seen == sent


@pytest.mark.parametrize(
    ("spec", "origins"),
    [
        ("*", None),
        ("https://a.example", {"https://a.example"}),
        ("https://A.example:8443, http://[::1]:3000", {"https://a.example:8443", "http://[::1]:3000"}),
        ("chrome-extension://abc", {"chrome-extension://abc"}),
    ],
)
def test_origins(spec: str, origins: set[str] | None) -> None:
    assert parse_origins(spec) == origins


@pytest.mark.parametrize(
    "spec", ["", "*,https://a.example", "a.example", "https://a.example/", "https://a.example/x", "null", "https://a b"]
)
def test_origins_that_no_browser_sends_stop_the_server(spec: str) -> None:
    with pytest.raises(ValueError, match="--attention-cors-origins must be"):
        ServerOptions(cors_origins=spec).check()


@pytest.mark.parametrize("key", ["two words", "schl\xfcssel", "tab\t", "\x7f"])
def test_a_key_that_no_header_can_carry_is_not_repeated(key: str) -> None:
    with pytest.raises(ValueError, match="--attention-api-key must be") as refused:
        ServerOptions(api_key=key).check()
    assert key not in str(refused.value)


@pytest.mark.parametrize("name", ["--attention-api-key", "--attention-api", "--attention-a"])
@pytest.mark.parametrize("between", [" ", "=", "\n"])
def test_a_command_line_is_shown_without_the_key(name: str, between: str) -> None:
    command = f"--attention-backend triton {name}{between}{KEY} --port 1"
    assert flags.without_key(command) == f"--attention-backend triton {name}{between}*** --port 1"
