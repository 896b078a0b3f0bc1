"""make_quantised_goldens.py AUTOAWQ AUTOGPTQ OUT: weights packed by the tools that define the formats, and what these make of them again.
AUTOAWQ, AUTOGPTQ: the unpacked source of autoawq 0.2.9 and auto-gptq 0.7.1, of which single files are run (the packages want a GPU);
torch 2.7.1 and compressed-tensors 0.12.2 have to be installed."""
import importlib.util, pathlib, re, sys, types
import torch
from safetensors.torch import save_file
from compressed_tensors.compressors.quantized_compressors.naive_quantized import FloatQuantizationCompressor, IntQuantizationCompressor
from compressed_tensors.compressors.quantized_compressors.pack_quantized import PackedQuantizationCompressor, unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize

awq_source, gptq_source, out = map(pathlib.Path, sys.argv[1:])
g = torch.Generator().manual_seed(20)
tensors = {}


def module_of(path, text=None):
    module = types.ModuleType(path.stem)
    exec(compile(text or path.read_text(), str(path), "exec"), module.__dict__)
    return module


def keep(case, stored, dequantised):
    for name, tensor in stored.items():
        tensors[f"{case}.{name}"] = tensor.contiguous().clone()
    tensors[f"{case}.dequantised"] = dequantised.float().contiguous().clone()


def group_parameters(w, bits, group, g_idx=None):
    """asymmetric scales and zero points of W's groups: [N,G] each"""
    n, k = w.shape
    g_idx = torch.arange(k) // group if g_idx is None else g_idx
    scales, zeros = [], []
    for i in range(int(g_idx.max()) + 1):
        part = w[:, g_idx == i]
        low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
        scale = ((high - low) * 1.05 / (2 ** bits - 1)).half().float()  # no code leaves its bits
        scales.append(scale)
        zeros.append((-low / scale).round().clamp(0, 2 ** bits - 1))
    return torch.stack(scales, 1), torch.stack(zeros, 1)


def linear(n, k):
    layer = torch.nn.Linear(k, n, bias=False)
    layer.weight.data = torch.randn(n, k, generator=g)
    return layer


gptq = module_of(gptq_source / "auto_gptq/nn_modules/qlinear/qlinear_cuda.py")
for case, bits, n, k, group, act_order in (("gptq4", 4, 32, 64, 32, True), ("gptq8", 8, 32, 32, 32, False), ("gptq4_row", 4, 32, 64, -1, False)):
    layer = linear(n, k)
    width = k if group == -1 else group
    g_idx = torch.arange(k) // width
    if act_order:
        g_idx = g_idx[torch.randperm(k, generator=g)]
    scales, zeros = group_parameters(layer.weight.data, bits, width, g_idx)
    zeros = zeros.clamp(min=1)  # the first format's packer spoils the neighbours of a zero point of 0
    q = gptq.QuantLinear(bits, group, k, n, False)
    q.pack(layer, scales, zeros.clone(), g_idx.int())
    q.scales = q.scales.float()
    dequantised = q(torch.eye(k)).T
    assert (dequantised - layer.weight.data).abs().max() < scales.max()
    stored = {"qweight": q.qweight, "qzeros": q.qzeros, "scales": q.scales.half(), "g_idx": q.g_idx}
    keep(case, stored, dequantised)
    if case == "gptq4":  # the second format has them as they are: no zero point is 16 here, so none spills over
        tensors["gptq4.v2_qzeros"] = q.qzeros + 0x11111111

packing = module_of(awq_source / "awq/utils/packing_utils.py")
source = re.sub(r"^from awq.*$", "", (awq_source / "awq/modules/linear/gemm.py").read_text(), flags=re.M)
source = source.replace('awq_ext, msg = try_import("awq_ext")', "awq_ext, msg = None, ''").replace("from awq.modules.triton", "from none.such")
awq = module_of(awq_source / "awq/modules/linear/gemm.py", "def get_best_device(): return 'cpu'\n" + source.replace("try:\n", "try:\n    raise ImportError\n", 1))
for case, n, k, group in (("awq", 32, 64, 32),):
    layer = linear(n, k)
    scales, zeros = group_parameters(layer.weight.data, 4, group)
    q = awq.WQLinear_GEMM.from_linear(layer, 4, group, False, scales.T.contiguous(), zeros.T.contiguous())
    dequantised = packing.dequantize_gemm(q.qweight, q.qzeros, q.scales.float(), 4, group).T
    assert (dequantised - layer.weight.data).abs().max() < scales.max()
    keep(case, {"qweight": q.qweight, "qzeros": q.qzeros, "scales": q.scales}, dequantised)


def scales_of(w, args, symmetric):
    """[N,G] or [1] scales and zero points, signed"""
    n, k = w.shape
    low, high = (-128, 127) if args.num_bits == 8 else (-8, 7)
    groups = {"group": lambda: w.reshape(n, -1, args.group_size), "channel": lambda: w[:, None, :], "tensor": lambda: w.reshape(1, 1, -1)}[args.strategy]()
    if symmetric:
        scale = groups.abs().amax(-1) / (high + 0.5)
        zero = torch.zeros_like(scale)
    else:
        least, most = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
        scale = (most - least) / (high - low)
        zero = (low - least / scale).round().clamp(low, high)
    scale = scale.bfloat16()
    return (scale[0], zero[0].to(torch.int8)) if args.strategy == "tensor" else (scale, zero.to(torch.int8))


def compressed(case, compressor, n, k, g_idx=None, **options):
    args = QuantizationArgs(**options)
    w = torch.randn(n, k, generator=g)
    scale, zero = scales_of(w if g_idx is None else w[:, torch.argsort(g_idx)], args, args.symmetric)
    w = w.bfloat16()
    stored = compressor.compress_weight(weight=w, scale=scale, zero_point=zero, g_idx=g_idx, quantization_args=args)
    stored["weight_scale"] = scale
    if g_idx is not None:
        stored["weight_g_idx"] = g_idx
    codes = unpack_from_int32(stored["weight_packed"], args.num_bits, w.shape) if "weight_packed" in stored else stored["weight"]
    if not args.symmetric and "weight_packed" not in stored:
        stored["weight_zero_point"] = zero
    exact = dequantize(codes, scale.float(), None if args.symmetric else zero, args, g_idx=g_idx)
    if args.symmetric:  # the tool's own way back, in bfloat16, says the same; it has none from packed zero points
        assert torch.equal(compressor.decompress_weight({**stored}, args).float(), exact.bfloat16().float())
    keep(case, stored, exact)


pack, ints = PackedQuantizationCompressor.__new__(PackedQuantizationCompressor), IntQuantizationCompressor.__new__(IntQuantizationCompressor)
order = (torch.arange(64) // 16)[torch.randperm(64, generator=g)].int()
compressed("packed4", pack, 9, 64, num_bits=4, strategy="group", group_size=32)
compressed("packed4_zero", pack, 9, 64, num_bits=4, strategy="group", group_size=32, symmetric=False)
compressed("packed4_order", pack, 12, 64, g_idx=order, num_bits=4, strategy="group", group_size=16, symmetric=False, actorder="group")
compressed("packed8_row", pack, 13, 45, num_bits=8, strategy="channel", symmetric=False)
compressed("bytes_row", ints, 13, 45, num_bits=8, strategy="channel")
compressed("bytes_zero", ints, 7, 64, num_bits=8, strategy="group", group_size=32, symmetric=False)
compressed("bytes_one", ints, 7, 45, num_bits=8, strategy="tensor", symmetric=False)

floats = FloatQuantizationCompressor.__new__(FloatQuantizationCompressor)
for case, n, k, options, scale in (("fp8_row", 13, 45, {"strategy": "channel"}, (13, 1)), ("fp8_one", 13, 45, {"strategy": "tensor"}, (1,)),
                                   ("fp8_block", 16, 64, {"strategy": "block", "block_structure": [8, 32]}, (2, 2))):
    args = QuantizationArgs(num_bits=8, type="float", **options)
    scale = (0.004 + 0.004 * torch.rand(scale, generator=g)).bfloat16()
    stored = floats.compress_weight(weight=torch.randn(n, k, generator=g).bfloat16(), scale=scale, quantization_args=args)
    keep(case, {**stored, "weight_scale": scale}, dequantize(stored["weight"], scale.float(), None, args))

save_file(tensors, out)
