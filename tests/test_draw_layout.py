"""The picture of a training row: every cell is what the layout rules say, and the one in docs/ is today's."""
from xml.etree import ElementTree

import pytest

from dataset.omni_dataset import OmniDataset, Variants
from engine.chat import load_tokenizer
from model.config import OmniConfig
from model.encoders import sensevoice_frames
from scripts import draw_architecture, draw_layout


def draw(shared, out, *options) -> int:
    return draw_layout.main(["--data", str(shared / "golden" / "layout.parquet"), "--tokenizer", str(shared / "assets" / "tokenizer"),
                             "--out", str(out), *map(str, options)])


def test_cells_of_a_spoken_reply_with_a_voice_prompt(shared):
    tokenizer = load_tokenizer(shared / "assets" / "tokenizer")
    sample = OmniDataset(str(shared / "golden" / "layout.parquet"), tokenizer, OmniConfig(), 256, Variants.fixed())[0]
    columns = draw_layout.columns_of(sample, tokenizer)
    start, num_ref, num_frames = 17, 12, 20
    assert tokenizer.decode(sample.input_ids[8, :start]).endswith("<|im_start|>assistant\n")
    for t, column in enumerate(columns):
        assert column.kinds[8] == ("prompt" if t < start else "reply" if t < start + 14 else "pad"), t
        for book in range(8):
            frame = t - start - 1 - book
            expected = ("stop" if frame == num_frames else "code" if 0 <= frame < num_frames else "reference"
                        if start - num_ref <= t < start else "speaker" if t == start - num_ref - 1 else "pad")
            assert column.kinds[book] == expected, (t, book)


@pytest.mark.parametrize("row, words", [(0, ["reference codes", "A = 17"]), (1, ["audio feature", "more"]), (2, ["image feature", "more"])])
def test_every_kind_of_row_is_drawn(shared, tmp_path, row, words):
    assert draw(shared, tmp_path / "d" / "x.svg", "--row", row) == 0
    text = (tmp_path / "d" / "x.svg").read_text(encoding="utf-8")
    ElementTree.fromstring(text)  # tokens such as <|im_end|> are escaped
    assert all(word in text for word in words)


def test_the_picture_in_docs_is_what_is_drawn_today(shared, tmp_path):
    assert draw(shared, tmp_path / "x.svg") == 0
    committed = draw_layout.ROOT / "docs" / "sequence.svg"
    assert (tmp_path / "x.svg").read_text(encoding="utf-8") == committed.read_text(encoding="utf-8")


def test_wrong_requests_are_one_line(shared, tmp_path, capsys):
    assert draw(shared, tmp_path / "x.svg", "--row", 9) == 2 and "rows 0 to 2" in capsys.readouterr().err
    assert draw(shared, tmp_path / "x.svg", "--tokenizer", tmp_path) == 2 and "no tokenizer" in capsys.readouterr().err
    assert draw(shared, tmp_path / "x.svg", "--columns", 0) == 2 and "--columns" in capsys.readouterr().err
    assert draw(shared, tmp_path / "x.svg", "--data", tmp_path / "no.parquet") == 2 and "no.parquet" in capsys.readouterr().err


def test_the_picture_of_the_architecture_is_what_is_drawn_today(tmp_path):
    assert draw_architecture.main(["--out", str(tmp_path / "a.svg")]) == 0
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    ElementTree.fromstring(text)
    assert text == (draw_layout.ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8")
    assert draw_architecture.draw(OmniConfig.preset("moe")) != text


def test_without_a_place_the_pictures_in_docs_stay_as_they_are(shared, tmp_path, monkeypatch):
    for module, name, argv in ((draw_architecture, "architecture.svg", []), (draw_layout, "sequence.svg", [
            "--data", str(shared / "golden" / "layout.parquet"), "--tokenizer", str(shared / "assets" / "tokenizer")])):
        monkeypatch.setattr(module, "ROOT", tmp_path)
        assert module.main(argv) == 0 and (tmp_path / "out" / name).is_file() and not (tmp_path / "docs").exists()
