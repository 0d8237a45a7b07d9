"""Sessions that are refused, cancelled, cut off or broken: each is told so, and none of it reaches the others."""
import random
from dataclasses import replace

import pytest
import torch
from test_engine import GREEDY, PARAMS, drain, expected, heard, random_request, reply_of, small_model
from tiny_folders import make_tiny_mimi

from engine.engine import Engine
from engine.session import EngineFull, PromptTooLong, Reason
from model.mimi import Mimi


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def mimi():
    return Mimi(make_tiny_mimi(None), encoder=False)


def test_a_full_engine_says_so_and_takes_the_next_one_later(model):
    engine = Engine(model, slots=2)
    slots = [engine.admit(random_request(model, seed)) for seed in (1, 2)]
    with pytest.raises(EngineFull, match="all 2 rows"):
        engine.admit(random_request(model, 3))
    engine.cancel(slots[0])
    third = engine.admit(random_request(model, 3))
    assert third not in slots and heard(drain(engine)[third]) == expected(model, random_request(model, 3))
    assert engine.step() == [] and not engine.busy and engine.num_free == 2


def test_prompts_up_to_the_last_position_are_taken(model):
    engine = Engine(model, slots=2, max_length=24)
    with pytest.raises(PromptTooLong, match="25 tokens long, the KV cache holds 24"):
        engine.admit(random_request(model, 1, length=25))
    for length, steps in ((24, 1), (23, 2), (12, 13)):
        request = random_request(model, 4, GREEDY, length=length)
        frames = reply_of(engine, request)
        assert heard(frames) == expected(model, request)[:steps]
        assert frames[-1].finish.reason is Reason.CACHE_FULL and frames[-1].finish.steps == steps
    assert not any(f.done for f in frames[:-1])


def test_the_cap_is_told_from_an_end(model):
    engine = Engine(model, slots=1)
    request = random_request(model, 4, replace(GREEDY, max_new_tokens=9))
    assert reply_of(engine, request)[-1].finish.reason is Reason.MAX_NEW_TOKENS
    ended = 0
    for seed in range(8):
        request = random_request(model, seed, replace(PARAMS, max_new_tokens=60, temperature=2, audio_temperature=3))
        wanted, frames = expected(model, request), reply_of(engine, request)
        assert heard(frames) == wanted
        assert frames[-1].finish.reason is (Reason.ENDED if len(wanted) < 60 else Reason.MAX_NEW_TOKENS)
        ended += len(wanted) < 60
    assert 0 < ended


@pytest.mark.parametrize("change, named", [
    (lambda r: replace(r, prompt_ids=r.prompt_ids[:8]), r"\(9, P\)"), (lambda r: replace(r, prompt_ids=r.prompt_ids[:, :0]), r"\(9, P\)"),
    (lambda r: replace(r, prompt_ids=r.prompt_ids.float()), "integers"), (lambda r: replace(r, prompt_ids=r.prompt_ids + 200), "text ids"),
    (lambda r: replace(r, prompt_ids=torch.where(torch.arange(9)[:, None] == 2, -1, r.prompt_ids)), "code ids"),
    (lambda r: replace(r, spk_emb=torch.zeros(5)), "spk_emb"), (lambda r: replace(r, spk_emb=torch.full((192,), torch.nan)), "NaN"),
    (lambda r: replace(r, audio_features=torch.zeros(1, 3, 5)), "audio_features"),
    (lambda r: replace(r, image_features=torch.full((1, 4, 16), torch.inf)), "image_features holds"),
    (lambda r: replace(r, audio_features=torch.zeros(1, 3, 16), prompt_ids=torch.where(torch.arange(9)[:, None] == 8, 16, r.prompt_ids)),
     "must not end")])
def test_requests_the_model_cannot_take_are_named(model, change, named):
    engine = Engine(model, slots=2)
    other = engine.admit(random_request(model, 1))
    engine.step()
    with pytest.raises(ValueError, match=named):
        engine.admit(change(random_request(model, 4)))
    assert engine.num_free == 1 and len(drain(engine)[other]) + 1 == len(expected(model, random_request(model, 1)))


def test_overflow_ends_one_session_and_leaves_its_row_clean(model):
    engine = Engine(model, slots=2)
    good, bad = random_request(model, 1), random_request(model, 2, length=20)
    slots = engine.admit(good), engine.admit(bad)
    frames = {slots[0]: engine.step()[:1]}
    row = engine.sessions[slots[1]].row
    with torch.inference_mode():
        engine.cache.v[0][row, :, 3] = torch.nan
    drain(engine, frames)
    assert heard(frames[slots[0]]) == expected(model, good)
    assert [f.finish and f.finish.reason for f in frames[slots[1]]] == [Reason.FAILED]
    assert "overflow" in frames[slots[1]][0].finish.error
    for seed in (3, 4):  # both rows are taken again
        engine.admit(random_request(model, seed))
    again = drain(engine)
    assert sorted(map(str, (heard(f) for f in again.values()))) == sorted(str(expected(model, random_request(model, s))) for s in (3, 4))


def test_a_prompt_that_overflows_beside_a_longer_one_leaves_nothing_behind(model):
    engine = Engine(model, slots=4)
    think = engine.network.think

    def overflowing(x, place):
        x = x.clone()
        x[place.rows == row] = torch.nan
        return think(x, place)

    short = engine.admit(random_request(model, 1, length=4))
    row = engine.sessions[short].row
    long = engine.admit(random_request(model, 2, length=30))
    engine.network.think = overflowing
    frames = {}
    for frame in engine.step():
        frames.setdefault(frame.slot, []).append(frame)
    engine.network.think = think
    assert frames[short][-1].finish.reason is Reason.FAILED
    third = engine.admit(random_request(model, 3, length=5))  # into its row, whose pads would still be there
    drain(engine, frames)
    assert heard(frames[third]) == expected(model, random_request(model, 3, length=5))
    assert heard(frames[long]) == expected(model, random_request(model, 2, length=30))


def test_a_prompt_that_cannot_be_read_ends_those_who_wait(model):
    engine = Engine(model, slots=3, prefill_chunk=4)
    first = engine.admit(random_request(model, 1))
    frames = {first: engine.step()}
    waiting = engine.admit(random_request(model, 2, length=30))
    think = engine.network.think

    def out_of_memory(x, place):
        if x.shape[1] > 1:
            raise MemoryError("no room for the mask")
        return think(x, place)

    engine.network.think = out_of_memory
    step = engine.step()
    engine.network.think = think
    assert {f.slot: f.finish for f in step}[waiting].error == "MemoryError: no room for the mask"
    frames[first] += [f for f in step if f.slot == first]
    third = engine.admit(random_request(model, 3))
    drain(engine, frames)
    assert heard(frames[first]) == expected(model, random_request(model, 1))
    assert heard(frames[third]) == expected(model, random_request(model, 3))


def test_a_tokenizer_that_raises_ends_one_session(model):
    class Tokenizer:
        def decode(self, ids, **options):
            if self.angry in ids:
                raise RuntimeError(f"no text for {self.angry}")
            return "".join(chr(97 + i % 26) for i in ids)

    tokenizer = Tokenizer()
    engine = Engine(model, tokenizer=tokenizer, slots=2)
    tokenizer.angry = None
    replies = [reply_of(engine, random_request(model, seed, GREEDY)) for seed in (1, 2)]
    assert all(f.text for f in replies[0] if f.token is not None and f.token != 2)
    only = {f.token for f in replies[1]} - {f.token for f in replies[0]} - {None, 2}
    tokenizer.angry = only.pop()
    slots = [engine.admit(random_request(model, seed, GREEDY)) for seed in (1, 2)]
    frames = drain(engine)
    assert heard(frames[slots[0]]) == heard(replies[0])
    finish = frames[slots[1]][-1].finish
    assert finish.reason is Reason.FAILED and finish.error == f"RuntimeError: no text for {tokenizer.angry}"


def test_a_conversation_that_cannot_be_kept_ends_nobody(model, monkeypatch):
    engine = Engine(model, slots=2)
    slots = [engine.admit(random_request(model, seed, conversation=seed)) for seed in (1, 2)]
    engine.step()

    def no_memory(*args):
        raise torch.OutOfMemoryError("none left")
    monkeypatch.setattr(engine.cache, "save_row", no_memory)
    assert engine.cancel(slots[0]).reason is Reason.CANCELLED and engine.num_free == 1
    assert heard(drain(engine)[slots[1]])
    assert engine.num_free == 2 and not engine.store.num_bytes


def test_cancelling_twice_or_a_stranger_is_nothing(model):
    engine = Engine(model, slots=1)
    slot = engine.admit(random_request(model, 1))
    assert engine.cancel(slot).steps == 0 and engine.cancel(slot) is None and engine.cancel(99) is None


def test_random_joins_leaves_and_cancels(model, mimi):
    """240 scenarios: every session that is not cancelled says what it says alone, every cancelled one a beginning of it."""
    pool = [(seed, replace(params, max_new_tokens=8 + 3 * (seed % 5))) for seed in range(8) for params in (GREEDY, PARAMS)]
    wanted = [expected(model, random_request(model, *item)) for item in pool]
    engines = [Engine(model, mimi if slots == 3 else None, slots=slots, prefill_chunk=chunk, reuse_bytes=60_000)
               for slots, chunk in ((1, 4), (3, 2), (5, 7))]
    phases = set()
    for scenario in range(240):
        rng, engine = random.Random(scenario), engines[scenario % 3]
        frames, who, cancelled = {}, {}, set()
        for _ in range(rng.randint(4, 12)):
            action = rng.random()
            if action < 0.5 and engine.num_free:
                i = rng.randrange(len(pool))
                slot = engine.admit(replace(random_request(model, *pool[i]), conversation=rng.choice((None, "a", "b", i))))
                who[slot] = i
            elif action < 0.7 and engine.sessions:
                slot = rng.choice(list(engine.sessions))
                session = engine.sessions[slot]
                phases.add("prefill" if not session.speaking else "text" if session.text_open else "tail")
                finish = engine.cancel(slot)
                assert finish.reason is Reason.CANCELLED and finish.steps == len(frames.get(slot, ()))
                cancelled.add(slot)
            else:
                for _ in range(rng.randint(1, 8)):
                    for frame in engine.step():
                        frames.setdefault(frame.slot, []).append(frame)
        drain(engine, frames)
        for slot, i in who.items():
            said = frames.get(slot, [])
            assert heard(said) == wanted[i][:len(said)], (scenario, slot)
            if slot not in cancelled:
                assert len(said) == len(wanted[i]) and said[-1].finish.reason in (Reason.ENDED, Reason.MAX_NEW_TOKENS)
        assert engine.num_free == engine.slots and not engine.rows.active.any()
    assert phases == {"prefill", "text", "tail"}
