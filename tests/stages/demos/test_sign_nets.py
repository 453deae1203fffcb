"""The networks that read, next to the layers they are made of."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from orchestrator_stages.demos.scene_text import trained
from orchestrator_stages.demos.scene_text.detector import MULTIPLE, Backbone, Detector
from orchestrator_stages.demos.scene_text.reader import Reader
from tests.stages.demos.sign_by_hand import LINES, READING, SignReader, needs, picture, pixels


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    return Backbone().eval()


def branched_off(backbone: Backbone, *, in_place: bool) -> list[torch.Tensor]:
    """The original's way: layers in a row, branched off after a norm, before the ReLU that follows."""
    layers = [layer for part in backbone.parts for layer in part]
    layers = [nn.ReLU(inplace=in_place) if isinstance(layer, nn.ReLU) else layer for layer in layers]
    x = torch.rand(1, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    seen = []
    with torch.no_grad():
        for number, layer in enumerate(layers):
            x = layer(x)
            if number in (11, 18, 28, 38):
                seen.append(x)
    return seen


def test_what_is_branched_off_is_what_a_relu_in_place_leaves_there(backbone):
    x = torch.rand(1, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        *found, _ = backbone(x)
    for own, other in zip(found, branched_off(backbone, in_place=True), strict=True):
        assert own.equal(other)
    raw = branched_off(backbone, in_place=False)
    assert [own.equal(other) for own, other in zip(found, raw, strict=True)] == [False, False, False, True]


@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (32, 48)])
def test_the_detector_scores_every_cell(rows, columns):
    assert rows % MULTIPLE == columns % MULTIPLE == 0
    with torch.no_grad():
        scores = Detector().eval()(torch.zeros(1, 3, rows, 2, columns, 2, dtype=torch.uint8))
    assert scores.shape == (1, 2, rows, columns)


def test_a_word_is_read_as_if_it_were_alone():
    torch.manual_seed(0)
    reader = Reader().eval()
    crops = torch.randint(0, 256, (3, 64, 16, 4), dtype=torch.uint8)
    with torch.no_grad():
        together = reader(crops)
        for number in range(3):
            alone = reader(crops[number : number + 1])
            torch.testing.assert_close(together["sureness"][number], alone["sureness"][0])
            assert together["letters"][number].equal(alone["letters"][0])
    assert not together["letters"][:, -1].any()


def test_weights_of_another_network_are_refused():
    with pytest.raises(ValueError, match="the weights are not those of a Reader"):
        trained.in_order(Reader(), Detector().state_dict())


@needs(*READING)
@pytest.mark.parametrize("size", [20, 24, 40])
def test_letters_may_be_small_or_large(size):
    photo = picture(size=(22 * size, 7 * size), font=size)
    assert SignReader()(pixels(photo))[0].splitlines() == list(LINES)


@needs(*READING)
def test_a_sign_is_read():
    text, words = SignReader()(pixels(picture()))
    assert text.splitlines() == list(LINES)
    assert [word["line"] for word in words] == [0] * 4 + [1] * 5
    assert all(word["sureness"] > 0.9 for word in words)
