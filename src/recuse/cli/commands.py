"""The subcommands of `recuse`, their options and help."""

from collections.abc import Sequence
from typing import BinaryIO

import click

from recuse.cli.failure import INTERRUPTED, Failure


def _print_version(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        from recuse.cli.version import version

        click.echo(f"recuse {version()}")
        context.exit()


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
@click.pass_context
def cli(context: click.Context) -> None:
    """Character devices written in Python, for unmodified programs."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(2)


class _TracingCommand(click.Command):
    """Takes `--trace` without a value too, which click would take from what comes next."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Give a bare `--trace` among recuse's own options the value that it stands for."""
        with_value = {
            name
            for option in self.params
            if isinstance(option, click.Option) and not option.is_flag
            for name in option.opts
        } - {"--trace"}
        position = 0
        while position < len(args) and args[position] != "--":
            if not args[position].startswith("-") and not ctx.allow_interspersed_args:
                break
            if args[position] == "--trace":
                args[position] = "--trace=-"
            position += 2 if args[position] in with_value else 1
        return super().parse_args(ctx, args)


_trace_option = click.option(
    "--trace",
    metavar="[=FILE]",
    help="Print each request and its answer, on stderr or appended to FILE.",
)
_trace_format_option = click.option(
    "--trace-format",
    type=click.Choice(["text", "jsonl"]),
    default="text",
    help="Print them for people (text) or as a JSON object each (jsonl).",
)


@cli.command(
    cls=_TracingCommand,
    context_settings={"allow_interspersed_args": False},
    short_help="Run a program.",
)
@click.option(
    "-d",
    "--device",
    "specs",
    metavar="SPEC",
    multiple=True,
    help="A device that the program shall find under /dev; may be given several times.",
)
@_trace_option
@_trace_format_option
@click.argument("argv", metavar="[--] PROGRAM [ARG]...", nargs=-1, type=click.UNPROCESSED)
def run(specs: tuple[str, ...], trace: str | None, trace_format: str, argv: tuple[str, ...]) -> int:
    """Run PROGRAM, and all that it starts, with devices written in Python.

    SPEC is a file with a Device class in it (echo.py), a class in a file (echo.py:Echo) or in a
    module (package.module:Echo). Arguments for the class follow after commas:
    memory.py,name=ram,size=0x1000. unix:PATH is a device that `recuse serve` serves there.

    \b
    The exit status is the program's own; 128+N if signal N ended it; 127 if
    there is no such program, 126 if it cannot be executed; 125 if recuse
    itself failed.
    """  # noqa: D301 (click's mark for a paragraph that keeps its lines)
    if not argv:
        raise click.UsageError("which program? It comes after the options")
    from recuse.cli.run import run_program

    return run_program(specs, argv, trace, trace_format)


@cli.group(short_help="Read traces.")
def trace() -> None:
    """Read what --trace=FILE --trace-format jsonl has written."""


@trace.command(short_help="Count what a trace has.")
@click.argument("file", type=click.File("rb"))
def summary(file: BinaryIO) -> int:
    """Count what FILE (- for stdin) has, by device and operation.

    The table has the bytes that programs sent (in) and got (out), and latencies in microseconds.
    """
    from recuse.trace.summary import Summary, TraceError

    found = Summary()
    try:
        found.read(file)
    except (OSError, TraceError) as error:
        raise click.ClickException(f"{file.name}: {error}") from error
    click.echo(found.table(), nl=False)
    return 0


@cli.command(cls=_TracingCommand, short_help="Serve devices to other processes.")
@click.option(
    "--listen", metavar="PATH", help="Where the socket shall be, instead of the usual place."
)
@click.option("--kernel", is_flag=True, help="Serve on Linux's own /dev/cuse, for all programs.")
@click.option(
    "--mount",
    metavar="DIR",
    help="Serve as files on a FUSE mount at DIR, which programs can map (root).",
)
@_trace_option
@_trace_format_option
@click.argument("specs", metavar="SPEC...", nargs=-1, required=True)
def serve(
    specs: tuple[str, ...],
    *,
    listen: str | None,
    kernel: bool,
    mount: str | None,
    trace: str | None,
    trace_format: str,
) -> int:
    """Serve devices to `recuse run -d unix:PATH` in other processes, until Ctrl-C or SIGTERM.

    SPEC is as for `recuse run`. Each device gets a socket that only you and root can use, in your
    runtime directory ($XDG_RUNTIME_DIR/recuse), or a directory of yours in /tmp.
    """
    from recuse.cli.serve import serve_devices

    return serve_devices(specs, listen, kernel, trace, trace_format, mount=mount)


@cli.command(short_help="Say what this machine allows.")
@click.option("--json", "as_json", is_flag=True, help="Write the findings as JSON.")
def doctor(as_json: bool) -> int:
    """Say what this machine allows, and what to do about the rest.

    The exit status is 0 if `recuse run` can work here, 1 if not.
    """
    from recuse.cli.doctor import diagnose

    return diagnose(as_json)


def invoke(args: Sequence[str]) -> int:
    """Run the command with `args`; returns the exit status.

    Raises:
        Failure: with what to tell the user.
    """
    try:
        # Not click's own mode: that would print its errors over several lines.
        status = cli.main(args, prog_name="recuse", standalone_mode=False)
    except click.Abort:
        return INTERRUPTED
    except click.ClickException as error:
        message = error.format_message()
        if isinstance(error, click.UsageError):
            command = error.ctx.command_path if error.ctx else "recuse"
            message = f"{message.rstrip().removesuffix('.')} (see {command} --help)"
        raise Failure(message, error.exit_code) from error
    return int(status or 0)
