"""SGLang's released wheels as source to read: downloaded once into the environment, never installed.

test_radix_trees.py runs what it takes out of them.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path

# The ends of the supported range and what lies between; the plugin's transport changes at 0.5.20.
VERSIONS = ("0.5.16", "0.5.18", "0.5.20", "0.5.22", "0.5.23")
_FOLDER = Path(sys.prefix) / "sglang-wheels"
_PLATFORMS = ("manylinux_2_34_x86_64", "manylinux_2_28_x86_64", "manylinux2014_x86_64")


@cache
def wheel(version: str) -> zipfile.ZipFile:
    """The release's wheel; CalledProcessError with pip's words when it cannot be had."""
    found = sorted(_FOLDER.glob(f"sglang-{version}-*.whl"))
    if not found:
        platforms = [part for name in _PLATFORMS for part in ("--platform", name)]
        subprocess.run(
            [
                sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
                "--python-version", "3.12", "--implementation", "cp", *platforms, "--dest", str(_FOLDER),
                f"sglang=={version}",
            ],
            check=True,
        )  # fmt: skip
        found = sorted(_FOLDER.glob(f"sglang-{version}-*.whl"))
    return zipfile.ZipFile(found[0])


@cache
def module(version: str, name: str) -> ast.Module | None:
    """The parsed module, None where the release has none of that name."""
    for path in (f"{name.replace('.', '/')}.py", f"{name.replace('.', '/')}/__init__.py"):
        try:
            return ast.parse(wheel(version).read(path))
        except KeyError:
            continue
    return None


def definition(version: str, target: str) -> ast.AST | None:
    """What the dotted `target` names: a function, a class, an assignment of a module or class, or an import of it."""
    parts = target.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        tree = module(version, ".".join(parts[:cut]))
        if tree is not None:
            node: ast.AST | None = tree
            for name in parts[cut:]:
                node = None if node is None else next(chain(_named(node, name), _imported(node, name)), None)
            return node
    return None


def _named(scope: ast.AST, name: str) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(scope):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == name:
            yield node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                yield node
        elif isinstance(node, ast.If | ast.Try):
            yield from _named(node, name)


def _imported(scope: ast.AST, name: str) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(scope):
        if isinstance(node, ast.ImportFrom) and any((one.asname or one.name) == name for one in node.names):
            yield node


def parameters(function: ast.AST) -> set[str]:
    """Names that a call may use; AssertionError for something that is no function."""
    assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef), ast.dump(function)[:80]
    arguments = function.args
    return {a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
