"""SGLang's reasoning parsers of every release, run from the source in its wheel without importing SGLang."""

from __future__ import annotations

import ast
import inspect
import re
from functools import cache
from typing import Any

from tests.canary.releases import module

_MODULE = "sglang.srt.parser.reasoning_parser"


@cache
def reasoning_parser(version: str) -> Any:
    """`ReasoningParser` of this release, with the parsers whose detectors need nothing of the rest of SGLang."""
    tree = module(version, _MODULE)
    assert tree is not None, f"SGLang {version} has no {_MODULE}"
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    plain = {"StreamingParseResult", "BaseReasoningFormatDetector"}
    # Those that only hand marks to the base class, or to another one that does.
    for name, node in classes.items():
        bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
        methods = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
        if bases & plain and methods <= {"__init__", "parse_streaming_increment", "detect_and_parse"}:
            plain.add(name)
    parser = classes["ReasoningParser"]
    for part in parser.body:
        if isinstance(part, ast.AnnAssign) and getattr(part.target, "id", "") == "DetectorMap":
            known = part.value
            assert isinstance(known, ast.Dict)
            kept = [(k, v) for k, v in zip(known.keys, known.values, strict=True) if getattr(v, "id", "") in plain]
            known.keys, known.values = [k for k, _ in kept], [v for _, v in kept]
    chosen: list[ast.stmt] = [node for name, node in classes.items() if name in plain]
    source = ast.Module([*ast.parse("from __future__ import annotations").body, *chosen, parser], [])
    names: dict[str, Any] = {
        "inspect": inspect, "re": re, "Optional": Any, "Dict": dict, "ChatCompletionRequest": _Nothing,
        "ResponsesRequest": _Nothing, "ResponseTemplateReasoningDetector": _Nothing,
    }  # fmt: skip
    exec(compile(ast.fix_missing_locations(source), f"{_MODULE} of SGLang {version}", "exec"), names)
    return names["ReasoningParser"]


class _Nothing:
    """What the plain parsers are no kind of."""
