"""The model against the reference numbers: shapes, parameter table, logits, losses, gradients; and its own cache against itself."""
import json

import pytest
import torch

from model.config import IGNORE
from model.kv_cache import KVCache
from model.model_minimind import MoE
from model.model_omni import MiniMindOmni, OmniConfig, init_talker_from_thinker, inject, omni_loss


@pytest.mark.parametrize("name, moe", [("dense", False), ("moe", True)])
def test_state_dict_is_the_released_one(shared, name, moe):
    expected = json.loads((shared / "reference" / f"state_dict_{name}.json").read_text())
    with torch.device("meta"):
        state = MiniMindOmni(OmniConfig(use_moe=moe)).state_dict()
    assert {k: list(v.shape) for k, v in state.items()} == expected


@pytest.mark.parametrize("moe, talker, parts, total", [
    (False, 768, (63.912192, 47.050754, 0.985600, 1.182720), 113.131266),
    (True, 768, (198.416640, 114.302978, 0.985600, 1.182720), 314.887938),
    (False, 512, None, 93.97453), (False, 384, None, 86.55885), (True, 512, None, 259.158018), (True, 384, None, 237.879426)])
def test_parameter_table(moe, talker, parts, total):
    def millions(module):
        return round(sum(p.numel() for p in module.parameters()) / 1e6, 6)

    with torch.device("meta"):
        model = MiniMindOmni(OmniConfig(use_moe=moe, talker_hidden_size=talker))
    assert millions(model) == total
    if parts:
        assert (millions(model.model), millions(model.talker), millions(model.audio_proj), millions(model.vision_proj)) == parts


def inputs(data):
    return {k: data[k] for k in ("input_ids", "spk_emb", "audio_features", "audio_lens", "image_features") if k in data}


@pytest.mark.parametrize("name", ["dense", "moe", "audio", "image", "yarn"])
def test_golden_logits(golden, name):
    data, model = golden(name)
    with torch.no_grad():
        out = model(**inputs(data))
    for logits, expected in ((out.logits, data["text_logits"]), (out.audio_logits, data["audio_logits"])):
        torch.testing.assert_close(logits[..., ::max(1, logits.shape[-1] // 96)], expected, atol=1e-4, rtol=0)
    assert out.aux_loss == 0


@pytest.mark.parametrize("name", ["dense", "moe", "audio", "image", "yarn"])
def test_golden_losses_and_gradient(golden, name):
    data, model = golden(name)
    losses = omni_loss(model.train()(**inputs(data)), data["text_labels"], data["audio_labels"], model.config)
    losses.total.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    got = torch.stack([losses.text, losses.audio, losses.aux, losses.total, norm]).detach()
    expected = torch.stack([data[k] for k in ("text_loss", "audio_loss", "aux_loss", "loss", "grad_norm")])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-8)


def tiny(**fields) -> MiniMindOmni:
    torch.manual_seed(0)
    model = MiniMindOmni(OmniConfig(**{**dict(vocab_size=64, hidden_size=64, num_hidden_layers=4, num_talker_hidden_layers=2,
                                              talker_hidden_size=64, max_position_embeddings=64), **fields}))
    for p in model.parameters():  # the usual 0.02 makes logits too alike to tell a wrong mask from a right one
        p.data += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    return model.eval()


@pytest.mark.parametrize("moe", [False, True])
@pytest.mark.parametrize("splits", [[20], [1] * 20, [7, 1, 1, 11], [19, 1]])
def test_cached_forward_equals_whole(moe, splits):
    model = tiny(use_moe=moe)
    ids = torch.randint(0, 60, (2, 9, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole, cache, start = model(ids), model.new_cache(2, 32), 0
        for n in splits:
            part = model(ids[:, :, start:start + n], cache=cache)
            torch.testing.assert_close(part.logits, whole.logits[:, start:start + n], atol=2e-5, rtol=0)
            torch.testing.assert_close(part.audio_logits, whole.audio_logits[:, :, start:start + n], atol=2e-5, rtol=0)
            start += n


def test_cache_rows_stand_at_different_positions():
    model = tiny()
    ids = torch.randint(0, 60, (2, 9, 9), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        cache = model.new_cache(2, 16)
        model(ids[:, :, :5], cache=cache)
        cache.pos[1] = 3  # row 1 forgets its last two tokens and goes on from there
        out = model(ids[:, :, 5:6], cache=cache)
        alone = [model(ids[:1, :, :6]), model(torch.cat((ids[1:, :, :3], ids[1:, :, 5:6]), 2))]
    for row in range(2):
        torch.testing.assert_close(out.logits[row, -1], alone[row].logits[0, -1], atol=2e-5, rtol=0)


def test_cache_rows_are_saved_loaded_moved_and_cleared_alone():
    cache = KVCache([(2, 4), (1, 6)], batch=3, max_length=9, extra_width=5)
    everything = [*cache.k, *cache.v]
    for tensor in (*everything, cache.extra):
        tensor.normal_(generator=torch.Generator().manual_seed(6))
    cache.pos[:] = torch.tensor([4, 5, 6])
    before = [t.clone() for t in (*everything, cache.extra)]
    saved = cache.save_row(2, 6)
    assert saved.num_bytes == 4 * 6 * (2 * (2 * 4 + 6) + 5)
    cache.clear_row(2, 6)
    assert cache.pos.tolist() == [4, 5, 0] and not any(t[2, :, :6].any() for t in everything)
    cache.load_row(2, saved, 5)
    assert all(torch.equal(t[2, :, :5], b[2, :, :5]) for t, b in zip(everything, before))
    cache.move_row(1, 0, 5)
    assert cache.pos.tolist() == [5, 5, 0]
    assert all(torch.equal(t[0, :, :5], b[1, :, :5]) and torch.equal(t[0, :, 5:], b[0, :, 5:]) for t, b in zip(everything, before))
    assert torch.equal(cache.extra[0, :5], before[-1][1, :5])
    assert all(torch.equal(t[1], b[1]) for t, b in zip(everything, before)), "the others are as they were"


def test_full_cache_is_refused():
    model, ids = tiny(), torch.zeros(1, 9, 5, dtype=torch.long)
    with pytest.raises(ValueError, match="holds 4 positions"):
        model(ids, cache=model.new_cache(1, 4))


def test_text_only_input_means_silent_streams():
    model = tiny()
    text = torch.randint(0, 60, (2, 7), generator=torch.Generator().manual_seed(3))
    nine = torch.cat((torch.full((2, 8, 7), model.config.audio_pad_token), text[:, None]), 1)
    torch.testing.assert_close(model(text).audio_logits, model(nine).audio_logits)
    with pytest.raises(ValueError, match=r"\(B, 9, T\)"):
        model(torch.zeros(1, 8, 4, dtype=torch.long))


def test_last_only_is_the_last_position():
    model, ids = tiny(), torch.randint(0, 60, (2, 9, 6), generator=torch.Generator().manual_seed(4))
    last, whole = model(ids, last_only=True), model(ids)
    torch.testing.assert_close(last.logits, whole.logits[:, -1:])
    torch.testing.assert_close(last.audio_logits, whole.audio_logits[:, :, -1:])


@pytest.mark.parametrize("alone, absent", [("speech", "text"), ("text", "speech")])
def test_one_alone_is_what_it_is_beside_the_other(alone, absent):
    """The Thinker stops at the bridge, or the Talker does not run: no logits from there, the same from the other, and a loss of 0."""
    model, ids = tiny(), torch.randint(0, 60, (2, 9, 6), generator=torch.Generator().manual_seed(5))
    logits, losses = {"speech": "audio_logits", "text": "logits"}, {"speech": "audio", "text": "text"}
    half, whole = model(ids, **{f"{alone}_only": True}), model(ids)
    assert getattr(half, logits[absent]) is None and torch.equal(getattr(half, logits[alone]), getattr(whole, logits[alone]))
    labels = torch.zeros(2, 6, dtype=torch.long)
    one, both = (omni_loss(out, labels, labels[:, None].expand(-1, 8, -1), model.config) for out in (half, whole))
    assert getattr(one, losses[absent]) == 0 and getattr(one, losses[alone]) == getattr(both, losses[alone]) == one.total
    assert bool(one.per_codebook.any()) == (alone == "speech")


def test_inject_matches_the_obvious_loop():
    g = torch.Generator().manual_seed(5)
    for _ in range(50):
        text = torch.where(torch.rand(3, 24, generator=g) < 0.6, 16, 5)
        vectors, lens = torch.randn(3, 2, 4, 8, generator=g), torch.randint(0, 5, (3, 2), generator=g)
        x = torch.randn(3, 24, 8, generator=g)
        expected = x.clone()
        for b in range(3):
            run, offset = -1, 0
            for t in range(24):
                if text[b, t] != 16:
                    continue
                run, offset = (run, offset + 1) if t and text[b, t - 1] == 16 else (run + 1, 0)
                if run < 2 and offset < lens[b, run]:
                    expected[b, t] = vectors[b, run, offset]
        torch.testing.assert_close(inject(x, text, [16], vectors, lens), expected)


def test_many_codes_are_embedded_as_few():
    """Training looks codes up in a table of all of them; generation sends the few it has through the adapters."""
    embedding = tiny().talker.embed_tokens
    vocab = embedding.base.num_embeddings
    codes = torch.randint(0, vocab, (2, 8, vocab), generator=torch.Generator().manual_seed(6))
    few = torch.cat([embedding(codes[:, :, i:i + 50]) for i in range(0, vocab, 50)], dim=1)
    torch.testing.assert_close(embedding(codes), few)
    gradients = []
    for out in (embedding(codes), few):
        embedding.zero_grad()
        out.square().sum().backward()
        gradients.append([p.grad.clone() for p in embedding.parameters()])
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other)


def test_speaker_vector_counts_only_at_its_token():
    model = tiny()
    ids = torch.randint(0, 60, (1, 9, 6), generator=torch.Generator().manual_seed(6))
    a, b = torch.zeros(1, 192), torch.ones(1, 192)
    torch.testing.assert_close(model(ids, spk_emb=a).audio_logits, model(ids, spk_emb=b).audio_logits)
    ids[:, :8, 2] = model.config.audio_spk_token
    assert not torch.allclose(model(ids, spk_emb=a).audio_logits, model(ids, spk_emb=b).audio_logits)


def test_losses_without_labels_are_zero_and_keep_the_graph():
    model = tiny().train()
    out = model(torch.zeros(1, 9, 4, dtype=torch.long))
    losses = omni_loss(out, torch.full((1, 4), IGNORE), torch.full((1, 8, 4), IGNORE), model.config)
    losses.total.backward()
    assert losses.total == 0 and model.lm_head.weight.grad.abs().sum() == 0


def test_stop_tokens_weigh_ten():
    model = tiny()
    out = model(torch.zeros(1, 9, 2, dtype=torch.long))
    labels = torch.full((1, 8, 2), IGNORE)
    labels[..., 0] = 7
    plain = omni_loss(out, torch.full((1, 2), IGNORE), labels, model.config).audio
    labels[..., 0] = model.config.audio_stop_token
    stop = omni_loss(out, torch.full((1, 2), IGNORE), labels, model.config).audio
    logp = out.audio_logits[0, :, 0].log_softmax(-1)
    torch.testing.assert_close(plain, -logp[:, 7].mean())
    torch.testing.assert_close(stop, -10 * logp[:, model.config.audio_stop_token].mean())


def test_codebook_weights_say_how_much_each_codebook_counts():
    model = tiny()
    out = model(torch.zeros(1, 9, 3, dtype=torch.long))
    text, labels = torch.full((1, 3), IGNORE), torch.arange(24).view(1, 8, 3)
    plain = omni_loss(out, text, labels, model.config)
    alike = omni_loss(out, text, labels, model.config, weights=torch.full((8,), 0.5))
    torch.testing.assert_close(alike.audio, plain.audio)
    third = omni_loss(out, text, labels, model.config, weights=torch.eye(8)[2])
    torch.testing.assert_close(third.audio, plain.per_codebook[2])
    torch.testing.assert_close(third.per_codebook, plain.per_codebook)


def test_talker_starts_as_the_thinkers_last_layers():
    model = tiny(num_attention_heads=8, num_key_value_heads=4)
    init_talker_from_thinker(model)
    for talker, thinker in zip(model.talker.layers, model.model.layers[-2:]):
        for (name, a), b in zip(talker.named_parameters(), thinker.parameters()):
            assert torch.equal(a, b), name
    with pytest.raises(ValueError, match="cannot start from the Thinker"):
        init_talker_from_thinker(tiny(talker_hidden_size=32))


def test_config_refuses_unknown_fields_and_derives_sizes():
    with pytest.raises(ValueError, match="hiden_size"):
        OmniConfig.from_dict({"hiden_size": 3})
    for wrong in ({"num_attention_heads": 0}, {"hidden_size": "768"}, {"vocab_size": True}, {"eos_token_id": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*no whole number"):
            OmniConfig(**wrong)
    assert OmniConfig().intermediate_size == 2432 and OmniConfig().bridge_layer == 3
    assert OmniConfig.preset("nano", hidden_size=128).intermediate_size == OmniConfig(hidden_size=128).intermediate_size
    config = OmniConfig.preset("nano")
    assert OmniConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("half", [False, True])
def test_grouped_experts_equal_the_loop(top_k, half):
    """Outputs and gradients; two experts get no token, and an expert that is never chosen has a gradient of 0."""
    torch.manual_seed(0)
    moe = MoE(OmniConfig(hidden_size=64, use_moe=True, num_experts=6, num_experts_per_tok=top_k)).train()
    moe.gate.weight.data[4:] = -100 * moe.gate.weight.data[0]
    x = torch.randn(3, 7, 64).abs() * moe.gate.weight.data[0].sign()
    results = []
    for moe.grouped in (True, False):
        moe.zero_grad()
        own = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = moe(own)
        out.pow(2).sum().backward()
        empty = [e.down_proj.weight.grad for e in moe.experts[4:]]
        assert all(g is None or not g.any() for g in empty)
        results.append([out, own.grad, *(e.up_proj.weight.grad for e in moe.experts[:1]), moe.gate.weight.grad])
    for grouped, looped in zip(*results, strict=True):
        torch.testing.assert_close(grouped, looped, atol=2e-2 if half else 1e-5, rtol=2e-2 if half else 1e-4)


def test_padding_is_not_balanced():
    """The router's loss is that of the content alone, however far it is padded."""
    model = tiny(use_moe=True).train()
    ids = torch.randint(1, 60, (2, 9, 10), generator=torch.Generator().manual_seed(3))
    pads = torch.full((2, 9, 6), model.config.audio_pad_token)
    pads[:, -1] = model.config.pad_token_id
    torch.testing.assert_close(model(torch.cat([ids, pads], 2)).aux_loss, model(ids).aux_loss)
