"""The mean of a run's last checkpoints: weights that speak better than any one of them, for no training (Izmailov et al. 2018).

Takes resume checkpoints (`--keep_last 3` leaves three named by their step; the one without a step is the newest of them once more) or
exported weights of one model.

    python -m trainer.average_weights out/t2a_256_resume_step*.pth --out out/t2a_mean_256.pth
"""
import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoint import load_strict, load_weights, read_sidecar, save_model
from model.config import OmniConfig
from model.model_omni import MiniMindOmni
from model.refusal import refuse


def read(path: Path) -> tuple[dict[str, Tensor], dict]:
    """(state dict, sidecar with at least "config") of a resume checkpoint or of exported weights. ValueError without a known config."""
    saved = load_weights(path)
    if "optimizer" in saved:
        return saved["model"], {name: saved[name] for name in ("config", "step", "epoch")}
    sidecar = read_sidecar(path)
    if sidecar is None:
        raise ValueError(f"{path} has no {path.with_suffix('.json').name} beside it that tells its sizes")
    return saved, sidecar


def average(paths: list[Path]) -> tuple[MiniMindOmni, dict]:
    """The model whose weights are the mean of those at `paths`, and the last one's sidecar. ValueError when they are not of one model."""
    sums: dict[str, Tensor] = {}
    for path in paths:
        state, sidecar = read(path)
        model = MiniMindOmni(OmniConfig.from_dict(sidecar["config"]))
        try:
            load_strict(model, state)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        shapes = {name: value.shape for name, value in model.state_dict().items()}
        if sums and shapes != {name: value.shape for name, value in sums.items()}:
            raise ValueError(f"{path} is not of the same model as {paths[0]}")
        for name, value in model.state_dict().items():
            sums[name] = sums.get(name, 0) + value.double()
    load_strict(model, {name: (value / len(paths)).float() for name, value in sums.items()})
    return model, sidecar


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--out", required=True, type=Path, help="the weights file (.pth); its .json is written beside it")
    args = parser.parse_args(argv)
    try:
        paths = sorted(args.checkpoints, key=lambda path: path.stat().st_mtime_ns)
        model, sidecar = average(paths)
        save_model(model, args.out, {name: value for name, value in sidecar.items() if name != "config"} | {"averaged": len(paths)})
    except (ValueError, OSError) as error:
        return refuse(error)
    print(f"mean of {len(paths)} -> {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
