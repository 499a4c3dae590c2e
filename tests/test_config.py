"""Network definitions, recipes and settings: what is refused, and what the message says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from rapa_cli import config
from rapa_cli.errors import ConfigError, FileError

RECIPE = config.Recipe(epochs=3, batch_size=10, lr=0.1)
NETWORK = config.load_network("full")


def written(folder: Path, text: str, name: str = "mine.toml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def refused(*settings: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        config.override(NETWORK, RECIPE, settings)
    assert "\n" not in caught.value.message
    return caught.value


def test_every_error_at_once_in_one_line(tmp_path: Path) -> None:
    path = written(tmp_path, 'epochs = -1\nlr = "fast"\nbatch_sizes = 10\nmomentum = 1.0\n')
    with pytest.raises(ConfigError) as caught:
        config.load_recipe(path, "none")
    message = caught.value.message
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    for part in (
        "epochs: input should be greater than or equal to 0, got -1",
        "lr: input should be a valid number, got 'fast'",
        "unknown key 'batch_sizes'",
        "'batch_size' is missing",
        "momentum: input should be less than 1, got 1.0",
    ):
        assert part in message
    assert caught.value.hint == "did you mean 'batch_size'?"


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ('pool = "maximum"\nlayers = []', "pool: input should be 'max'", "did you mean 'max'?"),
        ('sceme = "random"\nlayers = []', "unknown key 'sceme'", "did you mean 'scheme'?"),
        ('[[layers]]\nkind = "cnv"', "layers.0.kind: input should be 'conv', 'relu'", "did you mean 'conv'?"),
        (
            '[[layers]]\nkind = "conv"\nchannels = 4\nkernel = 3\npaddding = 1',
            "unknown key 'layers.0.paddding'",
            "did you mean 'padding'?",
        ),
        ('[[layers]]\nkind = "conv"\nchannels = 4', "'layers.0.kernel' is missing", "full.toml"),
        ("[[layers]]\nchannels = 4", "layers.0: unable to extract tag using discriminator 'kind'", "full.toml"),
        ('[[layers]]\nkind = "lrn"\nkernel = 4', "layers.0.kernel: allowed are odd", "full.toml"),
        ("name = 3", "name: input should be a valid string, got 3", "full.toml"),
        ("", "'layers' is missing", "full.toml"),
        ("tiles = [4, 0]\nlayers = []", "tiles.1: input should be greater than or equal to 1, got 0", "full.toml"),
    ],
)
def test_wrong_networks(tmp_path: Path, text: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load_network(written(tmp_path, text))
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert hint in str(caught.value.hint)


def test_a_long_value_is_cut(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load_network(written(tmp_path, f'layers = "{"x" * 10_000}"'))
    assert len(caught.value.message) < 300 + len(str(tmp_path))


def test_a_network_is_called_as_its_file(tmp_path: Path) -> None:
    path = written(tmp_path, '[[layers]]\nkind = "relu"', "small.toml")
    assert config.load_network(path).name == "small"


@pytest.mark.parametrize(
    ("kind", "name", "hint"),
    [("network", "ful", "did you mean 'full'?"), ("recipe", "paper-tile", "did you mean 'paper-tiled'?")],
)
def test_unknown_names(kind: str, name: str, hint: str) -> None:
    with pytest.raises(FileError) as caught:
        config.load_network(name) if kind == "network" else config.load_recipe(name, "none")
    assert caught.value.message == f"there is no {kind} '{name}'"
    assert caught.value.hint == hint


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"there is no file .*absent\.toml"):
        config.load_network(str(tmp_path / "absent.toml"))
    for number, content in enumerate((b"a = ", b"\xff\xfe", b"a = " + b"[" * 20_000, b"a" + b".a" * 30_000 + b" = 1")):
        path = tmp_path / f"broken{number}.toml"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"is not TOML") as caught:
            config.load_network(str(path))
        assert "\n" not in caught.value.message


def test_the_table_of_a_scheme_replaces_keys(tmp_path: Path) -> None:
    text = "epochs = 2\nbatch_size = 5\nlr = 0.1\n[scheme.random]\nepochs = 7\nlr_scaling = 'linear'\n"
    path = written(tmp_path, text)
    plain, tiled = config.load_recipe(path, "none"), config.load_recipe(path, "random")
    assert (plain.epochs, plain.lr_scaling) == (2, "none")
    assert (tiled.epochs, tiled.lr_scaling, tiled.lr) == (7, "linear", 0.1)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[scheme.randm]\nepochs = 1", "there is no scheme 'randm'", "did you mean 'random'?"),
        ("scheme = 'random'", "'scheme' must hold tables", "[scheme.random]"),
        ("[scheme]\nrandom = 3", "'scheme' must hold tables", "[scheme.random]"),
        ("[scheme.random]\nepoch = 1", "unknown key 'epoch'", "did you mean 'epochs'?"),
    ],
)
def test_wrong_tables_of_schemes(tmp_path: Path, text: str, message: str, hint: str) -> None:
    path = written(tmp_path, f"epochs = 2\nbatch_size = 5\nlr = 0.1\n{text}")
    with pytest.raises(ConfigError) as caught:
        config.load_recipe(path, "random")
    assert message in caught.value.message
    assert hint in str(caught.value.hint)


def test_settings() -> None:
    network, recipe = config.override(
        NETWORK,
        RECIPE,
        [
            "lr=0.01",
            "recipe.momentum = 0.9",
            "mirror=false",
            "network.pool=stochastic",
            'scheme="random"',
            "tiles=[16, 4, 1]",
            "recipe.description=two words",
            "epochs=5",
            "epochs=6",
        ],
    )
    assert (recipe.lr, recipe.momentum, recipe.mirror, recipe.description) == (0.01, 0.9, False, "two words")
    assert recipe.epochs == 6, "the last of two settings holds"
    assert (network.pool, network.scheme, network.tiles) == ("stochastic", "random", (16, 4, 1))
    assert (RECIPE.lr, NETWORK.pool) == (0.1, "max"), "what was given stays as it was"


def test_a_bare_key_is_the_recipes_first() -> None:
    network, recipe = config.override(NETWORK, RECIPE, ["description=mine"])
    assert (network.description, recipe.description) == (NETWORK.description, "mine")
    network, recipe = config.override(NETWORK, RECIPE, ["network.description=mine"])
    assert (network.description, recipe.description) == ("mine", "")


def test_whole_numbers_are_numbers() -> None:
    assert config.override(NETWORK, RECIPE, ["lr=1"])[1].lr == 1.0


def test_layers_can_be_set() -> None:
    network, _ = config.override(NETWORK, RECIPE, ['network.layers=[{kind = "relu"}, {kind = "linear"}]'])
    assert [layer.kind for layer in network.layers] == ["relu", "linear"]


@pytest.mark.parametrize(
    ("setting", "message", "hint"),
    [
        ("lr", "--set lr: there is no '='", "write --set key=value, as in --set lr=0.01"),
        ("momentun=0.5", "unknown key 'momentun'", "did you mean 'momentum'?"),
        ("recipe.pool=max", "unknown key 'recipe.pool'", "did you mean 'network.pool'?"),
        ("nework.pool=max", "unknown key 'nework.pool'", "did you mean 'network.pool'?"),
        ("=3", "unknown key ''", "known: "),
        ("a.b.lr=3", "unknown key 'a.b.lr'", "did you mean 'recipe.lr'?"),
        ("poool=max", "unknown key 'poool'", "did you mean 'pool'?"),
        ("network.poool=max", "unknown key 'network.poool'", "did you mean 'pool'?"),
        ("lr=fast", "recipe.lr: input should be a valid number, got 'fast'", "values are TOML"),
        ("lr='0.1'", "recipe.lr: input should be a valid number, got '0.1'", "values are TOML"),
        ("lr=", "recipe.lr: input should be a valid number, got ''", "values are TOML"),
        ("lr=0", "recipe.lr: input should be greater than 0, got 0", "values are TOML"),
        ("lr=nan", "recipe.lr: input should be a finite number", "values are TOML"),
        ("lr=inf", "recipe.lr: input should be a finite number", "values are TOML"),
        ("epochs=2.5", "recipe.epochs: input should be a valid integer, got 2.5", "values are TOML"),
        ("epochs=true", "recipe.epochs: input should be a valid integer, got True", "values are TOML"),
        ("lr=true", "recipe.lr: input should be a valid number, got True", "values are TOML"),
        ("mirror=1", "recipe.mirror: input should be a valid boolean, got 1", "values are TOML"),
        ("epochs=[1]", "recipe.epochs: input should be a valid integer, got [1]", "values are TOML"),
        ("epochs=1979-05-27", "recipe.epochs: input should be a valid integer, got '1979-05-27'", "values are TOML"),
        ("epochs=1\nlr = 2", "recipe.epochs: input should be a valid integer", "values are TOML"),
        ("tiles=16", "network.tiles: input should be a valid", "tiles=[16,4,1], or --tiles 16,4,1"),
        ("pool=avrage", "network.pool: input should be 'max'", "did you mean 'average'?"),
        ("scheme=randomfixed", "network.scheme: input should be 'none'", "did you mean 'random-fixed'?"),
    ],
)
def test_wrong_settings(setting: str, message: str, hint: str) -> None:
    error = refused(setting)
    assert message in error.message
    assert hint in str(error.hint)


def test_every_wrong_setting_at_once() -> None:
    error = refused("momentun=0.5", "lr", "poool=max", "epochs=x")
    for part in ("unknown key 'momentun'", "--set lr: there is no '='", "unknown key 'poool'", "recipe.epochs: input"):
        assert part in error.message
    assert error.hint == "did you mean 'momentum'?"


def test_wrong_settings_of_both_tables_at_once() -> None:
    message = refused("lr=-1", "pool=mean", "epochs=x").message
    assert all(place in message for place in ("recipe.lr", "network.pool", "recipe.epochs"))


@given(st.text(max_size=30), st.text(max_size=30))
def test_no_setting_ends_in_another_error(key: str, value: str) -> None:
    try:
        network, recipe = config.override(NETWORK, RECIPE, [f"{key}={value}", f"lr={value}"])
    except ConfigError as error:
        assert "--set" in error.message or error.message.startswith("settings: ")
    else:
        assert isinstance(network, config.Network)
        assert recipe.lr > 0


@pytest.mark.parametrize(("thing", "key"), [(NETWORK, "pool"), (RECIPE, "lr"), (NETWORK.layers[0], "channels")])
def test_configurations_are_frozen(thing: Any, key: str) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(thing, key, getattr(thing, key))


def test_what_is_dumped_can_be_read_again() -> None:
    dumped = NETWORK.model_dump(mode="json")
    assert config.validate(config.Network, dumped, "here") == NETWORK
    assert config.validate(config.Recipe, RECIPE.model_dump(), "here") == RECIPE


def test_the_name_of_a_tiling() -> None:
    assert config.tiling("random", (16, 4, 1)) == "random (16,4,1)"
    assert config.tiling("alternate", None) == "alternate"
    # Its single tiles go without saying.
    assert config.tiling("none", (1, 1, 1)) == "none"
