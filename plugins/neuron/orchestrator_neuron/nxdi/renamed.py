"""NxD Inference where Neuron's runtime has renamed torch's spare device type to ``neuron``.

Its wrappers tell a value on the device from a host tensor by the name ``privateuseone``; under the other name each
value that stays on the device would be taken for a host tensor, and fail.
"""

from __future__ import annotations

import sys

import torch

from orchestrator_neuron.ranked import is_ranked

__all__ = ["accept_renamed_device"]

_PACKAGE = "neuronx_distributed_inference."


def accept_renamed_device() -> None:
    """Makes the loaded modules of NxD Inference know values on the device by either name; nothing where none is new.

    It stays so in this process: what NxD Inference would do otherwise is an error in each case.
    """
    if torch._C._get_privateuse1_backend_name() == "privateuseone":
        return
    for name, module in list(sys.modules.items()):
        if name.startswith(_PACKAGE) and "is_ranked_io" in vars(module):
            vars(module)["is_ranked_io"] = is_ranked
