"""The voices files of the nano pack: `voices.pt`, the built-in ones, and `voices_unseen.pt` beside it, in which no training row is spoken.

A voice is a clear sentence: its codes, by the codec as a user's clip will be heard, and its vector by the speaker encoder.

    python -m nano.voices --codec out/nano/codec/targets.pt --speaker_encoder out/nano/pack/campplus --out out/nano/pack/voices.pt
"""
import argparse
from pathlib import Path

import numpy as np
import torch

from dataset.build_stages import encode_clips
from model.audio import resample
from model.checkpoint import save_atomic
from model.config import SAMPLE_RATE
from model.encoders import CAMPPlus
from model.mimi import Mimi
from nano.mimi_targets import Analyser
from nano.speech import MAIN_VOICE, RATE, TRAIN_VOICES, UNSEEN_VOICE, Utterance, synthesise

TEXT = "My sister reads a good book in the garden, and my brother listens to music."
SPEAKER_SIZE = 192
# the chat takes the first one unless another is named
BUILT_IN = {voice: Utterance(TEXT, voice) for voice in sorted(TRAIN_VOICES, key=lambda name: name != MAIN_VOICE)}
# a synthesiser's voice of its own, and the known ones shifted by what lies between two of nano.speech's STRANGERS
UNSEEN = {UNSEEN_VOICE: Utterance(TEXT, UNSEEN_VOICE)} | {
    f"{voice}-{name}": Utterance(TEXT, voice, pitch=pitch) for voice in TRAIN_VOICES for name, pitch in (("deep", 0.87), ("high", 1.15))}


def load_codec(path, device):
    """What encodes (B, S) at 24 kHz to codes (B, 8, T): a MimiModel folder's encoder, or the analysis that it was trained to give."""
    return Mimi.load(path, device) if Path(path).is_dir() else Analyser.load(path, device)


def make_voice(utterance, codec, speaker):
    """One entry of a voices file: {"ref_codes": (8, T) int64, "spk_emb": (192,) float32, zeros without a speaker encoder}."""
    wav = synthesise(utterance.text, utterance.voice, utterance.rate, utterance.pitch).astype(np.float32) / 32768
    codes = encode_clips(codec, [resample(wav, RATE, SAMPLE_RATE)])[0]
    vector = torch.zeros(SPEAKER_SIZE) if speaker is None else speaker(torch.from_numpy(wav)).float().cpu().reshape(SPEAKER_SIZE)
    return {"ref_codes": torch.from_numpy(codes).long(), "spk_emb": vector}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--codec", default="out/nano/codec/targets.pt", help="targets.pt of nano.train_mimi, or a MimiModel folder")
    parser.add_argument("--speaker_encoder", default="out/nano/pack/campplus", help="a CAM++ folder, or 'none'")
    parser.add_argument("--out", default="out/nano/pack/voices.pt", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    codec = load_codec(args.codec, args.device)
    speaker = None if args.speaker_encoder == "none" else CAMPPlus.load(args.speaker_encoder, args.device)
    for path, chosen in ((args.out.with_name("voices_unseen.pt"), UNSEEN), (args.out, BUILT_IN)):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_atomic({name: make_voice(said, codec, speaker) for name, said in chosen.items()}, path)
        print(f"voices {', '.join(chosen)} -> {path}")


if __name__ == "__main__":
    main()
