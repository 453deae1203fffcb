"""From graph to plan: passes in a fixed order, each a pure function from a partial plan to a new one.

place      stage -> device group
bucket     name -> one set of sizes in the whole graph
infer      shape and dtype of every port, on fake tensors
application  which stages share weights, and how many bytes each device holds
fuse       where adapters between two stages of a compiling device are compiled in
residency  edge -> device or host, and why
states     which carries live in an application, updated in place
adapt      adapters where two ends differ; steps in order
hazards    no value is read after it was overwritten: steps are ordered anew
liveness   a value is freed right after its last reader
memory     weights, constants and peak against the budget
verify     the finished plan, proven again by an independent checker
"""

from orchestrator.planner.bind import bind_plan
from orchestrator.planner.context import PlanOptions
from orchestrator.planner.planner import make_plan

__all__ = ["PlanOptions", "bind_plan", "make_plan"]
