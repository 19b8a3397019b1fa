"""Themes, and what they make of zones and values: styles for tokens, bars and lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.style import Style
from textual.color import Color, ColorParseError
from textual.theme import Theme

from geomcli.display import ZONE_GLYPHS
from geomcli.zones import UNKNOWN

if TYPE_CHECKING:
    from textual.app import App

_ZONES = tuple(ZONE_GLYPHS)
_DARK = ("#6cb6ff", "#f2b84b", "#4fd6be", "#c39af9", "#ff7b72", "#8b949e")
_LIGHT = ("#0b5fb8", "#9a6200", "#00766a", "#7a3fc0", "#c0322b", "#66707a")
# Okabe and Ito's palette, which stays apart under every common colour blindness.
_OKABE_ITO = ("#56b4e9", "#e69f00", "#00b98a", "#cc79a7", "#e8762b", "#9aa0a6")
_ANSI = ("ansi_blue", "ansi_yellow", "ansi_cyan", "ansi_magenta", "ansi_red", "ansi_bright_black")


def _variables(colours: tuple[str, ...], **more: str) -> dict[str, str]:
    return {f"zone-{zone.replace('_', '-')}": colour for zone, colour in zip(_ZONES, colours, strict=True)} | more


THEMES = (
    Theme(
        name="geom",
        primary="#7aa2f7",
        secondary="#4fd6be",
        accent="#f2b84b",
        warning="#f2b84b",
        error="#ff7b72",
        success="#7ee2a8",
        foreground="#d7dce5",
        background="#0f131a",
        surface="#141a23",
        panel="#1c2430",
        variables=_variables(_DARK, **{"footer-key-foreground": "#f2b84b", "border": "#2b3646"}),
    ),
    Theme(
        name="geom-light",
        primary="#2457a6",
        secondary="#00766a",
        accent="#9a6200",
        warning="#9a6200",
        error="#c0322b",
        success="#1a7f4b",
        foreground="#1f2630",
        background="#fbfaf7",
        surface="#f4f2ec",
        panel="#e9e6de",
        dark=False,
        variables=_variables(_LIGHT, **{"footer-key-foreground": "#9a6200", "border": "#cdc8bb"}),
    ),
    Theme(
        name="geom-colour-blind",
        primary="#56b4e9",
        secondary="#00b98a",
        accent="#e69f00",
        warning="#e69f00",
        error="#e8762b",
        success="#56b4e9",
        foreground="#e6e6e6",
        background="#101214",
        surface="#16191c",
        panel="#202428",
        variables=_variables(_OKABE_ITO, **{"footer-key-foreground": "#e69f00", "border": "#343a40"}),
    ),
    Theme(
        name="geom-ansi",
        primary="ansi_blue",
        secondary="ansi_cyan",
        accent="ansi_yellow",
        warning="ansi_yellow",
        error="ansi_red",
        success="ansi_green",
        foreground="ansi_default",
        background="ansi_default",
        surface="ansi_default",
        panel="ansi_default",
        boost="ansi_default",
        ansi=True,
        # Nobody knows whether the terminal is dark or light: what is chosen is white on blue.
        variables=_variables(
            _ANSI,
            **{
                "ansi-background": "ansi_default",
                "ansi-foreground": "ansi_default",
                "border-blurred": "ansi_bright_black",
                "footer-key-foreground": "ansi_yellow",
                "block-cursor-background": "ansi_blue",
                "block-cursor-foreground": "ansi_bright_white",
                "input-cursor-background": "ansi_blue",
                "input-cursor-foreground": "ansi_bright_white",
                "input-cursor-text-style": "none",
                "input-selection-background": "ansi_cyan",
                "input-selection-foreground": "ansi_black",
                "screen-selection-background": "ansi_cyan",
                "screen-selection-foreground": "ansi_black",
            },
        ),
    ),
)
DEFAULT_THEME = "geom"


def zone_defaults(theme: Theme) -> dict[str, str]:
    """The zones' colours under a theme that does not name them."""
    return _variables(_ANSI if theme.ansi else _DARK if theme.dark else _LIGHT)


class Paint:
    """Styles of one theme. `plain`: without any colour, so that weight and lines have to tell."""

    def __init__(self, variables: Mapping[str, str], *, ansi: bool, plain: bool) -> None:
        self.ansi, self.plain = ansi, plain
        self._variables = dict(variables)
        self._colours: dict[str, str] = {}
        self._fore: dict[tuple[str, bool, bool], Style] = {}
        self._dimmed: dict[str, Style] = {}
        self._muted = self._between("background", "foreground", 0.62) if not ansi else "bright_black"
        self._zones = {zone: self._zone_style(zone) for zone in _ZONES}
        self._ramp = [self._ramp_style(level / 7) for level in range(8)]

    @classmethod
    def of(cls, app: App[object]) -> Paint:
        return cls(app.theme_variables, ansi=app.native_ansi_color, plain=app.no_color)

    def colour(self, name: str) -> str:
        """A theme variable (`zone-diffuse`, `primary` …), or `muted`, as Rich and Textual both read it."""
        if name == "muted":
            return self._muted
        if name not in self._colours:
            self._colours[name] = self._read(name)
        return self._colours[name]

    def _read(self, name: str) -> str:
        value = self._variables.get(name, "")
        if value.startswith("ansi_"):
            return value.removeprefix("ansi_")
        try:
            colour = Color.parse(value)
        except ColorParseError:
            return "default"
        return "default" if colour.ansi is not None else colour.hex6.lower()

    def fore(self, name: str, *, bold: bool = False, underline: bool = False) -> Style:
        """Text in a theme variable's colour."""
        wanted = (name, bold, underline)
        if wanted not in self._fore:
            self._fore[wanted] = Style(color=self.colour(name), bold=bold or None, underline=underline or None)
        return self._fore[wanted]

    def zone(self, zone: str) -> Style:
        """A token of a zone."""
        return self._zones.get(zone, self._zones[UNKNOWN])

    def zone_mark(self, zone: str) -> Style:
        """A zone's glyph or bar."""
        name = zone if zone in self._zones else UNKNOWN
        return self.fore(f"zone-{name.replace('_', '-')}")

    def dimmed(self, zone: str) -> Style:
        """What lies behind points, in a zone's colour; "" for what has none."""
        if zone not in self._dimmed:
            self._dimmed[zone] = self._dimmed_style(zone)
        return self._dimmed[zone]

    def _dimmed_style(self, zone: str) -> Style:
        if self.plain or self.ansi:
            return Style(dim=True) + (self.zone_mark(zone) if zone else self.fore("muted"))
        name = f"zone-{zone.replace('_', '-')}" if zone in self._zones else "muted"
        return Style(color=self._between("background", name, 0.55 if zone else 0.4))

    def ramp(self, value: float) -> Style:
        """A token with a value in [0, 1]: eight steps."""
        return self._ramp[min(7, max(0, int(value * 8)))]

    def link(self, probability: float) -> Style:
        """A token that is looked at: brighter the more, from 1 % on."""
        if self.plain or self.ansi:
            return Style(bold=True, underline=probability >= 0.05)
        share = min(1.0, 0.22 + 1.3 * probability)
        return Style(bgcolor=self._between("background", "primary", 0.75 * share), bold=probability >= 0.1)

    def status(self, status: str) -> Style:
        """OK, WARN or HALT of the compass."""
        return self.fore({"WARN": "warning", "HALT": "error"}.get(status, "success"), bold=status == "HALT")

    def _between(self, one: str, other: str, share: float) -> str:
        return Color.parse(self.colour(one)).blend(Color.parse(self.colour(other)), share).hex6.lower()

    def _zone_style(self, zone: str) -> Style:
        if self.plain or zone == UNKNOWN:
            return Style()
        return self.fore(f"zone-{zone.replace('_', '-')}")

    def _ramp_style(self, share: float) -> Style:
        if self.plain or self.ansi:
            weights = (Style(dim=True), Style(), Style(bold=True), Style(bold=True, underline=True))
            return weights[min(3, int(share * 4))]
        return Style(bgcolor=self._between("background", "accent", 0.62 * share))
