// A small MoE model whose weights are made up from their names, for tests of what moves rows to experts and back.
#pragma once
#include <algorithm>
#include <bit>
#include <cstring>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "common/base/counter_rng.h"
#include "common/base/error.h"
#include "common/checkpoint/weight_source.h"
#include "common/config/expert_spec.h"

namespace expertmesh::test {

// fp32 weights in (-0.5, 0.5), a function of (name, index); remembers what was asked for.
class MadeUpWeights final : public WeightSource {
 public:
  void verify(ExpectedTensors const&) const override {}
  [[nodiscard]] std::set<std::string> loaded() const { return loaded_; }

  std::string broken;    // this tensor fails to load
  float largest = 0.5F;  // of all numbers

 private:
  StoredTensor read(TensorInfo const& tensor, std::optional<std::size_t> index) const override {
    {
      std::lock_guard lock(mutex_);
      loaded_.insert(tensor.name);
    }
    if (tensor.name == broken) throw ModelError("model.safetensors: tensor '" + tensor.name + "' is missing");
    StoredTensor out;
    out.name = tensor.name;
    out.shape.assign(tensor.shape.begin() + (index ? 1 : 0), tensor.shape.end());
    std::size_t count = 1;
    for (std::size_t const n : out.shape) count *= n;
    std::uint64_t seed = 0;
    for (char const c : tensor.name) seed = mix64(seed ^ static_cast<unsigned char>(c));
    seed += index.value_or(0) * count;
    out.owned = AlignedBuffer<std::byte>(count * sizeof(float));
    for (std::size_t i = 0; i < count; ++i) {
      auto const value = 2 * largest * static_cast<float>(static_cast<double>(mix64(seed + i) >> 11) * 0x1p-53 - 0.5);
      std::memcpy(out.owned.data() + i * sizeof(float), &value, sizeof value);
    }
    out.bytes = out.owned.span();
    return out;
  }

  mutable std::mutex mutex_;
  mutable std::set<std::string> loaded_;
};

// MoE layers 1 and 3 with `num_experts` experts each.
inline ExpertModelSpec tiny_model(std::size_t num_experts, DType dtype) {
  ExpertModelSpec model;
  model.weights = dtype == DType::bf16 ? kBfloat16Weights : kFloat32Weights;
  model.wire = dtype;
  for (std::uint32_t const layer : {1U, 3U}) {
    ExpertLayerSpec spec{.layer = layer, .hidden = 20, .intermediate = 12, .experts = {}};
    for (std::size_t e = 0; e < num_experts; ++e) {
      std::string const name = "layers." + std::to_string(layer) + ".experts." + std::to_string(e) + ".";
      spec.experts.push_back({.gate = WeightSlice{name + "gate"}, .up = {name + "up"}, .down = {name + "down"}});
    }
    model.layers.push_back(std::move(spec));
  }
  return model;
}

// Owned routing of T tokens to K of E experts.
struct Routing {
  std::size_t experts_per_token = 0;
  std::vector<std::uint32_t> experts;
  std::vector<float> weights;
};

// Distinct experts a token, any order.
inline Routing random_routing(std::mt19937& random, std::size_t tokens, std::size_t num_experts, std::size_t k) {
  Routing out{.experts_per_token = k, .experts = {}, .weights = {}};
  std::vector<std::uint32_t> all(num_experts);
  for (std::size_t e = 0; e < num_experts; ++e) all[e] = static_cast<std::uint32_t>(e);
  for (std::size_t t = 0; t < tokens; ++t) {
    std::shuffle(all.begin(), all.end(), random);
    out.experts.insert(out.experts.end(), all.begin(), all.begin() + static_cast<std::ptrdiff_t>(k));
    for (std::size_t i = 0; i < k; ++i) out.weights.push_back(static_cast<float>(random() % 1000) / 1000.0F);
  }
  return out;
}

// Bit for bit: -0.0 differs from 0.0.
inline bool same_bits(std::span<float const> a, std::span<float const> b) {
  return std::ranges::equal(a, b, {}, std::bit_cast<std::uint32_t, float>, std::bit_cast<std::uint32_t, float>);
}

inline std::vector<float> random_floats(std::mt19937& random, std::size_t count) {
  std::vector<float> out(count);
  for (float& x : out) x = static_cast<float>(random() % 2001) / 1000.0F - 1.0F;
  return out;
}

}  // namespace expertmesh::test
