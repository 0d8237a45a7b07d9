"""Look into a training file: schema, totals, and one row as text, as the model's nine streams, and as sound.

- Written to --out: `row.png`, the nine rows of the sequence (codebooks 0-7, text) as OmniDataset makes them without random choices;
  `answer_K.wav` and `reference.wav`, decoded codes; `question_K.flac` (or as stored) and `image_K`, the files in the row.
- Everything but --codec and --tokenizer can be done without the frozen modules: with 'none' the sounds or the picture are left out.

    python -m dataset.inspect out/ljspeech/shard-00000.parquet --row 3 --codec model/mimi --tokenizer model
"""
import argparse
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dataset.omni_dataset import OmniDataset, OmniSample, Variants
from dataset.parquet_rows import ParquetRows, Row, find_files
from model.audio import write_wav
from model.checkpoint import replace_atomic
from model.config import FRAME_SAMPLES, NUM_CODEBOOKS, SAMPLE_RATE, OmniConfig, audio_ids_for
from model.refusal import refuse

MAX_LENGTH = 4096  # positions of the picture; longer rows are cut
SUFFIXES = {b"fLaC": ".flac", b"RIFF": ".wav", b"OggS": ".ogg", b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png"}


def describe(files: list[Path]) -> str:
    """Schema of the first file and totals over all of them, a line each."""
    metas = [pq.read_metadata(file) for file in files]
    rows, groups = sum(m.num_rows for m in metas), sum(m.num_row_groups for m in metas)
    lines = [f"{field.name}: {field.type}" for field in pq.read_schema(files[0])]
    codes = 0
    for file in files:
        with pq.ParquetFile(file) as parquet:
            if "answer_audios" in parquet.schema_arrow.names:
                for batch in parquet.iter_batches(columns=["answer_audios"]):
                    column = batch.column(0)
                    for _ in range(2):
                        column = column.flatten() if pa.types.is_nested(column.type) else column[:0]  # all null: without a type
                    codes += len(column)
    seconds = codes // NUM_CODEBOOKS * FRAME_SAMPLES / SAMPLE_RATE
    size = sum(file.stat().st_size for file in files)
    return "\n".join([*lines, "", f"files: {len(files)}, {size / 1e6:.1f} MB", f"rows: {rows} in {groups} row groups",
                      f"speech in answers: {seconds / 3600:.2f} h"])


def show(row: Row) -> str:
    """The row as text: its conversation, and what is heard and seen."""
    lines = [f"{m['role']}: {m['content']}" for m in row.messages]
    lines.append(f"answers: {', '.join(f'{c.shape[1]} frames' for c in row.answer_codes) or 'not spoken'}; voice prompt: "
                 f"{row.ref_codes.shape[1]} frames; speaker vector: {'none' if row.spk_emb is None else len(row.spk_emb)}; "
                 f"spoken questions: {sum(q is not None for q in row.question_audios)}; pictures: {len(row.images)}")
    return "\n".join(lines)


def save_files(row: Row, codec, out: Path) -> list[Path]:
    """Sounds and pictures of the row; codes only with a `codec` (Mimi)."""
    written = []
    if codec is not None:
        named = {f"answer_{i}": codes for i, codes in enumerate(row.answer_codes)} | {"reference": row.ref_codes}
        for name, codes in named.items():
            if codes.shape[1]:
                written.append(out / f"{name}.wav")
                write_wav(written[-1], codec.decode(codes.astype(np.int64))[0].cpu().numpy(), SAMPLE_RATE)
    for kind, files in (("question", row.question_audios), ("image", row.images)):
        for i, data in enumerate(files):
            if data:
                suffix = next((suffix for magic, suffix in SUFFIXES.items() if data.startswith(magic)), ".bin")
                written.append(out / f"{kind}_{i}{suffix}")
                replace_atomic(written[-1], lambda file, data=data: file.write(data))
    return written


def draw(sample: OmniSample, config: OmniConfig, path: Path) -> None:
    """The nine streams as a picture: codes by colour, specials and pads in grey, the targets of the loss outlined below."""
    from matplotlib.figure import Figure

    ids = sample.input_ids.numpy().astype(float)
    codes, text = ids[:NUM_CODEBOOKS], ids[NUM_CODEBOOKS:]
    specials = codes >= config.num_codes
    figure = Figure(figsize=(min(4 + ids.shape[1] / 20, 40), 4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(8, 2))
    above.imshow(np.where(specials, np.nan, codes), aspect="auto", interpolation="nearest", cmap="viridis")
    above.imshow(np.where(specials & (codes != config.audio_pad_token), 1.0, np.nan), aspect="auto", interpolation="nearest", cmap="autumn")
    above.set(ylabel="codebook", title="codes (blank: pad, red: stop or speaker)")
    targets = (sample.text_labels.numpy() >= 0)[None]
    below.imshow(np.concatenate([np.where(text == config.pad_token_id, np.nan, text / config.vocab_size), np.where(targets, 1.0, np.nan)]),
                 aspect="auto", interpolation="nearest", cmap="plasma", vmin=0, vmax=1)
    below.set(yticks=(0, 1), yticklabels=("text", "target"), xlabel="position")
    replace_atomic(path, lambda file: figure.savefig(file, format="png", dpi=80))


def main(argv=None) -> int:
    """0, or 2 with one line on stderr."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("files", nargs="+", help="parquet files, folders or globs")
    parser.add_argument("--row", type=int, default=0, help="counted over all files")
    parser.add_argument("--out", default="out/inspect")
    parser.add_argument("--codec", default="model/nano/mimi", help="MimiModel folder, or 'none'")
    parser.add_argument("--tokenizer", default="model/nano", help="folder of the tokenizer, or 'none'")
    args = parser.parse_args(argv)
    try:
        inspect(args)
    except (ValueError, OSError, IndexError) as error:
        return refuse(error)
    return 0


def inspect(args: argparse.Namespace) -> None:
    files, config, out = find_files(args.files), OmniConfig(), Path(args.out)
    codec = None
    if args.codec != "none":
        from model.mimi import Mimi
        codec = Mimi.load(args.codec, encoder=False)
        config = OmniConfig(**audio_ids_for(codec.num_codes))
    rows = ParquetRows(files, config.num_codes, config.spk_emb_size)
    row = rows[args.row]
    print(describe(files), "", show(row), sep="\n")
    written = save_files(row, codec, out)
    if args.tokenizer != "none":
        from transformers import AutoTokenizer

        from model.encoders import sensevoice_frames
        data = OmniDataset(files, AutoTokenizer.from_pretrained(args.tokenizer, local_files_only=True), config, MAX_LENGTH,
                           Variants.fixed(), audio_frames=sensevoice_frames)
        sample = data[args.row]
        if not isinstance(sample, OmniSample):
            raise ValueError(f"row {args.row} of {sample.file}: {sample.reason}")
        written.append(out / "row.png")
        draw(sample, config, written[-1])
    for path in written:
        print(path)


if __name__ == "__main__":
    sys.exit(main())
