"""Weight files: reading them safely, and turning what is published into what loads fast."""

from __future__ import annotations

import argparse
import codecs
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from zeus_union.cache.errors import UserError, first_line

if TYPE_CHECKING:
    from torch import Tensor, nn


# What wraps every name of a state dict that was saved from a wrapped model: DataParallel and DDP, torch.compile, and a
# LightningModule that holds the network as `model`.
_WRAPPERS = ("module.", "_orig_mod.", "model.")
# Where training scripts put the network beside the optimiser and the epoch, the likeliest first.
_NESTED = ("state_dict", "model_state_dict", "model", "module", "net", "network", "network_weights", "weights")
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


def read_weights(path: Path) -> dict[str, Any]:
    """The tensors of a .safetensors file or of a torch checkpoint, by name, on the CPU.

    A checkpoint is unpickled with torch's weights-only reader: a file that would run code is refused. Numbers, text and
    options beside the tensors are left, a dict of tensors inside the checkpoint is opened, and what DataParallel, DDP,
    torch.compile or Lightning put before every name is taken off.

    Raises:
        UserError: no such file; not a checkpoint; a pickle that holds something other than weights; several networks.
    """
    if not path.is_file():
        raise UserError(f"no weights at {path}: expected a .safetensors or .pth file")
    state = _unwrapped(_tensors_in(_read(path), path))
    if not state:
        raise UserError(f"{path} holds no tensors, expected a state dict of tensors")
    return state


def _read(path: Path) -> Any:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_harmless()):
            warnings.simplefilter(
                "ignore", UserWarning
            )  # of pickle protocols and TorchScript: said below, where it matters
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        needed = _GLOBAL.search(str(error))
        if needed:
            raise UserError(
                f"{path} is not a plain weights file: it would run code, beside its tensors it holds an object of "
                f"{needed[1]}, which only the code that wrote it can read; where you trust the file, save "
                "its state dict alone (torch.save(model.state_dict(), FILE)) and give that"
            ) from error
        raise UserError(
            f"{path} is not a plain weights file: {first_line(error)}; expected a state dict of tensors, get the file "
            "from its publisher again"
        ) from error
    except (RuntimeError, EOFError, SafetensorError, ValueError, AttributeError) as error:
        if "TorchScript" in str(error):
            raise UserError(
                f"{path} is a TorchScript program, not weights; expected a state dict (torch.jit.load(FILE).state_dict() "
                "gives one)"
            ) from error
        raise UserError(
            f"{path} cannot be read as weights ({first_line(error)}); it may be cut short, fetch it again"
        ) from error


def _harmless() -> list[Any]:
    """What checkpoints hold beside tensors that runs no code: numpy's numbers and arrays, options of argparse, paths.

    numpy 1 and 2 write other names for the same functions.
    """
    import numpy as np

    multiarray = np._core.multiarray if hasattr(np, "_core") else np.core.multiarray  # type: ignore[attr-defined]
    functions = [
        (getattr(multiarray, name), f"numpy.{core}.multiarray.{name}")
        for name in ("scalar", "_reconstruct")
        for core in ("core", "_core")
    ]
    kinds = [getattr(np.dtypes, name) for name in np.dtypes.__all__]
    # Paths are read as such whatever system wrote them.
    paths = [(PurePosixPath, "pathlib.PosixPath"), (PureWindowsPath, "pathlib.WindowsPath")]
    return [*functions, *kinds, *paths, np.dtype, np.ndarray, codecs.encode, argparse.Namespace]


def _tensors_in(state: Any, path: Path) -> dict[str, Any]:
    """The state dict that a checkpoint is or holds.

    Raises:
        UserError: there is none, or it holds several and none of them is called as a network usually is.
    """
    from torch import Tensor

    if not isinstance(state, Mapping):
        raise UserError(f"{path} holds {type(state).__name__}, expected a state dict of tensors")
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    inner = {str(name): value for name, value in state.items() if _is_state_dict(value)}
    known = next((name for name in _NESTED if name in inner), None)
    if known is not None:
        return _tensors_in(inner[known], path)
    if tensors and not inner:
        return tensors
    if len(inner) == 1 and not tensors:
        return _tensors_in(next(iter(inner.values())), path)
    if inner:
        raise UserError(
            f"{path} holds several networks or parts ({', '.join([*inner, *list(tensors)[:3]])}), expected one state dict "
            "of tensors; save the one that is meant by itself"
        )
    keys = ", ".join(str(name) for name in list(state)[:5])
    raise UserError(f"{path} holds {keys or 'nothing'}, expected a state dict of tensors")


def _is_state_dict(value: Any) -> bool:
    """Whether it is a dict in which tensors have names, at some depth; an optimiser's state has numbers."""
    from torch import Tensor

    if not isinstance(value, Mapping) or not value or "param_groups" in value:
        return False
    return any(
        isinstance(name, str) and (isinstance(inner, Tensor) or _is_state_dict(inner)) for name, inner in value.items()
    )


def _unwrapped(state: dict[str, Any]) -> dict[str, Any]:
    """Without the prefixes of wrappers; a name that only some tensors have in front is the network's own."""
    while state and (prefix := next((word for word in _WRAPPERS if all(name.startswith(word) for name in state)), "")):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """load_state_dict(strict=True) that names the first keys which do not fit.

    Raises:
        UserError: missing or unexpected keys, or a tensor of another shape.
    """
    expected = module.state_dict()
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    misshapen = [key for key in expected if key in state and expected[key].shape != state[key].shape]
    if missing or unexpected or misshapen:
        faults = [("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen)]
        said = "; ".join(f"{len(keys)} {fault}, first {keys[0]}" for fault, keys in faults if keys)
        raise UserError(f"the checkpoint is not that of {what}: {said}; check that it belongs to this model")
    module.load_state_dict(dict(state))


def convert_litemedsam(folder: Path) -> None:
    """lite_medsam.pth -> model.safetensors, the same 435 tensors."""
    from safetensors.torch import save_file

    state = read_weights(folder / "lite_medsam.pth")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    (folder / "lite_medsam.pth").unlink()


def convert_gguf(folder: Path) -> None:
    """model.gguf -> an ordinary transformers folder in fp32, which loads in 0.1 s instead of 17 s.

    fp32 because the dequantised Q4_1 numbers (scale x 4 bits + offset) have no exact half-precision form. A model read
    from GGUF refuses to be saved, so its tensors go into a fresh model of the same configuration.
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        folder, gguf_file="model.gguf", local_files_only=True, trust_remote_code=False
    )
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file="model.gguf", dtype=torch.float32, local_files_only=True, trust_remote_code=False
    )
    values = loaded.config.to_dict()
    values.pop("quantization_config", None)
    model = type(loaded)(type(loaded.config)(**values)).float()
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.gguf").unlink()


# As sources.yaml names them: makes the loadable files of what was published, in place.
CONVERTERS: Mapping[str, Callable[[Path], None]] = {"litemedsam": convert_litemedsam, "gguf": convert_gguf}
