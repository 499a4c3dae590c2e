"""The configuration: network definitions and recipes, validated once at the edge and frozen."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from rapa_cli.errors import ConfigError, FileError, commas, suggestion, with_suggestion
from rapa_cli.resources import definition, models_root

PoolMethod = Literal["max", "average", "mixed", "stochastic"]
SchemeName = Literal["none", "random", "random-fixed", "image-overlap", "image-pad", "alternate", "perforated"]
Model = TypeVar("Model", bound=BaseModel)
TORCHVISION = "torchvision:"

# Far above any real layer, and far below what overflows.
_LARGEST = 65_536
_MOST_LAYERS = 1000
# Bytes of a TOML file, far above any definition.
_MOST_TOML = 2**16
# Of a line: Python's parser takes a time that grows with the square of the parts of a dotted key.
_MOST_DOTS = 500
# Characters of the value of a setting, for the same reason.
_MOST_VALUE = 4096
# How many wrong keys and values a message names.
_MOST_PROBLEMS = 20
_SET_HINT = "values are TOML: 0.01, true, [16, 4, 1]"


class Frozen(BaseModel):
    """A table whose keys are all known and whose values do not change."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Conv(Frozen):
    """A convolution; sizes in pixels."""

    kind: Literal["conv"]
    channels: int = Field(ge=1, le=_LARGEST)
    kernel: int = Field(ge=1, le=_LARGEST)
    stride: int = Field(1, ge=1, le=_LARGEST)
    padding: int = Field(0, ge=0, le=_LARGEST)
    dilation: int = Field(1, ge=1, le=_LARGEST)


class Relu(Frozen):
    """max(x, 0)."""

    kind: Literal["relu"]


class Pool(Frozen):
    """Pooling with Caffe's ceil rounding; without a method it uses the network's `pool`."""

    kind: Literal["pool"]
    kernel: int = Field(3, ge=1, le=_LARGEST)
    stride: int = Field(2, ge=1, le=_LARGEST)
    method: PoolMethod | None = None


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("allowed are odd numbers")
    return value


class Lrn(Frozen):
    """Local response normalisation within each channel."""

    kind: Literal["lrn"]
    kernel: Annotated[int, AfterValidator(_odd)] = Field(3, ge=1, le=_LARGEST)
    alpha: float = Field(5e-5, ge=0)
    beta: float = Field(0.75, ge=0)


class Linear(Frozen):
    """A fully connected layer; without `features` it has an output for each class."""

    kind: Literal["linear"]
    features: int | None = Field(None, ge=1, le=_LARGEST)


Layer = Annotated[Conv | Relu | Pool | Lrn | Linear, Field(discriminator="kind")]


class Module(Frozen):
    """A network written in Python, of which a definition holds the name only.

    Attributes:
        name: as torchvision lists it, such as `resnet18`; or of a class or function in a Python file.
        file: name of that file, without folders; None for torchvision.
        sha256: of that file.
    """

    name: str = Field(max_length=200)
    file: str | None = Field(None, max_length=200, pattern=r"^[^/\\]+\.py$")
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")

    @model_validator(mode="after")
    def _check_digest(self) -> Module:
        if (self.file is None) != (self.sha256 is None):
            raise ValueError("a Python file has a digest, and torchvision none")
        return self


class Network(Frozen):
    """The definition of a network.

    Attributes:
        name: as `--network` takes it.
        description: one sentence.
        normalization: the first layer: subtract the channel means and divide by their standard deviations, subtract
            the mean image, or leave pixels as they are; the figures come from the training data, those of `imagenet`
            from the images that the networks of torchvision were trained on.
        pool: the method of pooling layers that name none.
        scheme: the tiling scheme of all convolutions.
        tiles: tiles of each convolution; None are one tile for `none`, and otherwise balanced tiles, n_p divided by
            the smallest n_p of the network.
        arrays: what the layers' arrays are made of: "ideal", the name of a preset, or a table of parameters, which may
            begin with a `preset` that they change.
        layers: in order, without the normalisation.
        module: in place of layers, a network written in Python. Its convolutions that compute more than one patch
            have tiles, in the order in which they compute.
    """

    name: str
    description: str = ""
    normalization: Literal["mean-std", "mean-image", "imagenet", "none"] = "mean-std"
    pool: PoolMethod = "max"
    scheme: SchemeName = "none"
    tiles: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(None, max_length=_MOST_LAYERS)
    arrays: str | dict[str, Any] = "ideal"
    layers: tuple[Layer, ...] = Field(max_length=_MOST_LAYERS)
    module: Module | None = None

    @model_validator(mode="after")
    def _check_module(self) -> Network:
        if self.module is not None and self.layers:
            raise ValueError("a network has layers or a module, not both")
        if self.module is not None and self.pool != "max":
            raise ValueError(f"network '{self.name}' has pooling layers of its own, so that 'pool' cannot be set")
        return self


class Recipe(Frozen):
    """How a network is trained: plain SGD with steps (paper, section 3).

    Attributes:
        description: one sentence.
        epochs: passes over the training images.
        batch_size: images of one step.
        amp: whether digital layers compute in bfloat16 in training, by torch's autocast; those with several tiles and
            arrays stay in float32.
        accumulate: parts in which a step's images are computed one after the other, their gradients added.
        lr: learning rate.
        lr_scaling: what the rate of a tiled layer is multiplied by: nothing, the square root of its tiles, or, as each
            of them sees 1 / tiles of the patches, their number.
        momentum: of SGD; 0 is plain SGD.
        weight_decay: per step, times the rate.
        decay_bias: whether biases decay too.
        decay_mixture: whether the mixtures beta of mixed pooling decay too.
        step_epochs: epochs between steps of the rate.
        step_factor: what the rate is multiplied by at each step.
        warmup_epochs: epochs at the beginning with a lower rate.
        warmup_factor: what the rate is multiplied by in them.
        crop: smallest share of an image's area that a random crop takes in training, for images that are streamed
            from a folder; 1 leaves it out and takes the middle, as in testing.
        mirror: whether images are mirrored with probability 1/2.
        test_votes: draws that vote on the test images after each epoch; 1 is a single draw and no vote.
        brightness: b, each training image's pixels are multiplied by a number uniform in [1 - b, 1 + b].
    """

    description: str = ""
    epochs: int = Field(ge=0)
    batch_size: int = Field(ge=1)
    accumulate: int = Field(1, ge=1)
    amp: bool = False
    lr: float = Field(gt=0)
    lr_scaling: Literal["none", "sqrt", "linear"] = "none"
    momentum: float = Field(0.0, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)
    decay_bias: bool = True
    decay_mixture: bool = False
    step_epochs: int = Field(25, ge=1)
    step_factor: float = Field(1.0, gt=0, le=1)
    warmup_epochs: int = Field(0, ge=0)
    warmup_factor: float = Field(0.02, gt=0, le=1)
    crop: float = Field(0.08, gt=0, le=1)
    mirror: bool = True
    test_votes: int = Field(1, ge=1, le=1000)
    brightness: float = Field(0.0, ge=0, lt=1)


def tiling(scheme: str, tiles: Sequence[int] | None) -> str:
    """A tiling as figures, tables and messages name it: `none`, or scheme and tiles, as in `random (16,4,1)`."""
    return f"{scheme} ({commas(tiles)})" if tiles and scheme != "none" else scheme


def load_network(name: str) -> Network:
    """Reads a network definition by name or path, or makes that of a network written in Python, which is tiled.

    Args:
        name: a definition of the package, a TOML file, `torchvision:NAME`, or `FILE.py:NAME`, of which nothing is run.

    Raises:
        FileError: there is no such file.
        ConfigError: it is not a network definition; all errors are named.
    """
    if name.startswith(TORCHVISION):
        return _written_in_python(name, Module(name=name.removeprefix(TORCHVISION)))
    if is_code(name):
        path, inside = code_named(name)
        module = {"name": inside, "file": path.name, "sha256": digest(read_code(path))}
        return _written_in_python(inside, validate(Module, module, name))
    path = definition("networks", name)
    return validate(Network, {"name": path.stem, **read_toml(path)}, str(path), hint=_example("networks", "full"))


def _written_in_python(name: str, module: Module) -> Network:
    return Network(name=name, scheme="random", layers=(), module=module)


def is_code(name: str) -> bool:
    """Whether a network's name means a Python file."""
    return name.partition(":")[0].endswith(".py")


def code_named(name: str) -> tuple[Path, str]:
    """File and class of `FILE.py:NAME`.

    Raises:
        ConfigError: no class is named.
    """
    file, _, inside = name.partition(":")
    if not inside.isidentifier():
        raise ConfigError(
            f"--network {name}: no class is named in the file", hint=f"write FILE.py:NAME, as in {file}:Net"
        )
    return Path(file), inside


def read_code(path: Path) -> bytes:
    """Reads a Python file, and runs nothing.

    Raises:
        FileError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileError(f"cannot read the Python file {path}: {error.strerror}", hint="is the path right?") from None


def digest(content: bytes) -> str:
    """SHA-256, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def load_recipe(name: str, scheme: str) -> Recipe:
    """Reads a recipe by name or path.

    A recipe file holds the keys of `Recipe`; a table `[scheme.NAME]` in it replaces keys for that tiling scheme.

    Raises:
        FileError: there is no such file.
        ConfigError: it is not a recipe; all errors are named.
    """
    path = definition("recipes", name)
    table = read_toml(path)
    by_scheme = table.pop("scheme", {})
    if not isinstance(by_scheme, dict) or not all(isinstance(entry, dict) for entry in by_scheme.values()):
        raise ConfigError(f"{path}: 'scheme' must hold tables", hint="write [scheme.random] and keys below it")
    known = get_args(SchemeName)
    for other in by_scheme:
        if other not in known:
            raise ConfigError(f"{path}: there is no scheme '{other}'", hint=suggestion(other, known))
    return validate(Recipe, {**table, **by_scheme.get(scheme, {})}, str(path), hint=_example("recipes", "short"))


def read_toml(path: Path) -> dict[str, Any]:
    """Reads a TOML file.

    Raises:
        FileError: it cannot be read.
        ConfigError: it is not TOML.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_TOML + 1)
    except OSError as error:
        hint = "name a TOML file that you may read"
        raise FileError(f"cannot read {path}: {error.strerror}", hint=hint) from error
    if len(content) > _MOST_TOML:
        raise ConfigError(f"{path} has more than {_MOST_TOML} bytes", hint=_example("recipes", "short"))
    try:
        text = content.decode()
        dots = max(line.count(".") for line in text.split("\n"))
        if dots > _MOST_DOTS:
            raise ValueError(f"a line has {dots} dots, allowed are {_MOST_DOTS}")
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # Not only what the parser raises itself: a number can have more digits than Python reads.
        hint = f"lines are key = value, texts stand in quotes; {_example('recipes', 'short')}"
        raise ConfigError(f"{path} is not TOML: {error}", hint=hint) from error


def validate(model: type[Model], values: Any, source: str, *, hint: str | None = None) -> Model:
    """Makes a configuration object.

    Args:
        model: its class.
        values: a table, as TOML or JSON have it; no value is taken for one of another type.
        source: where the values come from, for messages.
        hint: what to do about a wrong value.

    Raises:
        ConfigError: one line that names every wrong key and value, with the nearest known word as the hint.
    """
    try:
        # Only from JSON does pydantic take lists for tuples without also taking true for 1.
        return model.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        entries = error.errors(include_url=False)
        problems = [_problem(model, entry) for entry in entries[:_MOST_PROBLEMS]]
        near = next((suggested for _, suggested in problems if suggested), None)
        lines = [line for line, _ in problems]
        told = [with_suggestion(line, near) for line, near in problems]
        if len(entries) > _MOST_PROBLEMS:
            rest = f"and {len(entries) - _MOST_PROBLEMS} more"
            lines.append(rest)
            told.append(rest)
        wrong = ConfigError(f"{source}: {'; '.join(lines)}", hint=near or hint)
        wrong.problems = tuple(f"{source}: {line}" for line in told)
        raise wrong from None
    except (ValueError, RecursionError):
        raise ConfigError(f"{source}: tables too deep, or a number of too many digits", hint=hint) from None


def read_json(text: str) -> Any:
    """Parses JSON as this program writes it.

    Raises:
        ValueError: it is not JSON, a key stands twice, or it is too deep.
    """
    try:
        return json.loads(text, object_pairs_hook=_table)
    except RecursionError:
        raise ValueError("tables too deep") from None


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key '{twice}' stands twice")
    return table


def override(network: Network, recipe: Recipe, settings: Sequence[str]) -> tuple[Network, Recipe]:
    """Applies `--set key=value` settings.

    Args:
        network: its keys may be written `network.key`.
        recipe: its keys may be written `recipe.key`; a bare key is looked for in the recipe first.
        settings: values are TOML (0.1, true, [16, 4, 1]); what is no TOML is taken as text.

    Raises:
        ConfigError: a setting without '=', an unknown key, or wrong values, which are named all at once.
    """
    tables: dict[str, tuple[type[BaseModel], dict[str, Any]]] = {
        "recipe": (Recipe, recipe.model_dump()),
        "network": (Network, network.model_dump()),
    }
    problems: list[ConfigError] = []
    for setting in settings:
        key, equals, text = setting.partition("=")
        key = key.strip()
        if not equals:
            problem = f"--set {setting}: there is no '='"
            problems.append(ConfigError(problem, hint="write --set key=value, as in --set lr=0.01"))
            continue
        if len(text) > _MOST_VALUE:
            problem = f"--set {key[:100]}: its value has {len(text)} characters, allowed are {_MOST_VALUE}"
            problems.append(ConfigError(problem, hint="write it into a TOML file"))
            continue
        table, _, name = key.rpartition(".")
        places = [table] if table else ["recipe", "network"]
        known = [place for place in places if place in tables and name in tables[place][0].model_fields]
        if not known:
            allowed = {*Recipe.model_fields, *Network.model_fields}
            elsewhere = [f"{place}.{name}" for place in tables if name in tables[place][0].model_fields]
            hint = f"did you mean '{elsewhere[0]}'?" if elsewhere else suggestion(name, allowed)
            problems.append(ConfigError(f"--set {setting}: unknown key '{key}'", hint=hint))
            continue
        tables[known[0]][1][name] = _value(text.strip())
    try:
        both = validate(_Both, {place: values for place, (_, values) in tables.items()}, "settings", hint=_SET_HINT)
    except ConfigError as error:
        problems.append(error)
    if problems:
        wrong = ConfigError("; ".join(problem.message for problem in problems), hint=problems[0].hint)
        wrong.problems = tuple(line for each in problems for line in each.lines())
        raise wrong
    return both.network, both.recipe


class _Both(Frozen):
    """What `--set` can change; as one table, so that all errors are found at once."""

    network: Network
    recipe: Recipe


def _problem(model: type[BaseModel], entry: Any) -> tuple[str, str | None]:
    """What one of pydantic's errors says: a line, and the nearest word where one was misspelt."""
    kind, (place, owner) = entry["type"], _place(model, entry["loc"])
    name = ".".join(place) or "the whole"
    if kind == "extra_forbidden":
        return f"unknown key '{name}'", suggestion(place[-1], owner.model_fields) if owner else None
    if kind == "missing":
        return f"'{name}' is missing", None
    if kind == "json_invalid":
        # What is parsed here was written by `validate`: only depth and halves of surrogate pairs are left.
        return "tables too deep, or text that is not Unicode", None
    got = repr(entry["input"])
    got = got if len(got) <= 60 else f"{got[:57]}..."
    if kind == "value_error":
        # What a check of a table says stands for itself.
        said = str(entry["ctx"]["error"])
        if isinstance(entry["input"], dict):
            return f"{name}: {said}" if place else said, None
        return f"{name}: {said}, got {got}", None
    # Only the sentence begins in lower case; the values that it quotes stay as they are written.
    said = entry["msg"][:1].lower() + entry["msg"][1:]
    if kind in ("literal_error", "enum"):
        return f"{name}: {said}, got {got}", _nearest(entry["input"], entry["ctx"]["expected"])
    if kind == "union_tag_invalid":
        tag, allowed = entry["ctx"]["tag"], entry["ctx"]["expected_tags"]
        return f"{name}.kind: input should be {allowed}, got '{tag}'", _nearest(tag, allowed)
    tiles = "tiles are a list with a number for each convolution: tiles=[16,4,1], or --tiles 16,4,1"
    return f"{name}: {said}, got {got}", tiles if place[-1:] == ["tiles"] else None


def _place(model: type[BaseModel], loc: Sequence[int | str]) -> tuple[list[str], type[BaseModel] | None]:
    """The keys that lead to a value, as its file has them, and the class of the table that it stands in.

    Args:
        model: the class of the whole.
        loc: pydantic's keys, among which it puts the kinds of tables that can be of several.
    """
    place: list[str] = []
    classes: Sequence[type[BaseModel]] = (model,)
    owner: type[BaseModel] | None = None
    for part in map(str, loc):
        of_kind = (
            [each for each in classes if part in get_args(each.model_fields["kind"].annotation)] if classes[1:] else []
        )
        if of_kind:
            classes = of_kind
            continue
        place.append(part)
        if not part.isdecimal():
            owner = classes[0] if len(classes) == 1 else None
            field = owner.model_fields.get(part) if owner else None
            classes = _tables(field.annotation) if field else ()
    return place, owner


def _tables(annotation: Any) -> list[type[BaseModel]]:
    """The classes of tables that a field of this type may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _tables(part)]


def _nearest(got: Any, allowed: str) -> str | None:
    """The word nearest to what was given, of the quoted ones in pydantic's text."""
    return suggestion(got, re.findall(r"'([^']+)'", allowed)) if isinstance(got, str) else None


def _example(kind: str, name: str) -> str:
    return f"compare with {models_root() / kind / name}.toml"


def _value(text: str) -> Any:
    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return table["value"] if len(table) == 1 else text
