"""Attention modules whose rotation is undone turn queries and keys in every layer, in every supported release."""

from __future__ import annotations

import ast
from collections.abc import Sequence

import pytest

from geomcli.server_patch import ropes
from tests.canary.releases import VERSIONS, definition, module

_EMBEDDINGS = "sglang.srt.layers.rotary_embedding"
_FILES = ("base", "rope_variant", "yarn")
_TURNING = ("self.rotary_emb", "self.apply_qk_norm_rope", "fused_qk_norm_rope")


def turns_always(attention: ast.AST) -> bool:
    """Whether a method of the class calls its embedding, or a kernel that does its work, under no condition."""
    methods = [node for node in ast.walk(attention) if isinstance(node, ast.FunctionDef) and node.name != "__init__"]
    return any(_any(method.body) for method in methods)


def _any(statements: Sequence[ast.stmt]) -> bool:
    return any(map(_turns, statements))


def _turns(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.If):
        # Without an embedding there is no de-rotated view.
        other = ast.unparse(statement.test) == "self.rotary_emb is not None" or _any(statement.orelse)
        return other and _any(statement.body)
    value = getattr(statement, "value", None)
    return isinstance(value, ast.Call) and ast.unparse(value.func) in _TURNING


@pytest.mark.parametrize("version", VERSIONS)
def test_attention_whose_rotation_is_undone_always_rotates(version: str) -> None:
    for kind, file in ropes.ATTENTION.items():
        found = definition(version, f"sglang.srt.models.{file}.{kind}")
        assert found is not None, (version, kind)
        assert turns_always(found), (version, kind)


@pytest.mark.parametrize("kind", ["exaone4.Exaone4Attention", "afmoe.AfmoeAttention", "commandr.CohereAttention"])
def test_the_check_notices_layers_that_are_left_as_they_are(kind: str) -> None:
    found = definition(VERSIONS[-1], f"sglang.srt.models.{kind}")
    assert found is not None
    assert not turns_always(found)
    assert kind.split(".")[1] not in ropes.ATTENTION


@pytest.mark.parametrize("version", VERSIONS)
def test_embeddings_that_are_undone_have_a_table_and_a_style(version: str) -> None:
    trees = [module(version, f"{_EMBEDDINGS}.{file}") for file in _FILES]
    classes = {c.name for tree in trees if tree is not None for c in tree.body if isinstance(c, ast.ClassDef)}
    assert set(ropes.EMBEDDINGS) <= classes
    base = definition(version, f"{_EMBEDDINGS}.base.RotaryEmbedding")
    assert base is not None
    own = {ast.unparse(node) for node in ast.walk(base) if isinstance(node, ast.Attribute)}
    assert {"self.cos_sin_cache", "self.is_neox_style", "self.head_size"} <= own
