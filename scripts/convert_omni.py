"""Convert MiniMind-O's weights: a native .pth file <-> a Transformers folder.

- The direction follows from the source: a folder with a config.json becomes a .pth with its sidecar, a .pth becomes a folder.
- Nothing is rounded: tensors keep their dtype, names and values; every conversion is read back and compared.
- The folder holds config, tokenizer, generation config, safetensors (with --bin also pytorch_model.bin, which vLLM-Omni reads) and
  the model's source, so that AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True) works without this project.
  (For those who trust a folder they wrote with this script: Transformers knows no such model. The project itself never runs such code.)
- Sizes come from the .pth's sidecar; without one, from the shapes of its weights. What is there already is never overwritten.

    python -m scripts.convert_omni out/sft_omni_768.pth minimind-3o
    python -m scripts.convert_omni minimind-3o out/back_768.pth
"""
import argparse
import re
import shutil
import sys
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from engine.chat import load_tokenizer  # noqa: E402
from engine.generate import GENERATION, read_settings  # noqa: E402
from model.checkpoint import check_state, read_sidecar, save_atomic, save_json  # noqa: E402
from model.config import OmniConfig  # noqa: E402
from model.model_omni import MiniMindOmni  # noqa: E402
from model.refusal import refuse  # noqa: E402
from model.transformers_folder import CONFIG, config_to_json, is_transformers_folder, read_config  # noqa: E402
from model.weight_files import BIN, HEAD, SAFETENSORS, infer_config, load_folder, load_weights, migrate  # noqa: E402

MODELLING = "modeling_minimind_o"
SOURCES = (ROOT / "scripts" / f"{MODELLING}.py", *(ROOT / "model" / f"{name}.py"
                                                  for name in ("config", "kv_cache", "model_minimind", "model_omni")))
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
OPTIONAL_TOKENIZER_FILES = ("special_tokens_map.json", "chat_template.jinja")


def read_native(path: Path) -> tuple[OmniConfig, dict[str, Tensor]]:
    """Config and checked state dict of a .pth file."""
    state = migrate(load_weights(path))
    sidecar = read_sidecar(path)
    return _checked(path, OmniConfig.from_dict(sidecar["config"]) if sidecar else infer_config(state), state)


def read_transformers(folder: Path) -> tuple[OmniConfig, dict[str, Tensor]]:
    """Config and checked state dict of a Transformers folder."""
    return _checked(folder, read_config(folder), migrate(load_folder(folder)))


def _checked(path: Path, config: OmniConfig, state: dict[str, Tensor]) -> tuple[OmniConfig, dict[str, Tensor]]:
    with torch.device("meta"):
        model = MiniMindOmni(config)
    try:
        check_state(model, state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return config, {key: state[key] for key in model.state_dict()}


def relative_imports(source: str) -> str:
    """`source` with this project's absolute imports written as those of files lying side by side."""
    return re.sub(r"^from model\.(\w+) import", r"from .\1 import", source, flags=re.MULTILINE)


def to_transformers(weights: Path, folder: Path, tokenizer: Path, frozen_dir: str = "model", with_bin: bool = False) -> None:
    """Write `folder` from the .pth file `weights` and the tokenizer in the folder `tokenizer`.

    FileExistsError when the folder holds something, FileNotFoundError without the weights or the tokenizer's files, ValueError for a
    tokenizer of another model.
    """
    from safetensors.torch import save_file

    config, state = read_native(weights)
    for name in TOKENIZER_FILES:
        if not (tokenizer / name).is_file():
            raise FileNotFoundError(f"no {name} in {tokenizer}: give the folder of the model's tokenizer with --tokenizer "
                                    "(python -m scripts.download_models tokenizer fetches the released one)")
    size = len(load_tokenizer(tokenizer))
    if size > config.vocab_size:
        raise ValueError(f"the tokenizer in {tokenizer} has {size} ids, {weights} {config.vocab_size}: give the folder of the model's "
                         "tokenizer with --tokenizer")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty: old shards or code beside new weights would be read; give a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*TOKENIZER_FILES, *OPTIONAL_TOKENIZER_FILES):
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)
    for source in SOURCES:
        (folder / source.name).write_text(relative_imports(source.read_text(encoding="utf-8")), encoding="utf-8")
    ids = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id, "pad_token_id": config.pad_token_id}
    save_json(ids | read_settings(tokenizer / GENERATION), folder / GENERATION)
    single = {key: value.contiguous() for key, value in state.items() if key != HEAD}  # the file stores tied weights once
    save_file(single, folder / SAFETENSORS, metadata={"format": "pt"})
    if with_bin:
        save_atomic(state, folder / BIN)
    # last: a folder without a config is nobody's model, one that was cut off in the middle included
    save_json(config_to_json(config, MODELLING, frozen_dir), folder / CONFIG)
    (folder / SAFETENSORS).chmod((folder / CONFIG).stat().st_mode)  # safetensors makes its files for the owner alone
    _verify(read_transformers(folder), (config, state), folder)
    if with_bin:
        _verify((config, migrate(load_weights(folder / BIN))), (config, state), folder / BIN)


def to_native(folder: Path, weights: Path) -> None:
    """Write the .pth file `weights` and its sidecar from a Transformers folder. FileExistsError when there is one of them already."""
    for path in (weights, weights.with_suffix(".json")):
        if path.exists():
            raise FileExistsError(f"{path} is there already: give another name, or delete it first")
    config, state = read_transformers(folder)
    save_json({"config": config.to_dict(), "converted_from": folder.name}, weights.with_suffix(".json"))
    save_atomic(state, weights)
    _verify(read_native(weights), (config, state), weights)


def own_tokenizer(weights: Path) -> Path:
    """The folder of the tokenizer that belongs to a .pth: its own when that has one, else model/."""
    return weights.parent if all((weights.parent / name).is_file() for name in TOKENIZER_FILES) else ROOT / "model"


def _verify(got: tuple, expected: tuple, path: Path) -> None:
    """Raise OSError unless what was read back from `path` is what was written."""
    same = got[0] == expected[0] and got[1].keys() == expected[1].keys() and all(
        value.dtype == got[1][key].dtype and torch.equal(value, got[1][key]) for key, value in expected[1].items())
    if not same:
        raise OSError(f"{path} does not hold what was written to it: is the disk full or failing?")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a native .pth file or a Transformers folder")
    parser.add_argument("target", type=Path, help="a new folder, or the .pth file to write")
    parser.add_argument("--tokenizer", type=Path, help="folder of the tokenizer to put in (default: the .pth's own, else model/)")
    parser.add_argument("--bin", action="store_true", help="also write pytorch_model.bin, the file that vLLM-Omni reads")
    parser.add_argument("--frozen_dir", default="model", help="where the folder's user keeps mimi, SenseVoiceSmall, ... (for vLLM-Omni)")
    args = parser.parse_args(argv)
    try:
        if is_transformers_folder(args.source):
            if args.target.suffix != ".pth":
                raise ValueError(f"{args.source} is a Transformers folder, so the target must be a .pth file, not {args.target}")
            to_native(args.source, args.target)
        elif args.source.is_dir():
            raise ValueError(f"{args.source} is a folder without {CONFIG}: give a .pth file or a Transformers folder")
        else:
            tokenizer = args.tokenizer or own_tokenizer(args.source)
            to_transformers(args.source, args.target, tokenizer, args.frozen_dir, args.bin)
    except (ValueError, OSError) as error:
        return refuse(error)
    print(f"{args.source} -> {args.target}, read back and equal")
    return 0


if __name__ == "__main__":
    sys.exit(main())
