"""Fixtures every test may use: where the shared reference material lies, and the golden models built from it."""
import json
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
SHARED = ROOT.parent / "shared"

from model.model_omni import MiniMindOmni, OmniConfig  # noqa: E402  (needs the path above)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference numbers and example assets; tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def tokenizer_dir(shared) -> Path:
    return shared / "assets" / "tokenizer"


def golden_weight(key: str, shape: torch.Size, salt: str) -> torch.Tensor:
    """A deterministic weight for a state-dict key, by the rule in golden/README.md."""
    x = np.random.default_rng(zlib.crc32(f"{salt}:{key}".encode())).standard_normal(tuple(shape)).astype(np.float32)
    if key.endswith("norm.weight") or (".mlp.0." in key and len(shape) == 1) or key.endswith("_proj.3.weight"):
        x = 1 + 0.1 * x
    elif "scale" in key:
        x = np.abs(x) + 0.5
    else:
        x = 0.08 * x
    return torch.from_numpy(np.asarray(x, dtype=np.float32))


@pytest.fixture(scope="session")
def golden(shared):
    """golden(name) -> (arrays of name.npz as torch tensors or str, the model they were computed with, in eval mode)."""
    def load(name: str):
        raw = np.load(shared / "golden" / f"{name}.npz")
        data = {k: str(raw[k]) if raw[k].dtype.kind == "U" else torch.from_numpy(raw[k]) for k in raw.files}
        model = MiniMindOmni(OmniConfig(**json.loads(data["config"])))
        state = {k: golden_weight(k, v.shape, data["salt"]) for k, v in model.state_dict().items() if k != "lm_head.weight"}
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
        model.load_state_dict(state)
        return {k: v.long() if isinstance(v, torch.Tensor) and v.dtype == torch.int32 else v for k, v in data.items()}, model.eval()
    return load
