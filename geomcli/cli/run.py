"""`geom run`: one prompt, its answer token by token with zones, a summary, a saved trace."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import stat
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from geomcli import config
from geomcli.cli import output
from geomcli.cli.summary import print_summary
from geomcli.client import Chunk, Client
from geomcli.display import printable
from geomcli.errors import ExitCode, GeomError, StoreError, UsageError
from geomcli.request import attention_fields, check_firewall
from geomcli.schema import CAPTURE_MODES, Message, Record
from geomcli.store import CHECK_SECONDS, Store, TraceWriter
from geomcli.trace import Trace, TraceBuilder
from geomcli.zones import UNKNOWN

_ASKED_TO_END = (signal.SIGTERM, signal.SIGHUP)


def run(
    prompt: Annotated[str | None, typer.Argument(help="The prompt; text piped into stdin is appended.")] = None,
    model: Annotated[str | None, typer.Option("-m", "--model", help="Served model; the first one if left out.")] = None,
    system: Annotated[str | None, typer.Option("-s", "--system", help="System message.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.", min=1, max=2**31 - 1)] = 256,
    temperature: Annotated[
        float, typer.Option("--temp", help="Sampling temperature; 0 repeats itself exactly.", min=0)
    ] = 0.0,
    top_p: Annotated[float | None, typer.Option(help="Nucleus sampling.", min=0, max=1)] = None,
    capture: Annotated[
        str | None, typer.Option(help="raw, sketch or fingerprint; raw where the server lets it out.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Raw links a token, 1..64.")] = None,
    layers: Annotated[str | None, typer.Option(help="Layer ids, like 7,15: some of those the server captures.")] = None,
    derotate: Annotated[
        bool, typer.Option("--derotate", help="With each raw link its scores by content and by position.")
    ] = False,
    statistics: Annotated[
        bool, typer.Option("--stats", help="With each token what detectors read: statistics of its heads and logits.")
    ] = False,
    firewall: Annotated[
        str | None,
        typer.Option(metavar="WHAT", help="When the answer drifts: stop it, log it, or reroute (end it for a router)."),
    ] = None,
    detector: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="What --firewall watches with, if the server was started with its calibration."
        ),
    ] = None,
    auto_sampling: Annotated[
        bool, typer.Option("--auto-sampling", help="The zone of the last tokens chooses temperature and top_p.")
    ] = False,
    retention: Annotated[
        float | None,
        typer.Option(
            "--spectral-retention-ratio",
            help="Share of its tokens that the request keeps in the KV cache, of a server that evicts.",
        ),
    ] = None,
    save: Annotated[bool, typer.Option("--save/--no-save", help="Keep the trace in the store.")] = True,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="The trace as JSON lines on stdout, nothing else.")] = False,
    serve: Annotated[bool, typer.Option("--serve", help="Start the default model for this one prompt.")] = False,
    port: Annotated[
        int | None, typer.Option(help=f"Port of --serve ({config.DEFAULT_PORT}).", min=1, max=65535)
    ] = None,
    stdin: Annotated[bool, typer.Option("--stdin/--no-stdin", help="Read a prompt that is piped in.")] = True,
    base_url: Annotated[str | None, typer.Option(help="Server; GEOM_BASE_URL.")] = None,
    api_key: Annotated[str | None, typer.Option(help="Key of the server; GEOM_API_KEY.")] = None,
    attention_key: Annotated[
        str | None, typer.Option(help="Key of its --attention-api-key; GEOM_ATTENTION_KEY.")
    ] = None,
    db: Annotated[Path | None, typer.Option(help="Trace store; GEOM_DB.", dir_okay=False)] = None,
) -> None:
    """Send PROMPT, stream the answer coloured by attention zone, then say what was seen.

    \b
    Examples:
      geom run 'Why is the sky blue?'
      cat notes.txt | geom run 'Summarise this:' --max-tokens 80
      geom run 'Tell me a story' --jsonl > story.jsonl
    """
    text = _prompt(prompt, stdin)
    _check_text("--system", system)
    _check_text("--model", model)
    if math.isinf(temperature):
        raise UsageError("--temp must be a number that is not infinite.")
    if port is not None and not serve:
        raise UsageError("--port is the port of --serve.", f"geom run --base-url http://127.0.0.1:{port} …")
    if retention is not None and not 0 < retention <= 1:
        raise UsageError(f"--spectral-retention-ratio must be above 0 and at most 1, got {retention}.")
    if retention is not None and serve:
        raise UsageError(
            "--serve starts a server that evicts nothing.",
            "geom serve --spectral-evict-decode, then geom run without --serve",
        )
    settings = config.load(
        base_url=base_url, api_key=api_key, attention_key=attention_key, db=None if db is None else str(db)
    )
    if capture is not None and capture not in CAPTURE_MODES:
        raise UsageError(f"--capture must be raw, sketch or fingerprint, got {capture!r}.")
    check_firewall(firewall)
    if detector is not None and firewall is None:
        raise UsageError("--detector is what --firewall watches with.", f"--firewall log --detector {detector}")
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": text})
    sampling = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p}
    sampling = {name: value for name, value in sampling.items() if value is not None}
    attention: dict[str, Any] = {"capture": capture, "top_k": top_k, "layers": _layer_ids(layers), "derotate": derotate}
    attention |= {"firewall": firewall, "detector": detector, "auto_sampling": auto_sampling, "statistics": statistics}
    attention |= {"retention": retention}

    with contextlib.ExitStack() as stack:
        # Before the engine: a store that cannot be used is not worth the wait for one.
        store = stack.enter_context(Store(settings.db_path)) if save else None
        if serve:
            settings = stack.enter_context(_embedded(settings, port or config.DEFAULT_PORT))
        writer = store.writer() if store else None
        job = _Run(settings, writer, jsonl=jsonl)
        code = _await(job.run(messages, model, sampling, attention))
        if job.trace.metrics and not jsonl and not job.reader_gone:
            print_summary(job.trace, store=store.path if store and job.saved else None, manifold=settings.db_path)
        if job.failure is not None:
            raise job.failure
    if job.reader_gone:
        raise BrokenPipeError
    if code != ExitCode.OK:
        raise typer.Exit(int(code))


def _prompt(argument: str | None, read_stdin: bool) -> str:
    try:
        piped = sys.stdin.buffer.read().decode() if read_stdin and _is_piped() else ""
        (argument or "").encode()
    except UnicodeError:
        raise UsageError("the prompt is not UTF-8 text.", "geom run --no-stdin …, or convert it with iconv") from None
    parts = [part for part in (argument, piped.rstrip("\n")) if part and part.strip()]
    if not parts:
        raise UsageError("there is no prompt.", "geom run 'Why is the sky blue?'")
    return "\n\n".join(parts)


def _check_text(flag: str, value: str | None) -> None:
    try:
        (value or "").encode()
    except UnicodeError:
        raise UsageError(f"{flag} is not UTF-8 text.", "convert it with iconv") from None


def _is_piped() -> bool:
    """Whether stdin is a pipe or a file. A closed stdin, a terminal and /dev/null are not."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError, AttributeError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _layer_ids(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--layers must be layer ids like 7,15, got {text!r}.") from None


@contextlib.contextmanager
def _embedded(settings: config.Settings, port: int) -> Iterator[config.Settings]:
    import msgspec

    from geomcli import engine, engine_plan, models
    from geomcli.cli.models import pull_with_bar
    from geomcli.cli.serve import describe, progress_line

    if models.problem(models.DEFAULT_MODEL) is not None:
        pull_with_bar(models.DEFAULT_MODEL)
    flags = ["--return-attention-tokens"]
    plan = engine_plan.plan(models.resolve(models.DEFAULT_MODEL), flags=flags, port=port, again="geom run --serve")
    console = output.narrator()
    with engine.Engine(plan) as running:
        console.print(f"Starting {plan.model.served_name} on {plan.device}; log: {plan.log}", markup=False)
        with progress_line("Waiting for the engine") as tick:
            document = running.wait(progress=tick)
        console.print(f"Ready: {describe(document)}\n", markup=False)
        yield msgspec.structs.replace(settings, base_url=plan.base_url)
        console.print("Stopping the engine …")


def _await(job: Coroutine[Any, Any, ExitCode]) -> ExitCode:
    before = {sign: signal.getsignal(sign) for sign in _ASKED_TO_END}
    try:
        return asyncio.run(_cancelled_by_signals(job))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return ExitCode.INTERRUPTED
    finally:
        # The loop leaves the default action behind: a kill while the engine is ended would leave it running.
        for sign, handler in before.items():
            if handler is not None:
                signal.signal(sign, handler)


async def _cancelled_by_signals(job: Coroutine[Any, Any, ExitCode]) -> ExitCode:
    """Like Ctrl-C: an exception in the middle of the event loop would leave its generators open."""
    task = asyncio.current_task()
    assert task is not None
    for sign in _ASKED_TO_END:
        if signal.getsignal(sign) != signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(sign, task.cancel)
    return await job


class _Run:
    """One request: chunks to the terminal, records to the trace, the store and stdout."""

    def __init__(self, settings: config.Settings, writer: TraceWriter | None, *, jsonl: bool) -> None:
        self._settings = settings
        self._writer = writer
        self._jsonl = jsonl
        self._screen = None if jsonl else TokenPrinter()
        self.trace = Trace()
        self.saved = writer is not None
        self.failure: GeomError | None = None
        self.reader_gone = False

    async def run(
        self, messages: list[Message], model: str | None, sampling: dict[str, Any], attention: dict[str, Any]
    ) -> ExitCode:
        settings = self._settings
        async with Client(settings.base_url, api_key=settings.api_key, attention_key=settings.attention_key) as client:
            capabilities = await client.capabilities()
            fields = attention_fields(capabilities, **attention)
            name = model or await client.model()
            builder = TraceBuilder(messages, model=name, capture={**fields, **sampling})
            chunks = client.chat(messages, model=name, fields={**sampling, **fields})
            return await self._stream(chunks, builder)

    async def _stream(self, chunks: AsyncGenerator[Chunk, None], builder: TraceBuilder) -> ExitCode:
        error: str | None = "broke off"  # unless it ends in a way that is known
        code = ExitCode.OK
        started = False
        flusher = asyncio.create_task(self._flush_regularly())
        try:
            async with contextlib.aclosing(chunks):
                async for chunk in chunks:
                    if not started:
                        started = True
                        self._take(builder.start())
                    self._take(builder.add(chunk))
                    if self._screen:
                        self._screen.show(chunk)
            error = None
        except GeomError as failure:
            error, self.failure = failure.message, failure
        except (asyncio.CancelledError, KeyboardInterrupt):
            error, code = "interrupted", ExitCode.INTERRUPTED
        except BrokenPipeError:
            error, self.reader_gone = "the reader of the output went away", True
            self._jsonl, self._screen = False, None
        finally:
            flusher.cancel()
            # Whatever happened: what was received is kept.
            if started:
                self._take(builder.finish(error))
        if self._screen:
            self._screen.end()
        return code

    async def _flush_regularly(self) -> None:
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            if self._writer is not None:
                self._guarded(self._writer.flush_if_due)

    def _take(self, records: list[Record]) -> None:
        from geomcli import jsonl

        for record in records:
            self.trace.add(record)
            if self._writer is not None:
                self._guarded(partial(self._writer.write, record))
        if self._jsonl and records:
            output.write_data(jsonl.dump(records))

    def _guarded(self, action: Callable[[], None]) -> None:
        """The answer goes on when the store fails; the failure is the command's result at the end."""
        try:
            action()
        except StoreError as error:
            self._writer, self.saved = None, False
            self.failure = self.failure or error


class TokenPrinter:
    """The answer on stdout. On a terminal each token has its zone's colour, and a glyph where the zone changes."""

    def __init__(self) -> None:
        self._console = output.speaker()
        self._plain = not self._console.is_terminal
        self._zone: str | None = None
        self._column_open = False

    def show(self, chunk: Chunk) -> None:
        visible = [e for e in chunk.entries if e.get("token")]
        text = chunk.reasoning + chunk.text
        if not text:
            return
        # A chunk's text is what its tokens add; where it is not (a stop string was cut off), it has one colour.
        if "".join(e.get("token") or "" for e in visible) == text:
            for entry in visible:
                self._print(entry.get("token") or "", entry.get("zone"))
        else:
            self._print(text, visible[-1].get("zone") if visible else None)

    def _print(self, text: str, zone: str | None) -> None:
        self._column_open = not text.endswith("\n")
        if self._plain:
            sys.stdout.write(text)
            sys.stdout.flush()
            return
        from rich.text import Text

        glyph, style = output.ZONE_STYLES.get(zone or UNKNOWN, output.ZONE_STYLES[UNKNOWN])
        if zone is not None and zone != self._zone:
            self._console.print(Text(glyph, style=f"{style} dim"), end="")
        self._zone = zone or self._zone
        self._console.print(Text(printable(text), style=style if zone else "dim"), end="")

    def end(self) -> None:
        if self._column_open:
            sys.stdout.write("\n")
            sys.stdout.flush()
