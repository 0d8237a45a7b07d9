"""Turn taking on scripted probabilities, and Silero on sound."""
import numpy as np
import pytest

from engine.vad import CHUNK, CHUNK_MS, Listener, SileroVAD, SpeechStarted, SpeechStopped, TurnDetector
from model.audio import resample


def run(detector, script, model_speaks=False):
    """script: (probability, milliseconds) pairs; returns [(event, time it was noticed in ms)]."""
    events = []
    for probability, ms in script:
        for _ in range(round(ms / CHUNK_MS)):
            event = detector.push(probability, model_speaks)
            if event is not None:
                events.append((event, detector.now_ms))
    return events


def test_a_turn_starts_where_speech_begins_and_ends_after_the_silence():
    events = run(TurnDetector(silence_ms=480), [(0.1, 320), (0.9, 640), (0.05, 960)])
    assert events == [(SpeechStarted(320, False), 384), (SpeechStopped(960), 1440)]


def test_a_click_is_no_speech_and_a_pause_no_end():
    assert run(TurnDetector(), [(0.1, 320), (0.99, 32), (0.1, 960)]) == []
    events = run(TurnDetector(silence_ms=480), [(0.9, 640), (0.1, 448), (0.9, 320), (0.1, 480)])
    assert [type(e) for e, _ in events] == [SpeechStarted, SpeechStopped] and events[1][0].at_ms == 640 + 448 + 320


def test_hysteresis_keeps_a_turn_open():
    events = run(TurnDetector(threshold=0.5), [(0.9, 320), (0.4, 2000)])
    assert [type(e) for e, _ in events] == [SpeechStarted]
    assert run(TurnDetector(threshold=0.5), [(0.4, 2000)]) == []


def test_a_turn_ends_under_the_lowest_threshold_too():
    events = run(TurnDetector(threshold=0.1, silence_ms=480), [(0.9, 320), (0.0, 960), (0.9, 320), (0.0, 960)])
    assert [type(e) for e, _ in events] == [SpeechStarted, SpeechStopped] * 2


@pytest.mark.parametrize("ms, expected", [(192, []), (224, [SpeechStarted(0, True)])])
def test_barge_in_takes_sustained_speech(ms, expected):
    assert [e for e, _ in run(TurnDetector(), [(0.9, ms), (0.1, 320)], model_speaks=True)] == expected


def test_the_threshold_rises_above_the_echo_and_stays_passable():
    detector = TurnDetector(threshold=0.5)
    assert run(detector, [(0.55, 5000)], model_speaks=True) == []  # speech when it is quiet, not while the model speaks
    for _ in range(2):
        run(detector, [(0.62, 2000)], model_speaks=True)
    assert 0.75 < detector.level(True) < 0.8 and detector.level(False) == 0.5
    assert run(detector, [(0.74, 2000)], model_speaks=True) == []
    assert len(run(detector, [(0.95, 320)], model_speaks=True)) == 1
    loud = TurnDetector(threshold=0.5)
    loud.echo = 1.0
    assert loud.level(True) == 0.95


def test_odd_packets_are_heard_as_if_they_were_one():
    sound = np.arange(10 * CHUNK + 100, dtype=np.float32)
    whole, pieces = [], []
    Listener(TurnDetector(), lambda chunk: whole.append(chunk.copy()) or 0.0).push(sound, lambda: False)
    listener = Listener(TurnDetector(), lambda chunk: pieces.append(chunk.copy()) or 0.0)
    for piece in np.split(sound, [0, 1, 700, 701, 2048, 5000]):
        listener.push(piece, lambda: False)
    assert len(whole) == 10 and np.array_equal(whole, pieces) and len(listener.rest) == 100


def buzz(seconds: float) -> np.ndarray:
    """A vowel-like sound at 16 kHz: harmonics of a gliding 120 Hz under two formants, in syllables."""
    t = np.arange(int(16_000 * seconds)) / 16_000
    pitch = 120 + 20 * np.sin(2 * np.pi * 2 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / 16_000
    sound = sum(np.exp(-((k * 120 - 600) / 300) ** 2) * np.sin(k * phase) + 0.6 * np.exp(-((k * 120 - 1700) / 400) ** 2) * np.sin(k * phase)
                for k in range(1, 25))
    return (0.2 * sound * np.clip(np.sin(2 * np.pi * 4 * t) + 0.5, 0, 1)).astype(np.float32)


def test_silero_tells_a_voice_from_silence_and_keeps_calls_apart():
    sound = np.concatenate([np.zeros(8192, np.float32), buzz(1.5)])
    chunks = sound[:len(sound) // CHUNK * CHUNK].reshape(-1, CHUNK)
    alone = SileroVAD()
    expected = [alone(chunk) for chunk in chunks]
    assert max(expected[:16]) < 0.2 < 0.5 < max(expected[16:])
    other, again = SileroVAD(), SileroVAD()
    mixed = []
    for chunk in chunks:
        other(np.flip(chunk).copy())
        mixed.append(again(chunk))
    assert mixed == expected
    with pytest.raises(ValueError, match="512 samples"):
        alone(resample(sound[:100], 16_000, 24_000))
