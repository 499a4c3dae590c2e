"""Completion: what shells are offered, asked as they ask; and that the names written down are those that there are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rapa_cli import config, resources
from rapa_cli.analog.presets import INFERENCE_PRESETS, PRESETS
from rapa_cli.analysis.reduction import WAYS
from rapa_cli.attacks.methods import METHODS
from rapa_cli.attacks.threat import THREATS
from rapa_cli.commands import completion
from rapa_cli.data import catalog
from rapa_cli.experiments.catalog import EXPERIMENTS
from rapa_cli.exporting.files import SUFFIXES
from rapa_cli.runs import MANIFEST
from tests import zoo

BASH = """\
source ./completion.sh
COMP_WORDS=(rapa {words}) COMP_CWORD={number}
_rapa_completion rapa
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def test_the_names_written_down_are_those_there_are() -> None:
    assert sorted(completion.SCHEMES) == sorted(config.SchemeName.__args__)  # type: ignore[attr-defined]
    assert sorted(completion.POOLS) == sorted(config.PoolMethod.__args__)  # type: ignore[attr-defined]
    assert sorted(completion.PRESETS) == sorted([*PRESETS, *INFERENCE_PRESETS])
    assert tuple(EXPERIMENTS) == completion.EXPERIMENTS
    assert completion.DATA == catalog.KNOWN
    assert tuple(SUFFIXES) == completion.FORMS
    assert completion.WAYS == WAYS
    assert completion.MANIFEST == MANIFEST
    assert completion.METHODS == METHODS
    assert completion.THREATS == THREATS
    scalings: tuple[str, ...] = config.Recipe.model_fields["lr_scaling"].annotation.__args__  # type: ignore[union-attr]
    assert completion.scalings("") == sorted(scalings)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run here, two below ./runs and one elsewhere, a zoo, and a data set in the store."""
    for folder in ("mine", "runs/none", "runs/random", "elsewhere/far"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "run.json").write_text("{}", encoding="utf-8")
    (tmp_path / "runs" / "empty").mkdir()
    zoo.fill(zoo.models(tmp_path / "models", monkeypatch), "tiny-random")
    stored = tmp_path / "data" / "mini"
    stored.mkdir(parents=True)
    (stored / "train.safetensors").write_bytes(b"")
    monkeypatch.setenv("RAPA_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_run_folders(place: Path) -> None:
    assert completion.runs("") == ["mine", "runs/none", "runs/random"]
    assert completion.runs("runs/r") == ["runs/random"]
    assert completion.runs("./runs/") == ["./runs/none", "./runs/random"]
    assert completion.runs("else") == []
    assert completion.runs("elsewhere/") == ["elsewhere/far"]
    assert completion.runs(f"{place}/m") == [f"{place}/mine"]
    assert completion.runs("[") == []


def test_what_stands_for_checkpoints(place: Path) -> None:
    assert completion.checkpoints("") == ["mine", "runs/none", "runs/random", "tiny-random"]
    assert completion.planned("f") == ["full"]
    assert completion.inspected("Gok") == ["GokmenVlasov"]
    assert completion.sources("r") == ["reduced", "runs/none", "runs/random"]
    assert completion.models("") == [*resources.names("networks"), "tiny-random"]


def test_lists_are_completed_at_their_end() -> None:
    assert completion.scheme_list("none,random") == ["none,random", "none,random-fixed"]
    assert completion.method_list("fgsm,eot") == ["fgsm,eotpgd", "fgsm,eotpgd-l2"]
    assert completion.pool_list("max,") == ["max,average", "max,mixed", "max,stochastic"]


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """An environment in which the command `rapa` is this one."""
    folder = tmp_path / "bin"
    folder.mkdir()
    command = folder / "rapa"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m rapa_cli "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    root = str(Path(completion.__file__).parents[2])
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": root, "RAPA_DATA_DIR": str(tmp_path / "data")}


def ask(shell: dict[str, str], *command: str) -> list[str]:
    outcome = subprocess.run(command, capture_output=True, text=True, check=False, env=shell)
    assert outcome.stderr == ""
    return outcome.stdout.splitlines()


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash(place: Path, shell: dict[str, str]) -> None:
    # What --show-completion prints where a shell is found among the parents, of which tests have none.
    asking = {**shell, "_RAPA_COMPLETE": "source_bash"}
    script = subprocess.run(["rapa"], capture_output=True, text=True, check=True, env=asking)
    (place / "completion.sh").write_text(script.stdout, encoding="utf-8")

    def offered(*words: str) -> list[str]:
        text = BASH.format(words=" ".join(f"'{word}'" for word in words), number=len(words))
        return ask(shell, "bash", "--norc", "-c", text)

    assert offered("eval") == ["evaluate"]
    assert offered("evaluate", "runs/") == ["runs/none", "runs/random"]
    assert offered("train", "--data", "mi") == ["mini"]
    assert offered("train", "--scheme", "image") == ["image-overlap", "image-pad"]
    assert offered("models", "show", "al") == ["alexnet"]
    assert offered("evaluate", "--se") == ["--seed"]
    # Nothing of ours: bash offers files then.
    assert offered("train", "--out", "m") == [""]


@pytest.mark.parametrize("name", ["zsh", "fish"])
def test_other_shells(place: Path, shell: dict[str, str], name: str) -> None:
    """The protocol needs no shell, but only the environment that it sets."""
    asking = {
        "_RAPA_COMPLETE": f"complete_{name}",
        "_TYPER_COMPLETE_ARGS": "rapa attack --source re",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    said = " ".join(ask({**shell, **asking}, "rapa"))
    assert "reduced" in said
    assert "runs" not in said


def test_no_torch_is_loaded() -> None:
    code = (
        "import os, sys\n"
        "os.environ |= {'_RAPA_COMPLETE': 'complete_bash', 'COMP_WORDS': 'rapa plan ', 'COMP_CWORD': '2'}\n"
        "from rapa_cli import app\n"
        "assert app.run([]) == 0\n"
        "print({'torch', 'numpy', 'rich.console', 'rapa_cli.config'} & set(sys.modules), file=sys.stderr)\n"
    )
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert outcome.stderr == "set()\n"
    assert "full" in outcome.stdout.splitlines()
