"""A device whose values are opaque to everybody else: tensors in crates."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from orchestrator.adapter import apply
from orchestrator.backend import Capabilities, EagerBackend


@dataclass
class Crate:
    tensor: torch.Tensor


class AcmeBackend(EagerBackend):
    @classmethod
    def accepts(cls, device):
        family, _, number = device.partition(":")
        return family == "acme" and (not number or number.isdigit())

    @classmethod
    def canonical(cls, device):
        return device if ":" in device else f"{device}:0"

    @property
    def capabilities(self):
        return Capabilities()

    def load(self, stage, sizes=()):
        module = stage.module()
        return lambda *crates: Crate(module(*(crate.tensor for crate in crates)))

    def upload(self, value):
        return Crate(value.clone())

    def download(self, handle):
        return handle.tensor.clone()

    def copy(self, handle, device):
        return Crate(handle.tensor.clone())

    def adapt(self, adapter):
        return lambda handle, sizes: Crate(apply(adapter, handle.tensor, sizes))

    def join(self, handles, dim):
        return Crate(torch.cat([handle.tensor for handle in handles], dim))

    def part(self, handle, dim, start, size):
        return Crate(handle.tensor.narrow(dim, start, size))

    def select(self, handle, index):
        return Crate(handle.tensor[index])

    def stack(self, handles):
        return Crate(torch.stack([handle.tensor for handle in handles]))

    def empty(self, shape, dtype):
        return Crate(torch.empty(shape, dtype=dtype))
