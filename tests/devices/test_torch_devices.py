"""What must hold on each torch device: results, copies, freed memory, and no race between copies and kernels."""

from __future__ import annotations

import copy
import gc
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from orchestrator import Dim, Pipeline, Plan, Residency, TensorSpec
from orchestrator.backends.torch_backend import TorchBackend
from orchestrator.duplicate import owner_of
from orchestrator.fingerprint.walk import ObjectWalk
from orchestrator.stage import make_stage
from tests.devices.models import Encoder, Head, two_towers
from tests.planner.test_applications import Speaker


def by_hand(
    modules: dict[str, nn.Module], device: str, image: torch.Tensor, text: torch.Tensor
) -> torch.Tensor:
    device_modules = {name: copy.deepcopy(module).to(device) for name, module in modules.items()}
    with torch.no_grad():
        features = device_modules["vision"](image.to(device))
        return device_modules["head"](features, device_modules["text"](text.to(device))).cpu()


@pytest.mark.parametrize("rows", [1, 3, 4, 8, 21])
def test_results_equal_the_same_calls_by_hand(device: str, rows: int):
    pipeline, modules = two_towers()
    image, text = torch.randn(rows, 3, 16, 16), torch.randn(rows, 12)
    with pipeline.plan(device=device).load() as session:
        result = session(image=image, text=text)["logits"]
    assert result.is_cpu
    torch.testing.assert_close(result, by_hand(modules, device, image, text), rtol=1e-4, atol=1e-4)


def test_a_full_bucket_gives_the_bits_that_hand_written_calls_give(device: str):
    pipeline, modules = two_towers()
    image, text = torch.randn(8, 3, 16, 16), torch.randn(8, 12)
    with pipeline.plan(device=device).load() as session:
        assert torch.equal(session(image=image, text=text)["logits"], by_hand(modules, device, image, text))


def test_methods_of_one_module_have_one_copy_on_a_device(device: str, monkeypatch: pytest.MonkeyPatch):
    """Also where nothing is in place yet; here the processor stands in for a device of its own."""
    monkeypatch.setattr(TorchBackend, "_is_here", lambda *_: False)
    model = Speaker()
    backend = TorchBackend(device)
    stages = [
        make_stage(name, target)
        for name, target in (("a", model.prefill), ("b", model.decode), ("c", model.body))
    ]
    first, second, third = map(backend.load, stages)
    owner = owner_of(first)
    assert owner is owner_of(second) is not model
    assert owner.body is third
    prompt = torch.randn(1, 4)
    with torch.no_grad():
        assert torch.equal(first(prompt.to(device)).cpu(), model.prefill(prompt))


def test_stages_on_two_devices_agree_with_one(device: str):
    pipeline, modules = two_towers()
    image, text = torch.randn(5, 3, 16, 16), torch.randn(5, 12)
    plan = pipeline.plan(device=device, placement={"text": "cpu"})
    with plan.load() as session:
        result = session(image=image, text=text)["logits"]
        stats = session.stats
    torch.testing.assert_close(result, by_hand(modules, "cpu", image, text), rtol=1e-3, atol=1e-3)
    reference = plan.summary_for({"batch": 5})
    assert {name: stats[name] for name in reference} == reference


def test_a_round_trip_over_the_host_changes_nothing(device: str):
    pipeline, _ = two_towers()
    image, text = torch.randn(8, 3, 16, 16), torch.randn(8, 12)
    residencies = {"vision.output -> head.seen": Residency.HOST}
    results = []
    for residency in ({}, residencies):
        with pipeline.plan(device=device, residency=residency).load() as session:
            results.append(session(image=image, text=text)["logits"])
    assert torch.equal(*results)


def test_no_copy_is_read_before_it_has_arrived(device: str):
    """Large values, many requests in a row, and a host stage that reads a download at once."""
    pipeline = Pipeline("race")
    value = pipeline.input("x", TensorSpec((1 << 20,)))
    for number in range(3):
        up = pipeline.add(f"device{number}", lambda x: x * 2 + 1)
        down = pipeline.add(
            f"host{number}", lambda x: x - 1, device="host", outputs={"output": TensorSpec((1 << 20,))}
        )
        value = down(up(value))
    pipeline.output("y", value)
    with pipeline.plan(device=device).load() as session:
        for number in range(50):
            x = torch.full((1 << 20,), float(number))
            assert torch.equal(session(x=x)["y"], x * 8), number


def test_sizes_born_on_the_way(device: str):
    pipeline = Pipeline("born")
    x = pipeline.input("x", TensorSpec((32, 4)))
    rows = Dim("rows", buckets=(4, 8), batch=True)
    pick = pipeline.add(
        "pick", lambda x: x[x[:, 0] > 0], device="host", outputs={"picked": TensorSpec((rows, 4), pad=0)}
    )
    net = nn.Linear(4, 3)
    pipeline.output("y", pipeline.add("net", net)(pick(x)))
    with pipeline.plan(device=device).load() as session, torch.no_grad():
        for count in (0, 1, 4, 5, 8, 9, 32):
            x = torch.randn(32, 4).abs() * torch.where(torch.arange(32) < count, 1.0, -1.0)[:, None]
            torch.testing.assert_close(session(x=x)["y"], net(x[:count]), rtol=1e-4, atol=1e-4)


def test_the_modules_of_the_user_stay_where_they_are(device: str):
    pipeline, modules = two_towers()
    before = {
        name: {key: value.clone() for key, value in each.state_dict().items()}
        for name, each in modules.items()
    }
    with pipeline.plan(device=device).load() as session:
        session(image=torch.randn(8, 3, 16, 16), text=torch.randn(8, 12))
    for name, module in modules.items():
        assert all(parameter.is_cpu for parameter in module.parameters())
        assert all(torch.equal(value, before[name][key]) for key, value in module.state_dict().items())


def test_weights_that_stages_share_are_moved_once(device: str):
    shared_layer = nn.Linear(256, 256)
    pipeline = Pipeline("shared")
    x = pipeline.input("x", TensorSpec((2, 256)))
    pipeline.output(
        "y", pipeline.add("b", nn.Sequential(shared_layer, nn.ReLU()))(pipeline.add("a", shared_layer)(x))
    )
    plan = pipeline.plan(device=device)
    assert dict(plan.weights)[plan.groups[0].device] == sum(p.nbytes for p in shared_layer.parameters())
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        with plan.load():
            growth = torch.cuda.memory_allocated() - before
        assert growth <= 1.1 * sum(p.nbytes for p in shared_layer.parameters())


def test_results_can_stay_on_the_device(device: str):
    pipeline, _ = two_towers()
    request = {"image": torch.randn(5, 3, 16, 16), "text": torch.randn(5, 12)}
    with pipeline.plan(device=device).load() as session:
        device_results = session.run(request, keep_on_device=("logits",))["logits"]
        assert device_results.device.type == device
        assert device_results.shape == (5, 6)
        assert torch.equal(device_results.cpu(), session.run(request)["logits"])


def test_threads_and_streams_give_what_single_requests_give(device: str):
    pipeline, _ = two_towers()
    requests = [
        {"image": torch.randn(rows, 3, 16, 16), "text": torch.randn(rows, 12)}
        for rows in (8, 4, 3, 8, 21, 1) * 3
    ]
    with pipeline.plan(device=device).load() as session:
        references = [session.run(request)["logits"] for request in requests]
        for one, other in zip(session.stream(requests, depth=3), references, strict=True):
            assert torch.equal(one["logits"], other)
        wrong: list[int] = []

        def work() -> None:
            for number, request in enumerate(requests):
                if not torch.equal(session.run(request)["logits"], references[number]):
                    wrong.append(number)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_memory_goes_back_to_where_it_was(device: str):
    if device != "cuda":
        pytest.skip("only CUDA tells what it has allocated")
    pipeline, _ = two_towers()
    request = {"image": torch.randn(8, 3, 16, 16), "text": torch.randn(8, 12)}
    with pipeline.plan(device=device).load() as session:
        session.run(request)
        before = torch.cuda.memory_allocated()
        gc.disable()
        try:
            for _ in range(20):
                session.run(request)
            assert torch.cuda.memory_allocated() == before
        finally:
            gc.enable()


def test_the_plan_of_a_device_is_bound_again_from_json(device: str):
    pipeline, _ = two_towers()
    plan = pipeline.plan(device=device)
    request = {"image": torch.randn(3, 3, 16, 16), "text": torch.randn(3, 12)}
    with plan.load() as one, pipeline.bind(Plan.from_json(plan.to_json())).load() as other:
        assert torch.equal(one.run(request)["logits"], other.run(request)["logits"])


def test_models_that_are_on_the_device_are_used_as_they_are(device: str):
    encoder, head = Encoder().eval().to(device), Head().eval().to(device)
    pipeline = Pipeline("here")
    x = pipeline.input("x", TensorSpec((4, 3, 16, 16)))
    pointers = pipeline.add("encoder", encoder)(x)
    pipeline.output("y", pipeline.add("head", head)(pointers, pointers))
    calls: list[str] = []
    handles = [module.register_forward_hook(lambda *_: calls.append("ran")) for module in (encoder, head)]
    with pipeline.plan(device=device).load() as session:
        calls.clear()
        session(x=torch.randn(4, 3, 16, 16))
    for handle in handles:
        handle.remove()
    assert calls == ["ran", "ran"]


def test_an_eager_device_asks_for_no_content_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def digest(*_: object) -> str:
        raise AssertionError("nothing is compiled, so nothing has a key")

    # Planning describes stages, to know equal ones again; what compiles and loads has no use for a key.
    pipeline, _ = two_towers()
    plan = pipeline.plan(device="cpu")
    monkeypatch.setattr(ObjectWalk, "digest", digest)
    with plan.compile(tmp_path).load() as session:
        session(image=torch.randn(3, 3, 16, 16), text=torch.randn(3, 12))
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
