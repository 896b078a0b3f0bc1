#!/usr/bin/env python3
"""Writes noisy_topk.json: what the router of the reference model noisy_topk_moe sees and decides, with and without noise.

golden.safetensors holds the decisions but not the router's input, so the model is run here in float32 (the formulas of
Shazeer et al. 2017, eq. 3-7) and its decisions are checked against the golden before they are written.

    make_noisy_topk.py ../models/noisy_topk_moe noisy_topk.json
"""
import json
import sys
from pathlib import Path

import numpy as np


def read_safetensors(path):
    data = Path(path).read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + size])
    out = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = (8 + size + x for x in entry["data_offsets"])
        raw = data[begin:end]
        if entry["dtype"] == "BF16":
            array = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            array = np.frombuffer(raw, {"F32": np.float32, "I64": np.int64}[entry["dtype"]])
        out[name] = array.reshape(entry["shape"])
    return out


def rms(x, weight, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def silu(x):
    return x / (1 + np.exp(-x))


def attention(c, w, p, y):
    q_heads, kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
    dim, tokens = c["hidden_size"] // q_heads, len(y)
    split = lambda name: (y @ w[f"{p}self_attn.{name}_proj.weight"].T).reshape(tokens, -1, dim)
    q, k, v = split("q"), split("k"), split("v")
    angle = np.outer(np.arange(tokens), c["rope_theta"] ** (-np.arange(0, dim, 2) / dim))
    cos, sin = (np.concatenate((f(angle),) * 2, -1)[:, None] for f in (np.cos, np.sin))
    turn = lambda x: x * cos + np.concatenate((-x[..., dim // 2:], x[..., :dim // 2]), -1) * sin
    q, k = turn(q), np.repeat(turn(k), q_heads // kv_heads, 1)
    v = np.repeat(v, q_heads // kv_heads, 1)
    scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(dim) + np.triu(np.full((tokens, tokens), -np.inf), 1)
    return np.einsum("hts,shd->thd", softmax(scores), v).reshape(tokens, -1) @ w[p + "self_attn.o_proj.weight"].T


def run(c, w, ids, eps):
    """-> per MoE layer: logits, noise logits, experts, weights."""
    x, seen = w["model.embed_tokens.weight"][ids], {}
    for layer in range(c["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        x = x + attention(c, w, p, rms(x, w[p + "input_layernorm.weight"], c["rms_norm_eps"]))
        y = rms(x, w[p + "post_attention_layernorm.weight"], c["rms_norm_eps"])
        if p + "block_sparse_moe.gate.weight" not in w:
            z = (silu(y @ w[p + "mlp.gate_proj.weight"].T) * (y @ w[p + "mlp.up_proj.weight"].T)) @ w[p + "mlp.down_proj.weight"].T
            x = x + z
            continue
        logits, scale = (y @ w[f"{p}block_sparse_moe.{n}.weight"].T for n in ("gate", "noise"))
        h = logits + eps[layer] * np.log1p(np.exp(scale)) if eps else logits
        experts = np.argsort(-h, -1, kind="stable")[:, :c["num_experts_per_tok"]]
        weights = softmax(np.take_along_axis(h, experts, -1))
        seen[layer] = dict(logits=logits, noise_logits=scale, experts=experts, weights=weights)
        z = np.zeros_like(y)
        for t in range(len(ids)):
            for e, g in zip(experts[t], weights[t]):
                q = f"{p}block_sparse_moe.experts.{e}."
                z[t] += g * ((silu(y[t] @ w[q + "w1.weight"].T) * (y[t] @ w[q + "w3.weight"].T)) @ w[q + "w2.weight"].T)
        x = x + z
    return seen


def main(model_dir, out):
    model_dir = Path(model_dir)
    c = json.loads((model_dir / "config.json").read_text())
    w, golden = read_safetensors(model_dir / "model.safetensors"), read_safetensors(model_dir / "golden.safetensors")
    flat = lambda a: [round(float(x), 7) for x in np.ravel(a)]
    cases = []
    for prompt in range(3):
        ids = golden[f"prompt{prompt}.input_ids"]
        for noisy in (False, True):
            prefix = f"prompt{prompt}." + ("noisy." if noisy else "")
            eps = {l: golden[f"{prefix}router_eps.{l}"] for l in (1, 3)} if noisy else None
            for layer, s in run(c, w, ids, eps).items():
                assert (s["experts"] == golden[f"{prefix}router.{layer}.experts"]).all()
                assert np.allclose(s["weights"], golden[f"{prefix}router.{layer}.weights"], atol=1e-5)
                cases.append(dict(
                    prompt=prompt, layer=layer, noisy=noisy, tokens=len(ids), num_experts=c["num_local_experts"],
                    experts_per_token=c["num_experts_per_tok"], logits=flat(s["logits"]),
                    noise_logits=flat(s["noise_logits"]) if noisy else [], eps=flat(eps[layer]) if noisy else [],
                    experts=np.ravel(golden[f"{prefix}router.{layer}.experts"]).tolist(),
                    weights=flat(golden[f"{prefix}router.{layer}.weights"]),
                    importance=flat(golden[f"{prefix}importance.{layer}"]),
                    load=np.ravel(golden[f"{prefix}load.{layer}"]).tolist(),
                    importance_cv2=float(golden[f"{prefix}importance_cv2.{layer}"])))
    Path(out).write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
