"""Cards of the zoo: read strictly, every error named."""

from __future__ import annotations

from pathlib import Path

import pytest

from rapa_cli import resources
from rapa_cli import zoo as cards
from rapa_cli.errors import FileError
from tests import zoo


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return zoo.models(tmp_path / "models", monkeypatch)


def test_a_card_is_read(root: Path) -> None:
    zoo.fill(root, "tiny-random")
    card = cards.card("tiny-random")
    assert (card.network, card.scheme, card.tiles, card.data) == ("tiny", "random", (4,), "mini")
    assert (card.test_error, card.test_error_ci95, card.accuracy_33db) == (50.0, (31.3, 68.7), 80.0)
    assert card.date.isoformat() == "2026-07-01"


def test_every_key_must_be_there_but_for_those_of_tiles(root: Path) -> None:
    untiled = zoo.CARD.replace('"random"', '"none"').splitlines(keepends=True)
    for number, line in enumerate(untiled):
        key = line.partition(" ")[0]
        place = zoo.fill(root, f"no-{key}", card="".join(untiled[:number] + untiled[number + 1 :]))
        if key in ("vote5_error", "reduced_error"):
            cards.read_card(place.with_name(cards.CARD))
            continue
        with pytest.raises(FileError, match=f"'{key}' is missing"):
            cards.read_card(place.with_name(cards.CARD))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seed = 0", 'seed = "0"', "seed: "),
        ("seed = 0", "seed = true", "seed: "),
        ("test_error = 50.0", "test_error = 70.0", "test_error 70 lies outside of its interval 31.3 to 68.7"),
        ("accuracy_33db = 80.0", "accuracy_33db = 101.0", "accuracy_33db: "),
        ("accuracy_33db = 80.0", "accuracy_33db = nan", "accuracy_33db: "),
        ("vote5_error = 46.67\n", "", "vote5_error and reduced_error must be there"),
        ('scheme = "random"', 'scheme = "randm"', "got 'randm'"),
        ('"rapa train', '"train', "command must begin with 'rapa train'"),
        ("date = 2026-07-01", 'date = "July"', "date: "),
        ("seed = 0", "seed = 0\nseeds = 0", "unknown key 'seeds'"),
        ("tiles = [4]", "tiles = [4", "is not TOML"),
    ],
)
def test_a_damaged_card(root: Path, old: str, new: str, message: str) -> None:
    assert old in zoo.CARD
    zoo.fill(root, "tiny-random", card=zoo.CARD.replace(old, new))
    with pytest.raises(FileError) as caught:
        cards.card("tiny-random")
    assert message in caught.value.message
    assert str(Path("tiny-random") / "card.toml") in caught.value.message
    assert caught.value.hint


def test_networks_that_are_not_there(root: Path) -> None:
    assert resources.zoo_names() == []
    with pytest.raises(FileError, match="no network 'tiny' in the zoo"):
        cards.card("tiny")
    zoo.fill(root, "tiny-random", card=None)
    assert resources.zoo_names() == ["tiny-random"]
    with pytest.raises(FileError, match=r"card\.toml"):
        cards.card("tiny-random")
    (root / "zoo" / "other").mkdir()
    (root / "zoo" / "other" / "last.safetensors").write_bytes(b"")
    assert resources.zoo_names() == ["tiny-random"]


def test_what_lies_in_the_zoo(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = zoo.fill(root, "tiny-random")
    assert resources.in_zoo("tiny-random") == place
    assert resources.in_zoo("../zoo/tiny-random") is None
    assert resources.zoo_name(place) == "tiny-random"
    monkeypatch.chdir(place.parent)
    assert resources.zoo_name(Path(place.name)) == "tiny-random"
    assert resources.zoo_name(tmp_path / "runs" / "a" / "last.safetensors") is None
