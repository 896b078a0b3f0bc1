"""Byte-level BPE as GPT-2's, in a few lines: an encoder that shares nothing with the one under test. English text only
(Python's re knows no \\p{L}); no added tokens."""
import functools
import json
import re
from pathlib import Path

# GPT-2's pattern, with [^\W\d_] for \p{L} and \d for \p{N}.
_WORDS = re.compile(r"'(?:[sdmt]|ll|ve|re)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")


def byte_alphabet():
    """GPT-2's printable character for each byte."""
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in visible]
    return {**{b: chr(b) for b in visible}, **{b: chr(256 + i) for i, b in enumerate(hidden)}}


class ByteLevelBpe:
    def __init__(self, tokenizer_json):
        model = json.loads(Path(tokenizer_json).read_text())["model"]
        self._ids = model["vocab"]
        self._ranks = {tuple(pair): rank for rank, pair in enumerate(model["merges"])}
        self._alphabet = byte_alphabet()
        self._encode_word = functools.lru_cache(None)(self._encode_word)

    def encode(self, text):
        return [token for word in _WORDS.findall(text) for token in self._encode_word(word)]

    def _encode_word(self, word):
        parts = [self._alphabet[b] for b in word.encode()]
        while len(parts) > 1:
            rank, i = min((self._ranks.get(pair, len(self._ranks)), i) for i, pair in enumerate(zip(parts, parts[1:])))
            if rank == len(self._ranks):
                break
            parts[i:i + 2] = [parts[i] + parts[i + 1]]
        return [self._ids[part] for part in parts]
