"""Capital letters and marks for what an ear writes in bare words: what is usual between, before and behind such words."""
import json
import re
from collections import Counter, defaultdict
from pathlib import Path

from model.checkpoint import replace_atomic

WORD = re.compile(r"([A-Za-z']+)([^A-Za-z']*)")
NEW_SENTENCE = (".", "?", "!", ":")  # behind these, and in front, a word begins with a capital
AT_BEGIN, AT_END = "^", "$"  # in contexts
LAST = "."  # behind a sentence like none before


class Writing:
    """forms: {word: how it is written inside a sentence, where that is not in small letters}; marks: {context: what stands there}.

    Of several contexts the longest known one decides, see `_contexts`.
    """

    def __init__(self, forms: dict[str, str], marks: dict[str, str]):
        self.forms, self.marks = forms, marks

    @classmethod
    def fit(cls, texts: list[str]) -> "Writing":
        """The most frequent forms and marks in well-written texts, without what shorter contexts say already."""
        forms, marks, shorter = defaultdict(Counter), defaultdict(Counter), {}
        for text in texts:
            found = [(word, mark.strip()) for word, mark in WORD.findall(text)]
            words, begin = [word.lower() for word, _ in found], 0
            for i, (word, mark) in enumerate(found):
                if i > begin:
                    forms[words[i]][word] += 1
                contexts = _contexts(words, begin, i)
                for place, context in enumerate(contexts, 1):
                    marks[context][mark] += 1
                    shorter[context] = contexts[place:]
                begin = i + 1 if mark in NEW_SENTENCE else begin
        usual = {context: counts.most_common(1)[0][0] for context, counts in marks.items()}
        kept = {context: mark for context, mark in usual.items() if mark != _decide(usual, shorter[context], context.startswith(AT_END))}
        written = {word: counts.most_common(1)[0][0] for word, counts in forms.items()}
        return cls({word: form for word, form in sorted(written.items()) if form != word}, dict(sorted(kept.items())))

    def save(self, path: Path) -> None:
        content = json.dumps({"forms": self.forms, "marks": self.marks}, separators=(",", ":")) + "\n"
        replace_atomic(path, lambda file: file.write(content.encode()))

    @classmethod
    def load(cls, path: Path) -> "Writing":
        """ValueError for a file that `save` did not write."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(dict(content["forms"]), dict(content["marks"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a table of nano.train_language ({error}); make it anew or remove it") from error

    def __call__(self, text: str) -> str:
        """"what color is the sky" -> "What color is the sky?"; what has no words stays."""
        words, written, begin = text.split(), [], 0
        for i, word in enumerate(words):
            form = self.forms.get(word, word)
            mark = _decide(self.marks, _contexts(words, begin, i), i + 1 == len(words))
            written.append((form[:1].upper() + form[1:] if i == begin else form) + mark)
            begin = i + 1 if mark in NEW_SENTENCE else begin
        return " ".join(written)


def _contexts(words: list[str], begin: int, i: int) -> list[str]:
    """What may decide on the mark behind words[i], longest first; the sentence began at words[begin].

    Inside a text the words around the place; at its end, how the text and its last sentence begin.
    """
    if i + 1 < len(words):
        around = [words[i - 1] if i else AT_BEGIN, words[i], words[i + 1]]
        return [" ".join(around[start:]) for start in range(3)]
    sentence = words[begin:]
    return [" ".join((AT_END, *how)) for how in ((*words[:2], *sentence[:2]), sentence[:2], sentence[:1])]


def _decide(marks: dict[str, str], contexts: list[str], at_end: bool) -> str:
    """The mark of the first known context; if none is known, LAST at a text's end and nothing inside it."""
    return next((marks[context] for context in contexts if context in marks), LAST if at_end else "")
