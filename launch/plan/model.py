"""What a model asks of the machines that serve it, as `expertmesh info --json` says it: no family is known here."""
import dataclasses
import json
import subprocess
from pathlib import Path

from fields import Fields, PlanError
from scratch import scratch_folder

KV_BLOCK_TOKENS = 16


@dataclasses.dataclass(frozen=True)
class Part:
    bytes: int = 0  # of weights
    multiply_adds: int = 0  # of one token


@dataclasses.dataclass(frozen=True)
class Layer:
    """`count` equal layers. experts: of each, 0 where it is dense; per_token: of them for a token; span: positions that a
    token attends to at most, None for all."""
    count: int
    attention: Part
    kv_bytes: int  # that the cache holds of a token
    multiply_adds_per_key: int
    span: int | None
    dense_ffn: Part
    router: Part
    shared_expert: Part
    expert: Part
    experts: int
    per_token: int

    def keys(self, context):
        return context if self.span is None else min(context, self.span)


@dataclasses.dataclass(frozen=True)
class Model:
    name: str
    weights: str  # storage type: bfloat16, float32, int8, int4
    kv_cache_dtype: str  # bfloat16, float32, int8
    layers: tuple
    lm_head: Part
    row_bytes: int  # of an activation on its way
    vocab: int
    coordinator_bytes: int
    parameters: int
    active_parameters: int
    max_position: int

    def expert_bytes(self, replicas):
        """Of `replicas` more than one of each expert, in every layer"""
        return sum(layer.count * layer.expert.bytes * (layer.experts + (replicas if layer.experts else 0)) for layer in self.layers)

    def sequence_bytes(self, tokens):
        """Of the KV cache: whole blocks; of layers with a span as much as is in reach"""
        blocks = -(-tokens // KV_BLOCK_TOKENS) * KV_BLOCK_TOKENS
        return sum(layer.count * layer.kv_bytes * (blocks if layer.span is None else min(blocks, layer.span + KV_BLOCK_TOKENS)) for layer in self.layers)

    @property
    def most_experts(self):
        return max((layer.experts for layer in self.layers), default=0)


def _part(fields, name):
    part = fields.object(name, required=False)
    if part is None:
        return Part()
    read = Part(part.whole("bytes"), part.whole("multiply_adds"))
    part.finish()
    return read


def _layer(fields):
    kv = fields.object("kv")
    spans = [kv.whole(name, low=1) for name in ("window", "chunk") if name in kv]
    experts = fields.object("experts", required=False)
    layer = Layer(count=fields.whole("count", low=1), attention=_part(fields, "attention"), kv_bytes=kv.whole("bytes_per_token"),
                  multiply_adds_per_key=kv.whole("multiply_adds_per_key"), span=spans[0] if spans else None,
                  dense_ffn=_part(fields, "dense_ffn"), router=_part(fields, "router"), shared_expert=_part(fields, "shared_expert"),
                  expert=Part(experts.whole("bytes", low=1), experts.whole("multiply_adds", low=1)) if experts else Part(),
                  experts=experts.whole("count", low=1) if experts else 0, per_token=experts.whole("per_token", low=1) if experts else 0)
    for read in (kv, experts, fields):
        if read:
            read.finish()
    if layer.per_token > layer.experts:
        raise PlanError(f"{fields.where}.experts: field 'per_token' is more than 'count'")
    return layer


def of_facts(fields, name):
    """fields: as `info --json` has them"""
    if "stacks" not in fields:
        raise PlanError(f"{name}: {'; '.join(fields.list('would_be_refused', [])) or 'no facts of a model'}")
    stacks = fields.objects("stacks")
    if len(stacks) > 1:
        raise PlanError(f"{name}: has an encoder; plan is for models without one")
    stacks[0].drop("kind")
    parameters = fields.object("parameters")
    weights = fields.text("weights")
    kv_cache_dtype = fields.text("kv_cache_dtype", "float32" if weights == "float32" else "bfloat16")
    read = Model(name=name, weights=weights, kv_cache_dtype=kv_cache_dtype, layers=tuple(_layer(layer) for layer in stacks[0].objects("layers")),
                 lm_head=_part(fields, "lm_head"), row_bytes=fields.whole("row_bytes", low=1), vocab=fields.whole("vocab", low=1),
                 coordinator_bytes=fields.whole("coordinator_bytes"), parameters=parameters.whole("total"),
                 active_parameters=parameters.whole("active"), max_position=fields.whole("max_position", low=1))
    parameters.drop("routed")
    fields.drop("model", "family", "hidden", "stored_as", "stored_forms", "dtype", "embedding_bytes", "worker_bytes", "kv_bytes_per_token",
                "cross_kv_bytes_per_token", "checkpoint", "would_be_refused")
    for used in (parameters, stacks[0], fields):
        used.finish()
    return read


def numerics(dtype, quantization, kv_cache_dtype):
    """-> options of `info` and `bench engine`; None: theirs"""
    given = {"--dtype": dtype, "--quantization": quantization, "--kv-cache-dtype": kv_cache_dtype}
    return [word for name, value in given.items() if value for word in (name, value)]


def read(program, path, options=(), device="cpu"):
    """path: a model directory, a config.json, or a file that `info --json` wrote (or that was written like it); options: numerics();
    device: cpu or cuda, what holds the weights"""
    path = Path(path)
    name = path.resolve().name if path.is_dir() else path.resolve().parent.name if path.name == "config.json" else path.stem
    if path.is_file():
        try:
            content = json.loads(path.read_text())
        except ValueError as error:
            raise PlanError(f"{path}: not JSON: {error}") from None
        if isinstance(content, dict) and "stacks" in content:
            if options:
                raise PlanError(f"{path}: {options[0]} is for configurations; this file says what its numbers are")
            return of_facts(Fields(content, str(path)), name)
    elif not path.is_dir():
        raise PlanError(f"{path}: no such file or directory")
    with scratch_folder() as folder:
        if path.is_file():
            (folder / "config.json").symlink_to(path.resolve())
        done = subprocess.run([program, "info", str(path if path.is_dir() else folder), "--json", "--device", device, *options], capture_output=True, text=True,
                              stdin=subprocess.DEVNULL, check=False)
    if not done.stdout:
        raise PlanError(f"{path}: {done.stderr.strip() or 'info says nothing'}")
    return of_facts(Fields(json.loads(done.stdout), str(path)), name)
