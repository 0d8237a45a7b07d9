"""A complete pack with random weights that loads in a second: for tests of the command line and of whatever talks to a Chat."""
from pathlib import Path

import torch
from tiny_folders import make_tiny_campplus, make_tiny_mimi, make_tiny_sensevoice, make_tiny_siglip

from model.checkpoint import save_model
from model.config import OmniConfig, audio_ids_for
from model.model_omni import MiniMindOmni
from nano import tokenizer as nano_tokenizer

NUM_CODES = 64  # of the tiny codec
ENCODER_WIDTH = 64  # of the tiny SenseVoice and SigLIP2
TEXTS = ["What color is the sky? The sky is blue.", "什么是黑洞？天空是蓝色的。", "Où est le café? 😀"]


def make_tiny_pack(folder: Path, weight: str = "sft_omni") -> Path:
    """Write tokenizer, weights with sidecar, codec and two voices ("ann", "bob") to `folder`."""
    folder = Path(folder)
    tokenizer = nano_tokenizer.train(TEXTS, vocab_size=320)
    nano_tokenizer.save(tokenizer, folder)
    config = OmniConfig(vocab_size=320, hidden_size=64, num_hidden_layers=2, num_talker_hidden_layers=1, talker_hidden_size=64,
                        max_position_embeddings=400, think_end_ids=tokenizer.encode("</think>\n\n").ids,
                        audio_hidden_size=ENCODER_WIDTH, image_hidden_size=ENCODER_WIDTH, **audio_ids_for(NUM_CODES))
    torch.manual_seed(0)
    model = MiniMindOmni(config)
    with torch.no_grad():  # an untrained Talker would stop at once: half of its ids are specials
        for head in (model.talker.lm_head.base, *(adapter[-1] for adapter in model.talker.lm_head.adapters)):
            head.weight[:NUM_CODES] *= 50
            head.weight[NUM_CODES:] = 0
    save_model(model, folder / f"{weight}_{config.hidden_size}.pth")
    make_tiny_mimi(folder / "mimi", codebook_size=NUM_CODES)
    generator = torch.Generator().manual_seed(0)
    torch.save({name: {"ref_codes": torch.randint(0, NUM_CODES, (8, 5), generator=generator),
                       "spk_emb": torch.randn(192, generator=generator)} for name in ("ann", "bob")}, folder / "voices.pt")
    return folder


def add_tiny_encoders(folder: Path) -> Path:
    """Add tiny SenseVoice, SigLIP2 and CAM++ folders under the names of the real ones."""
    make_tiny_sensevoice(folder / "SenseVoiceSmall")
    make_tiny_siglip(folder / "siglip2-base-p32-256-ve", hidden_size=ENCODER_WIDTH)
    make_tiny_campplus(folder / "campplus")
    return folder
