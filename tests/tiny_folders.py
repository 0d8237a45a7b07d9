"""Tiny random folders in the released formats of the frozen modules, for tests of any part of the project."""
import torch

NANO_MIMI = dict(hidden_size=128, num_filters=16, codebook_size=512, codebook_dim=96, vector_quantization_hidden_dimension=96,
                 intermediate_size=256, upsample_groups=128, sliding_window=250)
FULL_MIMI = dict(hidden_size=512, num_filters=64, codebook_size=2048, codebook_dim=256, vector_quantization_hidden_dimension=256,
                 num_quantizers=32, num_hidden_layers=8, intermediate_size=2048, num_attention_heads=8, num_key_value_heads=8,
                 upsample_groups=512, sliding_window=250)


def make_tiny_mimi(path, seed: int = 0, **overrides):
    """A MimiModel folder of about 0.15 M parameters, window 10; returns the in-memory MimiModel (eval).

    Codebooks and layer scales are filled: transformers initialises them to zero and 0.01, which hides every mistake.
    """
    from transformers import MimiConfig, MimiModel

    fields = dict(hidden_size=32, num_filters=4, codebook_size=64, codebook_dim=16, vector_quantization_hidden_dimension=16,
                  num_quantizers=8, num_hidden_layers=2, intermediate_size=64, num_attention_heads=4, num_key_value_heads=4,
                  upsample_groups=32, sliding_window=10)
    model = MimiModel(MimiConfig(**{**fields, **overrides})).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("scale"):
                parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
            else:  # variance-preserving, so that streams stay of order 1 whatever the size
                fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in ** 0.5)
                if name.endswith("norm.weight"):
                    parameter.add_(1.0)
        for module in model.modules():
            if hasattr(module, "embed_sum"):
                module.embed_sum.copy_(torch.randn(module.embed_sum.shape, generator=generator))
                module._embed = None
    if path is not None:
        model.save_pretrained(path)
    return model
