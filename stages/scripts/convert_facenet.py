"""Make the weights of the face cascade from those that the facenet-pytorch wheel carries.

    pip download --no-deps --dest build facenet-pytorch==2.6.0
    python stages/scripts/convert_facenet.py build/facenet_pytorch-2.6.0-py3-none-any.whl

The wheel is only read, never installed: it pins old versions of torch and numpy. Its three state dicts are
checked against known checksums, renamed to the names of ``orchestrator_stages.demos.faces.nets``, and written as
safetensors beside a ``NOTICE`` (the MIT licence they come under) and a ``SHA256SUMS``. Running it again
gives the same bytes.

One weight is rearranged, not only renamed. The originals flatten ``[n, channel, y, x]`` in the order ``x,
y, channel`` before their first dense layer; the modules here flatten in memory order, so that layer's
columns move to match.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn
from weights import option_parser, write_papers

from orchestrator_stages.demos.faces.nets import ONet, PNet, RNet
from orchestrator_stages.demos.faces.trained import FOLDER

SOURCE = "facenet_pytorch/data/{}.pt"
LICENCE = "facenet_pytorch-2.6.0.dist-info/LICENSE.md"
NOTICE = """\
pnet.safetensors, rnet.safetensors and onet.safetensors hold the trained weights of the MTCNN face cascade
as distributed in facenet-pytorch 2.6.0 (https://github.com/timesler/facenet-pytorch), converted by
stages/scripts/convert_facenet.py: tensors are renamed, and the columns of the first dense layer reordered.
They are used under the following licence.

"""

CHECKSUMS = {
    "pnet": "a2a71925e0b9996a42f63e47efc1ca19043e69558b5c523b978d611dfae49c8f",
    "rnet": "bbb937de72efc9ef83b186c49f5f558467a1d7e3453a8ece0d71a886633f6a86",
    "onet": "165bfbe42940416ccfb977545cf0e976d5bf321f67083ae2aaaa5c764280118d",
}

LAYERS = {
    "pnet": {
        "conv1": "features.0",
        "prelu1": "features.1",
        "conv2": "features.3",
        "prelu2": "features.4",
        "conv3": "features.5",
        "prelu3": "features.6",
        "conv4_1": "face",
        "conv4_2": "offsets",
    },
    "rnet": {
        "conv1": "features.0",
        "prelu1": "features.1",
        "conv2": "features.3",
        "prelu2": "features.4",
        "conv3": "features.6",
        "prelu3": "features.7",
        "dense4": "features.9",
        "prelu4": "features.10",
        "dense5_1": "face",
        "dense5_2": "offsets",
    },
    "onet": {
        "conv1": "features.0",
        "prelu1": "features.1",
        "conv2": "features.3",
        "prelu2": "features.4",
        "conv3": "features.6",
        "prelu3": "features.7",
        "conv4": "features.9",
        "prelu4": "features.10",
        "dense5": "features.12",
        "prelu5": "features.13",
        "dense6_1": "face",
        "dense6_2": "offsets",
        "dense6_3": "landmarks",
    },
}
"""Original layer name to module name, for each network."""

FLATTENED = {"rnet": "dense4.weight", "onet": "dense5.weight"}
"""The weight that reads a flattened map of 3 by 3 pixels."""


def read(wheel: zipfile.ZipFile, net: str) -> dict[str, Tensor]:
    """Returns the original state dict of one network, its checksum verified."""
    content = wheel.read(SOURCE.format(net))
    found = hashlib.sha256(content).hexdigest()
    if found != CHECKSUMS[net]:
        raise SystemExit(
            f"{SOURCE.format(net)} has sha256 {found}, not {CHECKSUMS[net]}: use facenet-pytorch 2.6.0."
        )
    state: dict[str, Tensor] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state


def memory_order(weight: Tensor) -> Tensor:
    """Returns a dense weight with its columns moved from the order ``x, y, channel`` to ``channel, y, x``."""
    return weight.reshape(len(weight), 3, 3, -1).permute(0, 3, 2, 1).flatten(1)


def convert(net: str, original: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the state dict under this package's names."""
    converted = {}
    for name, weight in original.items():
        layer, _, kind = name.rpartition(".")
        moved = memory_order(weight) if name == FLATTENED.get(net) else weight
        converted[f"{LAYERS[net][layer]}.{kind}"] = moved.contiguous()
    return converted


def main() -> None:
    """Convert the wheel named on the command line."""
    parser = option_parser(__doc__, FOLDER)
    parser.add_argument("wheel", type=Path, help="facenet_pytorch-2.6.0-py3-none-any.whl")
    arguments = parser.parse_args()
    nets: dict[str, nn.Module] = {"pnet": PNet(), "rnet": RNet(), "onet": ONet()}
    with zipfile.ZipFile(arguments.wheel) as wheel:
        for net, module in nets.items():
            state = convert(net, read(wheel, net))
            module.load_state_dict(state)  # refuses a wrong name or shape
            (arguments.out / f"{net}.safetensors").write_bytes(save(state))
        licence = wheel.read(LICENCE).decode()
    write_papers(arguments.out, NOTICE + licence, *(f"{net}.safetensors" for net in nets))


if __name__ == "__main__":
    main()
