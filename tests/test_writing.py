"""model/writing.py: capital letters and marks are those of the texts it was made of, and bad tables are refused."""
import pytest

from model.writing import Writing
from nano import corpus

TEXTS = ["What color is the sky?", "What is near Paris?", "Tell me what color it is.", "Say after me: The sky is blue.", "Is Paris far?",
         "Anna has two cats. How many cats are there?", "I see one, two and three.", "Do you know Anna?", "Hello!"]


def bare(text: str) -> str:
    return corpus.normalise(text)


def test_it_writes_as_what_it_was_made_of(tmp_path):
    Writing.fit(TEXTS).save(tmp_path / "writing.json")
    writing = Writing.load(tmp_path / "writing.json")
    assert [writing(bare(text)) for text in TEXTS] == TEXTS
    assert writing("what is the sky") == "What is the sky?", "a question by how it begins"
    assert writing("say after me the cats are near paris") == "Say after me: The cats are near Paris."
    assert writing("green") == "Green." and writing("") == ""


def test_held_out_questions_are_written_as_they_are_typed():
    train, heldout = corpus.build()
    writing = Writing.fit([item["question"] for item in train])
    right = [writing(bare(item["question"])) == item["question"] for item in heldout]
    assert sum(right) > 0.95 * len(right)
    assert len(writing.marks) < 2000, "only what shorter contexts do not say"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"forms": {}, "marks": 1}', "no json"])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "writing.json").write_text(content)
    with pytest.raises(ValueError, match="writing.json"):
        Writing.load(tmp_path / "writing.json")
