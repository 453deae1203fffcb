"""A region as source: one straight function of its stages and adapters, which runs, and which torch can export."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from orchestrator.duplicate import owner_of
from orchestrator.plan.compute_runs import ComputeRun
from orchestrator.plan.steps import CallStep, iter_steps
from orchestrator.runner.codegen.codegen import Code, CodeGenerator
from orchestrator.runner.load.load import Executable
from orchestrator.runner.sharing import Sharing
from orchestrator.stage import ModelWrapper

__all__ = ["RegionModule", "eager_region", "region_modules", "without_sizes"]

#: Adapters of a run depend on no size: what they are told of sizes is empty.
_NO_SIZES = SimpleNamespace(sizes={})


def eager_region(executable: Executable, run: ComputeRun, sharing: Sharing) -> Code:
    """Returns the function of a run's inputs that gives its outputs as a tuple, stage by stage.

    Args:
        executable: The loaded plan, without compiled regions.
        run: The run.
        sharing: Which values share memory.
    """
    generator = CodeGenerator(
        executable,
        exact=True,
        caller_owned=frozenset(run.inputs),
        sharing=sharing,
        driver=_no_part,
        check=_no_part,
        eager=_no_part,
    )
    outputs = "".join(f"v{index}, " for index in run.outputs)
    return generator.function("region", run.inputs, run.steps, f"({outputs})")


def _no_part(_: object) -> NoReturn:
    raise AssertionError("a run has neither blocks nor results that are checked")


def without_sizes(code: Code) -> Callable[..., Any]:
    """Returns the function of a region that takes the values of its inputs and nothing else."""
    return partial(code.function, _NO_SIZES, {}) if code.takes_sizes else code.function


def region_modules(executable: Executable, run: ComputeRun) -> dict[str, nn.Module]:
    """Returns the modules whose weights a run uses, each once, by a name that is the same in every process."""
    calls = [executable.plan.call(step.name) for step in iter_steps(run.steps, CallStep)]
    modules: dict[int, tuple[str, nn.Module]] = {}
    for position, stage in enumerate(dict.fromkeys(call.stage for call in calls)):
        owner = owner_of(executable.functions[stage])
        if isinstance(owner, ModelWrapper) and owner.makes_model:
            owner = owner.model
        if isinstance(owner, nn.Module):
            modules.setdefault(id(owner), (f"m{position}", owner))
    return dict(modules.values())


class RegionModule(nn.Module):
    """A run as a module, so that its weights are parameters and not constants.

    Args:
        function: Its function.
        modules: The modules whose weights it uses.
    """

    def __init__(self, function: Callable[..., Any], modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self._function = function

    def forward(self, *values: Tensor) -> Any:
        """Runs the stages."""
        return self._function(*values)

    def tensors(self) -> dict[str, Tensor]:
        """Returns parameters and buffers by every name that they have."""
        with torch.no_grad():
            return {
                **dict(self.named_buffers(remove_duplicate=False)),
                **dict(self.named_parameters(remove_duplicate=False)),
            }
