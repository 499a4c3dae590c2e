"""The command line: help, exit codes, one-line errors, and lists of levels."""

from __future__ import annotations

import errno
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

import rapa_cli
from rapa_cli import app as application
from rapa_cli.commands.options import MAX_LEVELS, parse_levels, parse_tiles
from rapa_cli.errors import CheckFailed, ConfigError, FileError, Interrupted, RapaError, suggestion


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def rapa(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> Outcome:
        code = application.run(arguments)
        return Outcome(code, *capsys.readouterr())

    return run


def python(code: str, *, variables: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **(variables or {})}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)


def commands() -> list[list[str]]:
    """Every command and subcommand, the program itself included."""
    root = typer.main.get_command(application.app)
    found: list[list[str]] = [[]]
    for name, command in sorted(getattr(root, "commands", {}).items()):
        found.append([name])
        found += [[name, below] for below in sorted(getattr(command, "commands", {}))]
    return found


COMMANDS = ["train", "evaluate", "vote", "attack", "reduce", "inspect", "plan", "export", "report", "reproduce"]
COMMANDS += ["regularizer", "bench", "data", "doctor", "demo", "models", "config"]


def test_the_commands() -> None:
    assert [words[0] for words in commands() if len(words) == 1] == sorted(COMMANDS)


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_help_works_everywhere(rapa: Run, words: list[str], flag: str) -> None:
    outcome = rapa(*words, flag)
    assert outcome.code == 0
    assert outcome.out.startswith(" ".join(["Usage: rapa", *words]))
    assert "-h, --help" in outcome.out
    assert outcome.err == ""


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_option_says_what_it_is(words: list[str]) -> None:
    command = typer.main.get_command(application.app)
    for word in words:
        command = command.commands[word]  # type: ignore[attr-defined]  # only groups have it
    assert command.help
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{words}: {parameter.name} has no help"


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_help_has_an_example(rapa: Run, words: list[str]) -> None:
    text = " ".join(rapa(*words, "--help").out.split())
    assert " Example: rapa" in text
    example = text.partition(" Example: ")[2].partition(" Options:")[0].partition(",")[0].split()
    # Of a group, the example is of one of its commands; of a command, of the command itself.
    assert example[: len(words) + 1] == ["rapa", *words]
    assert example[1] in COMMANDS


@pytest.mark.parametrize("option", ["-q", "--quiet", "-v", "--verbose"])
def test_options_of_the_program_stand_before_the_command(rapa: Run, option: str) -> None:
    outcome = rapa("data", "list", option)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == f"error: {option} stands before the command\nhint: rapa {option} data list ...\n"
    outcome = rapa(option, "data", "list", "--jsn")
    assert outcome.err.splitlines()[-1] == "hint: did you mean '--json'?"


def test_quiet_leaves_results_and_errors(rapa: Run) -> None:
    loud, quiet = rapa("data", "list"), rapa("--quiet", "data", "list")
    assert loud.err.startswith("data folder: ")
    assert quiet == Outcome(0, loud.out, "")
    missing = rapa("evaluate", "nothing")
    assert rapa("-q", "evaluate", "nothing") == missing
    assert missing.err
    assert rapa("data", "list") == loud


def test_verbose_shows_where_an_error_came_from(rapa: Run) -> None:
    brief, long = rapa("evaluate", "nothing"), rapa("-v", "evaluate", "nothing")
    assert long.code == brief.code
    assert long.err.startswith("Traceback (most recent call last):\n")
    assert long.err.endswith(brief.err)
    assert rapa("evaluate", "nothing") == brief


@pytest.mark.parametrize("colours", [True, False])
def test_no_color(colours: bool, tmp_path: Path) -> None:
    """On a terminal errors are coloured, and with NO_COLOR they are not."""
    pty = pytest.importorskip("pty", reason="this system has no pseudo terminals")
    main, branch = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    environment |= {"TERM": "xterm-256color"} | ({} if colours else {"NO_COLOR": "1"})
    command = [sys.executable, "-m", "rapa_cli", "trian"]
    done = subprocess.run(command, stderr=branch, env=environment, check=False)
    os.close(branch)
    shown = os.read(main, 10_000).decode()
    os.close(main)
    assert done.returncode == 2
    assert "no such command: trian" in shown
    coloured = re.search(r"\x1b\[[0-9;]*3[0-7]m", shown) is not None
    assert coloured is colours


def test_no_arguments_show_the_help(rapa: Run) -> None:
    assert rapa() == rapa("--help")
    for name in COMMANDS:
        assert f"\n  {name} " in rapa("--help").out


def test_the_version(rapa: Run) -> None:
    assert rapa("--version") == Outcome(0, f"rapa {rapa_cli.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["trian"], "no such command: trian", "did you mean 'train'?"),
        (["zzz"], "no such command: zzz", f"known: {', '.join(sorted(COMMANDS))}"),
        (["--vresion"], "no such option: --vresion", "did you mean '--version'?"),
        (["doctor", "--jsn"], "no such option: --jsn", "did you mean '--json'?"),
        (["doctor", "--data-dir"], "option '--data-dir' requires an argument", "'rapa doctor -h' shows"),
        (["doctor", "extra"], "unexpected extra argument", "'rapa doctor -h' shows what is allowed"),
        (["evaluate", "--seed", "x"], "'--seed': input should be a valid integer, got 'x'", "'rapa evaluate -h' shows"),
        (
            ["evaluate", "--seed", "-1"],
            "greater than or equal to 0, got '-1'",
            "'rapa evaluate -h' shows what is allowed",
        ),
        (["vote", "-n", "0"], "input should be greater than or equal to 1, got '0'", "'rapa vote -h' shows"),
        (["evaluate", "--device", "gpu"], "--device: got 'gpu', allowed are", "`rapa doctor` shows"),
    ],
)
def test_wrong_usage_is_one_line_and_a_hint(rapa: Run, arguments: list[str], message: str, hint: str) -> None:
    outcome = rapa(*arguments)
    assert outcome.code == 2
    assert outcome.out == ""
    lines = outcome.err.splitlines()
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert len(lines) == 2
    assert lines[1].startswith("hint: ")
    assert hint in lines[1]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Lets the program run one command, `fail`, which raises what it is told."""

    def make(error: BaseException) -> None:
        broken = typer.Typer(rich_markup_mode=None)

        @broken.callback()
        def root() -> None:
            """Nothing."""

        @broken.command()
        def fail() -> None:
            raise error

        monkeypatch.setattr(application, "app", broken)

    return make


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (RapaError("a"), 1, ["error: a"]),
        (ConfigError("a", hint="b"), 2, ["error: a", "hint: b"]),
        (FileError("a\nb", hint="c\td"), 3, ["error: a b", r"hint: c\td"]),
        (FileError("[bold]x[/bold] \x1b[31m"), 3, [r"error: [bold]x[/bold] \x1b[31m"]),
        (CheckFailed("a"), 4, ["error: a"]),
        (Interrupted("stopped", exit_code=130, hint="go on"), 130, ["stopped", "hint: go on"]),
        (Interrupted("stopped", exit_code=143), 143, ["stopped"]),
        (KeyboardInterrupt(), 130, ["interrupted"]),
        (SystemExit(143), 143, ["terminated"]),
        (SystemExit(None), 0, []),
        (typer.Exit(4), 4, []),
        (typer.Abort(), 130, ["interrupted"]),
        (MemoryError(), 3, ["error: out of memory", "hint: try a smaller --batch-size, or fewer images"]),
        (OutOfMemoryError("CUDA"), 3, ["error: out of memory", "hint: try a smaller --batch-size, or fewer images"]),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            3,
            ["error: out of memory", "hint: try a smaller --batch-size, or fewer images"],
        ),
        (
            OSError(errno.ENOSPC, "No space left", "/x/y"),
            3,
            ["error: /x/y: the disk is full", "hint: free some space, or choose another folder"],
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x/y"),
            3,
            ["error: /x/y: permission denied", "hint: choose a file or folder that you may use"],
        ),
        (
            ZeroDivisionError("a\nb"),
            1,
            ["error: internal error: ZeroDivisionError: a b", "hint: `rapa --verbose` before the command shows where"],
        ),
        (
            AssertionError(),
            1,
            ["error: internal error: AssertionError", "hint: `rapa --verbose` before the command shows where"],
        ),
    ],
    ids=repr,
)
def test_errors_become_exit_codes(
    rapa: Run, failing: Callable[[BaseException], None], error: BaseException, code: int, lines: list[str]
) -> None:
    failing(error)
    outcome = rapa("fail")
    assert (outcome.code, outcome.out, outcome.err.splitlines()) == (code, "", lines)


def test_the_traceback_is_shown_when_asked_for(
    rapa: Run, failing: Callable[[BaseException], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAPA_TRACEBACK", "1")
    failing(ZeroDivisionError("why"))
    outcome = rapa("fail")
    assert outcome.code == 1
    assert "Traceback (most recent call last)" in outcome.err
    assert outcome.err.splitlines()[-2] == "error: internal error: ZeroDivisionError: why"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize(("name", "code", "word"), [("SIGTERM", 143, "terminated"), ("SIGINT", 130, "interrupted")])
def test_signals_end_a_command_cleanly(tmp_path: Path, name: str, code: int, word: str) -> None:
    path = tmp_path / "half"
    outcome = python(
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from rapa_cli import app, files\n"
        "@app.app.command()\n"
        "def stop() -> None:\n"
        f"    with files.atomic(Path({str(path)!r})):\n"
        f"        os.kill(os.getpid(), signal.{name})\n"
        "        signal.pause()\n"
        "sys.argv[1:] = ['stop']\n"
        "app.main()\n"
    )
    assert (outcome.returncode, outcome.stderr.splitlines()) == (code, [word])
    assert list(tmp_path.iterdir()) == []
    assert getattr(signal, name)


def test_the_end_does_what_was_registered_for_it_and_takes_nothing_apart() -> None:
    outcome = python(
        "import atexit, sys\n"
        "class Kept:\n"
        "    def __del__(self):\n"
        "        sys.stderr.write('taken apart')\n"
        "kept = Kept()\n"
        "atexit.register(lambda: sys.stderr.write('registered'))\n"
        "from rapa_cli import app\n"
        "sys.argv[1:] = ['--version']\n"
        "app.main()\n"
    )
    assert (outcome.returncode, outcome.stderr) == (0, "registered")
    assert outcome.stdout.startswith("rapa ")


def test_a_reader_that_leaves_is_no_error() -> None:
    outcome = python(
        "import os, sys\n"
        "reader, writer = os.pipe()\n"
        "os.close(reader)\n"
        "os.dup2(writer, 1)\n"
        "from rapa_cli import app\n"
        "sys.argv[1:] = ['--help']\n"
        "app.main()\n"
    )
    assert (outcome.returncode, outcome.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full, which is a full disk")
def test_output_that_cannot_be_written() -> None:
    with Path("/dev/full").open("w", encoding="ascii") as full:
        outcome = subprocess.run(
            [sys.executable, "-m", "rapa_cli", "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert outcome.returncode == 3
    assert outcome.stderr.splitlines()[0] == "error: the disk is full"


def test_warnings_of_libraries_are_for_developers() -> None:
    code = (
        "import sys, warnings\n"
        "from rapa_cli import app\n"
        "@app.app.command()\n"
        "def warn() -> None:\n"
        "    warnings.warn('look here', UserWarning)\n"
        "sys.argv[1:] = ['warn']\n"
        "app.main()\n"
    )
    assert python(code).stderr == ""
    assert "look here" in python(code, variables={"PYTHONWARNINGS": "default"}).stderr


@pytest.mark.parametrize(
    ("given", "seen"), [({}, "2000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None"), ({"GOMP_SPINCOUNT": "7"}, "7")]
)
def test_threads_wait_busily_for_a_short_time_unless_the_user_wants_otherwise(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], seen: str
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    code = (
        "import os, sys\n"
        "from rapa_cli import app\n"
        "app.app.command('show')(lambda: print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules))\n"
        "sys.argv[1:] = ['show']\n"
        "app.main()\n"
    )
    assert python(code, variables=given).stdout == f"{seen} False\n"


HEAVY = "torch|torchvision|numpy|scipy|matplotlib|torchattacks"


@pytest.mark.parametrize("arguments", ["--help", "train --help", "data --help", "--version", "trian"])
def test_help_loads_nothing_heavy(arguments: str) -> None:
    outcome = python(
        "import sys\n"
        "from rapa_cli import app\n"
        f"app.run({arguments.split()!r})\n"
        # typer itself loads pydantic once it reads a subcommand's options.
        f"heavy = {HEAVY.split('|')!r} + {['pydantic'] if arguments == '--help' else []!r}\n"
        "print(sorted(set(heavy) & set(sys.modules)), file=sys.stderr)\n"
    )
    assert outcome.stderr.splitlines()[-1] == "[]"


def test_the_package_loads_nothing_heavy() -> None:
    outcome = python(f"import sys, rapa_cli\ndir(rapa_cli)\nprint({set(HEAVY.split('|'))!r} & set(sys.modules))\n")
    assert outcome.stdout == "set()\n"


def test_suggestions() -> None:
    assert suggestion("epochs", ["epoch", "lr"]) == "did you mean 'epoch'?"
    assert suggestion("zzz", ["lr", "epoch"]) == "known: epoch, lr"


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        ("0", [0.0]),
        ("1/255,4/255", [1 / 255, 4 / 255]),
        (" 0.5 , 1e-2 ", [0.5, 0.01]),
        ("-3,+3,.5,5.", [-3.0, 3.0, 0.5, 5.0]),
        ("0:30:7", [0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0]),
        ("30:0:3", [30.0, 15.0, 0.0]),
        ("0:8/255:3,1", [0.0, 4 / 255, 8 / 255, 1.0]),
        ("0:1:11", [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
    ],
)
def test_levels(text: str, levels: list[float]) -> None:
    assert parse_levels(text, "--eps") == levels


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "an empty level"),
        ("1,,2", "an empty level"),
        ("1,nan", "'nan'"),
        ("inf", "'inf'"),
        ("eight", "'eight'"),
        ("1/0", "'1/0', which divides by zero"),
        ("1/2/3", "'1/2/3'"),
        ("1e999", "'1e999', which is too large"),
        ("1e9999", "'1e9999', which is not a finite number"),
        ("0:1", "a range is start:stop:count"),
        ("0:1:1", "the count '1'"),
        ("0:1:2.5", "the count '2.5'"),
        ("0:x:3", "'x' in '0:x:3'"),
        ("0:1:999999", "the count '999999'"),
        ("٣", "not a finite number"),
        ("1 2", "'1 2'"),
        ("9" * 5000, "not a finite number"),
        (f"0:1:{MAX_LEVELS},1", f"more than {MAX_LEVELS} levels"),
    ],
)
def test_wrong_levels(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_levels(text, "--eps")
    assert caught.value.message.startswith("--eps: got ")
    assert words in caught.value.message
    assert len(caught.value.message) < 200
    assert caught.value.hint


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(finite, min_size=1, max_size=20))
def test_floats_survive_being_written_and_read(levels: list[float]) -> None:
    assert parse_levels(",".join(map(repr, levels)), "--snr") == levels


@given(st.integers(-999, 999), st.integers(1, 999))
def test_fractions_are_the_nearest_floats(above: int, below: int) -> None:
    assert parse_levels(f"{above}/{below}", "--eps") == [above / below]


@given(finite, finite, st.integers(2, 50))
def test_ranges_are_even_and_have_both_ends(start: float, stop: float, count: int) -> None:
    levels = parse_levels(f"{start!r}:{stop!r}:{count}", "--snr")
    assert len(levels) == count
    assert (levels[0], levels[-1]) == (start, stop)
    assert levels == sorted(levels, reverse=stop < start)
    middle = Fraction(start) + (Fraction(stop) - Fraction(start)) / (count - 1)
    assert levels[1] == float(middle) or math.isclose(levels[1], float(middle), rel_tol=1e-12)


@given(st.text(max_size=30))
def test_any_text_is_levels_or_a_config_error(text: str) -> None:
    try:
        levels = parse_levels(text, "--eps")
    except ConfigError as error:
        assert error.exit_code == 2
    else:
        assert levels
        assert all(math.isfinite(level) for level in levels)


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=10))
def test_tiles_survive_being_written_and_read(tiles: list[int]) -> None:
    assert parse_tiles(", ".join(map(str, tiles))) == tuple(tiles)


@pytest.mark.parametrize("text", ["", "16,x", "0", "-1", "1.5", "16,,1", "²", "9" * 5000])
def test_wrong_tiles(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--tiles: got .*, allowed are whole numbers from 1 up"):
        parse_tiles(text)


def test_an_interrupt_among_the_imports_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n", encoding="utf-8")
    places = os.pathsep.join((str(tmp_path), str(Path(rapa_cli.__file__).parent.parent)))
    done = subprocess.run(
        [sys.executable, "-m", "rapa_cli", "-h"],
        env={**os.environ, "PYTHONPATH": places},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
