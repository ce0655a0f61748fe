#!/usr/bin/env python3
"""Writes a Hugging Face LlamaForCausalLM checkpoint (BF16 safetensors) as a GGUF file for llama.cpp.

    to_gguf.py MODEL_DIR FILE.gguf

The weights keep their type, norms become F32 as llama.cpp wants them. The file has no vocabulary:
the benchmark feeds token ids. Only what the benchmark's model has is supported; anything else is
refused by name.
"""

import json
import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def tensors(folder):
    """Every tensor of every safetensors file: name and BF16 bits, mapped, not copied."""
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        sys.exit(f"{folder}: no *.safetensors file")
    for file in files:
        with open(file, "rb") as handle:
            size = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(size))
        data = np.memmap(file, np.uint8, "r", 8 + size)
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if entry["dtype"] != "BF16":
                sys.exit(f"{file}: {name} is {entry['dtype']}, not BF16")
            start, end = entry["data_offsets"]
            yield name, data[start:end].view(np.uint16).reshape(entry["shape"])


def gguf_name(name):
    """llama.cpp's name of a weight."""
    stem = name.removesuffix(".weight")
    if stem in TOP:
        return f"{TOP[stem]}.weight"
    if stem.startswith("model.layers."):
        _, _, layer, part = stem.split(".", 3)
        if part in BLOCK:
            return f"blk.{layer}.{BLOCK[part]}.weight"
    sys.exit(f"no place in GGUF for {name}")


def interleaved(weight, heads):
    """Rows in llama.cpp's rotary order: it pairs neighbours where Hugging Face pairs halves."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows, columns)


def main():
    folder, target = sys.argv[1:]
    config = json.loads((Path(folder) / "config.json").read_text())
    if config["architectures"] != ["LlamaForCausalLM"] or config.get("rope_scaling"):
        sys.exit(f"{folder}/config.json: only a LlamaForCausalLM without rope_scaling")
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    head_dim = config.get("head_dim") or config["hidden_size"] // heads

    out = GGUFWriter(target, "llama")
    out.add_context_length(config["max_position_embeddings"])
    out.add_embedding_length(config["hidden_size"])
    out.add_block_count(config["num_hidden_layers"])
    out.add_feed_forward_length(config["intermediate_size"])
    out.add_head_count(heads)
    out.add_head_count_kv(kv_heads)
    out.add_key_length(head_dim)
    out.add_value_length(head_dim)
    out.add_rope_dimension_count(head_dim)
    rope = config.get("rope_parameters") or config
    out.add_rope_freq_base(rope.get("rope_theta", 10000.0))
    out.add_layer_norm_rms_eps(config["rms_norm_eps"])
    out.add_vocab_size(config["vocab_size"])
    out.add_tokenizer_model("no_vocab")
    for name, bits in tensors(folder):
        place = gguf_name(name)
        if bits.ndim == 1:
            norm = (bits.astype(np.uint32) << 16).view(np.float32)
            out.add_tensor(place, norm)
            continue
        if ".q_proj." in name:
            bits = interleaved(bits, heads)
        elif ".k_proj." in name:
            bits = interleaved(bits, kv_heads)
        raw = np.ascontiguousarray(bits).view(np.uint8)
        out.add_tensor(place, raw, raw_dtype=GGMLQuantizationType.BF16)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


if __name__ == "__main__":
    main()
