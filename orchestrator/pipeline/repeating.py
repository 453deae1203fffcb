"""What a pipeline repeats, or leaves out: loops, maps and branches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator.pipeline.drawing import Drawing
from orchestrator.pipeline.loops import LoopPorts
from orchestrator.pipeline.maps import BranchPorts, MapPorts
from orchestrator.pipeline.values import Value

if TYPE_CHECKING:
    from orchestrator.pipeline.builder import Pipeline

__all__ = ["Repeating"]


class Repeating(Drawing):
    """The part of :class:`~orchestrator.pipeline.Pipeline` that draws bodies."""

    def loop(
        self,
        name: str,
        body: Pipeline,
        *,
        carry: Mapping[str, Any] | None = None,
        each: Mapping[str, Any] | None = None,
        inputs: Mapping[str, Any] | None = None,
        until: str | None = None,
        max_steps: int | None = None,
        check_every: int = 1,
        collect: Sequence[str] = (),
        outputs: Sequence[str] | None = None,
    ) -> Any:
        """Adds a loop that runs a body ``min(len(each), max_steps)`` times, or until it says so.

        Carries stay where the body gives them, and what is the same in all iterations is put in place once.

        Args:
            name: Unique among stages and loops; the stages of the body are called ``name/stage``.
            body: A pipeline; it is frozen now.
            carry: Names that are both an input and an output of the body, each with the value it starts with. The
                output of one iteration is the input of the next; it keeps its shape and dtype.
            each: Inputs of the body that get one slice for each iteration, along dim 0; all of one length.
            inputs: Inputs of the body that are the same in all iterations.
            until: An output of the body, one boolean; once it is true no further iteration runs.
            max_steps: Most iterations; zero gives the start of each carry.
            check_every: Iterations from one look at ``until`` to the next; the body may run up to so many less one
                times too often, what is collected is cut.
            collect: Outputs of the body that are stacked along a new dim 0, one part for each iteration.
            outputs: Carries and collected outputs to return; by default the collected ones, if any, else the carries.

        Returns:
            One :class:`Value`, or one for each of ``outputs``.

        Raises:
            GraphError: A name is taken or unknown, an input of the body is fed twice or never, or a number is none.
        """
        self.check_free("loop", name)
        ports = LoopPorts(name, body, carry, each, inputs, until, max_steps, check_every, collect, outputs)
        return ports.draw(self._pipeline, self.adopt(name, body))

    def map(
        self,
        name: str,
        body: Pipeline,
        *,
        over: Mapping[str, Any],
        inputs: Mapping[str, Any] | None = None,
        outputs: Sequence[str] | None = None,
    ) -> Any:
        """Runs a body for each of a number of items that only a request knows, in batches, in order; none is legal.

        The inputs of the body that take items begin with a named dim, whose buckets are the sizes of a batch. Items
        of a list may differ in size along the body's other named dims: each is padded to its own bucket and batched
        with others of that bucket, and what comes out of it is a list of host tensors, cut to the item's size where
        that is a named dim. Items that are slices of a tensor along dim 0 give tensors.

        Args:
            name: Unique among stages and loops; the stages of the body are called ``name/stage``.
            body: A pipeline; it is frozen now.
            over: Inputs of the body that get items, each with a list of tensors or a tensor; all of one length.
            inputs: Inputs of the body that are the same for all items.
            outputs: Outputs of the body to return; by default all.

        Returns:
            One :class:`Value`, or one for each output.

        Raises:
            GraphError: A name is taken or unknown, an input of the body is fed twice or never, or does not begin with a
                named dim.
        """
        self.check_free("map", name)
        return MapPorts(name, body, over, inputs, outputs).draw(
            self._pipeline, self._pipeline.adopt(name, body)
        )

    def when(
        self,
        name: str,
        body: Pipeline,
        *,
        inputs: Mapping[str, Any],
        otherwise: Mapping[str, Any],
        condition: Value | None = None,
    ) -> Any:
        """Runs a body only for some requests.

        Args:
            name: Unique among stages and loops; the stages of the body are called ``name/stage``.
            body: A pipeline; it is frozen now.
            inputs: Its inputs. It runs if a request gives all of the optional ones among them.
            otherwise: For each of its outputs what it is if the body does not run, of the same shape and dtype.
            condition: One boolean; the body runs only if it is true.

        Returns:
            One :class:`Value`, or one for each output, in the order of ``otherwise``.

        Raises:
            GraphError: A name is taken or unknown, an input of the body is fed twice or never, or nothing decides
                whether it runs.
        """
        self.check_free("branch", name)
        return BranchPorts(name, body, inputs, otherwise, condition).draw(
            self._pipeline, self._pipeline.adopt(name, body)
        )
