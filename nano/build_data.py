"""The T2A parquet files: corpus -> flite speech -> codec codes -> one row per answer and voice.

- `t2a_train.parquet`, `t2a_heldout.parquet` and, lists of words to read aloud, `t2a_words.parquet`, in the project's schema:
  conversations, answer_audios, ref_audios, spk_emb.
- A row's voice prompt (`ref_audios`, `spk_emb`) is another sentence of the same speaker, 2-4 s long, out of a pool per speaker.
- `--strangers` adds speakers made from the three voices by pitch: with them the Talker learns to follow a voice it has not met.
- Each step is resumable: speech and codes lie in shards named by their content (and the codec's), finished ones are not made again.
- Also writes `voices.pt`, the built-in voices, and `voices_unseen.pt` beside it: voices that no row was spoken in.

    python -m nano.build_data --device cpu
"""
import argparse
import hashlib
import json
import os
import random
from pathlib import Path

import librosa
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soxr
import torch
from tqdm import tqdm

from dataset.build_stages import encode_clips, frame_major
from model.checkpoint import replace_atomic, save_atomic
from model.config import FRAME_SAMPLES, SAMPLE_RATE
from model.encoders import CAMPPlus
from model.mimi import Mimi
from nano.corpus import SEED, read_jsonl
from nano.mimi_targets import Analyser
from nano.speech import RATE, TRAIN_VOICES, Utterance, read_shard, read_timed_shard, render, shard_utterances, synthesise
from nano.word_grid import GridCodec, letters_said, unit_ends

MAIN_VOICE = "rms"  # speaks every answer; of the three the recogniser understands it best
REFERENCE_FRAMES = (25, 50)  # 2-4 s
REFERENCE_POOL = 256  # utterances of a voice that serve as voice prompts; a quarter as many of a stranger
ROW_GROUP = 1024
REFERENCE_TEXT = "My sister reads a good book in the garden, and my brother listens to music."
SPEAKER_SIZE = 192
STRANGERS = [(voice, pitch) for voice in TRAIN_VOICES for pitch in (0.84, 0.9, 1.1, 1.2)]  # further speakers of the training
UNSEEN = {"kal16": ("kal16", 1.0), "slt-deep": ("slt", 0.87), "rms-high": ("rms", 1.15), "awb-high": ("awb", 1.06)}


def mel_speaker(wav):
    """Stand-in speaker vector where no CAM++ is at hand: (S,) float at 16 kHz -> (192,) float32.

    Mean and deviation over time of 96 log-mel bands, each half standardised. The long-term spectrum tells a few known voices apart
    (cosine 0.93-0.97 within a flite voice, 0.76-0.89 between two).
    """
    wav = np.asarray(wav, np.float32)
    wav = 0.1 * wav / (np.sqrt(np.mean(wav ** 2)) + 1e-5)
    mel = librosa.feature.melspectrogram(y=wav, sr=RATE, n_fft=1024, hop_length=320, n_mels=96, fmax=7600)
    energy = mel.sum(0)
    log_mel = np.log(mel + 1e-4)[:, energy >= np.median(energy)]  # the loud half: pauses say nothing about the speaker
    halves = [log_mel.mean(1), log_mel.std(1)]
    vector = np.concatenate([(half - half.mean()) / (half.std() + 1e-5) for half in halves])
    return vector.astype(np.float32)


def speaker_function(name, device):
    """What turns a wav (S,) float at 16 kHz into a speaker vector: "mel", "none" (None) or a CAM++ folder."""
    if name == "none":
        return None
    if name == "mel":
        return mel_speaker
    encoder = CAMPPlus.load(name, device)
    return lambda wav: encoder(torch.from_numpy(wav)).float().cpu().numpy().reshape(SPEAKER_SIZE)


def voiced(items, others, rates, seed):
    """Utterances of every distinct answer: all in the main voice, a share `others` (0-1) of them in each of the other voices, too.

    The rate of each is drawn from `rates`. What an answer is said with depends on its text and the seed only.
    """
    utterances = []
    for answer in dict.fromkeys(item["answer"] for item in items):
        rng = random.Random(f"{seed} {answer}")
        for voice in TRAIN_VOICES:
            rate, chance = rng.choice(rates), rng.random()
            if voice == MAIN_VOICE or chance < others:
                utterances.append(Utterance(answer, voice, rate))
    return utterances


def estranged(items, share, seed):
    """Utterances of a `share` (0-1) of the distinct answers, each by one of STRANGERS."""
    utterances = []
    for answer in dict.fromkeys(item["answer"] for item in items):
        rng = random.Random(f"{seed} stranger {answer}")
        if rng.random() < share:
            voice, pitch = rng.choice(STRANGERS)
            utterances.append(Utterance(answer, voice, pitch=pitch))
    return utterances


def to_codec(pcm):
    """(S,) int16 at 16 kHz -> (S',) float32 at 24 kHz."""
    return soxr.resample(pcm.astype(np.float32) / 32768, RATE, SAMPLE_RATE)


def encode_all(indexes, codec_path, device, out, batch=64, word_grid=False):
    """Codes of every utterance in the speech shards: {Utterance: (8, T) int16}, through one .npz file per shard under `out`.

    With `word_grid` every word begins with a frame (see nano.word_grid); that needs the Analyser. ValueError for a MimiModel folder.
    """
    if word_grid and Path(codec_path).is_dir():
        raise ValueError(f"--codec {codec_path}: a Mimi encoder hears speech as it is; give its targets.pt, or --word_grid 0")
    folder = codes_folder(out, codec_path, word_grid)
    folder.mkdir(parents=True, exist_ok=True)
    codec, codes = None, {}
    for index in tqdm(indexes, desc="codes", unit="shard"):
        path = folder / f"{index.stem}.npz"
        if not path.exists():
            codec = codec or load_codec(codec_path, device)
            _encode_shard(index, codec, path, batch, word_grid)
        codes |= read_codes(index, path)
    return codes


def codes_folder(out, codec_path, word_grid):
    """Where encode_all keeps a codec's shards."""
    return Path(out) / f"codes_{codec_key(codec_path)}{'_grid' if word_grid else ''}"


def read_codes(index, path):
    """{Utterance: (8, T) int16} of a speech shard from its .npz file."""
    with np.load(path) as shard:
        pieces = np.split(shard["codes"], np.cumsum(shard["frames"])[:-1], axis=1)
    return dict(zip(shard_utterances(index), pieces, strict=True))


def read_letters(indexes, folder):
    """{Utterance: (T,) float32} of word_grid.letters_said, from the shards that encode_all made in `folder`."""
    letters = {}
    for index in indexes:
        with np.load(folder / f"{index.stem}.npz") as shard:
            pieces = np.split(shard["letters"], np.cumsum(shard["num_letters"])[:-1])
        letters |= dict(zip(shard_utterances(index), pieces, strict=True))
    return letters


def _encode_shard(index, codec, path, batch, word_grid):
    if word_grid:
        codes, letters = zip(*[encode_on_grid(codec, *timed) for timed in read_timed_shard(index)])
    else:
        codes = encode_clips(codec, [to_codec(pcm) for _, pcm in read_shard(index)], batch)
        letters = [np.zeros(0, np.float32)] * len(codes)
    lengths = dict(frames=np.array([piece.shape[1] for piece in codes]), num_letters=np.array([len(piece) for piece in letters]))
    replace_atomic(path, lambda file: np.savez(file, codes=np.concatenate(codes, axis=1), letters=np.concatenate(letters), **lengths))


def encode_on_grid(codec, utterance, pcm, phones):
    """A clip whose words each begin with a frame: codes (8, T) int16, and which letter each frame says (word_grid.letters_said)."""
    if phones is None:
        raise ValueError("the speech shards do not tell when their phones end: delete them, to be made again, or give --word_grid 0")
    wav = to_codec(pcm)
    letters = letters_said(utterance.text, unit_ends(utterance.text, phones), len(wav))
    return GridCodec(codec).encode_spoken(wav, utterance.text, phones), letters


def load_codec(path, device):
    """What encodes (B, S) at 24 kHz to codes (B, 8, T): a MimiModel folder's encoder, or the analysis that it was trained to give."""
    return Mimi.load(path, device) if Path(path).is_dir() else Analyser.load(path, device)


def codec_key(path):
    """A short name for the content of a codec (see load_codec); codes made with other weights are not reused."""
    path = Path(path)
    files = sorted(f for f in path.iterdir() if f.suffix in (".json", ".safetensors")) if path.is_dir() else [path] * path.is_file()
    if not files:
        raise FileNotFoundError(f"no codec at {path}: train one with `python -m nano.train_mimi` or name it with --codec")
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def reference_pool(codes, speaker, seed, codec=None):
    """{(voice, pitch): [(Utterance, (8, T) codes, speaker vector)]}: up to REFERENCE_POOL utterances of 2-4 s per speaker.

    With a codec their codes are those of the plain speech, as a voice prompt's are later, whatever grid `codes` are on.
    """
    (low, high), fitting = REFERENCE_FRAMES, {}
    for utterance, c in codes.items():
        if low <= c.shape[1] <= high:
            fitting.setdefault((utterance.voice, utterance.pitch), []).append(utterance)
    for speaker_key in {(u.voice, u.pitch) for u in codes}:
        if len(fitting.get(speaker_key, ())) < 2:
            raise ValueError(f"fewer than two utterances of {speaker_key} are 2-4 s long: the corpus is too small for voice prompts")
    pool = {}
    for speaker_key, utterances in sorted(fitting.items()):
        utterances.sort(key=lambda u: u.text)
        count = REFERENCE_POOL // (1 if speaker_key[1] == 1.0 else 4)
        chosen = random.Random(f"{seed} {speaker_key}").sample(utterances, min(count, len(utterances)))
        chosen = tqdm(chosen, desc=f"voice prompts of {speaker_key[0]} {speaker_key[1]:g}", mininterval=5)
        pool[speaker_key] = [(u, plain_codes(codec, u) if codec else codes[u], speaker_vector(speaker, u)) for u in chosen]
    return pool


def plain_codes(codec, utterance):
    """Codes (8, T) int16 of an utterance as flite says it."""
    pcm = synthesise(utterance.text, utterance.voice, utterance.rate, utterance.pitch)
    return encode_clips(codec, [to_codec(pcm)])[0]


def speaker_vector(speaker, utterance):
    if speaker is None:
        return np.zeros(0, np.float32)
    pcm = synthesise(utterance.text, utterance.voice, utterance.rate, utterance.pitch)
    return speaker(pcm.astype(np.float32) / 32768)


def write_parquet(items, codes, pool, path, seed, letters=None):
    """Atomically write one row per item and voice, shuffled; returns the number of rows and of speech frames.

    With `letters` (see read_letters) there is a column `answer_letters`, which tells a guided Talker where to look.
    """
    by_text = {}
    for utterance in codes:
        by_text.setdefault(utterance.text, []).append(utterance)
    rows = [(item, utterance) for item in items for utterance in sorted(by_text[item["answer"]], key=lambda u: u.voice)]
    rng = random.Random(f"{seed} rows")
    rng.shuffle(rows)
    schema = pa.schema([("conversations", pa.string()), ("answer_audios", pa.list_(pa.list_(pa.int16()))),
                        ("ref_audios", pa.list_(pa.int16())), ("spk_emb", pa.list_(pa.float32()))])
    if letters:
        schema = schema.append(pa.field("answer_letters", pa.list_(pa.list_(pa.float32()))))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(path).with_name(Path(path).name + f".{os.getpid()}.tmp")
    with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for start in range(0, len(rows), ROW_GROUP):
            columns = {name: [] for name in schema.names}
            for item, utterance in rows[start:start + ROW_GROUP]:
                reference = rng.choice([entry for entry in pool[utterance.voice, utterance.pitch] if entry[0].text != utterance.text])
                turns = [{"role": "user", "content": item["question"]}, {"role": "assistant", "content": item["answer"]}]
                columns["conversations"].append(json.dumps(turns))
                columns["answer_audios"].append([frame_major(codes[utterance])])
                columns["ref_audios"].append(frame_major(reference[1]))
                columns["spk_emb"].append(reference[2])
                if letters:
                    columns["answer_letters"].append([letters[utterance]])
            writer.write_table(pa.table(columns, schema=schema), row_group_size=ROW_GROUP)
    os.replace(temporary, path)
    return len(rows), sum(codes[utterance].shape[1] for _, utterance in rows)


def write_voices(speakers, codec, speaker, path):
    """A voices file of {name: (voice, pitch)}: a clear sentence each; zero vectors without a speaker function."""
    voices = {}
    for name, (voice, pitch) in speakers.items():
        said = Utterance(REFERENCE_TEXT, voice, pitch=pitch)
        vector = speaker_vector(speaker, said) if speaker else np.zeros(SPEAKER_SIZE, np.float32)
        voices[name] = {"ref_codes": torch.from_numpy(plain_codes(codec, said)).long(), "spk_emb": torch.from_numpy(vector)}
    save_atomic(voices, path)
    print(f"voices {', '.join(voices)} -> {path}")


def main():
    parser = argparse.ArgumentParser(description="Make the T2A training and held-out parquet files of the nano world.")
    parser.add_argument("--corpus", default="out/nano/corpus")
    parser.add_argument("--speech", default="out/nano/speech", help="speech shards; the missing ones are made")
    parser.add_argument("--codec", default="out/nano/codec/targets.pt", help="targets.pt of nano.train_mimi, or a MimiModel folder")
    parser.add_argument("--out", default="out/nano/data")
    parser.add_argument("--voices", default="out/nano/pack/voices.pt")
    parser.add_argument("--others", type=float, default=0.25, help="share of the answers that each voice but the main one speaks, too")
    parser.add_argument("--word_grid", type=int, choices=(0, 1), default=1, help="1: every word begins with a frame (nano/word_grid.py)")
    parser.add_argument("--strangers", type=float, default=0.0, help="share of the answers that one of the made-up speakers says, too")
    parser.add_argument("--rates", type=float, nargs="+", default=[1.0], help="speaking rates to draw from")
    parser.add_argument("--speaker_encoder", default="mel", help="a CAM++ folder, 'mel' (spectral statistics) or 'none'")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--speech_only", action="store_true", help="stop when the speech is there: the codec is trained on it first")
    parser.add_argument("--limit", type=int, help="only so many pairs of each part, to try things out")
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    parts = {name: read_jsonl(Path(args.corpus) / f"{name}.jsonl")[:args.limit] for name in ("train", "words", "heldout")}
    if not args.speech_only:
        codec_key(args.codec)  # fail before the long steps
    spoken = {name: voiced(items, 1.0 if name == "heldout" else args.others, args.rates, args.seed) for name, items in parts.items()}
    indexes = {name: render(utterances, args.speech, args.workers) for name, utterances in spoken.items()}
    indexes["train"] += render(estranged(parts["train"], args.strangers, args.seed), args.speech, args.workers)  # shards of their own
    if args.speech_only:
        return
    speaker = speaker_function(args.speaker_encoder, args.device)
    grid, codec = bool(args.word_grid), load_codec(args.codec, args.device)
    codes = {name: encode_all(shards, args.codec, args.device, args.out, word_grid=grid) for name, shards in indexes.items()}
    pool = reference_pool(codes["train"], speaker, args.seed, codec)
    for name, items in parts.items():
        path = Path(args.out) / f"t2a_{name}.parquet"
        letters = read_letters(indexes[name], codes_folder(args.out, args.codec, grid)) if grid else None
        rows, frames = write_parquet(items, codes[name], pool, path, args.seed, letters)
        print(f"{path}: {rows} rows, {frames * FRAME_SAMPLES / SAMPLE_RATE / 3600:.2f} h of speech")
    built_in = {voice: (voice, 1.0) for voice in sorted(TRAIN_VOICES, key=lambda name: name != MAIN_VOICE)}  # the chat takes the first
    write_voices(built_in, codec, speaker, args.voices)
    write_voices(UNSEEN, codec, speaker, Path(args.voices).with_name("voices_unseen.pt"))


if __name__ == "__main__":
    main()
