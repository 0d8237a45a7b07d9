"""Training with spoken samples: the pack's codec says what the model being trained answers."""
import pytest
import soundfile
from tiny_pack import NUM_CODES, make_tiny_pack
from tiny_training import make_t2a

from model.checkpoint import read_sidecar
from model.config import PRESETS
from scripts import train_spoken


def test_samples_lie_beside_the_log(tmp_path, monkeypatch, capsys):
    pack = make_tiny_pack(tmp_path / "pack")
    monkeypatch.setitem(PRESETS, "nano", read_sidecar(pack / "sft_omni_64.pth")["config"])
    monkeypatch.setattr("tiny_training.NUM_CODES", NUM_CODES)
    monkeypatch.setattr(train_spoken, "MAX_FRAMES", 30)
    make_t2a(tmp_path / "rows.parquet", 8)
    flags = dict(preset="nano", tokenizer_dir=pack, from_weight=pack / "sft_omni_64.pth", data_path=tmp_path / "rows.parquet",
                 save_dir=tmp_path, hidden_size=64, num_hidden_layers=2, talker_hidden_size=64, device="cpu", max_seq_len=160, batch_size=2,
                 max_steps=2, eval_interval=1, eval_rows=2, num_workers=0, learning_rate="1e-9")
    argv = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    assert train_spoken.main(["--speak_with", str(pack), "--speak_text", "What color is the sky?", *argv]) == 0
    for step in (1, 2):
        wav, rate = soundfile.read(tmp_path / "sft_omni_64" / f"sample_{step:06d}.wav")
        assert rate == 24000 and len(wav) > 0 and len(wav) % 1920 == 0
    capsys.readouterr()
    monkeypatch.setattr(train_spoken, "train", lambda *_: pytest.fail("the training began"))
    for own, words in ((["--speak_with", tmp_path / "nowhere"], "nowhere"), (["--speak_with", pack, "--speak_voice", "zed"], "ann, bob"),
                       ([], "512 codes and 1024 ids of text, what is to be trained 64 and 320"),
                       (["--speak_with", pack, "--preset", "base"], "64 codes and 320 ids")):
        assert train_spoken.main([*argv, *map(str, own)]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
