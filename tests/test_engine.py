"""engine/engine.py against the naive generator: alone, in company, in chunks, continued; and sessions that go wrong alone."""
from dataclasses import replace

import pytest
import torch
from tiny_folders import make_tiny_mimi

from engine.engine import Engine
from engine.generate import GenerationParams, generate_naive, sampler
from engine.session import EngineFull, PromptTooLong, Reason, Request
from engine.stepper import MODES
from model.config import OmniConfig, audio_ids_for
from model.mimi import Mimi
from model.model_omni import MiniMindOmni
from model.sequence import build_prompt

EOS, NEWLINE = 2, 10
PARAMS = GenerationParams(newline_id=NEWLINE, max_new_tokens=32, temperature=0.8, audio_temperature=0.7)
GREEDY = replace(PARAMS, temperature=0)


def small_model(**fields) -> MiniMindOmni:
    """Weights loud enough that replies differ, with stops likely enough that some end by themselves."""
    config = OmniConfig(**{**dict(vocab_size=40, hidden_size=32, num_hidden_layers=2, num_talker_hidden_layers=1, talker_hidden_size=32,
                                  max_position_embeddings=128, think_end_ids=[26, 5], audio_hidden_size=16, image_hidden_size=16,
                                  image_token_len=4, **audio_ids_for(64)), **fields})
    torch.manual_seed(3)
    model = MiniMindOmni(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
        model.lm_head.weight[EOS] *= 3
        for head in (model.talker.lm_head.base, *(adapter[-1] for adapter in model.talker.lm_head.adapters)):
            head.weight[64:] *= 0.5  # half of the ids are specials: at full strength hardly a frame would be whole
    return model


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def mimi(tmp_path_factory):
    return Mimi(make_tiny_mimi(None), encoder=False)


def random_request(model, seed: int, params=PARAMS, length: int | None = None, conversation=None) -> Request:
    g = torch.Generator().manual_seed(seed)
    length = length or int(torch.randint(1, 30, (), generator=g))
    text = torch.randint(18, model.config.vocab_size, (length,), generator=g)
    voice = torch.randint(0, 64, (8, int(torch.randint(0, 12, (), generator=g))), generator=g)
    speaker = torch.randn(192, generator=g) if seed % 3 else None
    return Request(build_prompt(text, voice, speaker is not None, model.config), params, speaker,
                   generator=torch.Generator().manual_seed(seed), conversation=conversation)


def expected(model, request: Request):
    """(text ids, frames) step by step, from the naive generator."""
    generator = torch.Generator().manual_seed(request.generator.initial_seed())
    steps = generate_naive(model, request.prompt_ids, request.params, request.spk_emb, request.audio_features, request.audio_lens,
                           request.image_features, generator)
    return [(step.text, step.frame) for step in steps]


def drain(engine, frames=None) -> dict:
    """Run the engine until it is idle; {slot: its frames}."""
    frames = {} if frames is None else frames
    while engine.busy:
        for frame in engine.step():
            frames.setdefault(frame.slot, []).append(frame)
    return frames


def reply_of(engine, request) -> list:
    """The frames of one request, run until the engine is idle."""
    slot = engine.admit(request)
    return drain(engine)[slot]


def heard(frames):
    return [(f.token, f.codes) for f in frames]


# ---- the same as the naive generator

@pytest.mark.parametrize("moe", [False, True])
@pytest.mark.parametrize("params", [GREEDY, PARAMS, replace(PARAMS, text_repetition_penalty=1.4, thinking=True, audio_top_k=3)])
def test_alone_and_in_company_like_the_naive_generator(moe, params):
    model = small_model(use_moe=moe)
    requests = [random_request(model, seed, params) for seed in range(7)]
    wanted = [expected(model, r) for r in requests]
    assert len({str(w) for w in wanted}) > 5, "replies that are all alike would prove nothing"
    engine = Engine(model, slots=3, prefill_chunk=5)
    for request, reply in zip(requests[:2], wanted):
        slot = engine.admit(replace(request, generator=torch.Generator().manual_seed(request.generator.initial_seed())))
        assert heard(drain(engine)[slot]) == reply
    frames, slots, waiting = {}, {}, list(enumerate(requests))
    while waiting or engine.busy:
        if waiting and engine.num_free:  # one joins at a step, so they are all in different phases
            i, request = waiting.pop(0)
            slots[engine.admit(request)] = i
        for frame in engine.step():
            frames.setdefault(frame.slot, []).append(frame)
    for slot, i in slots.items():
        assert heard(frames[slot]) == wanted[i], i
        reason = Reason.MAX_NEW_TOKENS if len(wanted[i]) == params.max_new_tokens else Reason.ENDED
        assert frames[slot][-1].finish.reason in (reason, Reason.ENDED) and not any(f.done for f in frames[slot][:-1])


@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_features_are_read_across_chunks(model, chunk):
    g = torch.Generator().manual_seed(5)
    text = torch.randint(18, 40, (40,), generator=g)
    text[3:12], text[15:19], text[22:26] = 16, 12, 12  # an utterance of 7 vectors and two pads too many; two pictures
    request = Request(build_prompt(text, None, False, model.config), GREEDY, audio_features=torch.randn(1, 9, 16, generator=g),
                      audio_lens=torch.tensor([7]), image_features=torch.randn(1, 2, 4, 16, generator=g),
                      generator=torch.Generator().manual_seed(0))
    wanted = expected(model, request)
    assert wanted != expected(model, replace(request, audio_features=None, image_features=None))
    engine = Engine(model, slots=2, prefill_chunk=chunk)
    engine.admit(random_request(model, 1))
    engine.step()
    slot = engine.admit(request)
    assert heard(drain(engine)[slot]) == wanted


def test_golden_replies(golden):
    for name in ("dense", "moe"):
        data, model = golden(name)
        speaker = data["spk_emb"][0] if "spk_emb" in data else None
        prompt = build_prompt(data["gen_prompt"][0], data["gen_ref_codes"][0] if "gen_ref_codes" in data else None,
                              speaker is not None, model.config)
        engine = Engine(model, slots=1, max_length=256)
        slot = engine.admit(Request(prompt, GenerationParams(newline_id=10, temperature=0, max_new_tokens=40), speaker))
        frames = drain(engine)[slot]
        assert [f.token for f in frames] == data["gen_text"].tolist()
        assert torch.equal(torch.tensor([f.codes or [-1] * 8 for f in frames]), data["gen_frames"])


def test_sound_is_that_of_the_whole_clip(model, mimi):
    engine = Engine(model, mimi, slots=4)
    slots = [engine.admit(random_request(model, seed, replace(PARAMS, max_new_tokens=20 + 3 * seed))) for seed in range(4)]
    frames = drain(engine)
    for slot in slots:
        codes = [f.codes for f in frames[slot] if f.codes]
        wav = [torch.from_numpy(f.wav) for f in frames[slot] if f.codes]
        assert all(f.wav is None for f in frames[slot] if f.codes is None)
        if codes:
            assert torch.allclose(torch.cat(wav), mimi.decode(torch.tensor(codes).T)[0], atol=1e-4)
    assert sum(any(f.codes for f in frames[slot]) for slot in slots) > 1


def test_rows_move_down_when_most_have_left(model, mimi):
    requests = [random_request(model, seed, replace(GREEDY, max_new_tokens=6 if seed < 5 else 24)) for seed in range(6)]
    engine = Engine(model, mimi, slots=8)
    slots = [engine.admit(r) for r in requests]
    counts, run = [], engine.stepper.run
    engine.stepper.run = lambda count, end, speak: counts.append(engine.stepper.rows_for(count)) or run(count, end, speak)
    frames = drain(engine)
    assert counts[0] == 8 and counts[-1] == 1
    assert heard(frames[slots[-1]]) == expected(model, requests[-1])


def test_forced_text_is_said_and_only_its_speech_is_free(model):
    words = [21, 30, 21, 38, EOS]
    request = replace(random_request(model, 4), forced_text=words)
    sample = sampler(PARAMS, torch.Generator().manual_seed(4))

    def choose(out, reply):
        text, codes = sample(out, reply)
        return (words[reply.steps] if reply.steps < len(words) else text), codes

    wanted = [(step.text, step.frame) for step in generate_naive(model, request.prompt_ids, PARAMS, request.spk_emb, choose=choose)]
    engine = Engine(model, slots=2)
    engine.admit(random_request(model, 1))  # somebody else, who is free to say what he likes
    slot = engine.admit(request)
    frames = drain(engine)
    assert heard(frames[slot]) == wanted and [f.token for f in frames[slot] if f.token is not None] == words
    assert heard(reply_of(engine, random_request(model, 2))) == expected(model, random_request(model, 2)), "the row is free again"
    with pytest.raises(ValueError, match="forced text"):
        engine.check(replace(request, forced_text=[40]))


def test_a_long_prompt_waits_for_those_who_speak(model):
    engine = Engine(model, slots=2, prefill_chunk=4)
    first = engine.admit(random_request(model, 1, replace(GREEDY, max_new_tokens=24), length=9))
    engine.step()
    second = engine.admit(random_request(model, 2, length=41))
    read = []
    for name in ("think", "talk"):
        whole = getattr(engine.network, name)
        setattr(engine.network, name, lambda *args, whole=whole: read.append(args[-1].positions.numel()) or whole(*args))
    for step in range(12):
        frames = engine.step()
        assert first in [f.slot for f in frames], "no step without a frame for the one who speaks"
        assert ((second in [f.slot for f in frames]) == (step >= 9)) and max(read) <= 4


# ---- conversations

def next_turn(request: Request, frames, model, seed: int, **changes) -> Request:
    """The prompt a template writes after a reply: all that was said, the reply as it was fed, new words; the voice at the end."""
    g = torch.Generator().manual_seed(seed)
    said = [f.token for f in frames if f.token is not None] + [NEWLINE]
    text = torch.cat([request.prompt_ids[-1], torch.tensor(said), torch.randint(18, 40, (9,), generator=g)])
    request = replace(request, **changes)
    prompt = build_prompt(text, torch.randint(0, 64, (8, 5), generator=g), request.spk_emb is not None, model.config)
    return replace(request, prompt_ids=prompt)


def reply_to(engine, request):
    """(frames of its reply, prompt positions that the Thinker and the Talker had to read for it)."""
    slot = engine.admit(request)
    session = engine.sessions[slot]
    read = session.prompt_length - 1 - session.num_thought, session.prompt_length - 1 - session.num_talked
    return drain(engine)[slot], read


def test_a_conversation_is_read_on_from_where_it_was(model):
    engine = Engine(model, slots=2, prefill_chunk=3)
    request = random_request(model, 4, replace(GREEDY, max_new_tokens=14), length=20, conversation="a")
    for turn in range(4):
        frames, (thought, talked) = reply_to(engine, request)
        assert heard(frames) == expected(model, request), turn
        if turn:
            # new to the Thinker: the cap's last token (sampled, never fed), the newline, 9 words; less the column the first step feeds
            assert thought == 1 + 1 + 9 - 1
            assert talked == request.prompt_ids.shape[1] - 1 - silent
        # the voice prompt moves with every turn: up to where it began, the Talker has read the same
        silent = int((request.prompt_ids[0] != model.config.audio_pad_token).nonzero()[0])
        request = next_turn(request, frames, model, turn)
    forgotten = Engine(model, slots=2)
    assert heard(reply_to(forgotten, request)[0]) == heard(reply_to(engine, request)[0])


@pytest.mark.parametrize("change", ["words", "speaker", "voice", "features", "shorter", "nothing"])
def test_what_changed_is_read_again(model, change):
    engine = Engine(model, slots=2)
    g = torch.Generator().manual_seed(1)
    features = dict(audio_features=torch.randn(1, 4, 16, generator=g), audio_lens=torch.tensor([4]))
    first = random_request(model, 4, replace(GREEDY, max_new_tokens=14), length=24, conversation="a")
    if change == "features":
        first.prompt_ids[-1, 6:10] = 16
        first = replace(first, **features)
    request = next_turn(first, reply_to(engine, first)[0], model, 1)
    reply_to(engine, request)
    ids = request.prompt_ids.clone()
    if change == "words":
        ids[-1, 11] = 39 - ids[-1, 11] + 18
    if change == "voice":
        ids[3, -2] = (ids[3, -2] + 1) % 64
    if change == "shorter":
        ids = ids[:, :15].clone()
        ids[:8] = model.config.audio_pad_token
    changed = {"speaker": dict(spk_emb=torch.randn(192, generator=g)),
               "features": dict(audio_features=torch.randn(1, 4, 16, generator=g))}.get(change, {})
    request = replace(request, prompt_ids=ids, **changed)
    frames, (thought, talked) = reply_to(engine, request)
    P = ids.shape[1]
    assert heard(frames) == expected(model, request)
    assert (thought, talked) == {"words": (P - 12, P - 12), "voice": (0, 1), "speaker": (0, 5), "features": (P - 7, P - 7),
                                 "shorter": (0, 0), "nothing": (0, 0)}[change]


def test_conversations_are_kept_within_their_room(model):
    engine = Engine(model, slots=2, reuse_bytes=30_000)
    for key in "abca":
        reply_to(engine, random_request(model, 4, replace(GREEDY, max_new_tokens=4), length=20, conversation=key))
        assert engine.store.num_bytes <= 30_000
        assert engine.store.num_bytes == sum(c.saved.num_bytes for c in engine.store.kept.values())
    assert list(engine.store.kept) == ["c", "a"]
    engine.forget("c")
    assert list(engine.store.kept) == ["a"]
    tiny_store = Engine(model, slots=2, reuse_bytes=10)
    reply_to(tiny_store, random_request(model, 4, length=20, conversation="a"))
    assert not tiny_store.store.kept and tiny_store.store.num_bytes == 0


def test_a_cancelled_turn_leaves_the_conversation(model):
    engine = Engine(model, slots=2, prefill_chunk=3)
    other = engine.admit(random_request(model, 1, replace(GREEDY, max_new_tokens=32)))
    engine.step()
    request = random_request(model, 4, GREEDY, length=20, conversation="a")
    for steps in (0, 2, 9):  # before prefill, in the middle of it, while it speaks
        slot = engine.admit(request)
        for _ in range(steps):
            engine.step()
        assert engine.cancel(slot).reason is Reason.CANCELLED
    slot = engine.admit(request)
    assert engine.sessions[slot].to_read == 0
    assert heard(drain(engine)[slot]) == expected(model, request) and not engine.cancel(other)


# ---- other ways to run a step

def test_a_compiled_step_serves_every_length(model, mimi, monkeypatch):
    """Traced, not compiled, which takes minutes: one graph for each number of rows."""
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    monkeypatch.setattr("engine.stepper.compiled", lambda function, dynamic, options: torch.compile(
        function, backend=counter, dynamic=dynamic, options={"guard_filter_fn": options["guard_filter_fn"]}))
    torch._dynamo.reset()
    engine = Engine(model, mimi, slots=2, max_length=100, mode="compile")
    engine.warm_up()
    assert counter.frame_count == 2
    requests = [random_request(model, seed, params) for seed, params in ((1, GREEDY), (2, PARAMS), (3, PARAMS))]
    for together in ([requests[2]], requests[:2]):
        slots = [engine.admit(request) for request in together]
        frames = drain(engine)
        for slot, request in zip(slots, together):
            assert heard(frames[slot]) == expected(model, request)
    assert counter.frame_count == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compiled_step_says_the_same(model, mimi):
    requests = [random_request(model, seed, params) for seed, params in ((1, GREEDY), (2, PARAMS))]
    engine = Engine(model, mimi, slots=2, mode="compile")
    slots = [engine.admit(replace(r, generator=torch.Generator().manual_seed(seed))) for seed, r in enumerate(requests, 1)]
    frames = drain(engine)
    for slot, request in zip(slots, requests):
        assert heard(frames[slot]) == expected(model, request)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mode", MODES)
def test_sessions_on_a_gpu(model, mode):
    """Staggered joins and leaves; sampled ids are those of the CPU, as the numbers that decide them are."""
    codec = Mimi(make_tiny_mimi(None), device="cuda", encoder=False)
    on_gpu = small_model().cuda()
    engine = Engine(on_gpu, codec, slots=4, dtype="fp32", mode=mode)
    requests, frames, slots = [random_request(model, seed, GREEDY if seed % 2 else PARAMS) for seed in range(9)], {}, {}
    waiting = list(enumerate(requests))
    while waiting or engine.busy:
        if waiting and engine.num_free:
            i, request = waiting.pop(0)
            slots[engine.admit(replace(request, generator=torch.Generator().manual_seed(i)))] = i
        for frame in engine.step():
            frames.setdefault(frame.slot, []).append(frame)
    for slot, i in slots.items():
        assert heard(frames[slot]) == expected(model, requests[i]), i
        codes = [f.codes for f in frames[slot] if f.codes]
        if codes:
            whole = codec.decode(torch.tensor(codes).T)[0].cpu()
            assert torch.allclose(torch.cat([torch.from_numpy(f.wav) for f in frames[slot] if f.codes]), whole, atol=1e-3)
