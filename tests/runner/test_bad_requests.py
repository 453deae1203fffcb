"""Requests that do not fit, stages that raise or lie: the error says which and what, and the session goes on."""

from __future__ import annotations

import pytest
import torch

from orchestrator import Dim, InputError, StageError
from tests.kit import COMPUTE, Double, batch, chain, host, new, pair, refuses, spec


@pytest.fixture
def session():
    with pair()[0].plan(sizes={"batch": (2, 4)}).load() as instance:
        yield instance
        assert instance(image=torch.ones(3, 8), text=torch.ones(3, 4))["logits"].shape == (3, 5)


IMAGE, TEXT = torch.ones(3, 8), torch.ones(3, 4)


def test_a_missing_input_is_named_with_what_it_takes(session):
    error = refuses(InputError, ("lacks 'text'", "[batch, 4] float32"), lambda: session(image=IMAGE))
    assert error.inputs == ("text",)
    assert refuses(InputError, ("'image'", "'text'"), session).inputs == ("image", "text")


def test_an_unexpected_input_is_offered_the_nearest(session):
    error = refuses(InputError, ("'txet'", "Did you mean 'text'?"), lambda: session(image=IMAGE, txet=TEXT))
    assert error.input == "txet"
    refuses(InputError, "no input 'more'", lambda: session(image=IMAGE, text=TEXT, more=1))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (IMAGE.double(), ("float64", "wrong dtype", ".to(torch.float32)")),
        (IMAGE.long(), "wrong dtype"),
        (torch.ones(8), ("wrong rank 1", "2 dims")),
        (torch.ones(3, 8, 1), "wrong rank 3"),
        (torch.ones(3, 7), ("dim 1 is 7", "takes 8")),
        (torch.ones(0, 8), ("dim 0 (batch) is 0", "at least one")),
        (torch.ones(2, 8), ("batch is 3 here but 2 in input 'image'",)),
        ([[1.0] * 8] * 3, ("a list", "torch.Tensor")),
        (None, "a NoneType"),
        (3, "a int"),
        (torch.ones(3, 8, device="meta"), "host"),
    ],
)
def test_a_tensor_that_does_not_fit_is_shown_with_what_the_input_takes(session, value, words):
    error = refuses(InputError, words, lambda: session(image=value, text=TEXT))
    assert error.input in ("image", "text")
    assert str(error.spec.dims[0]) == "batch"


@pytest.mark.parametrize("request_", [None, 3, "image", [("image", IMAGE)], {3: IMAGE}, {}])
def test_a_request_is_a_dict_by_name(session, request_):
    refuses(InputError, "", lambda: session.run(request_))


def test_a_python_type_is_checked():
    pipeline = new()
    pipeline.output("n", host(pipeline, "h", lambda p: len(p), n=int)(pipeline.input("prompt", str)))
    with pipeline.plan().load() as session:
        refuses(InputError, ("'prompt'", "takes str", "a int"), lambda: session(prompt=3))
        assert session(prompt="four") == {"n": 4}


def test_a_subclass_of_the_type_is_taken():
    class Text(str):
        __slots__ = ()

    pipeline = new()
    pipeline.output("n", host(pipeline, "h", lambda p: len(p), n=int)(pipeline.input("prompt", str)))
    assert pipeline.plan().load()(prompt=Text("four")) == {"n": 4}


def test_a_size_above_the_largest_bucket_needs_the_dim_in_every_output():
    pipeline = new()
    x = pipeline.input("x", spec(batch("n"), 4, pad=0))
    pipeline.output("y", pipeline.add("d", Double())(x))
    pipeline.output("total", pipeline.add("sum", lambda x: x.sum())(x))
    with pipeline.plan(sizes={"n": (2, 4)}).load() as session:
        words = ("n=5", "largest bucket 4", "in chunks", "'total'", "sizes={'n': (2, 4, 5)}")
        error = refuses(InputError, words, lambda: session(x=torch.ones(5, 4)))
        assert (error.input, error.dim, error.size) == ("x", "n", 5)
        assert session(x=torch.ones(4, 4))["total"].item() == 16


def test_a_size_between_buckets_needs_a_pad_rule():
    with chain(Double(), takes=spec(batch("n"), 4)).plan(sizes={"n": (2, 4)}).load() as session:
        for size in (1, 3, 5, 7):
            error = refuses(
                InputError, (f"n={size}", "(2, 4)", "pad=0"), lambda s=size: session(x=torch.ones(s, 4))
            )
            assert (error.dim, error.size) == ("n", size)
        for size in (2, 4, 6, 8, 10):
            assert session(x=torch.ones(size, 4))["y"].shape == (size, 4)


def test_every_size_is_refused_again_and_again(session):
    for _ in range(3):
        refuses(InputError, "wrong dtype", lambda: session(image=IMAGE.double(), text=TEXT))
    assert session.stats["requests"] == 0


def test_a_host_stage_that_reads_the_request_alone_may_refuse_it():
    """One that reads what another stage gave, or that asks a session of its own, fails for itself."""

    def positive(x):
        if x[0] < 0:
            raise InputError("x begins below 0; pass its abs().", input="x")
        return x.clone()

    pipeline = new()
    x, y = pipeline.input("x", spec(2)), pipeline.input("y", spec(2))
    pipeline.output("a", host(pipeline, "first", positive, a=spec(2))(x))
    pipeline.output("b", host(pipeline, "second", positive, b=spec(2))(pipeline.add("double", Double())(y)))
    inner = pipeline.plan().load()
    asking = new()
    ask = host(asking, "ask", lambda x: inner(x=x, y=x)["b"], a=spec(2))
    asking.output("a", ask(asking.input("x", spec(2))))
    good = torch.ones(2)
    with inner as session, asking.plan().load() as outer:
        for _ in range(2):
            error = refuses(InputError, ("'first'", "pass its abs()"), lambda: session(x=-good, y=good))
            assert (error.input, type(error.__cause__)) == ("x", InputError)
            refuses(StageError, "'second'", lambda: session(x=good, y=-good))
            refuses(StageError, "'ask'", lambda: outer(x=-good))
            assert session(x=good, y=good)["b"].tolist() == [2, 2]


class Grumpy(torch.nn.Module):
    """Raises where its input's first element is negative, which no fake tensor tells."""

    def __init__(self, error=None):
        super().__init__()
        self.error = error

    def forward(self, x, y=None):
        if type(x) is torch.Tensor and bool(x.reshape(-1)[0] < 0):
            raise self.error or ValueError("too dark")
        return x * 2


def grumpy(**add):
    pipeline = new("mood")
    value = pipeline.add("first", Double())(pipeline.input("x", spec(batch("n"), 3, pad=0)))
    pipeline.output("y", pipeline.add("grumpy", Grumpy(), **add)(value, y=2.5))
    return pipeline.plan(sizes={"n": (2, 4)})


@pytest.mark.parametrize("size", [2, 3, 9])
def test_a_stage_that_raises_is_named_with_what_it_was_given(size: int):
    bucket = min(4, 2 if size == 2 else 4)
    with grumpy().load() as session:
        error = refuses(
            StageError,
            (
                "Stage 'grumpy'",
                "call 'grumpy' on cpu",
                "ValueError: too dark",
                f"x=[{bucket}, 3] float32 on cpu",
                "y=a float",
            ),
            lambda: session(x=-torch.ones(size, 3)),
        )
        assert (error.stage, error.call, error.device) == ("grumpy", "grumpy", "cpu")
        assert error.inputs == {"x": f"[{bucket}, 3] float32 on cpu", "y": "a float"}
        assert type(error.__cause__) is ValueError
        assert session(x=torch.ones(size, 3))["y"].shape == (size, 3)
        assert session.stats["requests"] == 1


def test_a_second_call_of_a_stage_is_told_from_the_first():
    pipeline = new()
    stage = pipeline.add("s", Grumpy())
    flip = pipeline.add("flip", lambda v: -v)
    pipeline.output("y", stage(flip(stage(pipeline.input("x", spec(2))))))
    with pipeline.plan().load() as session:
        error = refuses(StageError, "call 's#2'", lambda: session(x=torch.ones(2)))
        assert (error.stage, error.call) == ("s", "s#2")


def test_a_stage_that_raises_on_another_device_and_in_a_region():
    pipeline = new()
    find = host(pipeline, "find", lambda x: x, crops=spec(Dim("n", (2, 4), batch=True), 4, pad=0))
    crops = find(pipeline.input("x", spec(3, 4)))
    pipeline.output("y", pipeline.add("net", Grumpy(), device="null")(crops))
    with pipeline.plan(options=COMPUTE).load() as session:
        error = refuses(StageError, ("'net'", "null:0", "too dark"), lambda: session(x=-torch.ones(3, 4)))
        assert error.device == "null:0"
        assert session(x=torch.ones(3, 4))["y"].shape == (3, 4)


def test_a_host_stage_that_raises():
    def fail(x):
        raise KeyError("no such face")

    pipeline = new()
    pipeline.output("y", host(pipeline, "h", fail, out=spec(2))(pipeline.input("x", spec(2))))
    with pipeline.plan().load() as session:
        error = refuses(
            StageError,
            ("'h'", "on host", "KeyError", "x=[2] float32 on cpu"),
            lambda: session(x=torch.ones(2)),
        )
        assert isinstance(error.__cause__, KeyError)


def test_an_own_error_that_a_stage_raises_is_the_stages_failure():
    inner = chain(Double(), takes=spec(3)).plan().load()
    pipeline = new()
    pipeline.output(
        "y", host(pipeline, "h", lambda x: inner(x=x)["y"], out=spec(2))(pipeline.input("x", spec(2)))
    )
    error = refuses(StageError, ("'h'", "InputError"), lambda: pipeline.plan().load()(x=torch.ones(2)))
    assert isinstance(error.__cause__, InputError)


@pytest.mark.parametrize("device", ["cpu", "null"])
def test_an_exception_object_that_is_raised_again_tells_of_the_latest_request(device: str):
    """Python keeps the old frames of an exception object behind the new ones."""
    module = Grumpy(ValueError("always this one"))
    options = COMPUTE if device == "null" else None
    session = (
        chain(module, takes=spec(batch("n"), 3, pad=0))
        .plan(device, sizes={"n": (2, 4)}, options=options)
        .load()
    )
    for size, bucket in ((2, 2), (4, 4), (3, 4), (9, 4), (1, 2)):
        error = refuses(StageError, "always this one", lambda n=size: session(x=-torch.ones(n, 3)))
        if device == "cpu":
            assert error.inputs["x"] == f"[{bucket}, 3] float32 on cpu"
    with chain(module, takes=spec(5)).plan().load() as other:
        assert refuses(StageError, "", lambda: other(x=-torch.ones(5))).inputs == {"x": "[5] float32 on cpu"}
    assert session(x=torch.ones(3, 3))["y"].shape == (3, 3)
    session.close()


def test_a_stage_that_runs_a_session_of_the_same_form_is_told_from_it():
    inner = chain(Grumpy(), takes=spec(2)).plan().load()
    outer = (
        chain(lambda x: inner(x=x)["y"] if type(x) is torch.Tensor else x * 2, takes=spec(2)).plan().load()
    )
    error = refuses(StageError, "raised StageError", lambda: outer(x=-torch.ones(2)))
    assert isinstance(error.__cause__, StageError)
    assert isinstance(error.__cause__.__cause__, ValueError)


def test_what_is_no_exception_of_a_stage_goes_through():
    for kind in (KeyboardInterrupt, SystemExit):
        module = Grumpy(kind())
        session = chain(module, takes=spec(2)).plan().load()
        with pytest.raises(kind):
            session(x=-torch.ones(2))
        assert session(x=torch.ones(2))["y"].tolist() == [2.0, 2.0]
        session.close()


def load_returning(value, **outputs):
    pipeline = new()
    results = host(pipeline, "h", lambda x: value, **outputs)(pipeline.input("x", spec(batch("n"), pad=0)))
    for index, one in enumerate(results if isinstance(results, tuple) else (results,)):
        pipeline.output(f"y{index}", one)
    return pipeline.plan(sizes={"n": (2, 4)}).load()


@pytest.mark.parametrize(
    ("value", "outputs", "words"),
    [
        (torch.ones(3), {"out": spec(2)}, ("'h.out' is [2] float32", "gave [3] float32")),
        (torch.ones(2, 1), {"out": spec(2)}, ("[2] float32", "[2, 1] float32")),
        (torch.ones(2).double(), {"out": spec(2)}, "float64"),
        (torch.ones(2, device="meta"), {"out": spec(2)}, "meta"),
        ([1.0, 2.0], {"out": spec(2)}, "a list"),
        (None, {"out": spec(2)}, "a NoneType"),
        (torch.ones(4), {"out": spec("n")}, ("Dim 'n' is 3", "[4] float32")),
        ("text", {"out": int}, ("'h.out' is int", "a str")),
        (torch.ones(2), {"a": spec(2), "b": spec(2)}, ("['a', 'b']", "[2] float32")),
        ((torch.ones(2),), {"a": spec(2), "b": spec(2)}, "1 values"),
        ((torch.ones(2),) * 3, {"a": spec(2), "b": spec(2)}, "3 values"),
        ({"a": torch.ones(2), "c": torch.ones(2)}, {"a": spec(2), "b": spec(2)}, ("'b'", "['a', 'c']")),
        ((torch.ones(2), torch.ones(3)), {"a": spec(2), "b": spec(2)}, "'h.b'"),
    ],
)
def test_a_host_stage_that_gives_something_else_than_it_declared(value, outputs, words):
    with load_returning(value, **outputs) as session:
        error = refuses(
            StageError,
            ("'h'", *((words,) if isinstance(words, str) else words)),
            lambda: session(x=torch.ones(3)),
        )
        assert error.stage == "h"
        assert session.stats["requests"] == 0


def test_keep_on_device_takes_names_of_outputs(session):
    refuses(
        InputError, "Did you mean 'logits'?", lambda: session.run({"image": IMAGE, "text": TEXT}, ["logit"])
    )


def test_errors_hold_no_tensors():
    """An error may be kept in a log: it must not keep a request's memory alive by its attributes."""
    with grumpy().load() as session:
        error = refuses(StageError, "", lambda: session(x=-torch.ones(2, 3)))
        assert not any(isinstance(value, torch.Tensor) for value in error.objects.values())
    with load_returning(torch.ones(3), out=spec(2)) as session:
        error = refuses(StageError, "", lambda: session(x=torch.ones(3)))
        assert not any(isinstance(value, torch.Tensor) for value in error.objects.values())
