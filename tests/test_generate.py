"""Streaming generation: the bookkeeping pinned id by id, cached equal to naive, sampling as documented."""
from dataclasses import replace

import pytest
import torch

from engine.generate import GenerationParams, Reply, generate, generate_naive
from engine.sampling import keep_top_k, keep_top_p, penalize, sample
from model.model_omni import OmniConfig
from model.sequence import build_prompt


def prompt_of(data, model, reference_speaker=True):
    speaker = data["spk_emb"][0] if "spk_emb" in data and reference_speaker else None
    reference = data["gen_ref_codes"][0] if "gen_ref_codes" in data else None
    return build_prompt(data["gen_prompt"][0], reference, speaker is not None, model.config), speaker


def frames_of(steps):
    return torch.tensor([step.frame or [-1] * 8 for step in steps])


@pytest.mark.parametrize("run", [generate, generate_naive])
@pytest.mark.parametrize("name", ["dense", "moe"])
def test_golden_greedy(golden, name, run):
    data, model = golden(name)
    prompt, speaker = prompt_of(data, model)
    steps = list(run(model, prompt, GenerationParams(newline_id=10, temperature=0, max_new_tokens=40), speaker))
    assert [s.text for s in steps] == data["gen_text"].tolist()
    assert torch.equal(frames_of(steps), data["gen_frames"])


@pytest.mark.parametrize("run", [generate, generate_naive])
@pytest.mark.parametrize("name", ["forced_plain", "forced_long_ref", "forced_ref_only", "forced_thinking"])
def test_golden_forced(golden, name, run, monkeypatch):
    data, model = golden(name)
    prompt, speaker = prompt_of(data, model)
    params = GenerationParams(newline_id=int(data["newline"]), max_new_tokens=60, thinking=name == "forced_thinking")
    seen, fed = [], []

    def choose(out, reply):
        seen.append((out.logits[0, -1], out.audio_logits[0, :, -1, ::22]))
        return data["forced_text"][reply.steps].item(), data["forced_codes"][reply.steps].tolist()

    push = Reply.push
    monkeypatch.setattr(Reply, "push", lambda self, *ids: fed.append(push(self, *ids)) or fed[-1])
    steps = list(run(model, prompt, params, speaker, choose=choose))
    if steps[-1].text is None:  # the step at which the last codebook stops brings nothing and is not fed: no golden row
        assert steps.pop().frame is None
        fed.pop()
    columns = torch.tensor([column for column, _ in fed]).T
    assert torch.equal(torch.cat((prompt, columns), 1), data["gen_fed"])
    assert [s.text for s in steps if s.text is not None] == data["gen_text"].tolist()
    assert torch.equal(frames_of(steps), data["gen_frames"])
    if len(seen) == len(steps):  # the text ended last: nothing is left to choose, so the logits behind the last column are not computed
        out = model(data["gen_fed"][None], spk_emb=None if speaker is None else speaker[None])
        seen.append((out.logits[0, -1], out.audio_logits[0, :, -1, ::22]))
    for got, expected in ((seen[0], "first"), (seen[-1], "last")):
        torch.testing.assert_close(got[0], data[f"{expected}_text_logits"], atol=1e-4, rtol=0)
        torch.testing.assert_close(got[1], data[f"{expected}_audio_logits"], atol=1e-4, rtol=0)


PARAMS = GenerationParams(newline_id=10, max_new_tokens=30)


@pytest.mark.parametrize("params", [PARAMS, replace(PARAMS, temperature=0), replace(PARAMS, text_repetition_penalty=1.3)])
def test_cached_equals_naive(golden, params):
    data, model = golden("dense")
    prompt, speaker = prompt_of(data, model)
    runs = [list(run(model, prompt, params, speaker, generator=torch.Generator().manual_seed(3))) for run in (generate, generate_naive)]
    assert runs[0] == runs[1] and len(runs[0]) == 30


def reply(**fields):
    return Reply(OmniConfig(), replace(PARAMS, **fields))


def test_a_codebook_that_stops_early_keeps_earlier_frames():
    r, emitted = reply(), []
    for s in range(16):
        codes = [2050 if (i == 0 and s == 4) or (i and s == i + 6) else 100 + s for i in range(8)]
        emitted.append(r.push(2 if s == 3 else 50, codes)[1].frame)
        if r.done:
            break
    # codebook 0 spoke at steps 1-3 and stopped at 4: frames 0-2 are whole, frame 3 is not, whatever the others say
    assert [f is not None for f in emitted] == [False] * 8 + [True] * 3 + [False] * (len(emitted) - 11)
    assert emitted[8] == [101 + i for i in range(8)]


def test_silence_before_and_after_a_codebook_speaks():
    r = reply()
    columns = [r.push(2 if s == 1 else 50, [2050 if s >= 3 else 7] * 8)[0] for s in range(6)]
    pad, stop = 2049, 2050
    assert [c[0] for c in columns] == [pad, 7, 7, stop, pad, pad]
    assert [c[2] for c in columns] == [pad, pad, pad, stop, pad, pad]
    assert [c[8] for c in columns] == [50, 2, 10, 0, 0, 0]  # <|im_end|>, one newline, pads


def test_reply_that_ends_while_thinking_is_done():
    r = reply(thinking=True)
    r.push(2, [7] * 8)
    assert r.done


def test_length_cap_is_told_from_an_end():
    r = reply(max_new_tokens=3)
    for _ in range(3):
        r.push(50, [7] * 8)
    assert r.truncated and not r.done


def test_prompt_longer_than_the_model_is_refused(golden):
    data, model = golden("dense")
    too_long = torch.zeros(9, model.config.max_position_embeddings + 1, dtype=torch.long)
    with pytest.raises(ValueError, match="KV cache holds"):
        next(generate(model, too_long, PARAMS))


def test_sampling_follows_the_distribution():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0]).expand(20000, 4)
    draws = sample(logits, 0.7, generator=torch.Generator().manual_seed(0)).bincount(minlength=4) / 20000
    torch.testing.assert_close(draws, (logits[0] / 0.7).softmax(-1), atol=0.015, rtol=0)
    assert sample(logits, 0.0).unique().tolist() == [0]


def test_filters():
    logits = torch.tensor([3.0, 1.0, 2.0, 0.0])
    assert keep_top_k(logits, 2).isfinite().tolist() == [True, False, True, False]
    probs = logits.softmax(-1)
    assert keep_top_p(logits, probs[0].item() - 0.01).isfinite().tolist() == [True, False, False, False]
    assert keep_top_p(logits, probs[0].item() + 0.01).isfinite().tolist() == [True, False, True, False]
    assert torch.equal(keep_top_p(logits, 1.0), logits)


def test_penalty_counts_every_occurrence():
    logits = torch.tensor([[2.0, -2.0, 1.0]])
    torch.testing.assert_close(penalize(logits, torch.tensor([[0, 0, 1]]), 2.0), torch.tensor([[0.5, -4.0, 1.0]]))
    assert torch.equal(penalize(logits, torch.tensor([[-1, -1, -1]]), 2.0), logits)
