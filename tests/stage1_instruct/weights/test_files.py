"""Weight files as training scripts leave them: the tensors are taken, no code is run, or the reason is the true one."""

from __future__ import annotations

import argparse
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from zeus_union.cache.errors import UserError
from zeus_union.stage1_instruct.weights.files import read_weights

TENSORS = {
    "image_encoder.weight": torch.arange(6.0).reshape(2, 3),
    "mask_decoder.bias": torch.tensor([1.0, -1.0]),
}
BESIDE = {
    "epoch": 3,
    "best": np.float64(0.5),
    "step": np.int64(7),
    "history": np.arange(3.0),
    "note": "done",
    "args": argparse.Namespace(lr=1e-3),
    "out": Path("runs/a"),
}
OPTIMIZER = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-3}]}


def assert_tensors(state: dict[str, Any]) -> None:
    assert state.keys() == TENSORS.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in TENSORS.items())


def wrapped(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in TENSORS.items()}


@settings(max_examples=60, deadline=None)
@given(
    prefix=st.lists(st.sampled_from(["module.", "_orig_mod.", "model."]), max_size=2).map("".join),
    nesting=st.lists(st.sampled_from(["model", "state_dict", "network_weights", "net", "mine"]), max_size=2),
    beside=st.sets(st.sampled_from(sorted(BESIDE))),
    optimizer=st.booleans(),
    ordered=st.booleans(),
)
def test_tensors_are_found_however_a_training_script_wrapped_them(
    tmp_path_factory: pytest.TempPathFactory,
    prefix: str,
    nesting: list[str],
    beside: set[str],
    optimizer: bool,
    ordered: bool,
) -> None:
    state: dict[str, Any] = OrderedDict(wrapped(prefix)) if ordered else wrapped(prefix)
    for name in nesting:
        state = {name: state, **({"optimizer": OPTIMIZER} if optimizer else {})}
    state |= {name: BESIDE[name] for name in beside}
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save(state, path)
    assert_tensors(read_weights(path))


@pytest.mark.parametrize("core", ["core", "_core"])
def test_numpys_numbers_are_read_under_the_names_of_numpy_1_and_2(core: str, tmp_path: Path) -> None:
    torch.save({**TENSORS, "best": np.float64(0.5)}, tmp_path / "m.pth", _use_new_zipfile_serialization=False)
    written = (tmp_path / "m.pth").read_bytes()
    here = b"numpy._core.multiarray" if b"numpy._core" in written else b"numpy.core.multiarray"
    (tmp_path / "m.pth").write_bytes(written.replace(here, f"numpy.{core}.multiarray".encode()))
    assert_tensors(read_weights(tmp_path / "m.pth"))


def test_safetensors_of_a_wrapped_model_are_the_models(tmp_path: Path) -> None:
    save_file(wrapped("module."), tmp_path / "m.safetensors")
    assert_tensors(read_weights(tmp_path / "m.safetensors"))


def test_a_prefix_that_only_some_tensors_have_is_kept(tmp_path: Path) -> None:
    state = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    torch.save(state, tmp_path / "m.pth")
    assert read_weights(tmp_path / "m.pth").keys() == state.keys()


class Trainer:
    """Somebody's class, pickled with the weights."""


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("/nowhere/written", "w"))


@pytest.mark.parametrize("extra", [Trainer(), Evil(), np.array([Trainer()], dtype=object)])
def test_object_that_needs_code_is_named_and_nothing_is_run(extra: Any, tmp_path: Path) -> None:
    torch.save({"model": TENSORS, "trainer": extra}, tmp_path / "m.pth")
    with pytest.raises(
        UserError, match=r"m\.pth .*would run code.*an object of [\w.]*(Trainer|open).*state dict alone"
    ):
        read_weights(tmp_path / "m.pth")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"epoch": 3}, "holds epoch, expected a state dict of tensors"),
        ({}, "holds nothing, expected"),
        ({"optimizer": OPTIMIZER}, "holds optimizer, expected"),
        ({"generator": TENSORS, "critic": TENSORS}, r"several networks or parts \(generator, critic\)"),
        ([torch.zeros(1)], "holds list, expected"),
    ],
)
def test_what_holds_no_single_network_says_what_it_holds(state: Any, message: str, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "m.pth")
    with pytest.raises(UserError, match=message):
        read_weights(tmp_path / "m.pth")


def test_torchscript_and_plain_pickles_are_called_what_they_are(tmp_path: Path) -> None:
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(str(tmp_path / "script.pth"))
    with pytest.raises(UserError, match=r"script\.pth is a TorchScript program"):
        read_weights(tmp_path / "script.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UserError, match=r"plain\.pth .*(weights|no tensors|expected a state dict)"):
        read_weights(tmp_path / "plain.pth")
