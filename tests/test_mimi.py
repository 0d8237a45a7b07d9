"""model/mimi.py against transformers' whole-clip codec, and streams against whole clips: every chunking, frozen and reset rows."""
import pytest
import torch
from tiny_folders import FULL_MIMI, NANO_MIMI, make_tiny_mimi

from model.config import FRAME_SAMPLES
from model.mimi import Mimi

CHUNKINGS = {"1": [1], "2": [2], "3": [3], "7": [7], "mixed": [1, 5, 2, 11, 3], "all": [10_000]}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(folder, transformers' model, our codec): window 10 positions, so 5 frames leave it."""
    folder = tmp_path_factory.mktemp("mimi")
    reference = make_tiny_mimi(folder)
    return folder, reference, Mimi.load(folder)


def random_codes(codec: Mimi, batch: int, frames: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, codec.num_codes, (batch, 8, frames), generator=torch.Generator().manual_seed(seed))


def random_wav(batch: int, samples: int, seed: int = 0) -> torch.Tensor:
    """Loud noise: random weights tell little else apart."""
    return 5 * torch.randn(batch, samples, generator=torch.Generator().manual_seed(seed))


def stream(step, whole: torch.Tensor, sizes: list[int], unit: int = 1) -> torch.Tensor:
    """Feed `whole` along its last axis in pieces of `sizes` frames, over and over."""
    pieces, start, turn = [], 0, 0
    while start < whole.shape[-1]:
        width = sizes[turn % len(sizes)] * unit
        pieces.append(step(whole[..., start:start + width]))
        start, turn = start + width, turn + 1
    return torch.cat(pieces, dim=-1)


def snapshot(state) -> list[torch.Tensor]:
    return [t.clone() for t in [*state.inputs, state.keys, state.values, state.position]]


def row_of(tensors, row: int) -> list[torch.Tensor]:
    """One row of a snapshot; only the rings have the layers in front of the rows."""
    return [t[:, row] if t.ndim == 5 else t[row] for t in tensors]


# ---- whole clips are transformers' own

@torch.no_grad()
def test_decode_equals_transformers(tiny):
    _, reference, codec = tiny
    codes = random_codes(codec, 3, 40)
    expected = reference.decode(codes).audio_values[:, 0]
    assert expected.std() > 0.05, "a silent reference would prove nothing"
    assert torch.allclose(codec.decode(codes), expected, atol=1e-5)
    assert torch.equal(codec.decode(codes[0].short())[0], codec.decode(codes[:1])[0])
    assert codec.decode(codes[..., :0]).shape == (3, 0), "a reply without speech"


@torch.no_grad()
@pytest.mark.parametrize("samples", [1, 1919, 1920, 50_001, 40 * FRAME_SAMPLES])
def test_encode_equals_transformers(tiny, samples):
    _, reference, codec = tiny
    wav = random_wav(2, samples)
    codes = codec.encode(wav)
    assert codes.shape == (2, 8, -(-samples // FRAME_SAMPLES))
    assert torch.equal(codes, reference.encode(wav[:, None]).audio_codes)
    assert torch.equal(codec.encode(wav[0]), codes[:1])
    if samples > 50_000:
        assert all(len(codes[:, k].unique()) > 8 for k in range(8))


@torch.no_grad()
@pytest.mark.parametrize("variant", [
    dict(num_quantizers=9, num_semantic_quantizers=8), dict(num_quantizers=12, num_semantic_quantizers=3),
    dict(upsample_groups=4), dict(num_key_value_heads=2), dict(num_residual_layers=2), dict(max_position_embeddings=8),
    dict(vector_quantization_hidden_dimension=32, codebook_dim=32),
])
def test_variants_equal_transformers(variant):
    reference = make_tiny_mimi(None, **variant)
    codec = Mimi(reference)
    codes, wav = random_codes(codec, 1, 12), random_wav(1, 12 * FRAME_SAMPLES)
    assert torch.allclose(codec.decode(codes), reference.decode(codes).audio_values[:, 0], atol=1e-5)
    assert torch.equal(codec.encode(wav), reference.encode(wav[:, None], num_quantizers=8).audio_codes)
    assert torch.allclose(stream(lambda c, s=codec.init_state(1): codec.decode_step(c, s), codes, [1]), codec.decode(codes), atol=1e-5)


# ---- streams are whole clips

@pytest.mark.parametrize("chunks", CHUNKINGS.values(), ids=CHUNKINGS.keys())
def test_streams_equal_whole_clips(tiny, chunks):
    codec = tiny[2]
    codes, state = random_codes(codec, 2, 61), codec.init_state(2)
    wav = codec.decode(codes)
    assert torch.allclose(stream(lambda c: codec.decode_step(c, state), codes, chunks), wav, atol=1e-5)
    assert state.position.tolist() == [122, 122]
    wav, state = random_wav(2, 61 * FRAME_SAMPLES), codec.init_encode_state(2)
    assert torch.equal(stream(lambda w: codec.encode_step(w, state), wav, chunks, FRAME_SAMPLES), codec.encode(wav))


@torch.no_grad()
def test_the_past_matters_beyond_the_convolutions(tiny):
    """Guards the tests above: without keys and values the stream must differ from the clip."""
    codec = tiny[2]
    codes, state = random_codes(codec, 1, 8), codec.init_state(1)
    codec.decode_step(codes[..., :6], state)
    state.keys.zero_()
    state.values.zero_()
    assert (codec.decode_step(codes[..., 6:], state) - codec.decode(codes)[:, 6 * FRAME_SAMPLES:]).abs().max() > 1e-3


def check_desynchronised_rows(codec: Mimi, rows: int = 3, steps: int = 40, tolerance: float = 1e-5):
    """Rows join, pause and restart at random; each must sound as if it were alone, each frozen row must not change."""
    generator = torch.Generator().manual_seed(1)
    state = codec.init_state(rows)
    heard = [[] for _ in range(rows)]  # per row: codes of its current life
    spoken = [[] for _ in range(rows)]
    lives = []
    for step in range(steps):
        active = torch.rand(rows, generator=generator) < 0.7
        codes = random_codes(codec, rows, 1 + step % 3, seed=step)
        codes[~active] = 10_000  # a frozen row may hold anything, even ids that are no codes
        before = snapshot(state)
        wav = codec.decode_step(codes, state, active)
        after = snapshot(state)
        for row in range(rows):
            if active[row]:
                heard[row].append(codes[row])
                spoken[row].append(wav[row])
                continue
            assert not wav[row].any()
            assert all(map(torch.equal, row_of(before, row), row_of(after, row)))
        if step % 7 == 6:
            row = step % rows
            others = [row_of(after, other) for other in range(rows) if other != row]
            lives.append((heard[row], spoken[row]))
            heard[row], spoken[row] = [], []
            state.reset([row])
            kept = [row_of(snapshot(state), other) for other in range(rows) if other != row]
            assert all(torch.equal(a, b) for was, now in zip(others, kept) for a, b in zip(was, now))
    lives += zip(heard, spoken)
    assert max(sum(c.shape[1] for c in codes) for codes, _ in lives) > 20
    for codes, wav in lives:
        if codes:
            assert torch.allclose(codec.decode(torch.cat(codes, dim=1))[0], torch.cat(wav), atol=tolerance)


def test_rows_freeze_and_restart_alone(tiny):
    check_desynchronised_rows(tiny[2])


def test_encoding_rows_freeze_and_restart_alone(tiny):
    codec = tiny[2]
    wav, state = random_wav(2, 24 * FRAME_SAMPLES), codec.init_encode_state(2)
    seen = [[], []]
    cursor = [0, 0]
    for step in range(30):
        active = torch.tensor([step % 3 != 1, step % 4 != 2])
        piece = torch.full((2, FRAME_SAMPLES), float("nan"))  # a frozen row may hold anything
        for row in torch.nonzero(active)[:, 0].tolist():
            at = cursor[row] % 24 * FRAME_SAMPLES
            piece[row] = wav[row, at:at + FRAME_SAMPLES]
            cursor[row] += 1
        codes = codec.encode_step(piece, state, active)
        for row in range(2):
            if active[row]:
                seen[row].append(codes[row])
            else:
                assert not codes[row].any()
            if active[row] and cursor[row] == 12:
                state.reset(torch.tensor([row == 0, row == 1]))
    for row in range(2):
        frames = torch.cat(seen[row], dim=1)
        first = codec.encode(wav[row, :12 * FRAME_SAMPLES])[0]
        second = codec.encode(wav[row, 12 * FRAME_SAMPLES:min(cursor[row], 24) * FRAME_SAMPLES])[0]
        assert torch.equal(frames[:, :12], first) and torch.equal(frames[:, 12:24][:, :second.shape[1]], second)


def test_reset_forgets_everything_even_nan(tiny):
    codec = tiny[2]
    codes, state = random_codes(codec, 2, 9), codec.init_state(2)
    fresh = snapshot(state)
    codec.decode_step(codes, state)
    for tensor in (*state.inputs, state.keys, state.values):
        tensor.fill_(float("nan"))
    state.reset()
    assert all(map(torch.equal, fresh, snapshot(state)))
    assert torch.allclose(codec.decode_step(codes, state), codec.decode(codes), atol=1e-5)


def test_rows_do_not_depend_on_their_neighbours_and_runs_repeat(tiny):
    codec = tiny[2]
    codes = random_codes(codec, 4, 10)
    wav = codec.decode(codes)
    assert torch.equal(wav, codec.decode(codes))
    assert all(torch.allclose(codec.decode(codes[i:i + 1])[0], wav[i], atol=1e-5) for i in range(4))


def test_a_step_of_the_first_rows_leaves_the_others_and_a_row_can_move(tiny):
    codec = tiny[2]
    codes = random_codes(codec, 3, 14)
    whole, state = codec.decode(codes), codec.init_state(3)
    pieces = [codec.decode_step(codes[..., :6], state)]
    before = snapshot(state)
    part = codec.decode_step(codes[:1, :, 6:8], state.first(1))
    assert all(map(torch.equal, row_of(before, 2), row_of(snapshot(state), 2)))
    assert torch.allclose(part[0], whole[0, 6 * FRAME_SAMPLES:8 * FRAME_SAMPLES], atol=1e-5)
    state.move_row(2, 1)  # stream 2 goes on in row 1, past its window
    moved = codec.decode_step(codes[[0, 2]][..., 6:], state.first(2), torch.tensor([False, True]))
    assert torch.allclose(torch.cat([pieces[0][2], moved[1]]), whole[2], atol=1e-5)


# ---- loading

def test_loading_names_what_is_missing(tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.*modelscope download --model gongjy/mimi --local_dir"):
        Mimi.load(tmp_path / "nowhere")
    from safetensors.torch import load_file, save_file
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tiny[0] / name).read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    headless = {k: v for k, v in weights.items() if not k.startswith(("encoder.", "encoder_transformer.", "downsample."))}
    assert len(headless) < len(weights)
    save_file(headless, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="incomplete"):
        Mimi.load(tmp_path)
    codec, codes = Mimi.load(tmp_path, encoder=False), random_codes(tiny[2], 1, 6)
    assert torch.equal(codec.decode(codes), tiny[2].decode(codes))
    del headless["upsample.conv.weight"]
    save_file(headless, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="upsample"):
        Mimi.load(tmp_path, encoder=False)


def test_unsupported_variants_and_codes_are_refused(tiny):
    with pytest.raises(ValueError, match="use_causal_conv"):
        Mimi(make_tiny_mimi(None, use_causal_conv=False))
    codec = tiny[2]
    with pytest.raises(ValueError, match="0..63, got 0..64"):
        codec.decode(torch.tensor([0, 64]).repeat(8, 1))
    with pytest.raises(ValueError, match="shape"):
        codec.decode(torch.zeros(1, 7, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="S > 0"):
        codec.encode(torch.zeros(0))


def test_half_precision_stays_close(tiny):
    codec, half = tiny[2], Mimi.load(tiny[0], dtype=torch.bfloat16)
    codes = random_codes(codec, 1, 12)
    whole = codec.decode(codes)
    assert half.decode(codes).dtype == torch.bfloat16
    assert (half.decode(codes).float() - whole).norm() < 0.05 * whole.norm()


# ---- real sizes

@torch.no_grad()
def test_nano_size_stream_past_its_window():
    reference = make_tiny_mimi(None, **NANO_MIMI)
    codec = Mimi(reference)
    codes, state = random_codes(codec, 1, 140), codec.init_state(1)  # 280 positions, window 250
    wav = stream(lambda c: codec.decode_step(c, state), codes, [1, 2, 3, 7])
    assert (wav - reference.decode(codes).audio_values[:, 0]).abs().max() < 1e-4
    check_desynchronised_rows(codec, rows=2, steps=30, tolerance=1e-4)
    wav, state = random_wav(1, 140 * FRAME_SAMPLES), codec.init_encode_state(1)
    codes = stream(lambda w: codec.encode_step(w, state), wav, [1, 2, 3, 7], FRAME_SAMPLES)
    assert (codes == codec.encode(wav)).float().mean() > 0.995  # a tie between two entries may fall either way


@pytest.mark.slow
@pytest.mark.timeout(600)
@torch.no_grad()
def test_full_size_stream_past_its_window():
    reference = make_tiny_mimi(None, **FULL_MIMI)
    codec = Mimi(reference)
    codes = random_codes(codec, 1, 140)
    expected = reference.decode(codes[:, :8]).audio_values[:, 0]
    for chunks in CHUNKINGS.values():
        state = codec.init_state(1)
        assert (stream(lambda c: codec.decode_step(c, state), codes, chunks) - expected).abs().max() < 1e-4
    state = codec.init_encode_state(1)
    wav = random_wav(1, 140 * FRAME_SAMPLES)
    codes = stream(lambda w: codec.encode_step(w, state), wav, [1, 2, 3, 7], FRAME_SAMPLES)
    whole = reference.encode(wav[:, None], num_quantizers=8).audio_codes
    assert (codes == whole).float().mean() > 0.995  # a tie between two entries may fall either way
    check_desynchronised_rows(codec, rows=2, steps=30, tolerance=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_decode_step_as_a_cuda_graph():
    """No host synchronisation, state in place: one captured step replays into the same samples as the CPU's."""
    reference = make_tiny_mimi(None, **NANO_MIMI)
    host, codec = Mimi(reference), Mimi(reference, device="cuda")
    codes = random_codes(host, 2, 20)
    state, static = codec.init_state(2), codes[..., :1].cuda()
    active = torch.ones(2, dtype=torch.bool, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # warm up off the main stream, as capture demands
        codec.decode_step(static, state, active)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        wav = codec.decode_step(static, state, active)
    state.reset()
    pieces = []
    for frame in range(20):
        static.copy_(codes[..., frame:frame + 1])
        graph.replay()
        pieces.append(wav.cpu())
    assert torch.allclose(torch.cat(pieces, dim=1), host.decode(codes), atol=1e-3)
