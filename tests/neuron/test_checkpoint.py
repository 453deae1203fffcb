"""Weights: from a checkpoint to the letter, all that does not fit said at once, before anything is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from orchestrator.errors import CompileError
from orchestrator_neuron.checkpoint import load_weights, rank_weights
from orchestrator_neuron.options import NeuronSettings
from tests.neuron.programs import Affine


@pytest.fixture
def write_checkpoint(tmp_path: Path) -> Callable[..., str]:
    """Writes a checkpoint; gives its path."""

    def write(weights: dict[str, torch.Tensor], name: str = "model.safetensors") -> str:
        save_file({key: value.contiguous() for key, value in weights.items()}, tmp_path / name)
        return str(tmp_path / name)

    return write


def _other(seed: int = 7) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in Affine(seed=seed).state_dict().items()}


def _same(weights: dict[str, torch.Tensor], reference: dict[str, Any]) -> bool:
    return all(torch.equal(weights[name], value) for name, value in reference.items())


def test_without_a_checkpoint_the_module_has_them() -> None:
    module = Affine()
    result = load_weights("s", module, NeuronSettings())
    assert set(result) == {"model.weight", "model.bias", "scale", "shift"}
    assert _same(result, {**module.state_dict(), "shift": module.shift})
    assert not any(tensor.requires_grad for tensor in result.values())


def test_names_that_start_with_model_are_kept(write_checkpoint: Callable[..., str]) -> None:
    result = load_weights("s", Affine(), NeuronSettings(checkpoint=write_checkpoint(_other())))
    assert _same(result, _other())


def test_a_buffer_no_checkpoint_has_comes_from_the_module(write_checkpoint: Callable[..., str]) -> None:
    result = load_weights("s", Affine(), NeuronSettings(checkpoint=write_checkpoint(_other())))
    assert torch.equal(result["shift"], Affine().shift)


def test_a_folder_with_one_file(write_checkpoint: Callable[..., str]) -> None:
    folder = str(Path(write_checkpoint(_other())).parent)
    assert _same(load_weights("s", Affine(), NeuronSettings(checkpoint=folder)), _other())


def test_a_folder_with_shards(write_checkpoint: Callable[..., str], tmp_path: Path) -> None:
    weights = _other()
    write_checkpoint({"model.weight": weights["model.weight"]}, "one.safetensors")
    write_checkpoint({name: weights[name] for name in ("model.bias", "scale")}, "two.safetensors")
    places = {"model.weight": "one.safetensors", "model.bias": "two.safetensors", "scale": "two.safetensors"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    assert _same(load_weights("s", Affine(), NeuronSettings(checkpoint=str(tmp_path))), weights)
    # A shard is a file of this folder: no path leads out of it, nor into one below.
    (tmp_path / "in").mkdir()
    for file in (
        "../one.safetensors",
        str(tmp_path / "two.safetensors"),
        "in/two.safetensors",
        "..",
        7,
        ["one"],
    ):
        index.write_text(json.dumps({"weight_map": {**places, "scale": file}}))
        with pytest.raises(CompileError, match="cannot be read"):
            load_weights("s", Affine(), NeuronSettings(checkpoint=str(tmp_path)))
    index.write_text('{"weight_map": ' + "[" * 100_000)
    with pytest.raises(CompileError, match="cannot be read"):
        load_weights("s", Affine(), NeuronSettings(checkpoint=str(tmp_path)))
    index.write_text(json.dumps({"weight_map": {**places, "scale": "one.safetensors"}}))
    with pytest.raises(CompileError, match=r"index says that it has 'scale'"):
        load_weights("s", Affine(), NeuronSettings(checkpoint=str(tmp_path)))


def test_everything_that_does_not_fit_is_said_at_once(write_checkpoint: Callable[..., str]) -> None:
    path = write_checkpoint(
        {
            "model.weight": torch.zeros(3, 5),
            "scale": torch.zeros(3, dtype=torch.int32),
            "stray": torch.zeros(1),
        }
    )
    with pytest.raises(CompileError) as excinfo:
        load_weights("vision", Affine(), NeuronSettings(checkpoint=path))
    text = str(excinfo.value)
    assert path in text
    assert "'vision'" in text
    assert "1 missing: 'model.bias'" in text
    assert "1 unexpected: 'stray'" in text
    assert "'model.weight' is [3, 5], the module has [3, 4]" in text
    assert "'scale' is I32 (int), the module has torch.float32" in text


def test_long_lists_are_cut_with_a_count(write_checkpoint: Callable[..., str]) -> None:
    weights = {f"stray{number}": torch.zeros(1) for number in range(50)}
    with pytest.raises(CompileError, match=r"50 unexpected: .*, and 30 more") as excinfo:
        load_weights("s", nn.Identity(), NeuronSettings(checkpoint=write_checkpoint(weights)))
    assert str(excinfo.value).count("stray") == 20


def test_a_common_prefix_is_pointed_out(write_checkpoint: Callable[..., str]) -> None:
    weights = {f"net.{name}": value for name, value in _other().items()}
    with pytest.raises(CompileError, match=r"start with 'net\.'"):
        load_weights("s", Affine(), NeuronSettings(checkpoint=write_checkpoint(weights)))


def test_data_is_read_only_if_all_fits(
    write_checkpoint: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(write_checkpoint({"model.weight": torch.zeros(9, 9)}))
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    path.write_bytes(whole[:header] + bytes(len(whole) - header))  # the header alone tells
    with pytest.raises(CompileError, match="nothing was loaded"):
        load_weights("s", Affine(), NeuronSettings(checkpoint=str(path)))


class _TwoNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.table.weight


@pytest.mark.parametrize("name", ["table.weight", "head.weight"])
def test_a_tied_weight_is_stored_once_and_stays_one(write_checkpoint: Callable[..., str], name: str) -> None:
    weight = torch.randn(5, 4)
    settings = NeuronSettings(checkpoint=write_checkpoint({name: weight}), torch_dtype=torch.bfloat16)
    result = load_weights("s", _TwoNames(), settings)
    assert result["table.weight"] is result["head.weight"]
    assert torch.equal(result["head.weight"], weight.bfloat16())
    plain = load_weights("s", _TwoNames(), NeuronSettings(torch_dtype=torch.float16))
    assert plain["table.weight"] is plain["head.weight"]


def test_floats_have_the_dtype_in_force(write_checkpoint: Callable[..., str]) -> None:
    module = nn.BatchNorm1d(3)
    weights = {
        name: value.double() if value.is_floating_point() else value
        for name, value in module.state_dict().items()
    }
    path = write_checkpoint(weights)
    assert load_weights("s", module, NeuronSettings(checkpoint=path))["weight"].dtype is torch.float32
    result = load_weights("s", module, NeuronSettings(checkpoint=path, torch_dtype=torch.bfloat16))
    assert result["running_mean"].dtype is torch.bfloat16
    assert result["num_batches_tracked"].dtype is torch.int64


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_a_sharded_weight_is_cut_for_each_rank(write_checkpoint: Callable[..., str], dim: int) -> None:
    whole = {**_other(), "model.weight": torch.randn(6, 4) if dim == 0 else torch.randn(3, 8)}
    settings = NeuronSettings(
        world_size=2, checkpoint=write_checkpoint(whole), shard_weights=(("model.weight", dim),)
    )
    weights = load_weights("s", Affine(), settings)
    parts = [rank_weights(weights, settings, rank) for rank in range(2)]
    assert torch.equal(torch.cat([part["model.weight"] for part in parts], dim), whole["model.weight"])
    assert all(torch.equal(part["model.bias"], whole["model.bias"]) for part in parts)
    # The second of two processes with a rank each.
    later = replace(settings, local_ranks_size=1, start_rank_id=1)
    assert torch.equal(rank_weights(weights, later, 0)["model.weight"], parts[1]["model.weight"])


def test_a_sharded_weight_has_the_size_of_all_ranks(write_checkpoint: Callable[..., str]) -> None:
    settings = NeuronSettings(
        world_size=2, checkpoint=write_checkpoint(_other()), shard_weights=(("model.weight", 0),)
    )
    with pytest.raises(
        CompileError, match=r"is \[3, 4\], the module has \[6, 4\] \(2 ranks with \[3, 4\] each\)"
    ):
        load_weights("s", Affine(), settings)


def test_a_tied_weight_is_sharded_under_both_names(write_checkpoint: Callable[..., str]) -> None:
    settings = NeuronSettings(
        world_size=2,
        checkpoint=write_checkpoint({"table.weight": torch.randn(10, 4)}),
        shard_weights=(("head.weight", 0),),
    )
    part = rank_weights(load_weights("s", _TwoNames(), settings), settings, 1)
    assert part["table.weight"] is part["head.weight"]
    assert part["head.weight"].shape == (5, 4)


def test_wrong_shards_are_refused(write_checkpoint: Callable[..., str]) -> None:
    path = write_checkpoint(_other())
    cases = {
        "no checkpoint": NeuronSettings(world_size=2, shard_weights=(("model.weight", 0),)),
        "Did you mean 'model.weight'": NeuronSettings(checkpoint=path, shard_weights=(("model.wait", 0),)),
        "along dim 2": NeuronSettings(checkpoint=path, shard_weights=(("model.weight", 2),)),
    }
    for text, settings in cases.items():
        with pytest.raises(CompileError, match=text):
            load_weights("s", Affine(), settings)


def test_a_stage_without_weights_takes_no_checkpoint(write_checkpoint: Callable[..., str]) -> None:
    assert load_weights("s", None, NeuronSettings()) == {}
    with pytest.raises(CompileError, match="3 unexpected"):
        load_weights("s", None, NeuronSettings(checkpoint=write_checkpoint(_other())))


def test_what_is_no_checkpoint_is_said(tmp_path: Path, write_checkpoint: Callable[..., str]) -> None:
    garbage = tmp_path / "damaged.safetensors"
    garbage.write_bytes(b"no header")
    short = Path(write_checkpoint(_other(), "short.safetensors"))
    short.write_bytes(short.read_bytes()[:-4])
    (tmp_path / "listed").mkdir()
    (tmp_path / "listed" / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "gone.safetensors"}}'
    )
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "model.safetensors.index.json").write_text("[]")
    cases = {
        str(tmp_path / "nowhere"): "does not exist",
        str(tmp_path): "has neither .* name the file itself",
        str(garbage): "cannot be read",
        str(short): "cannot be read",
        str(tmp_path / "listed"): "gone.safetensors",
        str(tmp_path / "odd"): "cannot be read",
    }
    for path, text in cases.items():
        with pytest.raises(CompileError, match=text) as excinfo:
            load_weights("s", Affine(), NeuronSettings(checkpoint=path))
        assert "'s'" in str(excinfo.value)


def test_a_state_dict_in_memory_is_a_checkpoint_too():
    from orchestrator import Pipeline, PlanError, TensorSpec

    def run(checkpoint):
        pipeline = Pipeline("p")
        stage = pipeline.add("stage", torch.nn.Linear(4, 3), config={"checkpoint": checkpoint})
        pipeline.output("y", stage(pipeline.input("x", TensorSpec((2, 4)))))
        with pipeline.plan("neuron-emulated").load() as session:
            return session(x=torch.ones(2, 4))["y"]

    other = torch.nn.Linear(4, 3)
    torch.testing.assert_close(run(other.state_dict()), other(torch.ones(2, 4)).detach())
    with pytest.raises(CompileError, match=r"state_dict.*\n.*1 missing: 'bias'"):
        run({"weight": other.weight})
    with pytest.raises(PlanError, match="checkpoint"):
        run({"weight": 3})
