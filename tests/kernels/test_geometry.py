"""The geometry of a convolution against torch's own convolution."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from rapa_cli.kernels.geometry import Geometry

steady = settings(deadline=None, derandomize=True, max_examples=100, suppress_health_check=[HealthCheck.too_slow])


def _pairs(least: int, most: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(least, most), st.integers(least, most))


@steady
@given(
    _pairs(1, 9), _pairs(1, 4), _pairs(1, 3), st.tuples(*[st.integers(0, 3)] * 4), _pairs(1, 3), st.sampled_from([1, 2])
)
def test_sizes_are_those_of_a_convolution(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    channels: int,
) -> None:
    top, bottom, left, right = padding
    padded = F.pad(torch.ones(1, channels, *size), (left, right, top, bottom))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    if padded.shape[2] < reach[0] or padded.shape[3] < reach[1]:
        with pytest.raises(ValueError, match=r"^kernel_size: a kernel of .* does not fit into an input of"):
            Geometry(*size, kernel, stride, padding, dilation)
        return
    geometry = Geometry(*size, kernel, stride, padding, dilation)
    out = F.conv2d(padded, torch.ones(1, channels, *kernel), stride=stride, dilation=dilation)
    assert (geometry.out_height, geometry.out_width) == tuple(out.shape[2:])
    assert geometry.patches == out.shape[2] * out.shape[3]
    assert (geometry.padded_height, geometry.padded_width) == tuple(padded.shape[2:])


def test_the_papers_layers() -> None:
    for side, patches in ((32, 1024), (16, 256), (8, 64)):
        assert Geometry(side, side, (5, 5), padding=(2, 2, 2, 2)).patches == patches
