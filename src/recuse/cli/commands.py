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


class _Command(click.Command):
    """Has each mistake in its arguments point to its own help. click does not know of all whose."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise


class _Group(_Command, click.Group):
    command_class = _Command
    group_class = type


def _help_without_command(context: click.Context) -> None:
    """Print the help as it is if there is no subcommand. click would make an error of it."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(2)


@click.group(
    cls=_Group,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
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
    """Character devices and filesystems written in Python, for unmodified programs."""
    _help_without_command(context)


class _TracingCommand(_Command):
    """Accepts `--trace` without a value too. click would take the next argument as its value."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Replace a bare `--trace` among recuse's own options by `--trace=-`, which it means."""
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
    help="Print each request and its answer to stderr, or append them to FILE.",
)
_trace_format_option = click.option(
    "--trace-format",
    type=click.Choice(["text", "jsonl"]),
    default="text",
    help="Print text for people, or one JSON object per line (jsonl).",
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
    help="A device that the program finds under /dev. Repeat for several devices.",
)
@click.option(
    "-m",
    "--mount",
    "mounts",
    metavar="DIR=SPEC",
    multiple=True,
    help="A filesystem that the program finds in the directory DIR. Repeat for several.",
)
@click.option(
    "--fuse",
    is_flag=True,
    help="Let programs mount filesystems that they serve at /dev/fuse; without -d they may.",
)
@_trace_option
@_trace_format_option
@click.argument("argv", metavar="[--] PROGRAM [ARG]...", nargs=-1, type=click.UNPROCESSED)
def run(  # noqa: PLR0917 - click passes them by name
    specs: tuple[str, ...],
    mounts: tuple[str, ...],
    fuse: bool,
    trace: str | None,
    trace_format: str,
    argv: tuple[str, ...],
) -> int:
    """Run PROGRAM, and everything that it starts, with devices and filesystems written in Python.

    SPEC is a file with a Device class (echo.py), a class in a file (echo.py:Echo) or a class in a
    module (package.module:Echo). Arguments for the class follow after commas:
    memory.py,name=ram,size=0x1000. unix:PATH is a device that `recuse serve` serves at PATH.

    A filesystem's SPEC is that of `recuse mount`, or unix:PATH. Nobody else sees it, and /dev/fuse
    is not needed.

    \b
    The exit status is the program's own; 128+N if signal N ended it; 127 if
    the program was not found, 126 if it cannot be executed; 125 if recuse
    itself failed.
    """  # noqa: D301 (click's mark for a paragraph that keeps its lines)
    if not argv:
        raise click.UsageError("no program given: add it after the options")
    from recuse.cli.run import run_program

    return run_program(specs, argv, trace, trace_format, mounts, fuse=fuse)


@cli.group(invoke_without_command=True, short_help="Evaluate a trace.")
@click.pass_context
def trace(context: click.Context) -> None:
    """Evaluate a trace that --trace=FILE --trace-format jsonl has written."""
    _help_without_command(context)


@trace.command(short_help="Add up a trace.")
@click.argument("file", type=click.File("rb"))
def summary(file: BinaryIO) -> int:
    """Add up FILE (- for stdin) by device or filesystem, and operation.

    The table shows the bytes that programs sent (in) and got (out), and latencies in microseconds.
    """
    from recuse.trace.summary import Summary, TraceError

    found = Summary()
    try:
        found.read(file)
    except (OSError, TraceError) as error:
        raise click.ClickException(f"{file.name}: {error}") from error
    click.echo(found.table(), nl=False)
    return 0


@cli.command(cls=_TracingCommand, short_help="Serve devices and filesystems to other processes.")
@click.option(
    "--listen", metavar="PATH", help="Put the socket at PATH, not in the default directory."
)
@click.option("--kernel", is_flag=True, help="Use Linux's own /dev/cuse, for all programs.")
@click.option(
    "--mount",
    metavar="DIR",
    help="Serve files on a FUSE mount at DIR, which all programs can map if root serves them.",
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
    """Serve devices and filesystems to other processes, until Ctrl-C or SIGTERM.

    These are `recuse run -d unix:PATH` for a device, `recuse run -m DIR=unix:PATH` for a
    filesystem. SPEC is as for `recuse run` or `recuse mount`. Each gets a socket that only you and
    root can use. It is in $XDG_RUNTIME_DIR/recuse or, without that, in a directory of your own in
    /tmp.
    """
    from recuse.cli.serve import serve_all

    return serve_all(specs, listen, kernel, trace, trace_format, mount=mount)


@cli.command(cls=_TracingCommand, short_help="Mount a filesystem.")
@click.option(
    "-o",
    "--options",
    "options",
    metavar="OPTION[,OPTION]...",
    multiple=True,
    help="Mount options: ro, allow_other, uid=N and others, as mount has them.",
)
@click.option(
    "--background", is_flag=True, help="Return when it is mounted; serve in the background."
)
@click.option(
    "--private", is_flag=True, help="Mount it only for PROGRAM, run PROGRAM, and end with it."
)
@_trace_option
@_trace_format_option
@click.argument("spec")
@click.argument("directory", metavar="DIR")
@click.argument("argv", metavar="[-- PROGRAM [ARG]...]", nargs=-1, type=click.UNPROCESSED)
def mount(
    spec: str,
    directory: str,
    argv: tuple[str, ...],
    *,
    options: tuple[str, ...],
    background: bool,
    private: bool,
    trace: str | None,
    trace_format: str,
) -> int:
    """Mount a filesystem written in Python on DIR, until Ctrl-C, SIGTERM or `recuse umount DIR`.

    SPEC is a file with a Filesystem or Inodes class (hellofs.py), a class or an object in a file
    (hellofs.py:Hello) or in a module. Arguments follow after commas, as for `recuse run`.

    It prints the directory when the filesystem answers. Root can mount; other users need
    fusermount3.
    """
    if background and private:
        raise click.UsageError("--background cannot be combined with --private")
    if argv and not private:
        raise click.UsageError("mount takes no program without --private")
    if private:
        if not argv:
            raise click.UsageError("--private needs a program: add -- PROGRAM")
        from recuse.cli.private import run_private

        return run_private(spec, directory, options, argv, trace=trace, layout=trace_format)
    if background:
        from recuse.cli.background import start_in_background

        return start_in_background(spec, directory, options, trace, trace_format)
    from recuse.cli.mount import serve_mount

    return serve_mount(spec, directory, options, trace, trace_format)


@cli.command(short_help="Unmount a filesystem.")
@click.option("-l", "--lazy", is_flag=True, help="Also if programs use it: their calls fail then.")
@click.argument("directory", metavar="DIR")
def umount(directory: str, *, lazy: bool) -> int:
    """Unmount the FUSE filesystem on DIR, which ends its server.

    This also removes the mount that a killed server has left behind.
    """
    from recuse.cli.mount import unmount_directory

    return unmount_directory(directory, lazy)


@cli.command(short_help="Check this machine.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def doctor(as_json: bool) -> int:
    """Check what recuse needs of this machine, and say what to do if it is missing.

    The exit status is 0 if `recuse run` can work here, 1 if not.
    """
    from recuse.cli.doctor import diagnose

    return diagnose(as_json)


def invoke(args: Sequence[str]) -> int:
    """Run the command with `args`; returns the exit status.

    Raises:
        Failure: with what to tell the user.
    """
    if len(args) == 4 and args[2] == "-o" and args[0] not in cli.commands:
        from recuse.cli.mount_helper import mount_for_mount8

        spec, directory, _, options = args
        return mount_for_mount8(spec, directory, options)
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
