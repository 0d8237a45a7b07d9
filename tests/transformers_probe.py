"""Run by tests in an interpreter that need not have this project: load a converted folder as its users do and print what it gives.

    python transformers_probe.py FOLDER NUMBERS.npz    # one line of JSON

NUMBERS holds inputs and the native model's outputs; the JSON has the greatest differences, and the text generate() wrote.
"""
import json
import sys

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer


def main(folder: str, numbers: str) -> dict:
    data = {key: torch.from_numpy(value) for key, value in np.load(numbers).items()}
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    model, info = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32, output_loading_info=True)
    out = {"version": transformers.__version__, "model_type": config.model_type, "training": model.training,
           "problems": [str(info[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[key]],
           "tied": model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr(),
           "parameters": sum(p.numel() for p in model.parameters())}
    inputs = {key: data[key] for key in ("spk_emb", "audio_features", "audio_lens", "image_features")}
    with torch.no_grad():
        speech = model(data["input_ids"], **inputs)
        text = model(data["input_ids"][:, 8], attention_mask=torch.ones_like(data["input_ids"][:, 8]), **inputs)
        out["text_difference"] = float((speech.logits - data["logits"]).abs().max())
        out["audio_difference"] = float((speech.audio_logits - data["audio_logits"]).abs().max())
        out["text_only_difference"] = float((text.logits - data["logits"]).abs().max())
        steps = transformers.DynamicCache()
        cached = [model(data["input_ids"][:, :, i:i + 1], spk_emb=data["spk_emb"], past_key_values=steps) for i in range(4)]
        whole = model(data["input_ids"][:, :, :4], spk_emb=data["spk_emb"])
        out["cached_difference"] = float((torch.cat([o.audio_logits for o in cached], 2) - whole.audio_logits).abs().max())
    rope = {stack: getattr(model, stack).rope for stack in ("model", "talker")}
    out["rope_difference"] = max(float((rope[s].cos - data[f"{s}_cos"]).abs().max()) for s in rope)
    out["buffers"] = [name for name, _ in model.named_buffers()]
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)  # else it asks: it reads the config
    prompts = [tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
               for text in ("Hi", "What is the colour of the sky at noon?")]
    out["prompt"] = prompts[0]
    limits = dict(max_new_tokens=8, min_new_tokens=8, do_sample=False)
    alone = [model.generate(**tokenizer(prompt, return_tensors="pt"), **limits)[0, -8:].tolist() for prompt in prompts]
    padded = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    out["generated"], out["generated_batch"] = alone, model.generate(**padded, **limits)[:, -8:].tolist()
    out["generated_uncached"] = model.generate(**tokenizer(prompts[0], return_tensors="pt"), **limits, use_cache=False)[0, -8:].tolist()
    return out


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
