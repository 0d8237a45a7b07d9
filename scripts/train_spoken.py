"""Training that can be listened to: the trainer, which at every evaluation also speaks a sentence with the model as it is then.

- All of the trainer's flags, and three of its own; the samples lie beside the run's log.csv as sample_<step>.wav.
- The trainer itself knows no engine: it is handed the function that speaks.

    python -m scripts.train_spoken --speak_with model/nano --eval_interval 500 --preset nano --from_weight none --data_path data.parquet
"""
import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.chat import MIMI, VOICES, Chat, listen, load_tokenizer, require_part
from engine.voices import load_voices, pick_voice
from model.audio import write_wav
from model.config import SAMPLE_RATE
from model.mimi import Mimi
from model.model_omni import MiniMindOmni
from model.refusal import refuse
from trainer.train_sft_omni import main as train

MAX_FRAMES = 125  # 10 s
log = logging.getLogger("trainer")


class Speaker:
    """Says `text` with a model that is being trained; codec, tokenizer and voices are those of a pack's folder."""

    def __init__(self, pack: str, text: str, voice: str | None):
        """FileNotFoundError names what the folder lacks."""
        self.pack, self.text, self.voice = Path(pack), text, voice
        require_part(self.pack, MIMI, "spoken samples")
        self.tokenizer = load_tokenizer(self.pack)

    def __call__(self, model: MiniMindOmni, path: Path) -> None:
        """Write what the model answers to `path`, nothing when it stays silent. Greedy, so that samples of one run compare."""
        voices = load_voices(self.pack / VOICES, model.config) if (self.pack / VOICES).exists() else {}
        mimi = Mimi.load(self.pack / MIMI, next(model.parameters()).device, encoder=False)
        chat = Chat(model, self.tokenizer, mimi, voices, self.pack)
        params = chat.settings(max_new_tokens=MAX_FRAMES, temperature=0)
        answer = listen(lambda: chat.reply([{"role": "user", "content": self.text}], params, pick_voice(voices, self.voice)), params)
        log.info("asked %r, it says %r in %.1f s of speech", self.text, answer.text, answer.audio_s)
        if len(answer.wav):
            write_wav(path, answer.wav, SAMPLE_RATE)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False, add_help=False)
    parser.add_argument("--speak_with", default="model/nano", help="folder with the codec, the tokenizer and the voices")
    parser.add_argument("--speak_text", default="What is the capital of France?")
    parser.add_argument("--speak_voice", help="default: the folder's first")
    own, rest = parser.parse_known_args(argv)
    if {"-h", "--help"} & set(rest):
        parser.print_help()
    try:
        speaker = Speaker(own.speak_with, own.speak_text, own.speak_voice)
    except (ValueError, OSError) as error:
        return refuse(error)
    return train(rest, speaker)


if __name__ == "__main__":
    sys.exit(main())
