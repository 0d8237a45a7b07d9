"""Streaming generation: the bookkeeping pinned id by id, cached equal to naive, sampling as documented."""
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.generate import GenerationParams, Reply, generate, generate_naive
from engine.sampling import _falling_compiled, falling, penalize, pick, sample_codes, sample_text
from model.model_omni import OmniConfig
from model.sequence import build_prompt

ROOT = Path(__file__).resolve().parents[1]


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


@pytest.mark.parametrize("sort", [falling, _falling_compiled])
def test_values_fall_whoever_sorts(sort):
    logits = torch.randn(3, 4, 1000).round(decimals=1)  # with many that are equal
    assert sort(logits).equal(logits.sort(dim=-1, descending=True).values)


def test_eager_sampling_leaves_the_compiler_alone():
    code = ("import sys, torch; from engine.sampling import falling; falling(torch.randn(1, 9)); "
            "sys.exit('torch._dynamo' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0, "to import it takes 1.5 s"


def draws_of_text(logits, **settings):
    """How often each id comes when `logits` (V,) are sampled 20,000 times with evenly spread uniform numbers."""
    n = 20_000
    rows = {name: torch.full((n,), value) for name, value in {"temperature": 1.0, "top_p": 1.0, "penalty": 1.0, **settings}.items()}
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(0))
    ids = sample_text(logits.expand(n, -1), torch.zeros(n, len(logits), dtype=torch.bool), uniform, **rows)
    return ids.bincount(minlength=len(logits)) / n


def test_sampling_follows_the_distribution():
    logits = torch.tensor([1.0, 2.0, -1.0, 0.0])
    torch.testing.assert_close(draws_of_text(logits, temperature=0.7), (logits / 0.7).softmax(-1), atol=0.015, rtol=0)
    assert draws_of_text(logits, temperature=0.0).tolist() == [0, 1, 0, 0]


def test_equally_likely_ids_are_drawn_equally_often():
    logits = torch.tensor([2.0, 0.0, 2.0, 1.0, 2.0, 1.0])  # bfloat16 makes many equal
    torch.testing.assert_close(draws_of_text(logits), logits.softmax(-1), atol=0.015, rtol=0)


def test_each_id_is_where_a_stable_sort_puts_it():
    logits = torch.randn(300, 50, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    uniform, ones = torch.rand(300, generator=torch.Generator().manual_seed(2)), torch.ones(300)
    mass, order = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)
    expected = order.gather(-1, pick(mass, uniform)[:, None])[:, 0]
    assert sample_text(logits, torch.zeros_like(logits).bool(), uniform, ones, ones, ones).equal(expected)


def test_top_p_keeps_the_smallest_sufficient_set():
    logits = torch.tensor([3.0, 1.0, 2.0, 0.0])
    probs = logits.softmax(-1)
    assert (draws_of_text(logits, top_p=probs[0].item() - 0.01) > 0).tolist() == [True, False, False, False]
    kept = draws_of_text(logits, top_p=probs[0].item() + 0.01)
    assert (kept > 0).tolist() == [True, False, True, False]
    assert kept[0].item() == pytest.approx((probs[0] / (probs[0] + probs[2])).item(), abs=0.015)


def test_top_k_and_greedy_are_per_row():
    n = 9_000
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0], [2.0, 1.0, 0.0, 3.0]])  # two codebooks
    top_k, greedy = torch.tensor([1, 2, 4]).repeat(n // 3), torch.arange(n) % 2 == 0
    uniform = torch.rand(n, 2, generator=torch.Generator().manual_seed(0))
    codes = sample_codes(logits.expand(n, 2, 4), torch.full((n, 2, 3), -1), uniform, torch.ones(n), top_k, torch.ones(n), greedy)
    seen = [{(k, book): set(codes[(top_k == k) & (greedy == g), book].tolist()) for k in (1, 2, 4) for book in (0, 1)} for g in (0, 1)]
    assert seen[1] == {key: {(1, 3)[key[1]]} for key in seen[1]}
    assert seen[0] == {(1, 0): {1}, (1, 1): {3}, (2, 0): {1, 3}, (2, 1): {3, 0}, (4, 0): {0, 1, 2, 3}, (4, 1): {0, 1, 2, 3}}


def test_pick_never_leaves_the_ids():
    mass = torch.tensor([[0.0, 1.0, 0.0], [0.3, 0.7, 0.0], [float("nan")] * 3])
    assert pick(mass, torch.tensor([0.0, 1 - 2**-24, 0.5])).tolist()[:2] == [1, 1]
    assert 0 <= pick(mass, torch.zeros(3))[2] <= 2


@pytest.mark.parametrize("setting", [{"top_p": 0}, {"temperature": -1}, {"audio_top_k": 0}, {"audio_top_k": 65}, {"max_new_tokens": 0},
                                     {"audio_temperature": 0}, {"temperature": float("nan")}])
def test_settings_that_cannot_be_sampled_are_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        GenerationParams(newline_id=1, **setting)


def test_penalty_counts_every_occurrence():
    logits = torch.tensor([[2.0, -2.0, 1.0]])
    torch.testing.assert_close(penalize(logits, torch.tensor([[0, 0, 1]]), 2.0), torch.tensor([[0.5, -4.0, 1.0]]))
    assert torch.equal(penalize(logits, torch.tensor([[-1, -1, -1]]), 2.0), logits)
