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
    pipeline.output("y", pipeline.add("times", Times())(pipeline.input("x", TensorSpec(("n", 3), pad=0))))
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
    photo = TensorSpec((Dim("h", any=True), Dim("w", any=True), 3), torch.uint8)
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


ready = hello()


class Group:
    inner = staticmethod(hello)


number = 5
