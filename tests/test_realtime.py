"""The Realtime protocol without sockets or model: scripted speech probabilities, replies spoken by the test."""
import base64
import json
from dataclasses import replace

import numpy as np
import pytest

from engine.realtime import CancelReply, Prepare, RealtimeSession, StartReply, Transcribe, Usage
from engine.realtime_events import MAX_TEXT, ProtocolError
from engine.realtime_items import heard_share
from engine.realtime_mic import LOOK_BACK_MS

FRAME = b"\x01\x00" * 1920  # 80 ms of speech
SPEECH, SILENCE = 1000, 0  # sample values that the fake VAD takes for one or the other


def fake_vad():
    return lambda chunk: 0.95 if np.abs(chunk).mean() > 100 / 32768 else 0.02


def new_session(**settings) -> RealtimeSession:
    session = RealtimeSession("s", "minimind-o", ["ann", "bob"], fake_vad)
    session.start()
    if settings:
        tell(session, "session.update", session={"type": "realtime", **settings})
    return session


MANUAL = {"audio": {"input": {"turn_detection": None}}}


def tell(to, type, /, **fields) -> list:
    return to.receive(json.dumps({"type": type, **fields}))


def say(session, value: int, ms: int, packet_ms: int = 20) -> list:
    """Send that much microphone sound; all that comes back."""
    out = []
    for _ in range(ms // packet_ms):
        pcm = np.full(24 * packet_ms, value, "<i2").tobytes()
        out += tell(session, "input_audio_buffer.append", audio=base64.b64encode(pcm).decode())
    return out


def ask(session, text="What color is the sky?", **response) -> list:
    out = tell(session, "conversation.item.create",
               item={"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]})
    return out + tell(session, "response.create", response=response)


def types(out) -> list:
    return [o["type"] if isinstance(o, dict) else type(o).__name__ for o in out]


def only(out, kind):
    """The one event of that type, or the one command of that class."""
    found = [o for o in out if (o["type"] if isinstance(o, dict) else type(o)) == kind]
    assert len(found) == 1, types(out)
    return found[0]


def error_of(out) -> dict:
    return only(out, "error")["error"]


DONE = ["response.output_audio.done", "response.output_audio_transcript.done", "response.content_part.done", "response.output_item.done",
        "conversation.item.done", "response.done"]
BEGIN = ["response.created", "response.output_item.added", "conversation.item.added", "response.content_part.added", "StartReply"]


def test_a_typed_question_is_answered_aloud():
    session = new_session(instructions="Be kind.")
    out = ask(session)
    assert types(out) == ["conversation.item.added", "conversation.item.done", *BEGIN]
    start = out[-1]
    assert start.messages == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "What color is the sky?"}]
    assert (start.voice, start.pcm, start.images, start.max_tokens) == ("ann", b"", [], None)
    assert types(session.piece(start.response_id, "It is ")) == ["response.output_audio_transcript.delta"]
    audio = only(session.piece(start.response_id, "blue.", FRAME), "response.output_audio.delta")
    assert base64.b64decode(audio["delta"]) == FRAME and audio["response_id"] == start.response_id
    out = session.finished(start.response_id, Usage(5, 0, 0, 4, 1), complete=True)
    assert types(out) == DONE
    done = out[-1]["response"]
    assert done["status"] == "completed" and done["output"][0]["content"] == [{"type": "output_audio", "transcript": "It is blue."}]
    assert done["usage"]["total_tokens"] == 10
    assert session.response is None
    again = ask(session, "And grass?")[-1]
    assert [m["role"] for m in again.messages] == ["system", "user", "assistant", "user"]


def test_text_only_sends_no_sound():
    session = new_session()
    start = ask(session, output_modalities=["text"], voice="x", max_output_tokens=7, metadata={"a": "b"})[-1]
    assert start.max_tokens == 7
    assert types(session.piece(start.response_id, "Blue.", FRAME)) == ["response.output_text.delta"]
    out = session.finished(start.response_id, Usage(), complete=False)
    assert types(out)[:2] == ["response.output_text.done", "response.content_part.done"]
    assert out[-1]["response"]["status_details"] == {"type": "incomplete", "reason": "max_output_tokens"}
    assert out[-1]["response"]["metadata"] == {"a": "b"}


def test_a_spoken_turn_is_found_committed_and_answered():
    session = new_session(audio={"input": {"transcription": {"model": "any"}}})
    assert say(session, SILENCE, 1000) == []
    out = say(session, SPEECH, 800) + say(session, SILENCE, 800)
    assert types(out) == ["input_audio_buffer.speech_started", "Prepare", "input_audio_buffer.speech_stopped",
                          "input_audio_buffer.committed", "conversation.item.added", "conversation.item.done", "Transcribe", *BEGIN]
    started, _, stopped, committed = out[:4]
    assert 620 <= started["audio_start_ms"] <= 740 and 1780 <= stopped["audio_end_ms"] <= 1960
    assert started["item_id"] == stopped["item_id"] == committed["item_id"]
    start, transcribe = only(out, StartReply), only(out, Transcribe)
    assert start.pcm == transcribe.pcm and abs(len(start.pcm) / 48 - (stopped["audio_end_ms"] - started["audio_start_ms"])) < 1
    assert np.frombuffer(start.pcm, "<i2").mean() > 500  # speech, with its prefix
    out = session.transcribed(transcribe.item_id, "hello there", 0.8)
    assert only(out, "conversation.item.input_audio_transcription.completed")["transcript"] == "hello there"
    assert session.items[0].as_dict()["content"] == [{"type": "input_audio", "transcript": "hello there"}]
    assert start.messages[-1]["content"] == ""  # it hears the words
    session.piece(start.response_id, "Hi.", FRAME)
    session.finished(start.response_id, Usage(), True)
    assert session.items[0].num_bytes == 0
    later = ask(session, "And you?")[-1]
    assert later.messages[0]["content"] == "hello there" and later.pcm == b""


def test_a_reply_is_prepared_in_the_pause_that_may_end_the_turn():
    session = new_session()
    ask(session, "Wait.", output_modalities=["text"])
    session.finished(session.response.id, Usage(), True)
    out = say(session, SPEECH, 600) + say(session, SILENCE, 160)
    assert types(out) == ["input_audio_buffer.speech_started"], "a pause as short as this is none"
    first = only(say(session, SILENCE, 140), Prepare).start
    assert first.response_id == "" and first.messages[-1] == {"role": "user", "content": "Wait."}
    assert 600 < len(first.pcm) / 48 < 800  # the speech and a little more
    assert types(say(session, SPEECH, 300)) == ["Discard"], "speech goes on"
    out = say(session, SILENCE, 700)
    second, start = only(out, Prepare).start, only(out, StartReply)
    assert types(out)[0] == "Prepare" and types(out)[-1] == "StartReply" and "Discard" not in types(out)
    assert replace(start, response_id="") == second != first and len(second.pcm) > len(first.pcm)


def test_what_nobody_waits_for_is_not_prepared():
    silent = {"type": "server_vad", "create_response": False}
    session = new_session(audio={"input": {"turn_detection": silent}})
    assert "Prepare" not in types(say(session, SPEECH, 600) + say(session, SILENCE, 700))
    session = new_session(audio={"input": {"turn_detection": {"type": "server_vad", "interrupt_response": False}}})
    ask(session)
    assert "Prepare" not in types(say(session, SPEECH, 600) + say(session, SILENCE, 700)), "a reply is going on"
    session = new_session()
    assert only(say(session, SPEECH, 600) + say(session, SILENCE, 300), Prepare)
    assert types(tell(session, "input_audio_buffer.clear") + say(session, SILENCE, 20)) == ["input_audio_buffer.cleared", "Discard"]
    assert only(say(session, SPEECH, 600) + say(session, SILENCE, 300), Prepare)
    tell(session, "session.update", session={"type": "realtime", "audio": {"input": {"turn_detection": silent}}})
    assert types(say(session, SILENCE, 100)) == ["Discard"]


def test_barge_in_while_the_reply_is_made():
    session = new_session()
    start = ask(session)[-1]
    for _ in range(10):
        session.piece(start.response_id, "la ", FRAME)
    assert say(session, SPEECH, 180) == [], "less than 200 ms of speech is no barge-in"
    out = say(session, SPEECH, 80)
    assert types(out) == ["input_audio_buffer.speech_started", "CancelReply", *DONE]
    done = out[-1]["response"]
    assert done["status"] == "cancelled" and done["status_details"] == {"type": "cancelled", "reason": "turn_detected"}
    assert session.piece(start.response_id, "late", FRAME) == [] and session.finished(start.response_id, Usage(), True) == []
    assert not session.mic.model_speaks()
    item = done["output"][0]
    assert item["status"] == "incomplete"
    out = tell(session, "conversation.item.truncate", item_id=item["id"], content_index=0, audio_end_ms=400)
    assert types(out) == ["conversation.item.truncated"]
    assert session.items[-1].text == "la la"  # 400 ms are six letters; how much text had been sent says nothing
    out = say(session, SILENCE, 700)
    assert only(out, StartReply).messages[-2:] == [{"role": "assistant", "content": "la la"}, {"role": "user", "content": ""}]


def test_barge_in_while_a_finished_reply_is_played():
    session = new_session()
    start = ask(session)[-1]
    for _ in range(25):
        session.piece(start.response_id, "la ", FRAME)
    session.finished(start.response_id, Usage(), True)
    say(session, SILENCE, 500)
    assert session.mic.model_speaks()
    assert types(say(session, SPEECH, 300)) == ["input_audio_buffer.speech_started"]
    assert not session.mic.model_speaks()
    quiet = new_session()
    start = ask(quiet)[-1]
    quiet.piece(start.response_id, "la", FRAME)
    quiet.finished(start.response_id, Usage(), True)
    say(quiet, SILENCE, 500)
    assert not quiet.mic.model_speaks() and len(say(quiet, SPEECH, 100)) == 1  # played out: no guard any more


def test_without_barge_in_the_turn_waits_for_the_reply():
    session = new_session(audio={"input": {"turn_detection": {"type": "server_vad", "interrupt_response": False}}})
    start = ask(session)[-1]
    session.piece(start.response_id, "la", FRAME * 20)
    out = say(session, SPEECH, 600) + say(session, SILENCE, 700)
    assert "CancelReply" not in types(out) and "response.created" not in types(out)
    out = session.finished(start.response_id, Usage(), True)
    assert types(out) == [*DONE, *BEGIN] and len(out[-1].pcm) > 0
    say(session, SPEECH, 600), say(session, SILENCE, 700)
    out = tell(session, "response.cancel")
    assert types(out) == ["CancelReply", *DONE, *BEGIN], "the turn that waited for the reply is answered in its place"
    assert types(session.finished(out[-1].response_id, Usage(), True)) == DONE, "once"


def test_turns_without_a_reply():
    session = new_session(audio={"input": {"turn_detection": {"type": "server_vad", "create_response": False}}})
    out = say(session, SPEECH, 600) + say(session, SILENCE, 700)
    assert types(out)[-1] == "Transcribe"
    assert types(tell(session, "response.create"))[-1] == "StartReply"


def test_turns_that_nobody_answers_are_words_in_the_end(monkeypatch):
    monkeypatch.setattr("engine.realtime.MAX_HELD_BYTES", 150_000)
    session = new_session(audio={"input": {"turn_detection": {"type": "server_vad", "create_response": False}}})
    for _ in range(5):
        say(session, SPEECH, 600), say(session, SILENCE, 700)
    sizes = [item.num_bytes for item in session.items]
    assert len(sizes) == 5 and sum(sizes) <= 150_000 and not sizes[0] and sizes[-1]


def test_manual_turns():
    session = new_session(**MANUAL)
    assert say(session, SPEECH, 80) == []
    error = error_of(tell(session, "input_audio_buffer.commit", event_id="mine"))
    assert error["code"] == "input_audio_buffer_commit_empty" and error["event_id"] == "mine"
    assert types(tell(session, "input_audio_buffer.clear")) == ["input_audio_buffer.cleared"]
    say(session, SPEECH, 300)
    out = tell(session, "input_audio_buffer.commit")
    assert types(out) == ["input_audio_buffer.committed", "conversation.item.added", "conversation.item.done", "Transcribe"]
    assert len(only(out, Transcribe).pcm) == 300 * 48
    assert len(only(tell(session, "response.create"), StartReply).pcm) == 300 * 48
    assert error_of(tell(session, "response.create"))["code"] == "conversation_already_has_active_response"
    out = tell(session, "response.cancel")
    assert types(out) == ["CancelReply", *DONE] and out[-1]["response"]["status_details"]["reason"] == "client_cancelled"
    assert error_of(tell(session, "response.cancel"))["code"] == "response_cancel_not_active"


def test_odd_packets_keep_every_sample():
    session = new_session()
    pcm = np.concatenate([np.zeros(24_000), np.full(24_000, SPEECH), np.zeros(24_000)]).astype("<i2").tobytes()
    out, cuts = [], [0, 1, 1002, 1003, 70_001, 130_000, len(pcm)]
    for a, b in zip(cuts, cuts[1:]):
        out += tell(session, "input_audio_buffer.append", audio=base64.b64encode(pcm[a:b]).decode())
    heard = np.frombuffer(only(out, StartReply).pcm, "<i2")
    assert set(np.unique(heard)) == {0, SPEECH}, "bytes that are out of step would be other numbers"


def test_what_is_kept_stays_small():
    session = new_session()
    say(session, SILENCE, 20_000, 100)
    assert len(session.mic.pcm) <= (LOOK_BACK_MS + 1) * 48 and session.mic.now_ms == 20_000
    out = say(session, SPEECH, 62_000, 100)  # longer than can be heard: the turn is ended
    assert len(only(out, StartReply).pcm) <= 60_100 * 48
    manual = new_session(**MANUAL)
    assert error_of(say(manual, SPEECH, 60_100, 100))["code"] == "input_audio_buffer_full"


def test_settings_are_answered_with_what_is_done():
    session = new_session()
    updated = only(tell(session, "session.update", session={
        "type": "realtime", "voice": "ignored", "tracing": None, "output_modalities": ["text"], "max_output_tokens": 50,
        "audio": {"input": {"turn_detection": {"type": "semantic_vad", "eagerness": "low", "interrupt_response": False}},
                  "output": {"voice": "ash", "format": {"type": "audio/pcm", "rate": 24000}}}}), "session.updated")["session"]
    assert updated["audio"]["input"]["turn_detection"] == {
        "type": "server_vad", "threshold": 0.5, "prefix_padding_ms": 300, "silence_duration_ms": 800, "create_response": True,
        "interrupt_response": False}
    assert updated["audio"]["output"]["voice"] == "bob" and updated["output_modalities"] == ["text"]
    before = dict(session.settings)
    for wrong in ({"audio": {"output": {"voice": "carl"}}, "instructions": "no"}, {"output_modalities": ["text", "audio"]},
                  {"audio": {"input": {"format": {"type": "audio/pcmu"}}}}, {"instructions": "x" * (MAX_TEXT + 1)},
                  {"audio": {"input": {"turn_detection": {"type": "server_vad", "threshold": 2.0}}}}, {"max_output_tokens": 0}):
        assert error_of(tell(session, "session.update", session={"type": "realtime", **wrong}))["code"] == "invalid_value"
    assert session.settings == before


def test_openais_voices_are_those_the_model_knows_well():
    session = RealtimeSession("s", "minimind-o", ["ann", "bob", "cloned"], fake_vad, stand_ins=["ann"])
    for wanted, voice in (("marin", "ann"), ("ash", "ann"), ("cloned", "cloned")):
        out = tell(session, "session.update", session={"type": "realtime", "audio": {"output": {"voice": wanted}}})
        assert only(out, "session.updated")["session"]["audio"]["output"]["voice"] == voice


def test_items_are_made_placed_fetched_and_deleted():
    session = new_session()
    text = {"type": "input_text", "text": "one"}
    tell(session, "conversation.item.create", item={"id": "a", "type": "message", "role": "user", "content": [text]})
    out = tell(session, "conversation.item.create", previous_item_id="root",
               item={"id": "b", "type": "message", "role": "system", "content": [text]})
    assert types(out)[0] == "conversation.item.added" and "previous_item_id" not in out[0]
    image = {"type": "input_image", "image_url": "data:image/png;base64," + base64.b64encode(b"png").decode()}
    audio = {"type": "input_audio", "audio": base64.b64encode(FRAME).decode()}
    out = tell(session, "conversation.item.create", item={"type": "message", "role": "user", "content": [audio, image]})
    assert types(out)[-1] == "Transcribe"
    assert [item.id for item in session.items][:2] == ["b", "a"]
    assert only(tell(session, "conversation.item.retrieve", item_id="a"), "conversation.item.retrieved")["item"]["role"] == "user"
    start = only(tell(session, "response.create"), StartReply)
    assert start.pcm == FRAME and start.images == [b"png"] and start.messages[-1] == {"role": "user", "content": "one"}
    assert types(tell(session, "conversation.item.delete", item_id="a")) == ["conversation.item.deleted"]
    for kind, fields in (("retrieve", {"item_id": "a"}), ("delete", {"item_id": "a"}),
                         ("truncate", {"item_id": "a", "content_index": 0, "audio_end_ms": 1}),
                         ("create", {"previous_item_id": "a", "item": {"type": "message", "role": "user", "content": [text]}})):
        assert error_of(tell(session, f"conversation.item.{kind}", **fields))["code"] == "item_not_found"


def test_there_must_be_something_to_answer():
    session = new_session()
    assert error_of(tell(session, "response.create"))["code"] == "nothing_to_answer"
    start = ask(session)[-1]
    session.piece(start.response_id, "Blue.")
    session.finished(start.response_id, Usage(), True)
    assert error_of(tell(session, "response.create"))["code"] == "nothing_to_answer"


def test_a_caller_can_be_greeted():
    session = new_session()
    greet = {"role": "user", "content": "Greet the caller."}
    start = only(tell(session, "response.create", response={"instructions": "Greet the caller."}), StartReply)
    assert start.messages == [greet]
    session.piece(start.response_id, "Hello!")
    session.finished(start.response_id, Usage(), True)
    start = only(tell(session, "response.create", response={"instructions": "Say goodbye."}), StartReply)
    assert [m["role"] for m in start.messages] == ["system", "assistant", "user"] and start.messages[-1]["content"] == "Say goodbye."
    session.finished(start.response_id, Usage(), True)
    session = new_session()
    tell(session, "conversation.item.create", item={"type": "message", "role": "system", "content": [
        {"type": "input_text", "text": "Greet the caller."}]})
    assert only(tell(session, "response.create"), StartReply).messages == [greet]


def test_of_a_reply_that_was_cut_off_only_what_can_have_been_heard_is_kept():
    session = new_session()
    start = ask(session)[-1]
    item = session.response.item
    session.piece(start.response_id, "one two three four five six seven eight nine ten", bytes(2 * 24 * 480))
    tell(session, "response.cancel")
    tell(session, "conversation.item.truncate", item_id=item.id, content_index=0, audio_end_ms=480)
    assert item.text == "one two", "its text came before its sound: 480 ms are seven letters"


def test_a_reply_outside_the_conversation_leaves_no_trace():
    session = new_session()
    start = ask(session, conversation="none")[-1]
    out = session.piece(start.response_id, "Blue.") + session.finished(start.response_id, Usage(), True)
    assert "conversation.item.done" not in types(out) and "conversation_id" not in out[-1]["response"]
    assert [item.role for item in session.items] == ["user"]


def test_a_reply_may_be_to_other_items_than_the_conversation():
    session = new_session(instructions="Be kind.")
    item_id = ask(session)[0]["item"]["id"]
    tell(session, "response.cancel")
    other = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "And grass?"}]}
    start = tell(session, "response.create", response={"conversation": "none", "input": [other]})[-1]
    assert [m["content"] for m in start.messages] == ["Be kind.", "And grass?"] and len(session.items) == 2
    tell(session, "response.cancel")
    start = tell(session, "response.create", response={"input": [{"type": "item_reference", "id": item_id}, other]})[-1]
    assert start.messages[-1]["content"] == "What color is the sky?\n\nAnd grass?"
    tell(session, "response.cancel")
    error = error_of(tell(session, "response.create", response={"input": [{"type": "item_reference", "id": "nobody"}]}))
    assert error["code"] == "item_not_found"
    wrong = {**other, "content": [{"type": "input_image"}]}
    assert error_of(tell(session, "response.create", response={"input": [wrong]}))["param"] == "response.input.0.content.0"


def test_a_picture_that_cannot_be_seen_does_not_stand_before_later_questions():
    session = new_session()
    picture = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
    for _ in range(6):
        tell(session, "conversation.item.create", item={"type": "message", "role": "user", "content": [picture]})
    start = ask(session)[-1]
    assert len(start.images) == 4, "the last ones"
    session.failed(start.response_id, ProtocolError("busy", "server_busy", type="rate_limit_error"))
    start = tell(session, "response.create")[-1]
    assert len(start.images) == 4, "it may be asked for again"
    session.failed(start.response_id, ProtocolError("input_image is no picture"))
    assert ask(session, "And grass?")[-1].images == []


def test_a_failed_reply_says_why():
    session = new_session()
    start = ask(session)[-1]
    out = session.failed(start.response_id, ProtocolError("cannot hear", "missing_module"))
    assert out[-1]["response"]["status_details"] == {"type": "failed", "error": {"type": "invalid_request_error", "code": "missing_module",
                                                                               "message": "cannot hear"}}
    assert session.response is None


@pytest.mark.parametrize("message", [
    "", "{", "[]", "null", '"x"', "{}", '{"type": 3}', '{"type": "response.explode"}', '{"type": "input_audio_buffer.append"}',
    '{"type": "input_audio_buffer.append", "audio": "***"}', '{"type": "session.update"}', '{"type": "session.update", "session": []}',
    '{"type": "conversation.item.truncate", "item_id": "a", "content_index": 0, "audio_end_ms": NaN}', "[" * 200_000, b"\xff\xfe\xfd",
    '{"type": "conversation.item.create", "item": {"type": "function_call", "role": "user", "content": []}}',
    '{"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": [{"type": "output_text", "text": "x"}]}}',
    '{"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": [{"type": "input_text"}]}}',
    '{"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": [{"type": "input_image", '
    '"image_url": "file:///etc/passwd"}]}}',
    '{"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": [{"type": "input_text", '
    '"text": "\\ud800"}]}}',
])
def test_wrong_messages_are_one_typed_error_each(message):
    session = new_session()
    error = error_of(session.receive(message))
    assert error["type"] == "invalid_request_error" and error["code"] and len(error["message"]) < 500
    assert session.items == []


def test_the_conversation_has_a_limit():
    session = new_session()
    text = {"type": "input_text", "text": "x"}
    for _ in range(205):
        out = tell(session, "conversation.item.create", item={"type": "message", "role": "user", "content": [text]})
    assert len(session.items) == 200 and types(out) == ["conversation.item.added", "conversation.item.deleted", "conversation.item.done"]
    new = {"id": "first", "type": "message", "role": "user", "content": [text]}
    out = tell(session, "conversation.item.create", item=new, previous_item_id="root")
    assert session.items[0].id == "first" and len(session.items) == 200 and types(out)[-1] == "conversation.item.done"
    big = {"type": "input_audio", "audio": base64.b64encode(bytes(20 * 2**20)).decode()}
    item = {"type": "message", "role": "user", "content": [big]}
    tell(session, "conversation.item.create", item=item)
    assert error_of(tell(session, "conversation.item.create", item=item))["code"] == "too_much_input"


def test_heard_share_keeps_whole_words():
    assert heard_share("one two three", 0.5) == "one" and heard_share("one two three", 0.56) == "one two"
    assert heard_share("天空是蓝色的", 0.5) == "天空是" and heard_share("one", 1.0) == "one" and heard_share("one two", 0.0) == ""


def test_every_event_is_of_the_official_types():
    """openai's own classes, strictly: each event must be one they know, with no field of a wrong type."""
    realtime = pytest.importorskip("openai.types.realtime")
    from pydantic import TypeAdapter
    adapter = TypeAdapter(realtime.RealtimeServerEvent)
    session = new_session(audio={"input": {"transcription": {"model": "any"}}})
    out = RealtimeSession("t", "m", ["ann"], fake_vad).start() + say(session, SPEECH, 600) + say(session, SILENCE, 800)
    start, transcribe = only(out, StartReply), only(out, Transcribe)
    out += session.transcribed(transcribe.item_id, "hi", 0.5) + session.transcription_failed(transcribe.item_id, ProtocolError("x"))
    out += session.piece(start.response_id, "Hello.", FRAME) + say(session, SPEECH, 400)
    item = session.items[-1]
    out += tell(session, "conversation.item.truncate", item_id=item.id, content_index=0, audio_end_ms=10.5)
    out += tell(session, "conversation.item.retrieve", item_id=item.id) + tell(session, "conversation.item.delete", item_id=item.id)
    out += tell(session, "input_audio_buffer.clear") + session.receive("{") + ask(session, output_modalities=["text"])
    start = only(out[-1:], StartReply)
    out += session.piece(start.response_id, "x") + session.finished(start.response_id, Usage(1, 2, 3, 4, 5), True)
    seen = set()
    for event in out:
        if isinstance(event, dict):
            parsed = adapter.validate_python(event)
            assert parsed.type == event["type"] and json.loads(json.dumps(event)) == event
            seen.add(event["type"])
    assert len(seen) >= 24, sorted(seen)
