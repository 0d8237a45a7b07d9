"""Training that can be listened to: the trainer, which at every evaluation also speaks a sentence with the model as it is then.

- All of the trainer's flags, and three of its own; the samples lie beside the run's log.csv as sample_<step>.wav.
- What it speaks with is checked before the training begins, not at its first evaluation.
- The trainer itself knows no engine: it is handed the function that speaks.

    python -m scripts.train_spoken --eval_interval 500 --preset nano --from_weight none --data_path data.parquet
"""
import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.chat import MIMI, VOICES, Chat, listen, load_tokenizer, require_part
from engine.voices import load_voices, pick_voice
from model.audio import write_wav
from model.config import SAMPLE_RATE, OmniConfig
from model.mimi import Mimi
from model.model_omni import MiniMindOmni
from model.refusal import INPUT_ERRORS, refuse
from trainer.train_sft_omni import main as train
from trainer.train_sft_omni import parse_args
from trainer.trainer_utils import ROOT

MAX_FRAMES = 125  # 10 s
log = logging.getLogger("trainer")


class Speaker:
    """Says `text` with a model that is being trained; codec, tokenizer and voices are those of a pack's folder."""

    def __init__(self, pack: Path, text: str, voice: str | None, config: OmniConfig):
        """config: sizes of what is to be trained. FileNotFoundError names what the folder lacks, ValueError what does not fit."""
        self.pack, self.text = pack, text
        require_part(pack, MIMI, "spoken samples")
        self.tokenizer, codes = load_tokenizer(pack), Mimi.load(pack / MIMI, encoder=False).num_codes
        if codes != config.num_codes or len(self.tokenizer) > config.vocab_size:
            raise ValueError(f"{pack} has {codes} codes and {len(self.tokenizer)} ids of text, what is to be trained "
                             f"{config.num_codes} and {config.vocab_size}: give its own pack with --speak_with, or another --preset")
        self.voices = load_voices(pack / VOICES, config) if (pack / VOICES).exists() else {}
        self.voice = pick_voice(self.voices, voice)

    def __call__(self, model: MiniMindOmni, path: Path) -> None:
        """Write what the model answers to `path`, nothing when it stays silent. Greedy, so that samples of one run compare."""
        mimi = Mimi.load(self.pack / MIMI, next(model.parameters()).device, encoder=False)
        chat = Chat(model, self.tokenizer, mimi, self.voices, self.pack)
        params = chat.settings(max_new_tokens=MAX_FRAMES, temperature=0)
        answer = listen(lambda: chat.reply([{"role": "user", "content": self.text}], params, self.voice), params)
        log.info("asked %r, it says %r in %.1f s of speech", self.text, answer.text, answer.audio_s)
        if len(answer.wav):
            write_wav(path, answer.wav, SAMPLE_RATE)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False, add_help=False)
    parser.add_argument("--speak_with", help="folder with the codec, the tokenizer and the voices (default: model/, with --preset nano "
                        "model/nano)")
    parser.add_argument("--speak_text", default="What is the capital of France?")
    parser.add_argument("--speak_voice", help="default: the folder's first")
    own, rest = parser.parse_known_args(argv)
    if {"-h", "--help"} & set(rest):
        parser.print_help()
    preset = parse_args(rest).preset
    try:
        pack = Path(own.speak_with or ROOT / "model" / ("nano" if preset == "nano" else ""))
        speaker = Speaker(pack, own.speak_text, own.speak_voice, OmniConfig.preset(preset))
    except INPUT_ERRORS as error:
        return refuse(error)
    return train(rest, speaker)


if __name__ == "__main__":
    sys.exit(main())
