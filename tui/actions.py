"""Every action of the app: the one table from which bindings, footer, help and tests are made.

An action `token.next` is the method `action_token_next` of the app, of the pane or of the prompt, as `where` says.
"""

from __future__ import annotations

from typing import NamedTuple

from textual.binding import Binding

APP, PANE, PROMPT = "app", "pane", "prompt"
MODES = ("chat", "inspect", "router", "manifold", "compare")
_TOKENS = ("chat", "inspect", "router")
_LISTS = ("inspect", "router", "compare")


class Action(NamedTuple):
    """`keys`: comma separated. `where`: APP, PANE (every pane), PROMPT, or names of modes. `first`: done before
    the focus sees the key, as those of the prompt are: what is typed behind it is then meant for what it opens.
    """

    id: str
    keys: str
    label: str
    help: str
    where: tuple[str, ...]
    first: bool = False

    @property
    def method(self) -> str:
        return self.id.replace(".", "_")

    @property
    def typed(self) -> bool:
        """Whether a text field that has the focus would take its first key as text."""
        first = self.keys.split(",")[0]
        return len(first) == 1 or first in _NAMED_CHARACTERS


_NAMED_CHARACTERS = {"space", "slash", "plus", "minus", "question_mark", "left", "right", "enter", "home", "end"}

ACTIONS: tuple[Action, ...] = (
    Action("mode.chat", "1,f2", "chat", "Chat: tokens as they are written", (APP,)),
    Action("mode.inspect", "2,f3", "inspect", "Inspect: layers, distances, attended positions", (APP,)),
    Action("mode.router", "3,f4", "router", "Router: zones, evidence, what to ask for next", (APP,)),
    Action("mode.manifold", "4,f5", "manifold", "Manifold: fingerprints of many tokens or traces", (APP,)),
    Action("mode.compare", "5,f6", "compare", "Compare: two traces side by side", (APP,)),
    Action("command.palette", "ctrl+p", "palette", "Every command, theme and stored trace by name", (APP,)),
    Action("keys.show", "f1,question_mark", "keys", "The keys of this pane", (APP,)),
    Action("leave", "ctrl+q", "quit", "Leave; what was captured is kept", (APP,)),
    Action("view.freeze", "space", "freeze", "Hold the view; capture goes on and is counted", (PANE,)),
    Action("signal.next", "s", "colour", "Colour by zone, entropy, drift, influence, nothing", (PANE,)),
    Action("lens.toggle", "i", "lens", "Open or close the token lens", _TOKENS),
    Action("lens.tab", "t", "lens tab", "Next tab of the lens: links, signal, experts", _TOKENS),
    Action("split.grow", "greater_than_sign", "wider lens", "Make the lens wider", _TOKENS),
    Action("split.shrink", "less_than_sign", "narrower lens", "Make the lens narrower", _TOKENS),
    Action("token.next", "l,right", "next token", "To the next token", _TOKENS),
    Action("token.prev", "h,left", "previous token", "To the token before", _TOKENS),
    Action("token.pin", "p", "pin", "Keep this token in the lens (three at most)", _TOKENS),
    Action("scrub.next", "right_square_bracket", "10 on", "Ten tokens on", _TOKENS),
    Action("scrub.prev", "left_square_bracket", "10 back", "Ten tokens back", _TOKENS),
    Action("segment.next", "right_curly_bracket", "next segment", "To the next thinking or answer", _TOKENS),
    Action("segment.prev", "left_curly_bracket", "previous segment", "To the thinking or answer before", _TOKENS),
    Action("token.last", "end,G", "newest", "To the newest token, and follow what arrives", _TOKENS),
    Action("token.first", "home", "first", "To the first token", _TOKENS),
    Action("links.follow", "g", "follow", "Jump to the token that this one looked at most", _TOKENS),
    Action("links.back", "ctrl+o", "back", "Back to where the jump began", _TOKENS),
    Action("sink.toggle", "x", "sinks", "Show or hide the first positions (sinks)", _TOKENS),
    Action("semantic.toggle", "d", "de-rotated", "Split each link into content and position", _TOKENS),
    Action("layer.next", "plus", "next layer", "Links of the next captured layer", _TOKENS),
    Action("layer.prev", "minus", "previous layer", "Links of the captured layer before", _TOKENS),
    Action("find.open", "slash", "find", "Find text, zone:diffuse, @120, entropy>0.7", _TOKENS, True),
    Action("find.next", "n", "next match", "To the next match", _TOKENS),
    Action("find.prev", "N", "previous match", "To the match before", _TOKENS),
    Action("copy.json", "y", "copy", "Copy what is under the cursor as JSON", (PANE,)),
    Action("copy.command", "Y", "copy command", "Copy the command that does the same again", (PANE,)),
    Action("trace.save", "ctrl+s", "save", "Keep the trace in the store", (PANE,)),
    Action("trace.export", "e", "export", "Write the traces shown to a file of JSON lines", (PANE,)),
    Action("pane.maximize", "m", "maximize", "Show only the focused part; again: all parts", (PANE,)),
    Action("row.next", "down,j", "row down", "To the next row of the list", _LISTS),
    Action("row.prev", "up,k", "row up", "To the row before", _LISTS),
    Action("page.next", "pagedown", "page down", "A page of the list on", _LISTS),
    Action("page.prev", "pageup", "page up", "A page of the list back", _LISTS),
    Action("filter.next", "f", "filter", "List all tokens, thinking only, the answer only", ("inspect",)),
    Action("list.toggle", "v", "list or map", "Where it is narrow: the list, or map and positions", ("inspect",)),
    Action("decision.open", "enter", "go to step", "To the token of the chosen decision", ("router",)),
    Action("apply.next", "a", "apply once", "Ask the next run as it is advised here", ("router",)),
    Action("apply.always", "A", "apply always", "Ask every run as the newest advice says, or no longer", ("router",)),
    Action("apply.clear", "c", "clear", "Take back what is applied to the next runs", ("router",)),
    Action("prompt.focus", "enter", "type", "Write a question", ("chat",), True),
    Action("think.fold", "z", "thinking", "Fold or unfold thinking", ("chat",)),
    Action("run.stop", "ctrl+x", "stop", "End the answer that is being written, keep what is there", ("chat",), True),
    Action("chat.new", "ctrl+n", "new chat", "Begin a new chat", ("chat",), True),
    Action(
        "firewall.next", "w", "firewall", "Watch the next answers: no firewall, log, stop, reroute", ("chat", "router")
    ),
    Action("engine.start", "E", "start engine", "Start the built-in engine with the default model", ("chat",)),
    Action("demo.play", "D", "play demo", "Play the recording that comes with geom", ("chat",)),
    Action("point.left", "left,h", "left", "To the nearest point on the left", ("manifold",)),
    Action("point.right", "right,l", "right", "To the nearest point on the right", ("manifold",)),
    Action("point.up", "up,k", "up", "To the nearest point above", ("manifold",)),
    Action("point.down", "down,j", "down", "To the nearest point below", ("manifold",)),
    Action("point.next", "n", "next here", "To the next point in the same cell", ("manifold",)),
    Action("point.prev", "N", "previous here", "To the point before in the same cell", ("manifold",)),
    Action("point.here", "g", "you", "To where you are: your token, or your trace", ("manifold",)),
    Action("point.open", "enter", "open", "Show the token or the trace under the cursor", ("manifold",)),
    Action("point.compare", "c", "compare", "Compare its trace with yours, or with the one marked", ("manifold",)),
    Action("scope.next", "o", "scope", "Next scope: session, recent, saved, all", ("manifold",)),
    Action("scope.prev", "O", "previous scope", "The scope before", ("manifold",)),
    Action("zoom.in", "plus", "zoom in", "Look closer at the cursor", ("manifold",)),
    Action("zoom.out", "minus", "zoom out", "Show more of the plane", ("manifold",)),
    Action("zoom.all", "0", "whole", "Show the whole plane", ("manifold",)),
    Action("plane.toggle", "t", "plane", "Principal components, or the learned map", ("manifold",)),
    Action("clusters.toggle", "v", "clusters", "Points as zones or as clusters", ("manifold",)),
    Action("dots.toggle", "b", "dots", "Points as glyphs or as braille dots", ("manifold",)),
    Action("side.a", "a", "choose A", "Choose the first trace", ("compare",)),
    Action("side.b", "b", "choose B", "Choose the second trace", ("compare",)),
    Action("side.swap", "x", "swap", "Exchange A and B", ("compare",)),
    Action("axes.toggle", "t", "axes", "Read the shift on named axes, or on PCA of stored traces", ("compare",)),
    Action("row.first", "home", "first row", "To the first row", ("compare",)),
    Action("row.last", "end,G", "last row", "To the last row", ("compare",)),
    Action("row.open", "enter", "open", "Show A's token of this row in Chat", ("compare",)),
    Action("difference.first", "d", "divergence", "To where the texts part", ("compare",)),
    Action("difference.next", "n", "next difference", "To the next place where the texts differ", ("compare",)),
    Action("difference.prev", "N", "previous difference", "To the place before where the texts differ", ("compare",)),
    Action("zone.next", "z", "next zone ≠", "To the next place where the zones differ", ("compare",)),
    Action("zone.prev", "Z", "previous zone ≠", "To the place before where the zones differ", ("compare",)),
    Action("part.next", "i", "parts", "Show tokens and report, tokens, report", ("compare",)),
    Action("report.down", "J", "report down", "Scroll the report down", ("compare",)),
    Action("report.up", "K", "report up", "Scroll the report up", ("compare",)),
    Action("prompt.send", "enter", "send", "Send the question", (PROMPT,)),
    Action("prompt.newline", "shift+enter,ctrl+j", "new line", "A new line in the question", (PROMPT,)),
    Action("prompt.leave", "escape", "commands", "Leave the text field; keys are commands again", (PROMPT,)),
)

# What the footer shows of each pane, at most FOOTER_LENGTH with those of the app.
FOOTER_LENGTH = 7
FOOTER: dict[str, tuple[str, ...]] = {
    APP: ("command.palette", "keys.show"),
    PROMPT: ("prompt.send", "prompt.newline", "prompt.leave"),
    "chat": ("prompt.focus", "view.freeze", "signal.next", "token.pin", "find.open"),
    "inspect": ("row.next", "layer.next", "filter.next", "list.toggle", "lens.toggle"),
    "router": ("apply.next", "apply.always", "apply.clear", "decision.open", "view.freeze"),
    "manifold": ("point.open", "point.compare", "scope.next", "clusters.toggle", "zoom.in"),
    "compare": ("side.a", "side.b", "side.swap", "difference.first", "part.next"),
}


def actions_of(*places: str) -> list[Action]:
    """The actions whose `where` names one of these places, in the table's order."""
    return [action for action in ACTIONS if set(action.where) & set(places)]


def actions_in(mode: str) -> list[Action]:
    """All actions that work in a pane: its own, those of every pane, those of the app."""
    return actions_of(mode, PANE, APP)


def bindings(*places: str) -> list[Binding]:
    """Bindings of the actions in these places; the footer's come first and are shown, in the footer's order."""
    footer = [name for place in places for name in FOOTER.get(place, ())]
    actions = sorted(actions_of(*places), key=lambda a: footer.index(a.id) if a.id in footer else len(footer))
    return [
        Binding(
            action.keys,
            f"mode('{action.id.removeprefix('mode.')}')" if action.id.startswith("mode.") else action.method,
            action.label,
            show=action.id in footer,
            priority=action.first or PROMPT in action.where,
            id=action.id,
        )
        for action in actions
    ]


def pane_bindings(mode: str) -> list[Binding]:
    """Bindings of a pane: those of its mode and those of every pane."""
    return bindings(mode, PANE)
