"""evals.eval_senses asks what it says it asks: questions in the middle of a call, with what comes before them."""
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from evals.eval_senses import TURNS_BEFORE, calls
from model.config import INPUT_RATE

COUNT = TURNS_BEFORE + 3


class Parrot:
    """An Examiner whose model answers a question with the question, but the last one of them, in a call, with the one before it."""

    def __init__(self):
        self.chat, self.asked = self, []

    def transcribe(self, wav):
        return f"heard {len(wav)}"

    def ask(self, messages, item, audio=None, images=()):
        self.asked.append((messages, audio))
        forgets = len(messages) > 1 and item == COUNT - 1
        return f"question {item - forgets}"


def ask_all(tmp_path, count: int) -> tuple[Parrot, list[dict]]:
    rows = []
    for i in range(count):
        sound = io.BytesIO()
        soundfile.write(sound, np.zeros(1000 + i, np.float32), INPUT_RATE, format="FLAC")
        conversation = [{"role": "user", "content": f"Ask {i}?"}, {"role": "assistant", "content": "?"}]
        rows.append({"conversations": json.dumps(conversation), "question_audios": [sound.getvalue()]})
    (tmp_path / "a2a_heldout").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a2a_heldout" / "0.parquet")
    parrot = Parrot()
    return parrot, calls(parrot, tmp_path, count)


def test_a_short_call_does_not_give_the_question_away(tmp_path):
    """Of three questions, the other two come before."""
    parrot, records = ask_all(tmp_path, 3)
    heard = [[message["content"] for message in messages[:-1:2]] for messages, _ in parrot.asked[3:]]
    assert heard[::2] == heard[1::2] == [["heard 1001", "heard 1002"], ["heard 1002", "heard 1000"], ["heard 1000", "heard 1001"]]


def test_a_call_is_the_questions_before_and_what_was_answered(tmp_path):
    parrot, records = ask_all(tmp_path, COUNT)
    assert [record["right"] for record in records] == [True] * (2 * COUNT - 2) + [False] * 2
    assert {record["group"] for record in records} == {"calls, typed", "calls, spoken"}
    (typed, silent), (spoken, sound) = parrot.asked[-2:]
    before = [{"role": role, "content": text} for i in range(COUNT - 1 - TURNS_BEFORE, COUNT - 1)
              for role, text in (("user", f"heard {1000 + i}"), ("assistant", f"question {i}"))]
    assert typed == [*before, {"role": "user", "content": f"Ask {COUNT - 1}?"}] and silent is None
    assert spoken == [*before, {"role": "user", "content": ""}] and len(sound) == 1000 + COUNT - 1
