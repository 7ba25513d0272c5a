"""Weight files: reading them safely, and turning what is published into what loads fast."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zeus_union.cache.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn


def read_weights(path: Path) -> dict[str, Any]:
    """The tensors of a .safetensors file or of a torch checkpoint, by name, on the CPU.

    A checkpoint is unpickled with torch's weights-only reader: a file that would run code is refused. One level of
    nesting under 'model' or 'state_dict' is opened.

    Raises:
        UserError: no such file; not a checkpoint; a pickle that holds something other than weights.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"no weights at {path}: expected a .safetensors or .pth file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is not a plain weights file: it would run code or is no checkpoint at all; "
            "expected a state dict of tensors, get the file from its publisher again"
        ) from error
    except (RuntimeError, EOFError, SafetensorError, ValueError) as error:
        raise UserError(f"{path} cannot be read as weights ({error}); it may be cut short, fetch it again") from error
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path} holds {type(state).__name__}, expected a state dict of tensors")
    return dict(state)


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
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype=torch.float32)
    values = loaded.config.to_dict()
    values.pop("quantization_config", None)
    model = type(loaded)(type(loaded.config)(**values)).float()
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "model.gguf").unlink()


# As sources.yaml names them: makes the loadable files of what was published, in place.
CONVERTERS: Mapping[str, Callable[[Path], None]] = {"litemedsam": convert_litemedsam, "gguf": convert_gguf}
