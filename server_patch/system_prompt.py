"""Main process: how many tokens of a chat's prompt its system messages take (`--attention-mask-system-prompt`).

Everything that the chat template writes before the first message that is neither of the system nor of the developer:
their messages, a system prompt that the template adds by itself, tools that it lists there. Found by rendering the
conversation again with other contents, never by guessing: what is left when the system messages are another text cannot
hold them. Where no rendering tells, the request is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

_ROLES = ("system", "developer")
_SYSTEM, _FIRST = "GeomStandsForTheSystem", "GeomStandsForTheFirst"
_seen: ContextVar[list[Rendering] | None] = ContextVar("geom_renderings", default=None)


class Rendering(NamedTuple):
    """One call of a tokenizer's chat template that succeeded."""

    tokenizer: Any
    render: Any  # the unwatched method
    messages: list[dict[str, Any]]
    options: dict[str, Any]

    def text(self, messages: list[dict[str, Any]], *, generation: bool = True) -> str:
        """The template's text for other messages; raises what the template raises."""
        options = {**self.options, "tokenize": False, "return_dict": False}
        options["add_generation_prompt"] = generation and self.options.get("add_generation_prompt", False)
        return str(self.render(messages, **options))


def watch(tokenizer: Any) -> None:
    """Let `watched` see this tokenizer's renderings."""
    render = getattr(tokenizer, "apply_chat_template", None)
    if render is None:
        return

    def apply_chat_template(conversation: Any, *args: Any, **options: Any) -> Any:
        result = render(conversation, *args, **options)
        if (seen := _seen.get()) is not None and not args:
            seen.append(Rendering(tokenizer, render, conversation, options))
        return result

    tokenizer.apply_chat_template = apply_chat_template


@contextmanager
def watched() -> Iterator[list[Rendering]]:
    """The renderings of watched tokenizers inside the block."""
    renderings: list[Rendering] = []
    token = _seen.set(renderings)
    try:
        yield renderings
    finally:
        _seen.reset(token)


def tokens_of(renderings: Sequence[Rendering], ids: Any) -> int:
    """How many of the prompt's first tokens are the system's; ValueError where that cannot be told.

    ids: the prompt as the engine gets it, which is the last rendering's and perhaps the beginning of an answer.
    """
    if not renderings:
        raise ValueError(_refusal("the prompt was not made by the model's own chat template"))
    if not isinstance(ids, list):
        raise ValueError(_refusal("the prompt of a multimodal model is cut into tokens later"))
    rendering = renderings[-1]
    text = rendering.text(rendering.messages)
    end = _end(rendering, text)
    if end is None:
        raise ValueError(_refusal("the chat template does not put the system messages first"))
    count = _tokens_before(rendering.tokenizer, text, end, ids)
    if count is None:
        raise ValueError(_refusal("the tokenizer does not say where its tokens lie in the text"))
    return count


def _refusal(why: str) -> str:
    return (
        "return_attention_tokens: this server masks the system prompt (--attention-mask-system-prompt), but where it "
        f"ends cannot be told for this request: {why}"
    )


def _end(rendering: Rendering, text: str) -> int | None:
    """Where in the text the system's part ends, None if that cannot be told."""
    messages = rendering.messages
    count = next((i for i, message in enumerate(messages) if message.get("role") not in _ROLES), len(messages))
    leading, rest = messages[:count], messages[count:]
    kind = leading[0] if leading else {"role": "system", "content": rest[0].get("content")}
    other = [{"role": kind["role"], "content": _content(_SYSTEM, like=kind.get("content"))}]
    for find in (_end_of_turn, _start_of_content):
        try:
            end = find(rendering, text, leading, other, rest)
        except Exception:  # a template refuses in its own words what it does not know
            continue
        if end is not None:
            nothing = not leading and text[:end].strip() in ("", getattr(rendering.tokenizer, "bos_token", None))
            return 0 if nothing else end
    return None


_Messages = list[dict[str, Any]]


def _end_of_turn(rendering: Rendering, text: str, _leading: _Messages, other: _Messages, rest: _Messages) -> int | None:
    """What follows another system message rendered alone is the rest of the conversation; the text ends with it."""
    alone, whole = rendering.text(other, generation=False), rendering.text(other + rest)
    tail = whole[len(alone) :]
    fits = whole.startswith(alone) and _SYSTEM in alone and _SYSTEM not in tail
    return len(text) - len(tail) if fits and tail and text.endswith(tail) else None


def _start_of_content(
    rendering: Rendering, text: str, leading: _Messages, other: _Messages, rest: _Messages
) -> int | None:
    """For templates that render no system message alone, or inside the first turn: where that turn's content begins.

    What follows it must be the same under another system message.
    """
    if not rest:
        return None
    first = [{**rest[0], "content": _content(_FIRST, like=rest[0].get("content"))}, *rest[1:]]
    head, mark, tail = rendering.text(leading + first).partition(_FIRST)
    if not mark or _FIRST in tail or not (text.startswith(head) and text.endswith(tail)):
        return None
    if leading:
        other_head, _, other_tail = rendering.text(other + first).partition(_FIRST)
        if other_tail != tail or _SYSTEM not in other_head:
            return None
    return len(head)


def _content(text: str, *, like: Any) -> Any:
    return [{"type": "text", "text": text}] if isinstance(like, list) else text


def _tokens_before(tokenizer: Any, text: str, end: int, ids: Sequence[int]) -> int | None:
    """Tokens that hold any of the first `end` characters; None where the ids are not those of the text."""
    found = _by_decoding(tokenizer, text[:end], ids)
    return found if found is not None else _by_offsets(tokenizer, text, end, ids)


def _by_offsets(tokenizer: Any, text: str, end: int, ids: Sequence[int]) -> int | None:
    if not getattr(tokenizer, "is_fast", False):
        return None
    for special in (False, True):
        encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
        mine, offsets = list(encoded["input_ids"]), encoded["offset_mapping"]
        if mine == list(ids[: len(mine)]):
            return next((i for i, (start, _) in enumerate(offsets) if start >= end), len(mine))
    return None


def _by_decoding(tokenizer: Any, head: str, ids: Sequence[int]) -> int | None:
    """The fewest tokens whose text holds all of `head`; None where tokens do not spell the text that they came from."""

    def holds(count: int) -> bool:
        text = tokenizer.decode(ids[:count], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(text).startswith(head)

    low, high = 0, len(ids)
    if not holds(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
