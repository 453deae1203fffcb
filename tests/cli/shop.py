"""Pipelines as a user would write them, one for each thing the command line has to cope with."""

import os
import subprocess
import sys

import torch
from torch import nn

from orchestrator import Dim, ModelWrapper, Pipeline, TensorSpec


class Times(nn.Module):
    def __init__(self, factor=2.0):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


class Scale(ModelWrapper):
    def __init__(self, config=None):
        super().__init__(dict(config or {}), Times, tag="scale")


def double(*, factor: float = 2.0, width: int = 3) -> Pipeline:
    pipeline = Pipeline("double")
    x = pipeline.input("x", TensorSpec((Dim("batch", (1, 4)), width), pad=0))
    pipeline.output("y", pipeline.add("scale", "acme.scale", config={"factor": factor})(x))
    return pipeline


def averaging() -> Pipeline:
    pipeline = Pipeline("averaging")
    x = pipeline.input("x", TensorSpec((Dim("batch", (1, 4), batch=True), 3), pad=0))
    pipeline.output("y", pipeline.add("centre", lambda x: x - x.mean(0))(x))
    return pipeline


def needy(*, secret) -> Pipeline:
    return double(factor=secret)


def broken(*, how: str = "raise"):
    if how == "raise":
        raise ValueError("the weights are not here")
    return "no pipeline"


def invalid() -> Pipeline:
    pipeline = Pipeline("invalid")
    x = pipeline.input("x", TensorSpec((2, 3)))
    pipeline.output("y", pipeline.add("linear", nn.Linear(4, 4).eval())(x))
    return pipeline


def misled() -> Pipeline:
    pipeline = Pipeline("misled")
    linear = pipeline.add("linear", nn.Linear(3, 4).eval(), config={"rnaks": 2})
    pipeline.output("y", linear(pipeline.input("x", TensorSpec((2, 3)))))
    return pipeline


def bare() -> Pipeline:
    pipeline = Pipeline("bare")
    pipeline.output(
        "y", pipeline.add("times", Times())(pipeline.input("x", TensorSpec((Dim("n", batch=True), 3), pad=0)))
    )
    return pipeline


def host(pipeline, name, function, **outputs):
    return pipeline.add(name, function, device="host", outputs=outputs)


def repeat(prompt, times, loud):
    text = prompt * times
    return text.upper() if loud else text


def words(*, times: int = 0) -> Pipeline:
    pipeline = Pipeline("words")
    prompt, count = pipeline.input("prompt", str), pipeline.input("times", int)
    text = host(pipeline, "repeat", repeat, text=str)(prompt, count, pipeline.input("loud", bool))
    pipeline.output("text", text)
    pipeline.output("facts", host(pipeline, "facts", facts, facts=dict)(text))
    return pipeline


def facts(text):
    return {"length": len(text), "ratio": float("nan"), "letters": sorted(set(text)), "pair": (1, "ü")}


def hello() -> Pipeline:
    pipeline = Pipeline("hello")
    name = pipeline.input("name", str)
    pipeline.output("greeting", host(pipeline, "greet", lambda name: f"Hello {name}!", text=str)(name))
    return pipeline


def negative() -> Pipeline:
    photo = TensorSpec((Dim.dynamic("h"), Dim.dynamic("w"), 3), torch.uint8)
    pipeline = Pipeline("negative")
    image = pipeline.input("image", photo)
    pipeline.output("negative", host(pipeline, "invert", lambda image: 255 - image, out=photo)(image))
    return pipeline


def chatter(x):
    sys.stdout.write("a stage prints\n")
    os.write(1, b"a library writes\n")
    subprocess.run(["echo", "a compiler talks"], check=True)
    return x


def noisy() -> Pipeline:
    sys.stdout.write("building\n")
    pipeline = Pipeline("noisy")
    spec = TensorSpec((2,))
    pipeline.output("y", host(pipeline, "chatter", chatter, out=spec)(pipeline.input("x", spec)))
    return pipeline


def fail(x):
    raise RuntimeError("the stage broke")


def failing() -> Pipeline:
    pipeline = Pipeline("failing")
    spec = TensorSpec((2,))
    pipeline.output("y", host(pipeline, "fail", fail, out=spec)(pipeline.input("x", spec)))
    return pipeline


def sampled(*, how: str = "well", echo: bool = False) -> Pipeline:
    pipeline = double()
    if echo:
        pipeline.output("echo", host(pipeline, "echo", str.upper, text=str)(pipeline.input("prompt", str)))

    def examples(sizes):
        if how == "raise":
            raise OSError("the photo is not here")
        x = torch.arange(sizes["batch"] * 3.0).reshape(-1, 3)
        return {"x": x, "prompt": "a"} if echo else {"y" if how == "wrong" else "x": x}

    pipeline.example_inputs = examples
    return pipeline


class Count(nn.Module):
    def forward(self, n, limit):
        return n + 1, (n + 1 >= limit).reshape(1)


def counting() -> Pipeline:
    """Counts up to a limit, at most ten times, and again as often from there."""
    inner = Pipeline("inner")
    n, limit = inner.input("n", TensorSpec((1,))), inner.input("limit", TensorSpec((1,)))
    n, done = inner.add("count", Count(), outputs=("n", "done"))(n, limit)
    inner.output("n", n)
    inner.output("done", done)
    body = Pipeline("body")
    n, limit = body.input("n", TensorSpec((1,))), body.input("limit", TensorSpec((1,)))
    ports = {"carry": {"n": n}, "inputs": {"limit": limit}, "until": "done", "max_steps": 10}
    body.output("n", body.loop("inner", inner, **ports))
    pipeline = Pipeline("counting")
    limit = pipeline.input("limit", TensorSpec((1,)))
    ports = {"carry": {"n": torch.zeros(1)}, "inputs": {"limit": limit}, "max_steps": 2}
    pipeline.output("n", pipeline.add("times", Times())(pipeline.loop("outer", body, **ports)))
    return pipeline


def pieces(*, most: int = 4) -> Pipeline:
    """Doubles each item of a list."""
    body = Pipeline("body")
    item = body.input("item", TensorSpec((Dim("items", (1, most)), Dim("w", (2, 8))), pad=0))
    body.output("twice", body.add("times", Times())(item))
    pipeline = Pipeline("pieces")
    pipeline.output("twice", pipeline.map("each", body, over={"item": pipeline.input("items", list)}))
    return pipeline


def twice(*, both: bool = False) -> Pipeline:
    """Scales in a loop, and in another if asked."""
    body = Pipeline("body")
    body.output(
        "x", body.add("scale", "acme.scale", config={"factor": 2.0})(body.input("x", TensorSpec((3,))))
    )
    pipeline = Pipeline("twice")
    x = pipeline.loop("twice", body, carry={"x": pipeline.input("x", TensorSpec((3,)))}, max_steps=2)
    pipeline.output("y", pipeline.loop("more", body, carry={"x": x}, max_steps=2) if both else x)
    return pipeline


def maybe() -> Pipeline:
    """Doubles an image if there is one."""
    body = Pipeline("body")
    body.output("y", body.add("times", Times())(body.input("x", TensorSpec((3,)))))
    pipeline = Pipeline("maybe")
    image = pipeline.input("image", TensorSpec((3,)), optional=True)
    text = pipeline.input("text", TensorSpec((3,)))
    seen = pipeline.when("see", body, inputs={"x": image}, otherwise={"y": text})
    pipeline.output("y", pipeline.add("last", Times())(seen))
    return pipeline


ready = hello()


class Group:
    inner = staticmethod(hello)


number = 5
