"""model/packed.py: packed weights compute what plain ones do, eager and traced; what gains nothing stays plain."""
import gc

import pytest
import torch
import torch.nn.functional as F

from model import packed
from model.packed import Packed, linear, pack

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch without oneDNN")


def example(dtype, *shape):
    g = torch.Generator().manual_seed(0)
    return torch.randn(*shape, 48, generator=g).to(dtype), torch.randn(80, 48, generator=g).to(dtype), torch.randn(80, generator=g).to(dtype)


@needs_onednn
@torch.inference_mode()
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("shape", [(1,), (2, 1), (3, 50)])
def test_packed_products_are_the_plain_ones(monkeypatch, dtype, tolerance, shape):
    monkeypatch.setattr(packed, "WORTH", {dtype: 0})
    x, weight, bias = example(dtype, *shape)
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("no bfloat16 products on this CPU")
    kept = pack(weight)
    assert isinstance(kept, Packed) and kept.shape == weight.shape and kept.num_bytes == weight.nbytes
    torch.testing.assert_close(linear(x, kept, bias), F.linear(x, weight, bias), atol=tolerance, rtol=0.01)
    windows = x.flatten().unfold(0, 48, 7)  # rows that overlap in memory, as the codec's convolutions have them
    torch.testing.assert_close(linear(windows, kept), F.linear(windows, weight), atol=tolerance, rtol=0.01)


@needs_onednn
def test_traced_code_finds_the_packed_weight(monkeypatch):
    monkeypatch.setattr(packed, "WORTH", {torch.float32: 0})
    x, weight, bias = example(torch.float32, 3)
    kept = pack(weight)
    traced = torch.compile(lambda x: linear(x, kept, bias).relu(), backend="aot_eager", fullgraph=True)
    with torch.inference_mode():
        torch.testing.assert_close(traced(x), F.linear(x, weight, bias).relu(), atol=1e-5, rtol=0)
    number = kept.number
    del kept, traced
    torch._dynamo.reset()
    gc.collect()
    assert number not in packed._packed, "weights of an engine that is gone must not stay in memory"


def test_small_products_and_other_formats_stay_plain():
    weight = torch.zeros(80, 48)
    assert pack(weight) is weight and pack(weight.half(), 2**20).dtype == torch.float16
    if torch.backends.mkldnn.is_available():
        assert isinstance(pack(weight, 2**10), Packed)
