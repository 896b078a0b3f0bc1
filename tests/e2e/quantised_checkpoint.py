"""Makes quantised checkpoints of a reference one, and the plain ones that they stand for: as AutoAWQ, AutoGPTQ with act-order and
compressed-tensors write them, four bits in groups of 32."""
import json
import random
import shutil
import struct

from harness import read_raw_safetensors, write_safetensors

GROUP = 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
CONFIGS = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True, "modules_to_not_convert": ["gate"]},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True, "sym": False, "lm_head": False, "checkpoint_format": "gptq"},
    "compressed-tensors": {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed", "ignore": ["lm_head", "re:.*gate$"],
        "config_groups": {"group_0": {"targets": ["Linear"], "input_activations": None, "output_activations": None, "weights": {
            "num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP, "symmetric": False, "actorder": None, "dynamic": False}}}},
}


def _bf16(x):
    bits = struct.unpack("<I", struct.pack("<f", x))[0]
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16


def _words(lines):
    """[[code]], eight codes a word -> bytes of int32, row-major"""
    return b"".join(struct.pack("<I", sum(code << 4 * i for i, code in enumerate(line[at:at + 8]))) for line in lines for at in range(0, len(line), 8))


def _transposed(matrix):
    return [list(column) for column in zip(*matrix)]


def _quantise(rows, group_of):
    """-> codes [N][K], scales [N][G] that fp16 has, zero points [N][G] from 1 to 15"""
    groups = max(group_of) + 1
    codes, scales, zeros = [], [], []
    for row in rows:
        parts = [[x for x, g in zip(row, group_of) if g == group] for group in range(groups)]
        spans = [(min(0, *part), max(0, *part)) for part in parts]
        row_scales = [struct.unpack("<e", struct.pack("<e", max((high - low) / 15, 1e-4)))[0] for low, high in spans]
        row_zeros = [min(15, max(1, round(-low / scale))) for (low, _), scale in zip(spans, row_scales)]
        codes.append([min(15, max(0, round(x / row_scales[g]) + row_zeros[g])) for x, g in zip(row, group_of)])
        scales.append(row_scales)
        zeros.append(row_zeros)
    return codes, scales, zeros


def _stored(method, module, codes, scales, zeros, group_of):
    n, k, groups = len(codes), len(group_of), len(scales[0])
    by_group = b"".join(struct.pack("<e", scales[row][g]) for g in range(groups) for row in range(n))
    if method == "gptq":
        return {f"{module}.qweight": ("I32", [k // 8, n], _words_along_k(codes)), f"{module}.scales": ("F16", [groups, n], by_group),
                f"{module}.qzeros": ("I32", [groups, n // 8], _words([[zero - 1 for zero in line] for line in _transposed(zeros)])),
                f"{module}.g_idx": ("I32", [k], struct.pack(f"<{k}i", *group_of))}
    if method == "awq":
        def across(matrix):  # [N][columns] -> columns of words along the rows
            return _words([[line[at + place] for at in range(0, n, 8) for place in AWQ_ORDER] for line in _transposed(matrix)])
        return {f"{module}.qweight": ("I32", [k, n // 8], across(codes)), f"{module}.qzeros": ("I32", [groups, n // 8], across(zeros)),
                f"{module}.scales": ("F16", [groups, n], by_group)}
    points = [_words([column]) for column in _transposed(zeros)]
    return {f"{module}.weight_packed": ("I32", [n, k // 8], _words(codes)),
            f"{module}.weight_scale": ("F16", [n, groups], b"".join(struct.pack(f"<{groups}e", *line) for line in scales)),
            f"{module}.weight_zero_point": ("I32", [n // 8, groups], b"".join(p[4 * word:4 * word + 4] for word in range(n // 8) for p in points)),
            f"{module}.weight_shape": ("I64", [2], struct.pack("<2q", n, k))}


def _words_along_k(codes):
    columns = [_words([row]) for row in codes]
    return b"".join(column[4 * word:4 * word + 4] for word in range(len(codes[0]) // 8) for column in columns)


def make_quantised(source, method, quantised, numbers):
    """source: a directory with one file of weights; makes the directories `quantised` and `numbers`"""
    chance = random.Random(5)
    tensors = {quantised: {}, numbers: {}}
    for name, (dtype, shape, raw) in read_raw_safetensors(source / "model.safetensors").items():
        tensors[quantised][name] = tensors[numbers][name] = (dtype, shape, raw)
        if "_proj.weight" not in name or method == "awq" and "gate" in name:  # AutoAWQ takes the pattern for any part of a name
            continue
        module, (n, k) = name.removesuffix(".weight"), shape
        values = [struct.unpack("<f", struct.pack("<I", bits << 16))[0] for bits in struct.unpack(f"<{n * k}H", raw)]
        group_of = [e // GROUP for e in range(k)]
        if method == "gptq":
            chance.shuffle(group_of)
        codes, scales, zeros = _quantise([values[at:at + k] for at in range(0, n * k, k)], group_of)
        widened = [_bf16((code - zeros[row][g]) * scales[row][g]) for row in range(n) for code, g in zip(codes[row], group_of)]
        tensors[numbers][name] = ("BF16", shape, struct.pack(f"<{n * k}H", *widened))
        del tensors[quantised][name]
        tensors[quantised].update(_stored(method, module, codes, scales, zeros, group_of))
    for path, content in tensors.items():
        shutil.copytree(source, path, ignore=shutil.ignore_patterns("golden*"))
        write_safetensors(path / "model.safetensors", content)
    config = json.loads((source / "config.json").read_text())
    (quantised / "config.json").write_text(json.dumps({**config, "quantization_config": CONFIGS[method]}))
