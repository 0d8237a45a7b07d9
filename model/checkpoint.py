"""Checkpoints: written so that a crash never leaves a broken one, read so that a wrong one is named.

- `save_atomic`: temporary file in the same folder, fsync, rename. A reader sees the old file or the new one, never half of one.
- Weights are `<folder>/<weight>_<hidden>[_moe].pth`: a state dict in fp16, the released names, nothing frozen in it.
  Beside each lies `<same>.json` with its OmniConfig and whatever the writer adds (training arguments, step, losses).
- `load_strict` has no silent skipping: missing, unexpected and mismatched keys are listed. What may be absent is an explicit
  list of prefixes, and a part (say the Talker) must then be absent as a whole.
- What is read, .pth or Transformers folder, and which old key names are understood, is weight_files.py's part.
"""
import json
import os
from pathlib import Path
from typing import Callable

import torch
from torch import Tensor, nn

from model.config import OmniConfig
from model.model_omni import MiniMindOmni
from model.transformers_folder import read_config
from model.weight_files import load_folder, load_weights, migrate

MAX_NAMED = 8  # keys a report lists per kind before it only counts


def save_atomic(obj: object, path: str | Path) -> None:
    """`torch.save(obj)` such that `path` holds either its old content or all of the new one, whenever the process dies."""
    def write(file) -> None:
        try:
            torch.save(obj, file)
        except RuntimeError as error:  # what torch makes of a failed write when it then tries to finish its archive
            cause = error.__context__
            if isinstance(cause, OSError):
                raise OSError(cause.errno, cause.strerror, str(path)) from error
            raise

    replace_atomic(Path(path), write)


def save_json(data: dict, path: str | Path) -> None:
    """JSON with the same guarantee as `save_atomic`."""
    text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    replace_atomic(Path(path), lambda file: file.write(text.encode()))


def replace_atomic(path: Path, write: Callable) -> None:
    """Let `write(binary file)` make the new content of `path`: as `save_atomic`, for any kind of file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())  # else a power cut after the rename could leave an empty file under the final name
        os.replace(temporary, path)
    except BaseException:  # a full disk or Ctrl-C: no half-written file stays behind
        temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(path: str | Path) -> None:
    """Delete the temporary files that killed writers of `path` left (only its single writer may call this)."""
    path = Path(path)
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)


def check_state(model: nn.Module, state: dict[str, Tensor], allow_missing_prefixes: tuple[str, ...] = ()) -> set[str]:
    """The allowed prefixes that `state` lacks as a whole. ValueError lists every missing, unexpected and mismatched key.

    Only names and shapes count, so that `model` may lie on the meta device.
    """
    own = model.state_dict()
    absent = {prefix for prefix in allow_missing_prefixes if not any(key.startswith(prefix) for key in state)}
    missing = [key for key in own if key not in state and not key.startswith(tuple(absent))]
    unexpected = [key for key in state if key not in own]
    mismatched = [f"{key} (file {tuple(state[key].shape)}, model {tuple(own[key].shape)})"
                  for key in own if key in state and state[key].shape != own[key].shape]
    problems = [f"{len(keys)} {kind}: {', '.join(keys[:MAX_NAMED])}{', ...' if len(keys) > MAX_NAMED else ''}"
                for kind, keys in (("missing", missing), ("unexpected", unexpected), ("mismatched", mismatched)) if keys]
    if problems:
        raise ValueError("the weights do not fit the model\n  " + "\n  ".join(problems)
                         + "\n  (check hidden_size, num_hidden_layers, use_moe and the talker's size)")
    return absent


def load_strict(model: nn.Module, state: dict[str, Tensor], allow_missing_prefixes: tuple[str, ...] = ()) -> set[str]:
    """Copy `state` into `model` (dtypes are converted, old key names migrated). Returns the allowed prefixes that `state` lacks.

    A prefix in `allow_missing_prefixes` (such as "talker.") may be absent as a whole; half of it is an error.
    Raises ValueError listing every missing, unexpected and mismatched key; the model is then untouched.
    """
    state = migrate(state)
    absent = check_state(model, state, allow_missing_prefixes)
    own = model.state_dict()
    with torch.no_grad():
        for key, value in state.items():
            own[key].copy_(value)
    return absent


def weights_path(folder: str | Path, weight: str, config: OmniConfig) -> Path:
    """`<folder>/<weight>_<hidden>[_moe].pth`, the released naming."""
    return Path(folder) / f"{weight}_{config.hidden_size}{'_moe' if config.use_moe else ''}.pth"


def resume_path(folder: str | Path, weight: str, config: OmniConfig) -> Path:
    """Where the trainer keeps what it needs to continue exactly: `<folder>/<weight>_<hidden>[_moe]_resume.pth`."""
    path = weights_path(folder, weight, config)
    return path.with_name(f"{path.stem}_resume.pth")


def save_model(model: MiniMindOmni, path: str | Path, extra: dict | None = None) -> None:
    """Export for use: fp16 state dict at `path`, then config and `extra` (JSON-serialisable) in the sidecar `<path>.json`."""
    path = Path(path)
    half: dict[tuple, Tensor] = {}  # tied weights are converted once, so that the file stores them once

    def export(tensor: Tensor) -> Tensor:
        key = (tensor.data_ptr(), tensor.shape)
        if key not in half:
            half[key] = tensor.detach().to("cpu", torch.float16)
        return half[key]

    state = {key: export(value) for key, value in model.state_dict().items()}
    # The sidecar first: weights without their sizes are useless, a sidecar whose weights are one save older is not.
    save_json({"config": model.config.to_dict(), **(extra or {})}, path.with_suffix(".json"))
    save_atomic(state, path)


def read_sidecar(path: str | Path) -> dict | None:
    """What is known of the weights at `path`: the JSON beside a .pth, or None when there is none (released weights have none).

    A Transformers folder always has its config.json; it is given in the same form, {"config": OmniConfig's fields}. ValueError, naming the
    file, when it holds something else.
    """
    if Path(path).is_dir():
        return {"config": read_config(path).to_dict()}
    path = Path(path).with_suffix(".json")
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("config"), dict):
        raise ValueError(f'{path} has no {{"config": {{...}}}}: it cannot be what was saved beside the weights')
    return found


def load_model(path: str | Path, config: OmniConfig | None = None, device: str | torch.device = "cpu",
               dtype: torch.dtype = torch.float32) -> MiniMindOmni:
    """The model at `path`, a .pth file or a Transformers folder, in eval mode.

    Sizes come from the sidecar or config.json; without one, from `config` (default: the released ones).
    """
    state = load_folder(path) if Path(path).is_dir() else load_weights(path)
    sidecar = read_sidecar(path)
    if sidecar is not None:
        config = OmniConfig.from_dict(sidecar["config"])
    model = MiniMindOmni(config or OmniConfig())
    try:
        load_strict(model, state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return model.to(device, dtype).eval()
