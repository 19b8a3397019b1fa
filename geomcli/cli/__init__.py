"""The `geom` command: parsing, exit codes and errors. What a command does lives in the module of its name.

Nothing heavy is imported here; `geom --help` loads neither torch nor textual nor SGLang.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Collection
from importlib import import_module
from types import FrameType
from typing import Annotated

import typer

from geomcli.cli.output import drop_unread, fail
from geomcli.errors import ExitCode, GeomError

# Each is the function of its name in the module of its name, or its `app` where it has commands of its own.
COMMANDS = (
    "serve", "run", "compare", "report", "spans", "tui", "models", "traces", "discover", "calibrate", "sidecar", "eval",
)  # fmt: skip
_MODULES = {"eval": "evaluate"}  # whose name is taken


def application(names: Collection[str] = COMMANDS) -> typer.Typer:
    """The command line with these commands; only their modules are imported."""
    made = typer.Typer(
        name="geom",
        help="See what a language model looks at while it writes, and whether it drifts.",
        no_args_is_help=True,
        rich_markup_mode=None,  # the boxed help cuts off long flags
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    made.callback()(options)
    for name in names:
        module = import_module(f"geomcli.cli.{_MODULES.get(name, name)}")
        if hasattr(module, "app"):
            made.add_typer(module.app, name=name)
        else:
            made.command(name)(getattr(module, name))
    return made


def _version(value: bool) -> None:
    if value:
        from geomcli import __version__

        print(f"geom {__version__}")
        raise typer.Exit


def options(
    _version_shown: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
    no_color: Annotated[bool, typer.Option("--no-color", help="No colours; NO_COLOR does the same.")] = False,
) -> None:
    if no_color:
        os.environ["NO_COLOR"] = "1"


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _fill_closed() -> None:
    """Give streams that were closed (`<&-`, `>&-`) their numbers, so that no file that is opened later, like the store,
    becomes stdout. Using them fails, as it does in other programs.
    """
    for name, mode, flags in (("stdin", "r", os.O_WRONLY), ("stdout", "w", os.O_RDONLY), ("stderr", "w", os.O_WRONLY)):
        if getattr(sys, name) is None:
            stream = os.fdopen(os.open(os.devnull, flags), mode, closefd=False)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def main() -> None:
    """Run the command line; known errors end as one line on stderr and their exit code, never as a traceback."""
    _fill_closed()
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a Latin-1 terminal has no glyphs of zones
    # Asked to end by kill or a closed terminal, a command does what it does on Ctrl-C: it keeps what it has.
    for sign in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(sign) == signal.SIG_DFL:
            signal.signal(sign, _interrupt)
    arguments = sys.argv[1:]
    passed_on: list[str] = []
    named = next((a for a in arguments if not a.startswith("-")), None)
    if named == "serve" and "--" in arguments:
        # Split here: the parser would take the first word behind `--` for the model.
        cut = arguments.index("--")
        arguments, passed_on = arguments[:cut], arguments[cut + 1 :]
    try:
        code: object = ExitCode.OK
        # The terminal app should not wait for what the other commands need.
        app = application([named] if named in COMMANDS else COMMANDS)
        code = app(args=arguments, obj=passed_on, standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output went away (`geom traces ls | head`): end quietly, with the result that there is.
        drop_unread()
    except SystemExit as leaving:
        if not isinstance(leaving.__context__, BrokenPipeError):
            raise
        drop_unread()  # Typer makes an exit with 1 of it
    except GeomError as error:
        fail(error)
        code = error.exit_code
    except OSError as error:
        # A folder that is not there or not ours, a full disk: the same sentence wherever it happens.
        where = f"{error.filename}: " if error.filename else ""
        if error.errno == errno.EBADF and not where:
            fail(GeomError("stdin or stdout is closed.", "geom … < FILE > FILE"))
        else:
            fail(GeomError(f"{where}{error.strerror or error}."))
        drop_unread()
        code = ExitCode.FAILED
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
    except Exception as error:
        code = _other(error)
    sys.exit(code if isinstance(code, int) else 0)


def _other(error: Exception) -> int:
    """Usage errors of the parser (which Typer vendors privately) print themselves; anything else is a bug."""
    if hasattr(error, "show") and hasattr(error, "exit_code"):
        error.show()
        return int(error.exit_code)
    if type(error).__name__ in ("Exit", "Abort"):
        return int(getattr(error, "exit_code", ExitCode.INTERRUPTED))
    raise error
