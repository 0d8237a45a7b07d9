"""Fetch the released weights into the folders where everything here looks for them, and check what is there.

- Parts: frozen (sensevoice siglip mimi campplus), llm, omni, moe, tokenizer, voices; `all` is all of these. The published training
  data is apart: data_mini, data_full.
- The hubs' own clients download: they show progress and resume what was broken off. A part that passes its check is left alone.
- `--check` touches no network: it loads every part as the program will and reports format, keys and number of parameters.
- Exit codes: 0 all is well, 1 something is missing, damaged or could not be fetched, 2 wrong arguments.

    python -m scripts.download_models                      # everything, from ModelScope
    python -m scripts.download_models frozen tokenizer omni --source huggingface
    python -m scripts.download_models all --check
"""
import argparse
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from model.refusal import one_line  # noqa: E402
from scripts import check_models  # noqa: E402

OWNERS = {"modelscope": "gongjy", "huggingface": "jingyaogong"}
MODEL, DATASET = "model", "dataset"
SPARE = 1.1  # disk space asked for, as a multiple of the download's size


@dataclass(frozen=True)
class Part:
    """Something that is fetched in one go: `files` of a repository (all when empty) into the folder `target` below the root.

    megabytes is rounded, for the user's patience and disk. check gets the folder, or each file when files are named.
    """
    name: str
    group: str
    repository: str  # without its owner, who has another name on each hub
    target: str
    megabytes: int
    check: Callable[[Path], str]
    files: tuple[str, ...] = ()
    kind: str = MODEL

    def path(self, root: Path) -> Path:
        """What `check` looks at first."""
        return self.paths(root)[0]

    def paths(self, root: Path) -> list[Path]:
        """All that `check` looks at, one after the other: the folder, or each of the files; a tokenizer's make sense together only."""
        folder = root / self.target
        return [folder] if self.check is check_models.tokenizer else [folder / name for name in self.files] or [folder]


PARTS = (
    Part("sensevoice", "frozen", "SenseVoiceSmall", "model/SenseVoiceSmall", 936, check_models.sensevoice),
    Part("siglip", "frozen", "siglip2-base-p32-256-ve", "model/siglip2-base-p32-256-ve", 378, check_models.siglip),
    Part("mimi", "frozen", "mimi", "model/mimi", 385, check_models.mimi),
    Part("campplus", "frozen", "campplus", "model/campplus", 28, check_models.campplus),
    Part("llm", "llm", "minimind-3o-pytorch", "out", 128, check_models.language_model, ("llm_768.pth",)),
    Part("omni", "omni", "minimind-3o-pytorch", "out", 226, check_models.dense, ("sft_omni_768.pth",)),
    Part("omni_folder", "omni", "minimind-3o", "minimind-3o", 227, check_models.dense),
    Part("moe", "moe", "minimind-3o-pytorch", "out", 630, check_models.moe, ("sft_omni_768_moe.pth",)),
    Part("moe_folder", "moe", "minimind-3o-moe", "minimind-3o-moe", 631, check_models.moe),
    Part("tokenizer", "tokenizer", "minimind-3o", "model", 1, check_models.tokenizer, ("tokenizer.json", "tokenizer_config.json")),
    Part("voices", "voices", "minimind-3o-pytorch", "model", 1, check_models.voices, ("voices.pt", "voices_unseen.pt")),
    *(Part(name, group, "minimind-o_dataset", "dataset", 0, check_models.parquet, (f"{name}.parquet",), DATASET)
      for group, names in (("data_mini", ("sft_t2a_mini", "sft_a2a_mini", "sft_i2t")), ("data_full", ("sft_t2a", "sft_a2a")))
      for name in names),
)
GROUPS = tuple(dict.fromkeys(part.group for part in PARTS))


class FetchError(Exception):
    """A download that did not come; the message says from where and why."""


def chosen(names: list[str]) -> list[Part]:
    """Parts by their own or their group's name, in the order of PARTS; "all" is everything but the data."""
    wanted = set(names)
    if "all" in wanted:
        wanted |= {part.name for part in PARTS if part.kind == MODEL}
    return [part for part in PARTS if {part.name, part.group} & wanted]


def state_of(part: Part, root: Path) -> tuple[bool, str]:
    """(whether the part is there and whole, one line about it)."""
    paths = part.paths(root)
    for path in paths:
        if not path.exists():
            return False, f"missing: no {path}"
    try:
        return True, "; ".join(map(part.check, paths))
    except Exception as error:  # a damaged file makes readers raise anything: unpickling, safetensors, YAML, KeyError, ...
        kind = "missing" if isinstance(error, FileNotFoundError) else "wrong" if isinstance(error, ValueError) else "unreadable"
        return False, f"{kind}: {one_line(error)}"


def fetch(part: Part, source: str, repository: str, root: Path) -> None:
    """Download the part from `repository` ("owner/name") on `source`. FetchError when that fails, whatever the client raises."""
    folder, patterns = root / part.target, list(part.files) or None
    try:
        if source == "modelscope":
            from modelscope.hub.snapshot_download import dataset_snapshot_download, snapshot_download

            download = snapshot_download if part.kind == MODEL else dataset_snapshot_download
            download(repository, local_dir=str(folder), allow_patterns=patterns)
        else:
            from huggingface_hub import snapshot_download

            snapshot_download(repository, repo_type=part.kind, local_dir=folder, allow_patterns=patterns)
    except ImportError as error:
        raise FetchError(f"{source} needs its client: pip install {'modelscope' if source == 'modelscope' else 'huggingface_hub'} "
                         f"({error})") from error
    except Exception as error:  # both clients have trees of errors of their own, network and HTTP errors among them
        raise FetchError(f"{repository} could not be fetched from {source} ({type(error).__name__}: {one_line(error)[:300]})") from error


def remedy(part: Part, source: str, root: Path) -> str:
    other = next(name for name in OWNERS if name != source)
    what = ", ".join(part.files) or "its files"
    return (f"check the network, try --source {other}, name another repository with --repo {part.name}=OWNER/NAME, or copy {what} to "
            f"{root / part.target} by hand and run --check")


def get(part: Part, source: str, repository: str, root: Path) -> bool:
    """Fetch a part unless it is already whole; prints what happens. FetchError when nothing came."""
    whole, words = state_of(part, root)
    if whole:
        print(f"{part.name}: already there ({words})", flush=True)
        return True
    size = f"about {part.megabytes} MB" if part.megabytes else "size as the hub says"
    print(f"{part.name}: {repository} from {source} -> {root / part.target} ({size})", flush=True)
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free / 1e6
    if free < SPARE * part.megabytes:
        raise FetchError(f"{part.name} takes about {part.megabytes} MB and {root} has {free:.0f} MB free: make room first")
    began = time.monotonic()
    fetch(part, source, repository, root)
    whole, words = state_of(part, root)
    if whole:
        print(f"{part.name}: done in {time.monotonic() - began:.0f} s, {stored(part, root):.0f} MB ({words})", flush=True)
    else:
        print(f"{part.name}: was fetched, but is {words}; delete {part.path(root)} and run this again", file=sys.stderr, flush=True)
    return whole


def stored(part: Part, root: Path) -> float:
    """Megabytes on disk."""
    path = root / part.target
    files = [path / name for name in part.files] if part.files else [p for p in path.rglob("*") if p.is_file()]
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def check(parts: list[Part], root: Path) -> bool:
    """Print a line for each part; whether all are whole."""
    good = True
    for part in parts:
        whole, words = state_of(part, root)
        size = f" ({stored(part, root):.0f} MB)" if whole else ""
        print(f"{'ok     ' if whole else 'NOT OK '} {part.name:<12} {words}{size}", flush=True)
        good &= whole
    if not good:
        print("fetch what is missing with: python -m scripts.download_models [PART ...]", file=sys.stderr)
    return good


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["all", *dict.fromkeys([*GROUPS, *(part.name for part in PARTS)])]
    parser.add_argument("parts", nargs="*", default=["all"], metavar="PART", help=f"one or more of: {', '.join(names)} (default: all)")
    parser.add_argument("--source", choices=tuple(OWNERS), default="modelscope", help="the hub to fetch from (default: modelscope)")
    parser.add_argument("--check", action="store_true", help="fetch nothing, check what is there")
    parser.add_argument("--repo", action="append", default=[], metavar="PART=OWNER/NAME", help="fetch this part from another repository")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder the targets lie in (default: the repository's)")
    parser.set_defaults(names=names)
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    unknown = sorted(set(args.parts) - set(args.names))
    if unknown:
        parser.error(f"unknown part {', '.join(unknown)}; choose from {', '.join(args.names)}")
    repositories = dict(item.partition("=")[::2] for item in args.repo)
    if set(repositories) - {part.name for part in PARTS} or not all(name.count("/") == 1 for name in repositories.values()):
        parser.error(f"--repo takes PART=OWNER/NAME with a PART of {', '.join(part.name for part in PARTS)}")
    parts = chosen(args.parts)
    idle = sorted(set(repositories) - {part.name for part in parts})
    if idle:
        parser.error(f"--repo {idle[0]}=...: {idle[0]} is not among the parts to be fetched ({', '.join(part.name for part in parts)})")
    if args.check:
        return 0 if check(parts, args.root) else 1
    good = True
    for part in parts:
        repository = repositories.get(part.name, f"{OWNERS[args.source]}/{part.repository}")
        try:
            good &= get(part, args.source, repository, args.root)
        except FetchError as error:  # the next part would most likely fail in the same way, and slowly
            print(f"error: {error}\n{remedy(part, args.source, args.root)}", file=sys.stderr)
            return 1
    return 0 if good else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nstopped; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
