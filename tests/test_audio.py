"""model/audio.py: decoding with clear refusals, resampling, exact PCM16, atomic files, fbank geometry."""
import io

import numpy as np
import pytest
import soundfile

from model import audio


def tone(seconds: float, rate: int, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def test_read_mixes_resamples_and_accepts_bytes(tmp_path):
    stereo = np.stack([tone(0.5, 44100), np.zeros(22050, np.float32)], axis=1)
    path = tmp_path / "s.wav"
    soundfile.write(path, stereo, 44100, subtype="FLOAT")
    wav = audio.read_audio(path, 16000)
    assert wav.dtype == np.float32 and wav.shape == (8000,)
    assert np.array_equal(wav, audio.read_audio(path.read_bytes(), 16000))
    inner = slice(800, -800)  # the resampler's edges ring
    assert np.abs(wav - 0.5 * tone(0.5, 16000))[inner].max() < 1e-3


def test_read_names_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.wav"):
        audio.read_audio(tmp_path / "nowhere.wav", 16000)
    (tmp_path / "junk.wav").write_bytes(b"this is not sound" * 10)
    with pytest.raises(ValueError, match="junk.wav"):
        audio.read_audio(tmp_path / "junk.wav", 16000)
    with pytest.raises(ValueError, match="row 7"):
        audio.read_audio(b"", 16000, name="row 7")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), 16000)
    with pytest.raises(ValueError, match="empty.wav is empty"):
        audio.read_audio(tmp_path / "empty.wav", 16000)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.array([0.0, np.nan, 0.1], np.float32), 16000, format="WAV", subtype="FLOAT")
    with pytest.raises(ValueError, match="NaN"):
        audio.read_audio(buffer.getvalue(), 16000)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(1600, np.float32), 16000, format="FLAC")
    damaged = bytearray(buffer.getvalue())
    damaged[21:26] = bytes([damaged[21] | 0x0F, 255, 255, 255, 255])  # its header: 2^36 - 1 samples
    with pytest.raises(ValueError, match="long.flac"):
        audio.read_audio(damaged, 16000, "long.flac")


def test_pcm16_round_trip_is_exact_and_clips():
    every = np.arange(-32768, 32768, dtype="<i2").tobytes()
    assert audio.to_pcm16(audio.from_pcm16(every)) == every
    assert np.frombuffer(audio.to_pcm16([2.0, -2.0]), "<i2").tolist() == [32767, -32768]
    with pytest.raises(ValueError, match="even"):
        audio.from_pcm16(b"abc")


def test_write_wav_is_pcm16_and_atomic(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "a.wav"
    audio.write_wav(path, tone(0.1, 24000), 24000)
    info = soundfile.info(path)
    assert (info.subtype, info.samplerate, info.frames, info.channels) == ("PCM_16", 24000, 2400, 1)
    before = path.read_bytes()

    def broken(file, *args, **kwargs):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(soundfile, "write", broken)
    with pytest.raises(OSError, match="disk full"):
        audio.write_wav(path, tone(0.2, 24000), 24000)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["a.wav"]


@pytest.mark.parametrize("samples, vectors", [
    (1, 1), (100, 1), (399, 1), (400, 1), (1360, 2), (8000, 8), (16000, 17), (80000, 83), (160000, 167),
])
def test_frame_counts(samples, vectors):
    frames = audio.fbank(tone(samples / 16000 + 1, 16000)[:samples])
    assert frames.shape == (audio.fbank_frames(samples), 80)
    assert audio.stack_frames(frames).shape == (vectors, 560)
    assert audio.lfr_frames(samples) == vectors
    assert audio.lfr_frames(0) == 0


def test_fbank_is_deterministic_and_scales_as_log_power():
    wav = tone(0.3, 16000) + 0.01 * np.random.default_rng(0).standard_normal(4800).astype(np.float32)
    plain, loud = audio.fbank(wav, "hamming"), audio.fbank(wav, "hamming", scale=32768.0)
    assert np.array_equal(plain, audio.fbank(wav, "hamming"))
    assert np.abs(loud - plain - 2 * np.log(32768.0)).max() < 1e-2
    assert set(plain.argmax(axis=1)) <= {12, 13, 14}  # where 440 Hz lies on the mel scale


def test_stacked_rows_hold_neighbours_and_repeat_the_edges():
    rows = audio.stack_frames(np.arange(10, dtype=np.float32)[:, None])
    assert rows.tolist() == [[0, 0, 0, 0, 1, 2, 3], [3, 4, 5, 6, 7, 8, 9]]


@pytest.mark.parametrize("format", ["wav", "flac", "mp3", "opus"])
def test_encoded_audio_is_the_same_sound(format):
    sound = tone(0.5, 24000)
    again = audio.read_audio(audio.encode_audio(sound, 24000, format), 24000)
    assert len(again) == len(sound) and np.corrcoef(again[2400:-2400], sound[2400:-2400])[0, 1] > 0.99
    assert audio.encode_audio(sound, 24000, "pcm16") == audio.to_pcm16(sound)
    assert len(audio.read_audio(audio.encode_audio(sound[:0], 24000, format), 24000)) > 0, "nothing is still a file"


def test_what_strangers_send_is_decoded_within_bounds():
    small_file = audio.encode_audio(np.zeros(24000 * 600), 24000, "flac")  # ten minutes in few bytes
    assert len(small_file) < 100_000
    with pytest.raises(ValueError, match="longer than 60 s"):
        audio.read_audio(small_file, 16000, max_seconds=60)
    for rate, channels in ((192_000, 1), (16_000, 3), (4_000, 1)):
        file = io.BytesIO()
        soundfile.write(file, np.zeros((1000, channels)), rate, format="WAV")
        with pytest.raises(ValueError, match="at most 2 at 8000 to 96000 Hz"):
            audio.read_audio(file.getvalue(), 16000, max_seconds=60)
