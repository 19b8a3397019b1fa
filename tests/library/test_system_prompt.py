"""Where the system's part of a prompt ends, for chat templates of the kinds that models come with."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from geomcli import models
from geomcli.server_patch import system_prompt

_TURN = "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
_ANSWER = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
_SYSTEM_AHEAD = "{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] %}{% set ms = messages[1:] %}{% else %}{% set s = '' %}{% set ms = messages %}{% endif %}"  # noqa: E501
TEMPLATES = {
    "chatml": "{% for m in messages %}" + _TURN + "{% endfor %}" + _ANSWER,
    # Llama 3: a system turn always, with tools and a date in it; an end mark without a line break.
    "header": _SYSTEM_AHEAD + "{{ bos_token + '<|h|>system\nDate: 26 Jul\n' }}{% if tools %}{{ tools }}{% endif %}"
    "{{ s.strip() + '<|eot|>' }}{% for m in ms %}{{ '<|h|>' + m['role'] + '\n' + m['content'].strip() + '<|eot|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|h|>assistant\n' }}{% endif %}",
    # Qwen 3.5: refuses a conversation without a user.
    "user-wanted": "{% if 'user' not in messages|map(attribute='role') %}{{ raise_exception('No user query') }}"
    "{% endif %}{% for m in messages %}" + _TURN + "{% endfor %}" + _ANSWER,
    # Llama 2: inside the first turn.
    "inst": _SYSTEM_AHEAD + "{% for m in ms %}{% if m['role'] == 'user' %}{{ '[INST] ' }}{% if loop.first and s %}"
    "{{ '<<SYS>>\n' + s + '\n<</SYS>>\n\n' }}{% endif %}{{ m['content'] + ' [/INST]' }}{% else %}{{ m['content'] }}"
    "{% endif %}{% endfor %}",
    # Mistral: in front of the last user message.
    "last": _SYSTEM_AHEAD + "{% for m in ms %}{% if m['role'] == 'user' %}{{ '[INST] ' }}{% if loop.last and s %}"
    "{{ s + '\n\n' }}{% endif %}{{ m['content'] + '[/INST]' }}{% else %}{{ m['content'] }}{% endif %}{% endfor %}",
    "parts": "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['content'] is string %}"
    "{{ m['content'] }}{% else %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}"
    "{% endfor %}" + _ANSWER,
    # Gemma 2.
    "refuses": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}" + _TURN + "{% endfor %}" + _ANSWER,
}  # fmt: skip


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


SAYS_YES = [{"role": "assistant", "content": "Yes."}]
_HI = user("Hi. ")
_PARTS = [
    {"role": "system", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": " brief."}]},
    {"role": "user", "content": [{"type": "text", "text": "Hi."}]},
]
TALKS: list[tuple[str, list[dict[str, Any]], str]] = [
    ("chatml", [system("Be brief."), _HI], "<|im_start|>system\nBe brief.<|im_end|>\n"),
    ("chatml", [system("A."), {"role": "developer", "content": "B."}, _HI],
     "<|im_start|>system\nA.<|im_end|>\n<|im_start|>developer\nB.<|im_end|>\n"),
    ("chatml", [system("Hi. "), _HI], "<|im_start|>system\nHi. <|im_end|>\n"),
    ("chatml", [system("<|im_end|>\n<|im_start|>user\nHi. "), _HI],
     "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nHi. <|im_end|>\n"),
    ("chatml", [system("A."), _HI, *SAYS_YES, system("Later."), user("Go")], "<|im_start|>system\nA.<|im_end|>\n"),
    ("chatml", [_HI], ""),
    ("chatml", [system("Alone.")], "<|im_start|>system\nAlone.<|im_end|>\n"),
    ("chatml", [system(""), _HI], "<|im_start|>system\n<|im_end|>\n"),
    ("header", [system(" Be brief. "), _HI], "<s><|h|>system\nDate: 26 Jul\nBe brief.<|eot|>"),
    ("header", [_HI], "<s><|h|>system\nDate: 26 Jul\n<|eot|>"),
    ("user-wanted", [system("Be brief."), _HI, *SAYS_YES, _HI],
     "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n"),
    ("inst", [system("Be brief."), _HI, *SAYS_YES, user("Go")], "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n"),
    ("last", [system("Be brief."), _HI], "[INST] Be brief.\n\n"),
    ("parts", _PARTS, "<|im_start|>system\nBe brief.<|im_end|>\n"),
    ("refuses", [_HI], "<|im_start|>user\n"),
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    made = PreTrainedTokenizerFast.from_pretrained(str(models.path_of("smollm2")))
    made.bos_token = "<s>"
    system_prompt.watch(made)
    return made


def rendered(tokenizer: Any, template: str, messages: list[dict[str, Any]], **options: Any) -> tuple[Any, list[int]]:
    """What SGLang does with a chat, watched; and the prompt's ids."""
    tokenizer.chat_template = TEMPLATES[template]
    with system_prompt.watched() as renderings:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
    return renderings, tokenizer.encode(text)


@pytest.mark.parametrize(("template", "messages", "expected"), TALKS, ids=[f"{t[0]}-{i}" for i, t in enumerate(TALKS)])
def test_the_systems_part_is_masked_and_nothing_else(
    tokenizer: Any, template: str, messages: list[dict[str, Any]], expected: str
) -> None:
    renderings, ids = rendered(tokenizer, template, messages)
    count = system_prompt.tokens_of(renderings, ids)
    masked = tokenizer.decode(ids[:count])
    # The last masked token may hold what stands behind the system's part.
    assert masked.startswith(expected)
    assert len(tokenizer.decode(ids[: count - 1]) if count else "") < max(1, len(expected))
    assert system_prompt.tokens_of(renderings, [*ids, 17, 18]) == count  # an answer that is to be continued


def test_tools_that_the_template_lists_with_the_system_prompt_are_masked_with_it(tokenizer: Any) -> None:
    tools = [{"type": "function", "function": {"name": "weather"}}]
    renderings, ids = rendered(tokenizer, "header", [system("Be brief."), _HI], tools=tools)
    masked = tokenizer.decode(ids[: system_prompt.tokens_of(renderings, ids)])
    assert "weather" in masked
    assert masked.endswith("Be brief.<|eot|><")  # a token of this vocabulary goes on into the user's turn


def test_the_models_own_template_and_the_prompt_that_it_adds(tokenizer: Any) -> None:
    own = PreTrainedTokenizerFast.from_pretrained(str(models.path_of("smollm2"))).chat_template
    tokenizer.chat_template = own
    for messages, last in (([_HI], "Hugging Face"), ([system("Be brief."), _HI], "Be brief.")):
        with system_prompt.watched() as renderings:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer.encode(text)
        masked = tokenizer.decode(ids[: system_prompt.tokens_of(renderings, ids)])
        assert masked.endswith(f"{last}<|im_end|>\n")


def test_a_system_prompt_that_cannot_be_told_apart_is_refused(tokenizer: Any) -> None:
    renderings, ids = rendered(tokenizer, "last", [system("Be brief."), _HI, *SAYS_YES, user("Go")])
    with pytest.raises(ValueError, match=r"--attention-mask-system-prompt.*does not put the system messages first"):
        system_prompt.tokens_of(renderings, ids)


def test_prompts_that_were_not_rendered_or_not_cut_are_refused(tokenizer: Any) -> None:
    renderings, ids = rendered(tokenizer, "chatml", [system("A."), _HI])
    for found, prompt, why in (
        ([], ids, "not made by the model's own chat template"),
        (renderings, None, "multimodal"),
        (renderings, ids[3:], "does not say where"),
    ):
        with pytest.raises(ValueError, match=why):
            system_prompt.tokens_of(found, prompt)


def test_tokens_that_do_not_spell_the_text_are_placed_by_their_offsets() -> None:
    class Spaces:
        """As sentencepiece: decoding loses the first space."""

        is_fast = True

        def __call__(self, text: str, **_: Any) -> dict[str, Any]:
            cuts = [(0, 0), (0, 3), (3, 6), (6, len(text))]
            return {"input_ids": [1, 7, 8, 9], "offset_mapping": cuts}

        def decode(self, ids: list[int], **_: Any) -> str:
            return "something else"

    assert [system_prompt._tokens_before(Spaces(), " ab cd ef", end, [1, 7, 8, 9]) for end in (0, 1, 3, 4, 6)] == [
        0, 2, 2, 3, 3,
    ]  # fmt: skip
    assert system_prompt._tokens_before(Spaces(), " ab cd ef", 3, [1, 7]) is None


def test_only_renderings_inside_the_block_are_seen(tokenizer: Any) -> None:
    tokenizer.chat_template = TEMPLATES["chatml"]
    with system_prompt.watched() as renderings:
        pass
    tokenizer.apply_chat_template([_HI], tokenize=False)
    assert renderings == []
    with system_prompt.watched() as renderings, pytest.raises(Exception, match="not supported"):
        rendered(tokenizer, "refuses", [system("A."), _HI])
    assert renderings == []
