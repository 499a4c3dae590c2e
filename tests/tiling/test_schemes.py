"""Assignments: their rule read anew in plain Python, their laws, and what they do not depend on."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rapa_cli.keyed import Draw, draws
from rapa_cli.philox import Stream
from rapa_cli.tiling.conv import TiledConv2d
from rapa_cli.tiling.schemes import SCHEMES, balanced_partition, balanced_tiles, partition_in_torch, scheme_named
from tests.tiling import oracles
from tests.tolerances import assert_balanced_uniform, assert_distributed, assert_equally_likely, assert_independent

SQUARE = ["image-overlap", "image-pad", "alternate"]
steady = settings(deadline=None, derandomize=True, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
numbers = st.integers(0, 2**32 - 1)
sides = st.integers(1, 9)

# Of images 12345 and 7 under seed 20181108, draw 7, stream test, layer 2; 4 x 6 patches, 5 tiles.
GOLDEN = [
    [2, 3, 3, 0, 2, 3, 3, 1, 2, 1, 4, 0, 4, 1, 4, 0, 1, 1, 2, 2, 4, 4, 0, 3],
    [4, 2, 2, 3, 2, 1, 0, 0, 2, 4, 1, 4, 0, 3, 3, 4, 1, 3, 1, 0, 2, 3, 1, 0],
]


def _layer(scheme: str, tiles: int) -> TiledConv2d:
    return TiledConv2d(1, 1, 1, tiles=tiles, scheme=scheme)


def _partitions(
    images: Tensor,
    patches: int,
    tiles: int,
    *,
    seed: int = 0,
    draw: int | Tensor = 0,
    layer: int = 0,
    stream: Stream = Stream.TEST,
) -> Tensor:
    return balanced_partition(Draw(seed, draw, images, stream, layer), patches=patches, tiles=tiles)


def _sizes(assignment: Tensor, tiles: int) -> list[int]:
    return torch.bincount(assignment, minlength=tiles).tolist()


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@steady
@given(numbers, numbers, numbers, st.integers(0, 9), st.sampled_from(Stream), st.integers(1, 40), st.data())
def test_partitions_follow_the_rule(
    seed: int, draw: int, image: int, layer: int, stream: Stream, patches: int, data: st.DataObject
) -> None:
    tiles = data.draw(st.integers(1, patches))
    found = _partitions(torch.tensor([image]), patches, tiles, seed=seed, draw=draw, layer=layer, stream=stream)
    assert found.dtype == torch.int64
    expected = oracles.partition(seed, stream.name.lower(), draw, image, layer, patches, tiles)
    assert found.tolist() == [expected]
    place = Draw(seed, draw, torch.tensor([image]), stream, layer)
    assert partition_in_torch(place, patches=patches, tiles=tiles).tolist() == [expected]


def test_golden_assignments(threads: int) -> None:
    images = torch.tensor([12345, 7])
    found = _partitions(images, 24, 5, seed=20181108, draw=7, layer=2)
    assert found.tolist() == GOLDEN
    place = Draw(20181108, 7, images, Stream.TEST, 2)
    assert partition_in_torch(place, patches=24, tiles=5).tolist() == GOLDEN
    network = torch.nn.ModuleList([_layer("random", 5) for _ in range(3)])
    with draws(network, images=images, seed=20181108, draw=7):
        layer = network[2]
        assert isinstance(layer, TiledConv2d)
        assert layer.assign(2, (4, 6)).tolist() == GOLDEN


@steady
@given(st.integers(1, 3), st.integers(1, 300), st.data())
def test_sizes_differ_by_one_at_most(batch: int, patches: int, data: st.DataObject) -> None:
    tiles = data.draw(st.integers(1, patches))
    for assignment in _partitions(torch.arange(batch), patches, tiles, seed=data.draw(numbers)):
        sizes = _sizes(assignment, tiles)
        assert len(sizes) == tiles
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("patches", "tiles"), [(1024, 16), (1024, 1024), (961, 7), (4097, 100)])
def test_large_partitions_are_the_same_on_every_path(patches: int, tiles: int, threads: int) -> None:
    images = torch.tensor([0, 3, 2**32 - 1, 77, 3])
    for draw in (0, 2**32 - 1, torch.tensor([0, 1, 2, 3, 2**32 - 1])):
        place = Draw(2**32 - 1, draw, images, Stream.VOTE, 5)
        found = balanced_partition(place, patches=patches, tiles=tiles)
        assert torch.equal(found, partition_in_torch(place, patches=patches, tiles=tiles))
    apart = Draw(2**32 - 1, 0, torch.arange(10)[::2], Stream.VOTE, 5)
    assert torch.equal(
        balanced_partition(apart, patches=patches, tiles=tiles),
        partition_in_torch(apart, patches=patches, tiles=tiles),
    )


@pytest.mark.parametrize(("patches", "tiles"), [(16, 4), (12, 2), (9, 9)])
def test_every_patch_is_uniform_over_equal_tiles(patches: int, tiles: int) -> None:
    assert_balanced_uniform(_partitions(torch.arange(3000), patches, tiles), tiles)


@pytest.mark.parametrize(("patches", "tiles"), [(7, 3), (5, 4), (6, 4)])
def test_every_patch_is_uniform_over_unequal_tiles(patches: int, tiles: int) -> None:
    found = _partitions(torch.arange(3000), patches, tiles, seed=5)
    for patch in range(patches):
        assert_equally_likely(torch.bincount(found[:, patch], minlength=tiles))


@pytest.mark.parametrize(
    ("patches", "tiles", "kinds"),
    # Labelled partitions: 4 over (2, 2), (3 over (2, 1)) and (3 over (1, 2)), orders of 3, 2 * 30 with sizes (2, 2, 1)
    # in three turns.
    [(4, 2, 6), (3, 2, 6), (3, 3, 6), (5, 3, 90)],
)
def test_every_partition_is_equally_likely(patches: int, tiles: int, kinds: int) -> None:
    found = Counter(tuple(row) for row in _partitions(torch.arange(6000), patches, tiles, seed=1).tolist())
    assert len(found) == kinds
    assert_equally_likely(torch.tensor(list(found.values())))


def test_partitions_are_independent() -> None:
    images, patches, tiles = torch.arange(1500), 48, 4
    base = _partitions(images, patches, tiles)
    others = {
        "images": _partitions(images + 1500, patches, tiles),
        "the next image": _partitions(images + 1, patches, tiles),
        "draws": _partitions(images, patches, tiles, draw=1),
        "layers": _partitions(images, patches, tiles, layer=1),
        "seeds": _partitions(images, patches, tiles, seed=1),
        **{
            stream.name: _partitions(images, patches, tiles, stream=stream)
            for stream in Stream
            if stream is not Stream.TEST
        },
    }
    for other in others.values():
        assert not torch.equal(base, other)
        assert_independent(base, other, tiles)


def test_draws_of_one_image_are_independent() -> None:
    image, each = torch.zeros(1500, dtype=torch.int64), torch.arange(1500)
    first = _partitions(image, 48, 4, draw=each)
    assert_balanced_uniform(first, 4)
    assert_independent(first, _partitions(image, 48, 4, draw=each + 1500), 4)
    assert_independent(first, _partitions(image, 48, 4, draw=each + 1), 4)


def test_neighbouring_patches_are_assigned_apart() -> None:
    found = _partitions(torch.arange(4000), 8, 2)
    together = torch.stack([(found[:, i] == found[:, j]).sum() for i, j in itertools.combinations(range(8), 2)])
    # Two of eight patches share one of two equal tiles with probability 3/7.
    for count in together:
        assert_distributed(torch.stack([count, 4000 - count]), torch.tensor([3 / 7, 4 / 7]))


def test_an_image_has_the_same_assignment_in_every_batch(threads: int) -> None:
    layer = _layer("random", 5)
    ids = torch.tensor([4, 0, 2**32 - 1, 17, 4])

    def assign(images: Tensor) -> Tensor:
        with draws(layer, images=images, seed=3, draw=2):
            return layer.assign(len(images), (6, 7))

    whole = assign(ids)
    assert torch.equal(whole[0], whole[4])
    for chosen in ([0], [3, 2, 1, 0], [2, 2, 2]):
        assert torch.equal(assign(ids[chosen]), whole[chosen])
    torch.manual_seed(1234)
    assert torch.equal(assign(ids), whole)
    layer(torch.ones(1, 1, 6, 7))
    layer.double().eval()
    assert torch.equal(assign(ids), whole)


def test_a_fixed_partition_depends_on_seed_layer_and_patches_only() -> None:
    layer = _layer("random-fixed", 4)
    layer.seed.fill_(11)
    layer.index = 2
    fixed = layer.assign(1, (6, 7))[0]
    assert fixed.tolist() == oracles.partition(11, "fixed", 42, 0, 2, 42, 4)
    assert torch.equal(layer.assign(3, (6, 7)), fixed.expand(3, -1))
    assert torch.equal(layer.assign(torch.tensor([5, 9]), (6, 7)), fixed.expand(2, -1))
    assert torch.equal(layer.assign(1, (7, 6))[0], fixed)
    assert torch.equal(layer.eval().assign(1, (6, 7))[0], fixed)
    for seed, stream in itertools.product((0, 11), ("train", "test", "vote", "attack")):
        with draws(layer, images=torch.arange(7, 9), seed=seed, draw=42, stream=stream):
            assert torch.equal(layer.assign(2, (6, 7)), fixed.expand(2, -1))
    assert torch.equal(layer.assign(1, (6, 7))[0], fixed)
    assert int(layer.calls) == 0

    layer.index = 3
    assert not torch.equal(layer.assign(1, (6, 7))[0], fixed)
    layer.index = 2
    layer.seed.fill_(12)
    assert not torch.equal(layer.assign(1, (6, 7))[0], fixed)


def test_fixed_partitions_of_other_sizes_are_independent() -> None:
    layer = _layer("random-fixed", 4)
    pairs = []
    for seed in range(400):
        layer.seed.fill_(seed)
        pairs.append((layer.assign(1, (6, 8))[0], layer.assign(1, (7, 8))[0, :48]))
    first = torch.stack([pair[0] for pair in pairs])
    assert_balanced_uniform(first, 4)
    agree = torch.tensor([sum(int((one == other).sum()) for one, other in pairs)])
    total = first.numel()
    assert_distributed(torch.cat([agree, total - agree]), torch.tensor([0.25, 0.75]))


def test_a_fixed_partition_comes_with_the_state_dict() -> None:
    torch.manual_seed(0)
    layer, other = _layer("random-fixed", 4), _layer("random-fixed", 4)
    fixed = layer.assign(1, (6, 6))
    assert not torch.equal(other.assign(1, (6, 6)), fixed)
    with draws(torch.nn.ModuleList([_layer("random", 2), layer]), images=torch.arange(1)):
        assert torch.equal(layer.assign(1, (6, 6)), fixed)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.assign(1, (6, 6)), fixed)


@steady
@given(st.integers(1, 100), st.data())
def test_perforation_computes_its_share(patches: int, data: st.DataObject) -> None:
    tiles = data.draw(st.integers(1, patches))
    layer = _layer("perforated", tiles)
    assignment = layer.assign(3, (patches, 1))
    assert set(assignment.flatten().tolist()) <= {0, -1}
    computed = (assignment == 0).sum(1)
    assert all(int(count) in (patches // tiles, -(-patches // tiles)) for count in computed)
    assert int(layer.eval().assign(3, (patches, 1)).abs().sum()) == 0


def test_perforation_is_uniform_and_fresh() -> None:
    layer = _layer("perforated", 4)
    with draws(layer, images=torch.arange(2000), draw=1, stream="train"):
        first = layer.assign(2000, (4, 4)) + 1
    with draws(layer, images=torch.arange(2000), draw=2, stream="train"):
        second = layer.assign(2000, (4, 4)) + 1
    # As the tile 0 of a partition into 4, against the rest.
    both = torch.tensor([int(((first == i) & (second == j)).sum()) for i in (0, 1) for j in (0, 1)])
    assert_distributed(both, torch.tensor([9, 3, 3, 1]) / 16)
    for patch in range(16):
        assert_distributed(torch.bincount(first[:, patch], minlength=2), torch.tensor([0.75, 0.25]))
    with draws(layer, images=torch.arange(3), draw=1, stream="train"):
        assert torch.equal(layer.assign(3, (4, 4)) + 1, first[:3])


def test_perforation_with_unequal_parts_computes_its_share_on_average() -> None:
    layer = _layer("perforated", 4)
    with draws(layer, images=torch.arange(4000), stream="train"):
        computed = layer.assign(4000, (2, 3)) == 0
    # 6 patches in 4 parts: two parts of 2, two of 1.
    sizes = computed.sum(1)
    assert_distributed(torch.bincount(sizes, minlength=3)[1:], torch.tensor([0.5, 0.5]))
    for patch in range(6):
        count = computed[:, patch].sum()
        assert_distributed(torch.stack([count, 4000 - count]), torch.tensor([0.25, 0.75]))


@pytest.mark.parametrize(
    ("scheme", "rule"),
    [("image-overlap", oracles.regions), ("image-pad", oracles.regions), ("alternate", oracles.alternating)],
)
@steady
@given(q=st.integers(1, 5), height=sides, width=sides)
def test_square_schemes_follow_the_papers_formulas(
    scheme: str, rule: Callable[[int, int, int], list[int]], q: int, height: int, width: int
) -> None:
    assume(q * q <= height * width)
    layer = _layer(scheme, q * q)
    assert layer.assign(2, (height, width)).tolist() == [rule(q, height, width)] * 2
    with draws(layer, images=torch.tensor([9]), draw=4):
        assert layer.eval().assign(1, (height, width)).tolist() == [rule(q, height, width)]


def test_the_papers_figure() -> None:
    # Figure 2: four tiles, here on 4 x 6 pixels.
    overlap = [0, 0, 0, 1, 1, 1] * 2 + [2, 2, 2, 3, 3, 3] * 2
    alternate = ([0, 1] * 3 + [2, 3] * 3) * 2
    assert _layer("image-overlap", 4).assign(1, (4, 6)).tolist() == [overlap]
    assert _layer("image-pad", 4).assign(1, (4, 6)).tolist() == [overlap]
    assert _layer("alternate", 4).assign(1, (4, 6)).tolist() == [alternate]


@pytest.mark.parametrize("scheme", SQUARE)
@pytest.mark.parametrize(("tiles", "near"), [(2, "1, 4"), (3, "1, 4"), (8, "4, 9"), (15, "9, 16")])
def test_square_schemes_need_squares(scheme: str, tiles: int, near: str) -> None:
    message = rf"^tiles: got {tiles}, but scheme '{scheme}' needs a square number \({near}, \.\.\.\)$"
    with pytest.raises(ValueError, match=message):
        _layer(scheme, tiles)


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_no_scheme_has_fewer_than_one_tile(scheme: str) -> None:
    for tiles in (0, -4):
        with pytest.raises(ValueError, match=rf"^tiles: got {tiles}, "):
            _layer(scheme, tiles)


@pytest.mark.parametrize("scheme", sorted(set(SCHEMES) - {"none"}))
@pytest.mark.parametrize("training", [True, False])
def test_more_tiles_than_patches_are_refused(scheme: str, training: bool) -> None:
    layer = _layer(scheme, 9).train(training)
    assert layer.assign(1, (3, 3)).shape == (1, 9)
    message = r"^tiles: got 9, but an output of 2 x 4 pixels has only 8 patches$"
    with pytest.raises(ValueError, match=message):
        layer.assign(1, (2, 4))
    with pytest.raises(ValueError, match=message):
        layer(torch.zeros(1, 1, 2, 4))


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_one_tile_computes_everything(scheme: str) -> None:
    assert _layer(scheme, 1).assign(2, (3, 5)).tolist() == [[0] * 15] * 2


@pytest.mark.parametrize("scheme", sorted(set(SCHEMES) - {"none"}))
@pytest.mark.parametrize("images", [0, torch.empty(0, dtype=torch.int64)])
def test_no_images_have_no_assignments(scheme: str, images: int | Tensor) -> None:
    found = _layer(scheme, 4).assign(images, (3, 3))
    assert found.shape == (0, 9)
    assert found.dtype == torch.int64


def test_none_is_one_tile() -> None:
    with pytest.raises(ValueError, match=r"^tiles: got 2, but scheme 'none' has one tile$"):
        _layer("none", 2)


def test_schemes_go_by_their_names() -> None:
    assert sorted(SCHEMES) == sorted(
        ["none", "random", "random-fixed", "image-overlap", "image-pad", "alternate", "perforated"]
    )
    assert {name for name, scheme in SCHEMES.items() if scheme.square} == set(SQUARE)
    assert {name: scheme.matrices(9) for name, scheme in SCHEMES.items() if name != "none"} == {
        "random": 9,
        "random-fixed": 9,
        "image-overlap": 9,
        "image-pad": 9,
        "alternate": 9,
        "perforated": 1,
    }
    with pytest.raises(ValueError, match=r"^scheme: there is no 'randon'; did you mean 'random'\?"):
        scheme_named("randon")


@pytest.mark.parametrize("name", SCHEMES)
def test_balanced_tiles_are_those_of_the_scheme_however_it_is_named(name: str) -> None:
    patches = (1024, 320, 64)
    tiles = {"none": (1, 1, 1)} | dict.fromkeys(SQUARE, (16, 4, 1))
    assert balanced_tiles(patches, name) == balanced_tiles(patches, SCHEMES[name]) == tiles.get(name, (16, 5, 1))
    for count in balanced_tiles(patches, name):
        SCHEMES[name].check(count)
