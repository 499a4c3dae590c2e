"""Whatever a user does wrong ends in one line that says what, and one with a way out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.commands.conftest import Run, refused

MISTAKES = [
    (2, "train --tiles 15,4,1 --scheme alternate --data mini"),
    (2, "train --tiles 16 --scheme none --data mini --network tiny.toml"),
    (2, "train --network full --data dots"),
    (2, "train --recipe bad.toml --data mini"),
    (2, "train --device gpu"),
    (2, "train --batch-size 0"),
    (2, "train --nothing"),
    (2, "train --set tiles=7 --data mini"),
    (3, "train --out /proc/x/y --network tiny.toml --data mini"),
    (3, "train --resume nope"),
    (2, "train --resume runs/done --epochs 1"),
    (2, "evaluate --split all"),
    (3, "evaluate nope"),
    (3, "evaluate data/mini/test.safetensors"),
    (2, "vote -n many"),
    (2, "attack --eps 8"),
    (2, "reduce --by size"),
    (3, "inspect bad.toml"),
    (3, "data get x --from nothere"),
    (3, "data get x --from bad.toml"),
    (3, "data get x --from labels"),
    (3, "data get x"),
    (2, "data get ../x"),
    (2, "data show shapes --out x.jpg"),
    (2, "data show shapes --out x.png --split all"),
    (2, "data show shapes"),
    (2, "bench --tiles x"),
    (2, "tran"),
]


@pytest.mark.parametrize(("code", "line"), MISTAKES, ids=[line for _, line in MISTAKES])
def test_a_line_and_a_hint(rapa: Run, code: int, line: str) -> None:
    Path("bad.toml").write_text("epochs 3", encoding="utf-8")
    Path("labels").mkdir()
    for name in ("train", "test"):
        labels = np.array([0, 70_000])
        np.savez(Path("labels") / f"{name}.npz", images=np.zeros((2, 4, 4), np.uint8), labels=labels)
        for kind in ("a", "b"):
            folder = Path("dots") / name / kind
            folder.mkdir(parents=True)
            Image.new("L", (4, 4)).save(folder / "1.png")
    words = line.split()
    if "dots" in words:
        assert rapa("data", "get", "dots", "--from", "dots", "--data-dir", "here").code == 0
        words += ["--data-dir", "here"]
    if "data/mini/test.safetensors" in words:
        assert rapa("data", "get", "mini", "--from", "dots", "--data-dir", "data").code == 0
    refused(rapa(*words), code, "", "")
