"""Tiles cover a picture, fade into one another, and put together are the picture again."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import StageError
from orchestrator_stages.tiling import BlendTiles, SplitTiles, TileGrid, corners, fades
from tests.kit import new, spec


@st.composite
def sides(draw: st.DrawFn) -> tuple[int, int, int]:
    """Length of a side, of a tile, and of the overlap."""
    tile = draw(st.integers(1, 9))
    return draw(st.integers(1, 30)), tile, draw(st.integers(0, tile - 1))


@settings(deadline=None)
@given(sides())
def test_tiles_cover_a_side_and_overlap_enough(side):
    size, tile, overlap = side
    begins = corners(*side)
    assert begins[0] == 0
    assert begins[-1] == max(0, size - tile)
    assert begins == sorted(set(begins))
    assert all(after <= before + tile - overlap for before, after in itertools.pairwise(begins))


@settings(deadline=None)
@given(sides())
def test_weights_sum_to_one_at_each_place(side):
    size, tile, _ = side
    weights, total = fades(*side), torch.zeros(max(size, tile))
    assert (weights > 0).all()
    for begin, row in zip(corners(*side), weights, strict=True):
        total[begin : begin + tile] += row
    torch.testing.assert_close(total, torch.ones_like(total))


def test_a_tile_fades_linearly():
    weights = fades(12, 8, 4)
    assert weights.shape == (2, 8)
    torch.testing.assert_close(weights[0], torch.tensor([1, 1, 1, 1, 0.875, 0.625, 0.375, 0.125]))
    torch.testing.assert_close(weights[1], weights[0].flip(0))


@settings(deadline=None)
@given(sides(), sides(), st.integers(0, 3), st.integers(1, 3))
def test_a_decoder_that_looks_at_each_place_alone_gives_the_same(down, across, count, scale):
    tile, overlap = (down[1], across[1]), (down[2], across[2])
    picture = torch.randn(count, 2, down[0], across[0])

    def decode(tile: torch.Tensor) -> torch.Tensor:
        return (tile.sin() * 3).repeat_interleave(scale, -1).repeat_interleave(scale, -2)

    tiles, frame = SplitTiles(tile, overlap)(picture)
    assert all(one.shape == (2, *tile) for one in tiles)
    blend = BlendTiles(tile, overlap, scale, dims=("n", 2, down[0] * scale, across[0] * scale))
    blended = blend([decode(one) for one in tiles], frame)
    if count:
        torch.testing.assert_close(blended, decode(picture))
    else:
        assert len(blended) == 0


def test_blended_tiles_have_no_seam():
    """Each tile comes out of its decoder in a grey of its own; neighbours in the picture hardly differ."""
    tiles, frame = SplitTiles(8, 6)(torch.zeros(1, 1, 8, 14))
    decoded = [torch.full_like(tile, float(number)) for number, tile in enumerate(tiles)]
    blended = BlendTiles(8, 6, dims=(1, 1, 8, 14))(decoded, frame)
    assert blended.diff(dim=-1).abs().max() < 0.5
    assert blended[0, 0, 0, 0] == 0
    assert blended[0, 0, 0, -1] == len(tiles) - 1


def test_a_result_has_the_dtype_it_was_promised():
    tiles, frame = SplitTiles(4, 1)(torch.ones(1, 1, 7, 7, dtype=torch.float16))
    blended = BlendTiles(4, 1, dims=(1, 1, 7, 7), dtype=torch.float16)(tiles, frame)
    assert blended.dtype == torch.float16
    assert (blended == 1).all()


@pytest.mark.parametrize(("tile", "overlap"), [(0, 0), (4, 4), (4, -1), ((4, 2), 3)])
def test_an_overlap_that_leaves_nothing(tile, overlap):
    with pytest.raises(ValueError, match="overlaps by less than its length"):
        SplitTiles(tile, overlap)


def test_tiles_that_do_not_fit_the_frame():
    with pytest.raises(ValueError, match="4 tiles each, but 3 tiles came"):
        BlendTiles(4, 0, dims=(1, 1, 8, 8))([torch.zeros(1, 4, 4)] * 3, TileGrid(1, 8, 8))


def test_both_are_stages_that_know_their_ports():
    pipeline = new()
    tiles, frame = pipeline.add("split", SplitTiles(4, 1), device="host")(
        pipeline.input("x", spec(1, 2, 9, 6))
    )
    pipeline.output(
        "y", pipeline.add("blend", BlendTiles(4, 1, dims=(1, 2, 9, 6)), device="host")(tiles, frame)
    )
    x = torch.randn(1, 2, 9, 6)
    with pipeline.plan().load() as session:
        torch.testing.assert_close(session(x=x)["y"], x)
    wrong = new()
    tiles, frame = wrong.add("split", SplitTiles(4, 1), device="host")(wrong.input("x", spec(1, 2, 9, 6)))
    wrong.output("y", wrong.add("blend", BlendTiles(3, 1, dims=(1, 2, 9, 6)), device="host")(tiles, frame))
    with wrong.plan().load() as session, pytest.raises(StageError, match="the same tile and overlap"):
        session(x=x)
