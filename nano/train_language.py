"""How people speak and write in the nano world, for the ear: which tokens follow one another in what its users may say (model/ctc.py),
and where such words have capital letters and marks (model/writing.py).

The texts are those that the ear learnt to hear, and more of their kind that no voice has read: the corpus' further questions and
sentences, more conversations and scenes. Held-out sentences are not among them.

    python -m nano.train_language         # some seconds; two files in model/nano/SenseVoiceSmall
"""
import argparse
import sys
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from model.ctc import NGram
from model.encoders import NGRAM, WRITING
from model.refusal import INPUT_ERRORS, refuse
from model.writing import Writing
from nano.corpus import normalise
from nano.train_sensevoice import FOLDER, sentences

ORDER = 4
FURTHER = ("questions.jsonl", "sentences.jsonl")
SCENES, TURNS = 6000, 12000


def main(argv=None) -> int:
    """0, or 2 with one line on stderr."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--corpus", default="out/nano/corpus")
    parser.add_argument("--ear", type=Path, default=Path("model/nano") / FOLDER, help="the folder with its tokenizer; the files go there")
    parser.add_argument("--order", type=int, default=ORDER, help="tokens that are seen together")
    args = parser.parse_args(argv)
    try:
        if not (args.ear / "bpe.model").is_file():
            raise FileNotFoundError(f"{args.ear} has no bpe.model: make an ear with python -m nano.train_sensevoice")
        texts, _ = sentences(args.corpus, SCENES, TURNS, FURTHER)
        pieces = SentencePieceProcessor(model_file=str(args.ear / "bpe.model"))
        model = NGram.fit([pieces.encode(normalise(text)) for text in texts], args.order, pieces.vocab_size())
        model.save(args.ear / NGRAM)
        Writing.fit(texts).save(args.ear / WRITING)
    except INPUT_ERRORS as error:
        return refuse(error)
    size = sum((args.ear / name).stat().st_size for name in (NGRAM, WRITING))
    print(f"{args.ear}: {len(model.grams)} runs of {args.order} tokens, from {len(texts)} texts, {size / 1e6:.2f} MB in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
