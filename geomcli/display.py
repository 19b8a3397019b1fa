"""Text for eyes: glyphs of zones, rows of bars, sizes, and a model's text made harmless. Knows no terminal."""

from __future__ import annotations

import string
from collections.abc import Sequence

from geomcli.zones import UNKNOWN

# A zone is never told by colour alone.
ZONE_GLYPHS = {
    "syntax_floor": "▂",
    "semantic_bridge": "◆",
    "long_range": "⟷",
    "structure_ripple": "≋",
    "diffuse": "░",
    UNKNOWN: "·",
}
BARS = "▁▂▃▄▅▆▇█"
NAMELESS = "·"  # what is in no cluster
_LETTERS = string.ascii_uppercase + string.ascii_lowercase
# How models write that their answer ends, and what is shown for it.
END_TOKENS = frozenset(
    (
        "<|im_end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end|>",
        "<|return|>",
        "</s>",
        "<eos>",
        "<end_of_turn>",
        "<|END_OF_TURN_TOKEN|>",
        "<｜end▁of▁sentence｜>",
        "[EOS]",
        "<|end_of_role|>",
    )
)
END_MARK = "∎"
_EIGHTHS = " ▏▎▍▌▋▊▉"

# C0 and DEL have pictures of their own. C1, which an 8-bit terminal takes for escapes, marks of writing direction,
# which reorder what stands beside them, and halves of surrogate pairs, which cannot be sent, have none.
_SYMBOLS = {c: 0x2400 + c for c in range(0x20) if chr(c) not in "\n\t"}
_SYMBOLS |= {0x7F: 0x2421} | dict.fromkeys(
    (*range(0x80, 0xA0), 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xD800, 0xE000)), 0xFFFD
)


def zone_label(zone: str) -> str:
    """A zone's name as words."""
    return zone.replace("_", " ")


def cluster_name(label: int) -> str:
    """A letter, the largest cluster A; a number behind the last letter, NAMELESS for noise."""
    if label < 0:
        return NAMELESS
    return _LETTERS[label] if label < len(_LETTERS) else str(label)


def printable(text: str) -> str:
    """Text of a model for a terminal: control characters as visible symbols, so that none of them acts."""
    return text.translate(_SYMBOLS)


def sparkline(values: Sequence[float | None], *, top: float = 1.0, width: int = 60) -> str:
    """One row of bars for values in [0, top]; blanks where there is none. Longer series are thinned by their maxima."""
    steps = len(BARS) - 1
    return "".join(
        " " if v is None else BARS[round(min(1.0, max(0.0, v / top)) * steps)] for v in thinned(values, width)
    )


def bar(value: float, *, top: float = 1.0, width: int = 12) -> str:
    """A bar of `width` cells for a value in [0, top], in eighths of a cell."""
    eighths = round(min(1.0, max(0.0, value / top)) * width * 8) if top > 0 else 0
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width)


def thinned(values: Sequence[float | None], width: int) -> list[float | None]:
    """At most `width` values: the maximum of each group, None where a group has none."""
    if len(values) <= width:
        return list(values)
    groups = (values[i * len(values) // width : (i + 1) * len(values) // width] for i in range(width))
    return [max((v for v in group if v is not None), default=None) for group in groups]


def human_bytes(count: int) -> str:
    if count < 1000:
        return f"{count} B"
    return f"{count / 1000:.1f} kB" if count < 1_000_000 else f"{count / 1e6:.1f} MB"
