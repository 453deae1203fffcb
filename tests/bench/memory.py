"""Peak memory of 20 stages that each make a tensor of 64 MB.

Each side runs in a process of its own, and the peak is the kernel's: the most resident memory between the moment
just before the input is made and the end of three requests. The allocator of the C library takes anything above
32 MB from the system and gives it back at once, so nothing is hidden in a pool. The garbage collector is off: what
only it would free counts.

Run as a module, this measures one side and prints it as JSON.
"""

from __future__ import annotations

import ctypes
import gc
import json
import resource
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orchestrator import Pipeline, TensorSpec
from tests.bench.measure import Effort, Row, in_process

STAGES, QUICK_STAGES = 20, 4
LIMIT = 1.05
REQUESTS = 3
MB = 1 << 20


def stage(x: Tensor) -> Tensor:
    """The stage."""
    return x + 1


def by_hand(x: Tensor, stages: int) -> Tensor:
    """The chain by hand; each assignment frees the tensor before."""
    for _ in range(stages):
        x = stage(x)
    return x


def pipeline(size: int, stages: int) -> Pipeline:
    """The same chain as a pipeline."""
    chain = Pipeline("memory")
    value = chain.input("x", TensorSpec((size,)))
    for number in range(stages):
        value = chain.add(f"s{number}", stage)(value)
    chain.output("y", value)
    return chain


def rows(effort: Effort, device: str) -> Iterator[Row]:
    """Measures; yields rows."""
    stages, megabytes = (QUICK_STAGES, 40) if effort.quick else (STAGES, 64)
    for kept in ("kept",) if effort.quick else ("kept", "given up"):
        ours, reference = (
            [
                in_process("memory", side, kept, str(stages), str(megabytes), device)
                for _ in range(1 if effort.quick else 3)
            ]
            for side in ("session", "by hand")
        )
        peaks = [statistics.median(run["peak"] for run in side) / MB for side in (ours, reference)]
        yield Row(
            "memory",
            f"{stages} stages of {megabytes} MB on {device}, input {kept}",
            "MB",
            peaks[0],
            peaks[1],
            peaks[0] / peaks[1],
            "x",
            LIMIT if kept == "kept" else None,
            equal=all(run["sum"] == reference[0]["sum"] for run in (*ours, *reference)),
            note=_note(kept, ours[0]["planned"]),
        )


def _note(kept: str, planned: int) -> str:
    if kept == "kept":
        return f"the caller holds the input; the plan says {planned / MB:.0f} MB"
    return "the input is made in the call: hand-written code can free it early"


class Peak:
    """The most memory in use since the object was made, in bytes above what was in use then."""

    def __init__(self, device: str) -> None:
        self._device = device
        if device != "cpu":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            self._start = torch.cuda.memory_allocated(device)
            return
        # What was freed in small pieces is in a pool: given back, so that whoever takes it again is seen.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:  # no Linux: peaks before now count as well
            self._start = _highest()
        else:
            self._start = _status("VmRSS")

    def value(self) -> int:
        """Returns it."""
        if self._device != "cpu":
            return torch.cuda.max_memory_allocated(self._device) - self._start
        return (_status("VmHWM") or _highest()) - self._start


def _status(field: str) -> int:
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(field))


def _highest() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _one_side(side: str, kept: str, stages: int, megabytes: int, device: str) -> dict[str, Any]:
    """Measures one side in this process."""
    torch.set_num_threads(1)
    size = megabytes * MB // 4
    session = pipeline(size, stages).plan(device=device).load()

    def reference(x: Tensor) -> Tensor:
        return by_hand(x.to(device), stages).cpu()

    run: Callable[[Tensor], Tensor] = (lambda x: session(x=x)["y"]) if side == "session" else reference
    peak_of = _kept if kept == "kept" else _given_up
    with torch.inference_mode():
        total = float(run(torch.zeros(size))[:1024].sum())
        gc.collect()
        gc.disable()
        peak = peak_of(run, side, session, reference, size, device)
    planned = session.plan.summary["peak_bytes"][device if device == "cpu" else "cuda:0"]
    session.close()
    return {"peak": peak, "sum": total, "planned": planned}


def _kept(
    run: Callable[[Tensor], Tensor], _side: str, _session: Any, _hand: Any, size: int, device: str
) -> int:
    peak = Peak(device)
    x = torch.zeros(size)
    x.fill_(1)
    for _ in range(REQUESTS):
        run(x)
    return peak.value()


def _given_up(_run: Any, side: str, session: Any, hand: Any, size: int, device: str) -> int:
    """No variable and no wrapper holds the input: it is made in the call itself."""
    peak = Peak(device)
    for _ in range(REQUESTS):
        if side == "session":
            session(x=torch.ones(size))
        else:
            hand(torch.ones(size))
    return peak.value()


if __name__ == "__main__":
    print(json.dumps(_one_side(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])))
