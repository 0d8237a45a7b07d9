"""engine/network.py: the rearranged weights compute what the model computes, in any chunks, at any rows, in any precision."""
import pytest
import torch
from test_model import tiny

from engine.network import Network, Place
from engine.precision import FEW_ROWS, Matrix, MatrixBank, Precision, choose, one_row, quantize

CPU = torch.device("cpu")


def run(network, ids, speaker, splits, rows=(2, 0), lag=0):
    """Logits of every position of ids (B, 9, T) written to `rows` of a larger cache in chunks; the Talker `lag` chunks behind."""
    B, _, T = ids.shape
    cache, rows = network.new_cache(3, 40), torch.tensor(rows)
    for tensor in (*cache.k, *cache.v):
        tensor.uniform_(-1, 1)  # what other sessions left behind
    vectors = torch.stack([network.embed_speaker(s) for s in speaker])
    hidden, bridges, spoken, places, start = [], [], [], [], 0
    for n in splits:
        positions = torch.arange(start, start + n).expand(B, n)
        places.append((start, Place(cache, rows, rows, positions, torch.arange(start + n))))
        x, bridge = network.think(network.embed_text(ids[:, 8, start:start + n]), places[-1][1])
        hidden.append(x)
        bridges.append(bridge)
        start += n
        if len(bridges) > lag:
            spoken.append(talk(network, ids, bridges, places, vectors, len(spoken)))
    while len(spoken) < len(splits):
        spoken.append(talk(network, ids, bridges, places, vectors, len(spoken)))
    hidden, spoken = torch.cat(hidden, 1), torch.cat(spoken, 1)
    return network.text_logits(hidden.flatten(0, 1)).view(B, T, -1), network.code_logits(spoken.flatten(0, 1)).view(B, T, 8, -1)


def talk(network, ids, bridges, places, vectors, chunk):
    start, place = places[chunk]
    return network.talk(ids[:, :8, start:start + bridges[chunk].shape[1]], bridges[chunk], vectors,
                        torch.ones(len(vectors), dtype=torch.bool), place)


def example(moe=False, **fields):
    model = tiny(use_moe=moe, **fields)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 60, (2, 9, 20), generator=generator)
    ids[:, :8, 4] = model.config.audio_spk_token
    speaker = torch.randn(2, 192, generator=generator)
    with torch.no_grad():
        out = model(ids, spk_emb=speaker)
    return model, ids, speaker, out


@torch.inference_mode()
@pytest.mark.parametrize("moe", [False, True])
@pytest.mark.parametrize("splits, lag", [([20], 0), ([1] * 20, 0), ([7, 1, 1, 11], 2)])
def test_network_is_the_model(moe, splits, lag):
    model, ids, speaker, out = example(moe)
    text, codes = run(Network(model, choose("fp32", CPU), 40), ids, speaker, splits, lag=lag)
    torch.testing.assert_close(text, out.logits, atol=3e-5, rtol=0)
    torch.testing.assert_close(codes, out.audio_logits.permute(0, 2, 1, 3), atol=3e-5, rtol=0)


@torch.inference_mode()
def test_network_of_unequal_stacks():
    model, ids, speaker, out = example(talker_hidden_size=32, num_attention_heads=4, num_key_value_heads=1)
    text, codes = run(Network(model, choose("fp32", CPU), 40), ids, speaker, [13, 7])
    torch.testing.assert_close(text, out.logits, atol=3e-5, rtol=0)
    torch.testing.assert_close(codes, out.audio_logits.permute(0, 2, 1, 3), atol=3e-5, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("moe", [False, True])
@pytest.mark.parametrize("name, tolerance", [("bf16", 0.03), ("int8", 0.05), ("int8-fp32", 0.03)])
def test_precisions_stay_close(moe, name, tolerance):
    model, ids, speaker, out = example(moe)
    precision = Precision("int8", torch.float32, True) if name == "int8-fp32" else choose(name, CPU)
    text, codes = run(Network(model, precision, 40), ids, speaker, [12, 8])
    assert text.dtype == codes.dtype == torch.float32
    for got, exact in ((text, out.logits), (codes, out.audio_logits.permute(0, 2, 1, 3))):
        assert 0 < (got - exact).norm() < tolerance * exact.norm()


@torch.inference_mode()
@pytest.mark.parametrize("name, tolerance, width", [
    *((name, tolerance, width) for name, tolerance in (("fp32", 1e-5), ("bf16", 0.01), ("int8", 0.01)) for width in (48, 64)),
    ("fp32", 1e-5, 50)])  # 50 cannot be read in four streams
def test_compiled_products_with_one_row(monkeypatch, name, tolerance, width):
    calls = []
    torch._dynamo.reset()  # or the forms of all parameters together are more than it compiles of one function
    monkeypatch.setattr("engine.precision.one_row", lambda *given: calls.append(name) or one_row(*given))
    g = torch.Generator().manual_seed(0)
    weight, bias, x = torch.randn(2, 80, width, generator=g), torch.randn(80, generator=g), torch.randn(2, 3, width, generator=g)
    precision = choose(name, CPU, compiled=True)
    matrix, bank = Matrix(weight[0], precision, bias), MatrixBank(weight, precision)
    for product, one, many in ((matrix, x[:1, :1], x[:1]), (bank, x[:, :1], x)):
        traced = torch.compile(product, backend="aot_eager", fullgraph=True)
        for given in (one, many):
            torch.testing.assert_close(traced(given), product(given), atol=tolerance, rtol=tolerance)
    assert calls == [name] * 2, "written out for the compiler with one row only"
    assert not choose(name, CPU).plain_rows


def test_quantisation_error_is_at_most_half_a_step():
    weight = torch.randn(5, 3, 16, generator=torch.Generator().manual_seed(0))
    weight[0, 0] = 0
    whole, scale = quantize(weight)
    assert whole.dtype == torch.int8 and ((whole * scale[..., None] - weight).abs() <= scale[..., None] * 0.501).all()


@torch.inference_mode()
def test_int8_products_with_many_rows_are_those_with_few():
    g = torch.Generator().manual_seed(0)
    matrix, x = Matrix(torch.randn(80, 64, generator=g), choose("int8", CPU)), torch.randn(FEW_ROWS + 1, 64, generator=g)
    torch.testing.assert_close(matrix(x), torch.cat([matrix(x[:-1]), matrix(x[-1:])]), atol=0.05, rtol=0.02)


def test_int8_refuses_what_its_product_gets_wrong():
    with pytest.raises(ValueError, match="50 wide.*--dtype bf16"):
        Matrix(torch.ones(4, 50), choose("int8", CPU))


def test_unknown_precisions_are_refused():
    assert choose("auto", CPU).name in ("fp32", "bf16", "int8")
    for name in ("fp8", "fp16"):
        with pytest.raises(ValueError, match=name):
            choose(name, CPU)
