"""Plans for a device that compiles, broken on purpose: what `verify` must say of each, and what only `bind` can."""

from __future__ import annotations

from dataclasses import replace

import torch

from orchestrator import Residency
from orchestrator.adapter import Adapter
from orchestrator.program import ProgramOutput
from tests.kit import spec
from tests.planner.broken import Break, edge, item
from tests.planner.devices import DEVICE
from tests.planner.program_breaks import (
    add_input,
    as_raw,
    download_named,
    gathered,
    gives,
    idle,
    late_fold,
    later,
    only_rank_0,
    own_buffer,
    placed,
    program,
    route_removed,
    runs,
    runs_on_host,
    takes,
    without,
)

__all__ = ["BROKEN", "FOREIGN"]


LONG = "adapt mid.output"
PAD = Adapter("pad", ("b", 9), 0)

#: What is broken, to a function that breaks it, and what the message must say. `verify` alone must refuse each.
BROKEN: dict[str, tuple[Break, str]] = {
    # Where adapters are.
    "a fold without a place": (placed("enc.output", "pad", ""), "has no place in a program"),
    "an adapter on the host with a place": (
        placed("x", "pad", "producer"),
        "has a place in a program",
    ),
    "an upload with a place": (placed("x", "upload", "consumer"), "has a place in a program"),
    "a download with a place": (
        placed("join.output", "download", "producer"),
        "has a place in a program",
    ),
    "a gather with a place": (
        placed("parts.output", "gather", "consumer"),
        "has a place in a program",
    ),
    "a cut on the host with a place": (
        placed("join.output", "cut", "program"),
        "has a place in a program",
    ),
    "an adapter in the consumer that is said to be in the producer": (
        placed("mid.output", "slice", "producer"),
        "program 'mid' does not give what 'slim' reads",
    ),
    "an adapter in the producer that is said to be in the consumer": (
        placed("enc.output", "pad", "consumer"),
        "program 'wide' takes another form at 'x'",
    ),
    "an adapter in the consumer that is said to be a program": (
        placed("mid.output", "slice", "program"),
        "runs '', no program",
    ),
    "a program of adapters that is said to be in the consumer": (
        placed("mid.output", "pad", "consumer"),
        "program 'long' takes another form at 'x'",
    ),
    "a program of adapters that is said to be in the producer": (
        placed("mid.output", "pad", "producer"),
        "program 'mid' does not give what 'long' reads",
    ),
    "an edge that says another place than its step": (
        edge("wide.x", adapters=(Adapter("pad", ("b", 6), 0, place="consumer"),)),
        "does not list the adapters on its way",
    ),
    "a fold into a producer that there is not": (as_raw, "folded into a producer that there is not"),
    "a producer's fold that comes after the next run": (late_fold, "comes after its producer"),
    "a download of what a consumer folds": (download_named, "reads a value whose adapters no program does"),
    # Programs and steps.
    "a program is missing": (without("join"), "runs 'join', no program"),
    "a program of adapters is missing": (without(LONG), f"runs '{LONG}', no program"),
    "a call without a program": (runs("join", ""), "runs '', no program"),
    "a call that runs another stage's program": (runs("wide", "red"), "is not of 'wide'"),
    "a call that runs adapters": (runs("long", LONG), "is not of 'long'"),
    "adapters that run a stage's program": (runs("mid.output", "mid"), "is not of 'adapters'"),
    "a host stage that runs a program": (runs_on_host, "has a program where calls run by themselves"),
    "a program never runs": (idle, "program ['mid[2]'] never runs"),
    "a program is there twice": (
        lambda plan: replace(plan, programs=(*plan.programs, plan.programs[0])),
        "two programs have one name",
    ),
    "a program of another stage": (program("wide", stage="red"), "is not of 'wide'"),
    "a program of no stage": (program("wide", stage=""), "is not of 'wide'"),
    "a program on another device": (program("wide", device="host"), "is not of 'wide' on neuron-emulated"),
    # What programs take.
    "a program that takes another port": (takes("wide", port="y"), "takes other ports"),
    "a program that takes too much": (add_input, "takes other ports"),
    "a program that takes nothing": (program("wide", inputs=()), "takes other ports"),
    "a program whose inputs change places": (
        lambda plan: program("join", inputs=plan.program("join").inputs[::-1])(plan),
        "takes other ports",
    ),
    "a program that takes another shape": (takes("wide", spec=spec("b", 7)), "takes another form at 'x'"),
    "a program that takes another dtype": (
        takes("wide", spec=spec("b", 6, dtype=torch.bfloat16)),
        "takes another form at 'x'",
    ),
    "a program that does what nobody asked for": (
        takes("wide", adapters=(PAD,)),
        "takes another form at 'x'",
    ),
    "a program that does not do what it should": (takes("slim", adapters=()), "takes another form at 'x'"),
    "a program that takes a constant for a tensor": (
        takes("wide", spec=None, constant="constant#1"),
        "takes another form at 'x'",
    ),
    "a program that takes a tensor for a constant": (
        takes("scale", 1, spec=spec("b", 4)),
        "has another constant at 'k'",
    ),
    "a program with another constant": (
        takes("scale", 1, constant="constant#2"),
        "has another constant at 'k'",
    ),
    "a program with a constant that there is not": (
        takes("scale", 1, constant="constant#9"),
        "has another constant at 'k'",
    ),
    "adapters that do something else": (takes(LONG, adapters=(PAD,)), "does not do what"),
    "adapters that do nothing": (takes(LONG, adapters=()), "does not do what"),
    "adapters that take another form": (takes(LONG, spec=spec("b", 5)), "takes another form than"),
    "adapters that take nothing": (program(LONG, inputs=()), "does not do what"),
    # What programs give.
    "a program that does not give what is read raw": (
        gives("enc", lambda outputs: outputs[1:]),
        "does not give what 'join' reads",
    ),
    "a program that does not give what is read adapted": (
        gives("enc", lambda outputs: outputs[:1]),
        "does not give what 'wide' reads",
    ),
    "a program that gives another port": (
        gives("mid", lambda outputs: (replace(outputs[0], port="other"),)),
        "program 'mid' gives ['other'], not ports of its stage",
    ),
    "a program that gives what its stage does not": (
        gives("mid", lambda outputs: (*outputs, ProgramOutput("other", spec("b", 4)))),
        "program 'mid' gives ['output', 'other'], not ports of its stage",
    ),
    "a program that gives one value twice": (
        gives("mid", lambda outputs: outputs * 2),
        "program 'mid' gives ['output', 'output'], not ports of its stage",
    ),
    "a program that gives it adapted otherwise": (
        gives("enc", lambda outputs: (outputs[0], ProgramOutput("output", spec("b", 9), (PAD,)))),
        "does not give what 'wide' reads",
    ),
    "a program that gives another form than its adapters make": (
        gives("enc", lambda outputs: (outputs[0], replace(outputs[1], adapters=(PAD,)))),
        "program 'enc' gives 'output' in another form than [b, 9] float32",
    ),
    "a program that gives another shape": (
        gives("mid", lambda outputs: (replace(outputs[0], spec=spec(4, "b")),)),
        "program 'mid' gives 'output' in another form than [b, 4] float32",
    ),
    "a program that gives another dtype": (
        gives("mid", lambda outputs: (replace(outputs[0], spec=spec("b", 4, dtype=torch.float16)),)),
        "program 'mid' gives 'output' in another form than [b, 4] float32",
    ),
    "adapters that give another port": (
        gives(LONG, lambda outputs: (replace(outputs[0], port="other"),)),
        f"program '{LONG}' gives ['other'], not ports of its stage",
    ),
    "adapters that give another shape": (
        gives(LONG, lambda outputs: (replace(outputs[0], spec=spec(8, "b")),)),
        f"program '{LONG}' gives 'value' in another form than [b, 8] float32",
    ),
    "adapters that are done twice": (
        gives(LONG, lambda outputs: (replace(outputs[0], adapters=(PAD,)),)),
        f"program '{LONG}' does not give the one value that",
    ),
    "adapters that give nothing": (
        gives(LONG, lambda outputs: ()),
        f"program '{LONG}' does not give the one value that",
    ),
    "a program said to give the host what stays": (
        program("mid", to_host=True),
        "reads on the device what 'mid' gives the host",
    ),
    # Routes, and one output buffer for each program.
    "a twin without a route": (program("enc[route 1]", route=0), "take the same shapes"),
    "two values in one buffer": (
        route_removed,
        "'join' reads 'enc.output' after its program 'enc' has run again",
    ),
    "a reader that is moved behind the next run": (
        later("red", "", "dec#2"),
        "'red' reads 'dec.output' after its program 'dec' has run again",
    ),
    "a call that reads the buffer that it writes": (own_buffer, "'enc#2' reads the buffer that it writes"),
    "more bytes of buffers than there are": (
        lambda plan: replace(plan, buffers=((DEVICE, plan.buffers[0][1] + 1),)),
        "bytes of output buffers",
    ),
    "buffers that are forgotten": (lambda plan: replace(plan, buffers=()), "bytes of output buffers"),
    "buffers of an unknown device": (
        lambda plan: replace(plan, buffers=(*plan.buffers, ("cpu", 8))),
        "bytes of output buffers",
    ),
    "buffers that do not fit the budget": (
        lambda plan: replace(plan, budget=((DEVICE, plan.buffers[0][1]),)),
        "needs more memory than its budget",
    ),
    # Parts.
    "parts that are joined to something else": (gathered(("b", 12)), "which is no gather"),
    "parts that are joined along a named dim": (gathered((8, 4)), "which is no gather"),
    "parts that are not joined": (gathered(("b", 4)), "which is no gather"),
    "parts that are joined along two dims": (gathered((4, 8)), "which is no gather"),
    "parts that are joined to what the step does not say": (gathered(("b", 12), everywhere=False), "turns"),
    "parts of which rank 0's is read": (only_rank_0, "takes"),
    "parts that are said to stay on the device": (
        edge("whole.x", residency=Residency.DEVICE),
        "said to stay on the device but goes over the host",
    ),
    "a value on the device that is said to go over the host": (
        edge("wide.x", residency=Residency.HOST),
        "said to go over the host but stays on the device",
    ),
}


#: Plans that are sound by themselves, but are none of this pipeline: `bind` must refuse each.
FOREIGN: dict[str, Break] = {
    "a group that computes eagerly": lambda plan: item(plan, "groups", 0, runs_programs=False),
    "a group of unlimited buffers": lambda plan: item(plan, "groups", 0, output_buffers=0),
    "a group whose hazards nobody looks at": lambda plan: item(
        plan, "groups", 0, options=(*plan.groups[0].options, ("hazards", "ignore"))
    ),
    "a program written for another dtype": takes("mid", dtype=torch.int64),
    "a group of fewer ranks": lambda plan: item(plan, "groups", 0, ranks=1),
}
