"""The held-out evaluation on a tiny pack: the ceiling is that of the very answers, and a run goes on where it was."""
import json

import pytest
from tiny_pack import make_tiny_pack

from engine.chat import Chat, find_weights
from evals import eval_nano


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return make_tiny_pack(tmp_path_factory.mktemp("pack"))


@pytest.fixture(scope="module")
def chat(pack):
    return Chat.load(pack, find_weights(pack))


def test_ceiling_is_that_of_the_very_answers(chat, tmp_path):
    import pyarrow
    import pyarrow.parquet

    class Clock:
        """Hears four letters per frame, so that the transcript depends on the codes' length."""
        def transcribe(self, wav, rate):
            return "one two three four five six"[:round(len(wav) / rate / 0.08) * 4 - 1]

    def row(question, answer):
        return json.dumps([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])

    pyarrow.parquet.write_table(pyarrow.table({
        "conversations": [row("q1", "one two three"), row("q1", "one two three"), row("q2", "four"), row("other", "x")],
        "answer_audios": [[[1] * 16], [[1] * 8], [[1] * 8], [[1] * 8]]}), tmp_path / "h.parquet")
    items = [{"question": "q1", "answer": "one two three"}, {"question": "q2", "answer": "four"}]
    # q1 has two frames -> hears "one two" (1 error of 3), its second row is another voice; q2 hears "one" (1 error of 1)
    assert eval_nano.ceiling(tmp_path / "h.parquet", items, chat, Clock()) == {"wer": 0.5, "clips": 2}
    (tmp_path / "c.json").write_text('{"wer": 0.3, "clips": 24}')
    assert eval_nano.ceiling(tmp_path / "c.json", items, chat, None) == {"wer": 0.3, "clips": 24}
    with pytest.raises(ValueError, match="none of the questions"):
        eval_nano.ceiling(tmp_path / "h.parquet", [{"question": "q1", "answer": "two"}], chat, None)


def test_eval_nano_resumes_where_it_stopped(pack, tmp_path, monkeypatch, capsys):
    class Deaf:
        def transcribe(self, wav, rate):
            return "blue"

    monkeypatch.setattr(eval_nano, "load_recogniser", lambda name, pack, device: Deaf())
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text("".join(json.dumps({"question": f"Question {i}?", "answer": "blue", "kind": "k"}) + "\n" for i in range(5)))
    command = ["--pack", str(pack), "--heldout", str(heldout), "--voice", "ann", "bob", "--asr", "deaf", "--device", "cpu",
               "--max_new_tokens", "10", "--temperature", "1", "--output_dir", str(tmp_path / "o")]
    assert eval_nano.main([*command, "--n", "2"]) == 0
    asked = []
    reply = Chat.reply
    monkeypatch.setattr(Chat, "reply", lambda *args, **options: asked.append(1) or reply(*args, **options))
    assert eval_nano.main([*command, "--n", "4"]) == 0
    assert len(asked) == 2  # the first two were kept
    result = json.loads((tmp_path / "o" / "eval_nano.json").read_text())
    assert [row["group"] for row in result["summary"]] == ["all", "voice ann", "voice bob", "kind k"]
    assert result["summary"][0]["n"] == 4 and result["summary"][0]["ended"] == 0
    assert "| all | 4 |" in capsys.readouterr().out and (tmp_path / "o" / "eval_nano.csv").read_text().startswith("group,n,exact,wer")
    assert eval_nano.main([*command[:2], "--heldout", str(tmp_path / "nope.jsonl")]) == 2
