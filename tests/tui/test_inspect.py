"""The inspect pane: the list of tokens, the map of layers, attended positions, heads; odd traces and little room."""

from __future__ import annotations

from typing import cast

import msgspec
import pytest
from rich.text import Text

from geomcli import config
from geomcli.schema import Record
from geomcli.sources import sources_of
from geomcli.spans import read_spans, sentence_spans
from geomcli.tui.app import GeomApp
from geomcli.tui.live import State
from geomcli.tui.panes.inspect import InspectPane
from geomcli.tui.session import Place
from geomcli.tui.widgets.lens import Lens
from geomcli.tui.widgets.token_list import Segment, TokenList
from tests.tui.conftest import NARROW, WIDE, MakeApp
from tests.tui.faulty import entry, event, serving
from tests.tui.made import drawn, layers, links, made, settled, text_of
from tests.tui.waiting import until

END = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
TWO_LAYERS = {"mode": "raw", "layer_id": 7, **links(0, 5, 8), **layers(l3="local", l7="long")}


def pane(app: GeomApp) -> InspectPane:
    return cast(InspectPane, app.screen)


def tokens(app: GeomApp) -> TokenList:
    return pane(app).list


def thinking(think: int, output: int) -> list[Record]:
    """A trace that thinks first."""
    trace = made(["mid"] * (think + output))
    for record in trace:
        if record["record_type"] == "token" and record["index"] < think:
            record["segmentId"] = "assistant-1-think"
    return trace


async def test_all_tokens_are_listed_and_the_cursor_is_the_chosen_row(
    make_app: MakeApp, demo: list[list[Record]]
) -> None:
    app = make_app(demo, mode="inspect")
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        counts = [len(turn.tokens) for turn in app.session.turns]
        assert tokens(app).count == sum(counts) + len(counts)
        assert drawn(tokens(app))[-1].startswith("▶")
        await pilot.press("home")
        await settled(pilot)
        assert drawn(tokens(app))[0].startswith("answer 1")
        assert drawn(tokens(app))[1].startswith("▶")
        assert '"Quantum"' in drawn(tokens(app))[1]
        await pilot.press("j", "down", "l", "up")
        assert app.session.cursor == Place(0, 2)
        await pilot.press("pagedown", "pagedown")
        assert app.session.cursor is not None
        assert app.session.cursor > Place(0, 40)
        await pilot.press("home", "pageup", "h", "k", "left_square_bracket")
        assert app.session.cursor == Place(0, 0)
        await pilot.press("right_square_bracket")
        assert app.session.cursor == Place(0, 10)
        assert "answer 1, #10 of 52" in text_of(app, "inspect-bar")


async def test_the_filter_lists_a_segment_and_keys_move_within_it(make_app: MakeApp) -> None:
    app = make_app([thinking(4, 5)], mode="inspect")
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        await pilot.press("f")
        assert tokens(app).segment is Segment.THINK
        assert tokens(app).places == [Place(0, n) for n in (-1, 0, 1, 2, 3)]
        assert app.session.cursor == Place(0, 3)
        assert "▣ think" in text_of(app, "inspect-bar")
        await pilot.press("l", "k", "k")
        assert app.session.cursor == Place(0, 1)
        await pilot.press("f")
        assert tokens(app).places == [Place(0, n) for n in (-1, 4, 5, 6, 7, 8)]
        assert app.session.cursor == Place(0, 4)
        await pilot.press("h", "f")
        assert app.session.cursor == Place(0, 4)
        assert tokens(app).segment is Segment.ALL
        await pilot.press("h")
        assert app.session.cursor == Place(0, 3)


async def test_a_filter_that_leaves_nothing_moves_nothing(make_app: MakeApp, demo: list[list[Record]]) -> None:
    app = make_app(demo, mode="inspect")
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        before = app.session.cursor
        await pilot.press("f", "l", "h", "pageup", "j")
        assert app.session.cursor == before
        assert all("think only" in line for line in drawn(tokens(app)) if line)


async def test_layers_are_chosen_by_keys_and_by_clicks(make_app: MakeApp, demo: list[list[Record]]) -> None:
    app = make_app(demo, mode="inspect")
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        assert "[29]" in text_of(app, "inspect-bar")
        own = text_of(app, "positions")
        await pilot.press("minus")
        await settled(pilot)
        assert app.session.layer == 26
        assert "[26]" in text_of(app, "inspect-bar")
        assert "layer 26" in text_of(app, "layer-map")
        assert text_of(app, "positions") != own
        await pilot.press("plus", "plus")
        assert app.session.layer == 10
        await pilot.click("#layer-map", offset=(20, 5))
        assert app.session.layer == 18
        await pilot.click("#inspect-bar", offset=(17, 0))
        assert app.session.layer == 26


async def test_the_map_has_the_layers_own_histograms(make_app: MakeApp) -> None:
    app = make_app([made(["mid"] * 3, each=TWO_LAYERS)], mode="inspect")
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        rows = [line for line in text_of(app, "layer-map").splitlines() if line.lstrip("▶ ")[:1].isdigit()]
        assert len(rows) == 2
        assert "40 30 30" in rows[0]
        assert "syntax floor" in rows[0]
        assert rows[1].startswith("▶7")
        assert "25 50 25" in rows[1]
        assert "long range" in rows[1]
        mean = next(line for line in text_of(app, "layer-map").splitlines() if line.startswith(" mean"))
        assert "semantic bridge" in mean


async def test_many_layers_are_shown_around_the_chosen_one(make_app: MakeApp) -> None:
    many = layers(**{f"l{n}": "local" for n in range(60)})
    app = make_app([made(["mid"] * 2, each={"mode": "raw", "layer_id": 59, **links(5), **many})], mode="inspect")
    async with app.run_test(size=NARROW) as pilot:
        await settled(pilot)
        assert "56 more layers" in text_of(app, "layer-map")
        assert "▶59" in text_of(app, "layer-map")
        assert "[59]" in text_of(app, "inspect-bar")
        await pilot.press("plus")
        await settled(pilot)
        assert "▶0" in text_of(app, "layer-map")


async def test_fingerprints_alone_are_said_to_be_so(make_app: MakeApp) -> None:
    app = make_app([made(["mid"] * 3)], mode="inspect")
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        assert "the only layer captured" in text_of(app, "layer-map")
        assert "A fingerprint holds no positions." in text_of(app, "positions")
        assert "in Chat, is captured with them" in text_of(app, "positions")
    trace = made(["mid"] * 3)
    for record in trace:
        record.pop("layer_id", None)
    app = make_app([trace], mode="inspect")
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        assert "only the request's fingerprint is known" in text_of(app, "layer-map")
        await pilot.press("3", "a", "2")
        await settled(pilot)
        assert "3 c clears it" in text_of(app, "positions")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["capture_stopped"], "the request's limit is reached"),
        (["error"], "failed"),
        ([], "Nothing was captured"),
    ],
)
async def test_why_there_are_no_numbers_is_said(make_app: MakeApp, flags: list[str], sentence: str) -> None:
    app = make_app([made(["mid", None], each={"flags": flags})], mode="inspect")
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        assert sentence in text_of(app, "layer-map")


async def test_sketches_have_a_map_and_hubs(make_app: MakeApp) -> None:
    sketch = {"top_hubs": [[3, 0.3], [6, 0.2]], "dist_hist": [1.0] + [0.0] * 15, "entropy": 1.0, "sink_mass": 0.4}
    each = {"mode": "sketch", "layer_id": 9, "layer_sketches": {"9": sketch, "4": sketch}}
    app = make_app([made(["mid"] * 3, each=each)], mode="inspect")
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        assert "100" in text_of(app, "layer-map")
        row = text_of(app, "positions").splitlines()[2].split()
        assert row[0] == "6"
        assert row[-2:] == [".20", ".40"]
        assert "1 sink is hidden, .30" in text_of(app, "positions")
        await pilot.press("x")
        await settled(pilot)
        assert text_of(app, "positions").splitlines()[2].split()[0] == "3"


async def test_positions_have_true_probability_share_and_both_parts(
    make_app: MakeApp, demo: list[list[Record]]
) -> None:
    app = make_app(demo, mode="inspect")
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        token = app.session.token
        assert token is not None
        strongest = next(link for link in token.links() if link.position > 3)
        heading, row = text_of(app, "positions").splitlines()[1:3]
        assert heading.split() == ["pos", "back", "token", "p", "share", "content", "rotation"]
        assert strongest.content is not None
        assert row.split()[-4:] == [
            f"{strongest.probability:.2f}"[1:], f"{strongest.share:.2f}"[1:],
            f"{strongest.content:.2f}", f"{strongest.position_score:+.2f}",
        ]  # fmt: skip
        place = app.session.place_of(1, strongest.position)
        await pilot.click("#positions", offset=(18, 2))
        assert app.session.cursor == place
        await pilot.press("ctrl+o")
        assert app.session.following


async def test_statistics_of_heads_stand_below_or_beside(make_app: MakeApp) -> None:
    stats = {"7": {"entropy": [1.25, 2.5], "sink": [0.1, 0.2], "prev": [0.9, 0.5], "lookback": [0.4, 0.6]}}
    app = make_app([made(["mid"] * 3, each={**TWO_LAYERS, "head_stats": stats})], mode="inspect")
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        lines = text_of(app, "positions").splitlines()
        assert lines[-3].split() == ["head", "bits", "sinks", "prev", "lookback"]
        assert lines[-1].split() == ["1", "2.50", "0.20", "0.50", "0.60"]
        below = len(lines)
        await pilot.resize_terminal(170, 40)
        await settled(pilot)
        assert len(text_of(app, "positions").splitlines()) < below
        await pilot.press("minus")
        await settled(pilot)
        assert "lookback" not in text_of(app, "positions")


async def test_how_sure_the_model_was_stands_below_the_map(make_app: MakeApp) -> None:
    stats = {"logprob": -0.6931472, "entropy_bits": 1.25, "margin": 0.5}
    app = make_app([made(["mid"] * 2, each={**TWO_LAYERS, "logit_stats": stats}), made(["mid"] * 2)], mode="inspect")
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        assert "logits" not in text_of(app, "layer-map")
        app.session.go(Place(0, 0))
        await settled(pilot)
        last = text_of(app, "layer-map").splitlines()[-1]
        assert last.startswith("logits  probability .50  over all tokens 1.25 bits  margin 0.50")


async def test_where_it_is_narrow_there_is_the_map_or_the_list(make_app: MakeApp, demo: list[list[Record]]) -> None:
    app = make_app(demo, mode="inspect")
    async with app.run_test(size=NARROW) as pilot:
        await settled(pilot)
        right = app.screen.query_one("#inspect-right")
        assert right.display
        assert not tokens(app).display
        await pilot.press("v")
        assert tokens(app).display
        assert not right.display
        await pilot.press("k", "k")
        await settled(pilot)
        assert any("entropy" in line and line.startswith("▶") for line in drawn(tokens(app)))
        await pilot.resize_terminal(*WIDE)
        await settled(pilot)
        assert tokens(app).display
        assert right.display


async def test_the_lens_takes_the_lists_place_where_three_have_no_room(
    make_app: MakeApp, demo: list[list[Record]]
) -> None:
    app = make_app(demo, mode="inspect")
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        lens = app.screen.query_one(Lens)
        assert not lens.display
        await pilot.press("i")
        assert lens.display
        assert not tokens(app).display
        await pilot.resize_terminal(170, 40)
        await settled(pilot)
        assert tokens(app).display
        assert lens.display
        await pilot.press("i")
        assert not lens.display


async def test_a_click_on_a_row_goes_there_and_scrolling_up_stops_following(
    make_app: MakeApp, demo: list[list[Record]]
) -> None:
    app = make_app(demo, mode="inspect")
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        tokens(app).scroll_to(y=0, animate=False, force=True)
        await settled(pilot)
        assert not app.session.following
        await pilot.click(tokens(app), offset=(10, 4))
        assert app.session.cursor == Place(0, 3)
        await pilot.press("slash", *"moon", "enter")
        assert app.session.cursor is not None
        assert app.session.cursor in app.session.found
        await pilot.press("k")
        assert app.session.cursor not in app.session.found


async def test_what_streams_is_listed_and_followed(make_app: MakeApp, settings: config.Settings) -> None:
    words = [event(f" word{n}", entry(n, f" word{n}")) for n in range(1, 31)]
    async with serving(*words, END, "[DONE]", pause=0.02) as server:
        app = make_app(settings=msgspec.structs.replace(settings, base_url=server.url), mode="inspect")
        async with app.run_test(size=NARROW) as pilot:
            await until(lambda: app.live.state is State.READY)
            await pilot.press("1", "enter", *"Hello", "enter", "escape", "2", "v")
            await until(lambda: bool(app.session.turns) and len(app.session.turns[0].tokens) > 25)
            await pilot.press("home")
            await until(lambda: app.session.turns[0].finished)
            await settled(pilot)
            assert tokens(app).count == 31
            assert app.session.cursor == Place(0, 0)
            assert tokens(app).scroll_y == 0
            await pilot.press("end")
            await settled(pilot)
            assert "word30" in drawn(tokens(app))[-1]


async def test_rows_show_what_is_coloured_by_and_forget_no_change(make_app: MakeApp) -> None:
    app = make_app([made(["mid", "local", None])], mode="inspect")
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        seen: list[list[str]] = []
        for _ in range(5):
            await settled(pilot, 0.05)
            seen.append(drawn(tokens(app))[1:4])
            await pilot.press("s")
        assert len({lines[0] for lines in seen}) >= 3
        await pilot.press("home", "p", "l")
        await settled(pilot)
        assert drawn(tokens(app))[1].startswith("●")
        assert drawn(tokens(app))[2].startswith("▶")


@pytest.mark.parametrize("size", [WIDE, NARROW])
@pytest.mark.parametrize(
    "trace",
    [
        made([None, None]),
        made(["mid"]),
        made(["mid"] * 5, ["你好", "🙂", "👩\u200d👩\u200d👧", "\x1b[31m", "a\tb\nc"], each=TWO_LAYERS),
        made(["local", "mid"] * 2000, each={"mode": "raw", **links(0, 1, 2)}),
        made(["mid"], each={"mode": "raw", "layer_id": 3, "layers": {"3": None, "x": 1}, "head_stats": 3}),
    ],
    ids=["no numbers", "one token", "wide characters", "4000 tokens", "broken layers"],
)
async def test_odd_traces(make_app: MakeApp, trace: list[Record], size: tuple[int, int]) -> None:
    app = make_app([trace], mode="inspect")
    async with app.run_test(size=size) as pilot:
        await settled(pilot)
        for key in ("home", "l", "plus", "f", "v", "x", "d", "s", "i", "t", "g", "end", "pageup", "p", "y"):
            await pilot.press(key)
        await settled(pilot)
        width = tokens(app).scrollable_content_region.width
        for y in range(5):
            assert not tokens(app).display or tokens(app).render_line(y).cell_length == width
    assert app._exception is None


async def test_an_empty_pane_says_what_to_do(make_app: MakeApp) -> None:
    app = make_app(mode="inspect")
    async with app.run_test(size=NARROW) as pilot:
        await settled(pilot)
        assert "ask something in Chat" in text_of(app, "layer-map")
        await pilot.press("j", "f", "v", "plus", "g", "end", "home")
        assert app.session.cursor is None


async def test_other_turns_are_listed_anew(make_app: MakeApp, demo: list[list[Record]]) -> None:
    app = make_app(demo, mode="inspect")
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        app.session.show([made(["mid"] * 3)], title="other")
        await settled(pilot)
        assert tokens(app).count == 4
        assert '" t2"' in drawn(tokens(app))[3]
        app.session.clear()
        await settled(pilot)
        assert tokens(app).count == 0
        assert "ask something in Chat" in text_of(app, "layer-map")


async def test_an_update_of_a_long_answer_draws_what_is_new(
    make_app: MakeApp, demo: list[list[Record]], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app([made(["mid", "local"] * 2000, each=TWO_LAYERS)], mode="inspect")
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        rows: list[int] = []
        real = TokenList.row

        def counted(self: TokenList, number: int, width: int) -> Text:
            rows.append(number)
            return real(self, number, width)

        monkeypatch.setattr(TokenList, "row", counted)
        turn = app.session.begin()
        app.session.feed(turn, made(["mid"] * 3)[:8])
        await settled(pilot)
        rows.clear()
        app.session.feed(turn, made(["mid"] * 5)[8:])
        await settled(pilot)
        assert {4002, 4003, 4004, 4005, 4006} & set(rows)
        assert len(rows) <= 8


async def test_the_sentence_under_the_cursor_says_what_it_read(make_app: MakeApp, demo: list[list[Record]]) -> None:
    app = make_app(demo, mode="inspect")
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        turn = app.session.turns[1]
        sources = sources_of(turn.trace)
        first, end = next(span for span in sentence_spans(turn.trace) if span[0] <= 20 < span[1])
        (expected,) = read_spans(turn.trace, [(first, end)], sources, layer=29)
        app.session.go(Place(1, 20))
        await settled(pilot)
        lines = text_of(app, "sentence").splitlines()
        assert lines[1].startswith(f"WHAT THIS SENTENCE READ  #{first}–{end - 1} A reminder of the mysteries")
        most = max((mass for mass in expected.masses if mass.share is not None), key=lambda mass: mass.mass)
        name, mass, share = lines[3].split()[0], *lines[3].split()[-2:]
        assert most.source.startswith(name)
        assert (float(mass), float(share)) == pytest.approx((most.mass, most.share), abs=0.006)
        assert f"links of {expected.read} tokens show" in lines[-1]
        assert "sinks" not in lines[3:-1]
        await pilot.press("x")
        await settled(pilot)
        assert any(line.strip().startswith("sinks") for line in text_of(app, "sentence").splitlines())
        own = text_of(app, "sentence")
        await pilot.press("minus")
        await settled(pilot)
        assert text_of(app, "sentence") != own


async def test_a_sentence_without_links_says_so(make_app: MakeApp) -> None:
    app = make_app([made(["mid", "mid"], texts=["One.", " Two."])], mode="inspect")
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        assert "#1 Two." in text_of(app, "sentence")
        assert "None of its tokens has links of this layer." in text_of(app, "sentence")
