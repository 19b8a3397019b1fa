"""Tokens that have left the KV cache: struck through where one sees that, counted, and said of a token."""

from __future__ import annotations

from typing import Any

import pytest
from textual.widget import Widget

from geomcli.schema import Record
from geomcli.tui.app import GeomApp
from geomcli.tui.session import Place
from geomcli.tui.widgets.token_list import TokenList
from geomcli.tui.widgets.token_view import TokenView
from tests.library.made_traces import HELLO, LOCAL, cache_fields, entry, evicted, records
from tests.tui.conftest import WIDE, MakeApp
from tests.tui.made import links, made, settled, text_of

PROMPT = ["<s>", "user", "\n", "Hello", " ", " ", "there", "\n", "model", "\n"]


def answer(*, tokens: int = 12, **more: Any) -> list[Record]:
    entries = evicted(tokens, **more)
    entries[0]["prompt_tokens"] = PROMPT
    return records(entries)


def struck(widget: Widget) -> list[str]:
    """The words on screen that are struck through, and dim."""
    found = []
    for y in range(widget.scrollable_content_region.height):
        text = ""
        for segment in widget.render_line(y):
            if segment.style is not None and segment.style.strike:
                assert segment.style.dim
                text += segment.text
            else:
                text += "\n"
        found += text.split()
    return found


@pytest.mark.parametrize("plain", [False, True], ids=["colours", "no colours"])
async def test_what_left_is_struck_through_as_the_cursor_has_it(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch, plain: bool
) -> None:
    if plain:
        monkeypatch.setenv("NO_COLOR", "1")
    app = make_app([answer()])
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        view = app.screen.query_one(TokenView)
        # Of the prompt position 4 and 5, the spaces between its words, have left, too.
        assert struck(view) == ["t1", "t3", "t4"]
        for keys, left in ((("h",) * 3, ["t1", "t3", "t4"]), (("h",), ["t1"]), (("home",), [])):
            await pilot.press(*keys)
            await settled(pilot)
            assert struck(view) == left
        assert app.session.cursor == Place(0, 0)
        await pilot.press("end")
        await settled(pilot)
        assert struck(view) == ["t1", "t3", "t4"]


async def test_the_list_strikes_through_what_the_chat_does(make_app: MakeApp) -> None:
    app = make_app([answer()], mode="inspect")
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        rows = app.screen.query_one(TokenList)
        assert [word.strip('"') for word in struck(rows) if "t" in word] == ["t1", "t3", "t4"]
        await pilot.press("home")
        await settled(pilot)
        assert struck(rows) == []


async def test_while_it_is_written_tokens_are_struck_through_as_they_leave(make_app: MakeApp) -> None:
    app = make_app()
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        turn = app.session.begin()
        found, every = [], answer()
        ends = [next(i for i, r in enumerate(every) if r.get("tokenIndex") == n) + 1 for n in (3, 7, 11)]
        for start, end in zip([0, *ends], ends, strict=False):
            app.session.feed(turn, every[start:end])
            await settled(pilot, 0.3)
            found.append(struck(app.screen.query_one(TokenView)))
        assert found == [[], ["t1"], ["t1", "t3", "t4"]]


async def test_a_token_that_is_linked_to_is_not_struck_through(make_app: MakeApp) -> None:
    """Token 3 looked at the token of position 11, which left before token 4."""
    entries = evicted()
    for number in (2, 3, 9):
        entries[number] |= {"mode": "raw", **links(11 if number < 4 else 12, 6)}
    app = make_app([records(entries)])
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        view = app.screen.query_one(TokenView)
        assert "t1" in struck(view)
        app.session.point(Place(0, 3))
        await settled(pilot)
        assert Place(0, 1) in view._linked
        assert struck(view) == []
        app.session.point(None)
        await settled(pilot)
        assert "t1" in struck(view)


async def test_how_much_is_kept_is_at_the_top_and_beside_each_token(make_app: MakeApp) -> None:
    app = make_app([answer()])
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        assert "kv 16 kept, 5 freed, .76" in text_of(app, "hud")
        await pilot.press("t")
        await settled(pilot)
        assert "16 tokens held, 5 left, share .76" in text_of(app, "lens-body")
        assert "left the cache" not in text_of(app, "lens-body")
        app.session.go(Place(0, 3))
        await settled(pilot)
        assert "13 tokens held, 0 left, share 1.00" in text_of(app, "lens-body")
        assert "left the cache at #8" in text_of(app, "lens-body")
        await pilot.press("2")
        await settled(pilot)
        assert "cache  13 tokens held, 0 left, share 1.00; left the cache at #8" in layer_map(app)
        app.session.go(Place(0, 5))
        await settled(pilot)
        assert "cache  12 tokens held, 3 left, share .80\n" in layer_map(app) + "\n"


def layer_map(app: GeomApp) -> str:
    return text_of(app, "layer-map")


async def test_where_it_is_not_known_which_left_no_token_is_struck_through(make_app: MakeApp) -> None:
    entries = [entry(n + 1, f" t{n}", LOCAL, **cache_fields(10 + n, n)) for n in range(8)]
    app = make_app([records(entries)])
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        assert struck(app.screen.query_one(TokenView)) == []
        assert "kv 10 kept, 7 freed, .59" in text_of(app, "hud")
        await pilot.press("t")
        await settled(pilot)
        assert "10 tokens held, 7 left, share .59; which ones is not known" in text_of(app, "lens-body").replace(
            "\n", " "
        )


async def test_where_nothing_leaves_nothing_is_said(make_app: MakeApp) -> None:
    app = make_app([made(["local"] * 6)])
    async with app.run_test(size=WIDE) as pilot:
        await pilot.press("t")
        await settled(pilot)
        assert "kv" not in text_of(app, "hud")
        assert "held" not in text_of(app, "lens-body")
        await pilot.press("2")
        await settled(pilot)
        assert "cache" not in layer_map(app)


async def test_an_earlier_answer_is_seen_as_the_later_one_has_it(make_app: MakeApp) -> None:
    """The second request was given a prompt of the first one's text, all of it, and let another token go."""
    first = answer(tokens=6)
    texts = [f" t{n}" for n in range(6)]
    asked = [*HELLO, {"role": "assistant", "content": "".join(texts)}, {"role": "user", "content": "And?"}]
    more = {"prompt_len": 17, "prompt_tokens": [*PROMPT, *texts, "And?"]}
    later = [entry(n + 1, f" u{n}", LOCAL, **cache_fields(17 + n, n and 1, **({"left": [[12, 13]]} if n == 1 else {})),
                   **(more if n == 0 else {"prompt_len": 17})) for n in range(3)]  # fmt: skip
    app = make_app([first, records(later, messages=asked)])  # type: ignore[arg-type]
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        view = app.screen.query_one(TokenView)
        assert struck(view) == ["t2"]
        app.session.go(Place(1, 0))
        await settled(pilot)
        assert struck(view) == []
        app.session.go(Place(0, 5))
        await settled(pilot)
        # The later answer goes by its own end: it let go of none of its own tokens.
        assert struck(view) == ["t1"]
