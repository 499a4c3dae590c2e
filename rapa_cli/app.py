"""The command `rapa`: its subcommands, and the one place where errors become messages and exit codes.

Nothing heavy is imported here: `rapa --help` answers at once.
"""

from __future__ import annotations

import atexit
import contextlib
import difflib
import errno
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from rapa_cli import __version__, console
from rapa_cli.commands import (
    attack,
    bench,
    config,
    data,
    demo,
    doctor,
    evaluate,
    export,
    inspect,
    models,
    plan,
    reduce,
    regularizer,
    report,
    reproduce,
    session,
    train,
    vote,
)
from rapa_cli.errors import (
    FileError,
    Interrupted,
    RapaError,
    is_lack_of_memory,
    is_loss_of_worker,
    one_line,
    suggestion,
)

INTERRUPTED = 130
TERMINATED = 143
BROKEN_PIPE = 1

# Whether an error also shows where it came from.
_verbose: ContextVar[bool] = ContextVar("verbose", default=False)

# Options of `rapa` itself, which stand before the command.
_GLOBAL = {"--quiet", "-q", "--verbose", "-v"}

# What others call some options.
_ALIASES = {"rate": "--lr", "learning-rate": "--lr", "dataset": "--data", "output": "--out"}

app = typer.Typer(
    name="rapa",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rapa {__version__}")
        raise typer.Exit


@app.callback()
def rapa(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show results and errors, but neither progress nor messages.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also show warnings of libraries, and where an error came from.")
    ] = False,
) -> None:
    """Convolutional networks whose kernel matrices are replicated on several analog arrays.

    --quiet and --verbose stand before the command; NO_COLOR=1 in the environment takes the colours away.

    Example: rapa train --data shapes, then rapa --quiet vote
    """
    if quiet:
        console.quiet.set(True)
    if verbose:
        _verbose.set(True)
        warnings.simplefilter("default")


for _command in (
    train.train,
    evaluate.evaluate,
    vote.vote,
    attack.attack,
    bench.bench,
    reduce.reduce,
    report.report,
    reproduce.reproduce,
    regularizer.regularizer,
    inspect.inspect,
    plan.plan,
    export.export,
    doctor.doctor,
    demo.demo,
):
    app.command()(_command)
app.add_typer(data.app, name="data")
app.add_typer(config.app, name="config")
app.add_typer(models.app, name="models")


def main() -> NoReturn:
    """The entry point: runs `sys.argv` and exits with the code that belongs to the outcome."""
    if not sys.warnoptions:
        # Warnings of libraries are for developers: tests and `python -W` show them.
        warnings.simplefilter("ignore")
    if not os.environ.get("OMP_WAIT_POLICY"):
        # GNU OpenMP reads this when torch loads it. Its threads wait busily for as long as a small layer takes, and no
        # longer: the default makes steps many times slower where others compute too, not to wait at all twice as slow
        # where nobody does.
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    signal.signal(signal.SIGTERM, _terminate)
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = _silence_output()
    except OSError as error:
        code = _report(error)
        _silence_output()
    if 0 < code < INTERRUPTED:
        train.wait_to_be_ended()
    # Python would take apart all that torch has made, which takes a second, and more on a busy machine.
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(code)


def run(arguments: Sequence[str]) -> int:
    """Runs one command line.

    Args:
        arguments: what stands after `rapa`.

    Returns:
        The exit code: 0 done, 1 unexpected, 2 wrong usage or configuration, 3 a file is missing, damaged or cannot be
        written, 4 a check did not hold, 130 interrupted, 143 terminated.
    """
    program: Any = typer.main.get_command(app)
    given = session.arguments.set(tuple(arguments))
    quiet = console.quiet.set(console.quiet.get())
    verbose = _verbose.set(_verbose.get() or bool(os.environ.get("RAPA_TRACEBACK")))
    try:
        outcome = program(list(arguments), prog_name="rapa", standalone_mode=False)
    except SystemExit as error:
        if error.code == TERMINATED:
            _say("terminated")
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except (KeyboardInterrupt, typer.Abort):
        outcome = INTERRUPTED
    except BrokenPipeError:
        return _silence_output()
    except Exception as error:
        if hasattr(error, "format_message"):
            return _report_usage(error, *_addressed(program, arguments))
        if _verbose.get():
            traceback.print_exception(error)
        return _report(error)
    finally:
        session.arguments.reset(given)
        console.quiet.reset(quiet)
        _verbose.reset(verbose)
    if outcome == INTERRUPTED:
        _say("interrupted")
    return outcome if isinstance(outcome, int) else 0


def _report(error: Exception) -> int:
    """Shows an error in one line and a hint, and gives its exit code."""
    known = error if isinstance(error, RapaError) else _from_system(error)
    if known is None:
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        _say(f"internal error: {text}", "`rapa --verbose` before the command shows where", prefix="error: ")
        return 1
    _say(known.message, known.hint, prefix="" if isinstance(known, Interrupted) else "error: ")
    return known.exit_code


def _addressed(program: Any, arguments: Sequence[str]) -> tuple[str, Any]:
    """The path (`rapa data get`) and the object of the command that a command line speaks to."""
    path, command = "rapa", program
    for argument in arguments:
        if argument in _GLOBAL and command is program:
            continue
        below = getattr(command, "commands", {}).get(argument)
        if below is None:
            break
        path, command = f"{path} {argument}", below
    return path, command


def _report_usage(error: Any, path: str, command: Any) -> int:
    """Shows an error of the command line parser, whichever module of typer or click it comes from."""
    kind = type(error).__name__
    if kind == "NoArgsIsHelpError":
        # With no subcommand given the help is what was wanted; its text is the message.
        typer.echo(error.format_message())
        return 0
    message = " ".join(str(error.format_message()).split())
    hint = f"'{path} -h' shows what is allowed"
    unknown_command = re.match(r"No such command '(.*?)'", message)
    if kind == "NoSuchOption":
        message = f"no such option: {error.option_name}"
        known = [name for parameter in command.params for name in parameter.opts if name.startswith("-")]
        # Without dashes, which all of them have in common and which would make strangers look alike.
        names = {name.lstrip("-"): name for name in [*known, "--help"]}
        names |= {word: name for word, name in _ALIASES.items() if name in known}
        if error.option_name in _GLOBAL and path != "rapa":
            return _before_the_command(error, path)
        near = difflib.get_close_matches(str(error.option_name).lstrip("-"), names, n=1)
        hint = f"did you mean '{names[near[0]]}'?" if near else hint
    elif unknown_command:
        message = f"no such command: {unknown_command[1]}"
        hint = suggestion(unknown_command[1], command.commands)
    elif hasattr(error.__cause__, "errors"):
        # The parser's text says what is allowed, but not what it got.
        allowed = message.partition(", unable to parse")[0].rstrip(".")
        message = f"{allowed}, got '{error.__cause__.errors()[0]['input']}'".replace(": Input should", ": input should")
    _say(message[:1].lower() + message[1:].rstrip("."), hint, prefix="error: ")
    return int(error.exit_code)


def _before_the_command(error: Any, path: str) -> int:
    words = path.removeprefix("rapa ")
    _say(f"{error.option_name} stands before the command", f"rapa {error.option_name} {words} ...", prefix="error: ")
    return int(error.exit_code)


def _from_system(error: Exception) -> RapaError | None:
    """The file error or lack of memory that an exception of Python or torch stands for; None for any other."""
    if is_loss_of_worker(error):
        hint = "is there memory enough, also in /dev/shm? --workers 0 decodes images without further processes"
        return FileError("a process that decodes images was killed", hint=hint)
    if is_lack_of_memory(error):
        return FileError("out of memory", hint="try a smaller --batch-size, or fewer images")
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename is not None else ""
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return FileError(f"{where}the disk is full", hint="free some space, or choose another folder")
        if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            reason = os.strerror(error.errno).lower()
            return FileError(f"{where}{reason}", hint="choose a file or folder that you may use")
        if error.errno in {errno.ENAMETOOLONG, errno.ELOOP}:
            return FileError(f"{where}{os.strerror(error.errno).lower()}", hint="choose another name")
    return None


def _say(message: str, hint: str | None = None, *, prefix: str = "") -> None:
    """Writes one line, and one for the hint, on standard error."""
    from rich.text import Text

    screen = console.err(always=True)
    colour = "bold red" if prefix else "bold yellow"
    screen.print(Text.assemble((prefix, colour), one_line(message)), soft_wrap=True)
    if hint:
        screen.print(Text.assemble(("hint: ", "bold cyan"), one_line(hint)), soft_wrap=True)


def _silence_output() -> int:
    """Whoever read standard output is gone: nothing more can be shown there, and Python must not complain at exit."""
    with Path(os.devnull).open("wb") as nothing:
        os.dup2(nothing.fileno(), sys.stdout.fileno())
    return BROKEN_PIPE


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    """Ends the program through SystemExit, so that half-written files are removed; a second signal ends it at once."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    raise SystemExit(TERMINATED)
