// A model whose sizes can be added up by hand.
#pragma once
#include <filesystem>
#include <fstream>
#include <string>

#include "coordinator/model/model_spec.h"

namespace expertmesh::test {

// H 32, 2 layers, 4 heads and 2 KV heads of 8, 4 experts of 16, 2 a token, vocabulary 48; every size a multiple of a
// panel's 16 columns, so that packing adds nothing. window: of attention, or "null".
inline ModelSpec small_mixtral(std::filesystem::path const& dir, std::string const& window) {
  std::filesystem::create_directories(dir);
  std::ofstream(dir / "config.json") << R"({"model_type": "mixtral", "torch_dtype": "bfloat16", "hidden_act": "silu",
  "vocab_size": 48, "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
  "num_key_value_heads": 2, "max_position_embeddings": 64, "num_local_experts": 4, "num_experts_per_tok": 2,
  "rms_norm_eps": 1e-5, "rope_theta": 1e4, "tie_word_embeddings": false, "sliding_window": )"
                                     << window << "}";
  return read_model_spec(dir, {});
}

}  // namespace expertmesh::test
