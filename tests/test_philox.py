"""Random numbers: known answers, an oracle in Python's integers, their laws, and that no two uses share any."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rapa_cli.philox import MAX_SEED, Purpose, Stream, check_seed, generator, permutation, philox4x32, uniform, words
from tests.tiling import oracles
from tests.tolerances import assert_equally_likely, assert_plausible, assert_uniform

numbers = st.integers(0, 2**32 - 1)
steady = settings(deadline=None, derandomize=True, max_examples=50, suppress_health_check=[HealthCheck.too_slow])

# From the file kat_vectors of Random123, as hexadecimal digits: counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def _ids(*images: int) -> Tensor:
    return torch.tensor(images, dtype=torch.int64)


def _philox(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    c0, c1, c2, c3 = (torch.tensor(number) for number in counter)
    return tuple(int(number) for number in philox4x32((c0, c1, c2, c3), (key[0], key[1])))


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, expected: str) -> None:
    c, k, answer = (tuple(int(digits, 16) for digits in text.split()) for text in (counter, key, expected))
    assert _philox(c, k) == answer
    assert oracles.philox((c[0], c[1], c[2], c[3]), (k[0], k[1])) == answer


@steady
@given(st.tuples(numbers, numbers, numbers, numbers), st.tuples(numbers, numbers))
def test_agrees_with_python_integers(counter: tuple[int, int, int, int], key: tuple[int, int]) -> None:
    assert _philox(counter, key) == oracles.philox(counter, key)


def test_counters_broadcast() -> None:
    rows, columns = torch.arange(3)[:, None], torch.arange(4)
    output = torch.stack(philox4x32((columns, torch.tensor(7), rows, rows + 1), (1, 2)), -1)
    assert output.shape == (3, 4, 4)
    for i, j in itertools.product(range(3), range(4)):
        assert tuple(output[i, j].tolist()) == oracles.philox((j, 7, i, i + 1), (1, 2))


@steady
@given(st.sampled_from(Purpose), st.sampled_from(Stream), numbers, numbers, numbers, st.integers(0, 100), st.data())
def test_words_are_keyed_by_where_they_are_used(
    purpose: Purpose, stream: Stream, seed: int, draw: int, image: int, layer: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, 9))
    first = data.draw(st.sampled_from([0, 1, 2**32 - 3]))
    found = words(
        purpose, seed, images=_ids(image), count=count, draw=draw, layer=layer, stream=stream, first_block=first
    )
    assert found.dtype == torch.int64
    expected = [oracles.word(purpose, stream, seed, draw, image, layer, 4 * first + i) for i in range(count)]
    assert found.tolist() == [expected]


def test_words_of_an_image_do_not_depend_on_the_batch() -> None:
    images = _ids(5, 0, 99, 2**32 - 1, 7, 8)
    whole = words(Purpose.POOLING, 3, images=images, count=10, draw=2, layer=1)
    order = _ids(4, 2, 0)
    assert torch.equal(words(Purpose.POOLING, 3, images=images[order], count=10, draw=2, layer=1), whole[order])
    assert torch.equal(words(Purpose.POOLING, 3, images=images[3:4], count=7, draw=2, layer=1), whole[3:4, :7])
    assert torch.equal(words(Purpose.POOLING, 3, images=images, count=6, draw=2, layer=1, first_block=1), whole[:, 4:])


def test_words_take_a_draw_for_each_image() -> None:
    images, draws = _ids(5, 5, 6), _ids(0, 2**32 - 1, 4)
    together = words(Purpose.ASSIGNMENT, 3, images=images, count=5, draw=draws)
    for i in range(3):
        alone = words(Purpose.ASSIGNMENT, 3, images=images[i : i + 1], count=5, draw=int(draws[i]))
        assert torch.equal(together[i], alone[0])


@pytest.mark.parametrize("seed", [0, 3, MAX_SEED])
def test_words_take_a_seed_as_a_tensor(seed: int) -> None:
    images = _ids(5, 2**32 - 1)
    found = words(Purpose.ASSIGNMENT, torch.tensor(seed), images=images, count=5, draw=torch.tensor(7))
    assert torch.equal(found, words(Purpose.ASSIGNMENT, seed, images=images, count=5, draw=7))


@pytest.mark.parametrize("count", [0, 1, 4, 5])
def test_words_for_no_images(count: int) -> None:
    assert words(Purpose.ASSIGNMENT, 0, images=_ids(), count=count).shape == (0, count)


def test_no_two_uses_share_numbers() -> None:
    images = torch.arange(3)
    places = itertools.product(Purpose, Stream, (0, 1, MAX_SEED), (0, 1, 5), (0, 1, 2))
    pairs = torch.cat(
        [
            words(purpose, seed, images=images, count=8, draw=draw, layer=layer, stream=stream).view(-1, 2)
            for purpose, stream, seed, draw, layer in places
        ]
    )
    assert len(pairs) == len(Purpose) * 6 * 3 * 3 * 3 * 3 * 4
    assert len(torch.unique(pairs, dim=0)) == len(pairs)


def test_uniform_numbers() -> None:
    random_words = words(Purpose.AUGMENTATION, 1, images=torch.arange(200), count=100)
    sample = uniform(random_words)
    assert sample.dtype == torch.float32
    assert_uniform(sample)
    extremes = uniform(_ids(0, 255, 256, 2**32 - 1))
    assert extremes.tolist() == [0.0, 0.0, 2.0**-24, 1 - 2.0**-24]


def test_bits_are_fair() -> None:
    random_words = words(Purpose.AUGMENTATION, 2, images=torch.arange(500), count=20).flatten()
    ones = torch.stack([(random_words >> bit & 1).sum() for bit in range(32)]).double()
    half = len(random_words) / 2
    assert_plausible(float(((ones - half) ** 2 / (half / 2)).sum()), 32)


@steady
@given(numbers, numbers, st.integers(0, 200))
def test_a_permutation_is_one(seed: int, epoch: int, size: int) -> None:
    order = permutation(seed, epoch, size)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(size))
    assert torch.equal(order, permutation(seed, epoch, size))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_an_order_is_that_of_its_words(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = permutation(5, 2, 100).tolist()
    finally:
        torch.set_num_threads(before)

    def rank(image: int) -> tuple[int, int, int]:
        high, low = (oracles.word(Purpose.SHUFFLE, Stream.TRAIN, 5, 2, image, 0, index) for index in (0, 1))
        return high, low >> 1, image

    assert found == sorted(range(100), key=rank)


def test_permutations_differ_by_epoch_and_seed() -> None:
    orders = [tuple(permutation(seed, epoch, 50).tolist()) for seed in range(3) for epoch in range(5)]
    assert len(set(orders)) == 15


def test_every_order_is_equally_likely() -> None:
    orders = list(itertools.permutations(range(3)))
    counts = torch.zeros(6)
    for epoch in range(900):
        counts[orders.index(tuple(permutation(0, epoch, 3).tolist()))] += 1
    assert_equally_likely(counts)


def test_places_in_a_long_order_are_uniform() -> None:
    thirds = torch.zeros(3, 3)
    for epoch in range(20):
        place = torch.argsort(permutation(7, epoch, 3000))
        for i in range(3):
            thirds[i] += torch.bincount(place[i * 1000 : (i + 1) * 1000] // 1000, minlength=3)
    # The margins of the table are fixed.
    assert_plausible(float(((thirds - 20000 / 3) ** 2 / (20000 / 3)).sum()), 4)


def test_a_generator_follows_its_key() -> None:
    def numbers_of(purpose: Purpose, seed: int, layer: int, draw: int) -> tuple[float, ...]:
        return tuple(torch.rand(4, generator=generator(purpose, seed, layer=layer, draw=draw)).tolist())

    keys = list(itertools.product((Purpose.INITIALISATION, Purpose.DATA), (0, MAX_SEED), (0, 1), (0, 1)))
    found = [numbers_of(*key) for key in keys]
    assert len(set(found)) == len(keys)
    assert found == [numbers_of(*key) for key in keys]


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(ValueError, match=r"^seed: got .* allowed are whole numbers from 0 to 4294967295"):
        check_seed(seed)
    with pytest.raises(ValueError, match=r"^seed:"):
        words(Purpose.DATA, seed, images=_ids(0), count=1)
