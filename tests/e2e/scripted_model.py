"""A model that says what it is told to: a tiny llama whose hidden state is the last token alone (one-hot embeddings, no attention,
no feed-forward part) and whose output matrix holds each token's successor."""
import array
import json
from pathlib import Path

from byte_level_bpe import byte_alphabet
from harness import write_safetensors

END = "<|end|>"


def write_scripted_model(folder, scripts, chat_template):
    """scripts: {a token that ends the prompt: the pieces said after it}, each piece one token, said at one place only"""
    pieces = [END, *scripts, *(piece for script in scripts.values() for piece in script)]
    assert len(set(pieces)) == len(pieces), "a token has one successor"
    ids = {piece: 256 + i for i, piece in enumerate(pieces)}
    successor = {}
    for start, script in scripts.items():
        for token, following in zip([start, *script], [*script, END]):
            successor[ids[token]] = ids[following]

    vocab = 256 + len(pieces)
    hidden = -(-vocab // 64) * 64
    head_dim = hidden // 4
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": vocab, "hidden_size": hidden,
              "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": head_dim,
              "hidden_act": "silu", "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
              "tie_word_embeddings": False, "torch_dtype": "float32", "bos_token_id": None, "eos_token_id": ids[END]}

    def zeros(rows, columns):
        return array.array("f", bytes(4 * rows * columns))

    def tensor(rows, columns, values):
        return "F32", [rows, columns], values.tobytes()

    embedding, head = zeros(vocab, hidden), zeros(vocab, hidden)
    for token in range(vocab):
        embedding[token * hidden + token] = 1.0
    for token, following in successor.items():
        head[following * hidden + token] = 1.0
    ones = ("F32", [hidden], array.array("f", [1.0] * hidden).tobytes())
    layer = "model.layers.0."
    tensors = {"model.embed_tokens.weight": tensor(vocab, hidden, embedding), "lm_head.weight": tensor(vocab, hidden, head),
               "model.norm.weight": ones, layer + "input_layernorm.weight": ones, layer + "post_attention_layernorm.weight": ones}
    for name in "qkvo":
        tensors[f"{layer}self_attn.{name}_proj.weight"] = tensor(hidden, hidden, zeros(hidden, hidden))
    for name, rows, columns in (("gate", 64, hidden), ("up", 64, hidden), ("down", hidden, 64)):
        tensors[f"{layer}mlp.{name}_proj.weight"] = tensor(rows, columns, zeros(rows, columns))

    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {"version": "1.0", "normalizer": None, "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
                 "model": {"type": "BPE", "vocab": {symbol: byte for byte, symbol in byte_alphabet().items()}, "merges": []},
                 "added_tokens": [{"id": ids[piece], "content": piece, "single_word": False, "lstrip": False, "rstrip": False,
                                   "normalized": False, "special": piece == END or piece in scripts} for piece in pieces]}
    folder = Path(folder)
    folder.joinpath("config.json").write_text(json.dumps(config))
    folder.joinpath("tokenizer.json").write_text(json.dumps(tokenizer))
    folder.joinpath("tokenizer_config.json").write_text(json.dumps({"eos_token": END}))
    folder.joinpath("chat_template.jinja").write_text(chat_template)
    write_safetensors(folder / "model.safetensors", tensors)


# A model with one tool: thinks and calls when it has tools, tells the outcome when it got one, and greets else.
TOOL_SCRIPTS = {
    "<|call|>": ["<think>", "I need", " the weather.", "</think>", "\n\n", '<tool_call>\n{"name": "get_weather", ', '"arguments": {"city": "Bonn"',
                 "}}\n", "</tool_call>"],
    "<|after|>": ["It is", " sunny."],
    "<|plain|>": ["Hello", " there."],
}
TOOL_TEMPLATE = """{% for m in messages %}{{ m.role }}: {{ m.content }}
{% for c in m.tool_calls or [] %}<tool_call>{{ {"name": c.function.name, "arguments": c.function.arguments}|tojson }}</tool_call>
{% endfor %}{% endfor %}
{%- if messages[-1].role == "tool" %}<|after|>{% elif tools %}<|call|>{% else %}<|plain|>{% endif %}"""
TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "The weather of a city", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}]
