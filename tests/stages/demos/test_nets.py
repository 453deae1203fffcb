"""The networks and their weights: sizes, checksums, what they know, and when files are read."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from orchestrator_stages.demos.faces.nets import STRIDE, WINDOW, ONet, PNet, RNet
from orchestrator_stages.demos.faces.trained import FOLDER, load_weights, onet, pnet, rnet
from tests.stages.demos.conftest import patches

NETS = {"pnet": (PNet, 6632), "rnet": (RNet, 100178), "onet": (ONet, 389040)}


def test_files_match_their_checksums():
    listed = dict(reversed(line.split()) for line in (FOLDER / "SHA256SUMS").read_text().splitlines())
    assert listed.keys() == {f"{name}.safetensors" for name in NETS}
    for name, checksum in listed.items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == checksum


def test_the_licence_ships_beside_the_weights():
    notice = (FOLDER / "NOTICE").read_text()
    assert "MIT License" in notice
    assert "Timothy Esler" in notice


@pytest.mark.parametrize("name", NETS)
def test_number_of_parameters(name):
    net, expected = NETS[name]
    assert sum(parameter.numel() for parameter in net().parameters()) == expected


@pytest.mark.parametrize("side", [12, 13, 14, 47, 154])
def test_pnet_has_one_cell_for_each_window(side):
    judged = pnet().model(torch.zeros(1, 3, side, side))
    # The pool rounds up, so a last window may reach one pixel over the edge.
    cells = (side + 1 - WINDOW) // STRIDE + 1
    assert judged["scores"].shape == (1, cells, cells)
    assert judged["offsets"].shape == (1, 4, cells, cells)


def test_a_cell_speaks_of_its_window_and_of_nothing_else():
    net, picture = pnet().model, torch.rand(1, 3, 40, 40) * 255
    y, x = 3, 5
    window = picture[:, :, STRIDE * y : STRIDE * y + WINDOW, STRIDE * x : STRIDE * x + WINDOW]
    assert torch.allclose(net(picture)["scores"][0, y, x], net(window)["scores"][0, 0, 0], atol=1e-6)


@pytest.mark.parametrize(("make", "side"), [(rnet, 24), (onet, 48)])
def test_patches_of_faces_are_told_from_others(make, side):
    scores = make().model(patches(side))["scores"]
    assert (scores[:100] > 0.5).sum() == 100
    assert (scores[100:] > 0.5).sum() == 0


@pytest.mark.parametrize(("make", "side"), [(rnet, 24), (onet, 48)])
def test_padding_a_batch_leaves_its_rows_alone(make, side):
    net, crops = make().model, torch.rand(5, 3, side, side) * 255
    padded = net(torch.cat([crops, torch.zeros(3, 3, side, side)]))
    for port, value in net(crops).items():
        assert torch.allclose(padded[port][:5], value, atol=1e-6)


@pytest.mark.parametrize("make", [rnet, onet])
def test_no_crops_give_no_rows(make):
    side = 24 if make is rnet else 48
    assert all(len(value) == 0 for value in make().model(torch.empty(0, 3, side, side)).values())


def test_files_are_read_only_when_a_model_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("orchestrator_stages.demos.faces.trained.FOLDER", tmp_path)
    stage = pnet()
    with pytest.raises(FileNotFoundError):
        _ = stage.model


def test_a_fake_network_reads_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr("orchestrator_stages.demos.faces.trained.FOLDER", tmp_path)
    with FakeTensorMode():
        net = load_weights(PNet(), "pnet")
        assert isinstance(net(torch.empty(1, 3, 20, 20))["scores"], FakeTensor)
    with torch.device("meta"):
        assert load_weights(RNet(), "rnet").face.weight.is_meta
