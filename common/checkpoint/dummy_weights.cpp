// Weights that are a pure function of (seed, tensor name, element index).
#include <bit>
#include <cmath>

#include "common/base/bf16.h"
#include "common/base/counter_rng.h"
#include "common/checkpoint/weight_source.h"

namespace expertmesh {
namespace {

std::uint64_t hash_name(std::uint64_t seed, std::string_view name) {
  std::uint64_t h = mix64(seed ^ static_cast<std::uint64_t>(RngPurpose::dummy_weight));
  for (char c : name) h = mix64(h ^ static_cast<unsigned char>(c));
  return h;
}

// The sum of four independent uniform 16-bit numbers: close to normal (Irwin-Hall), mean 0, standard deviation 1.
float nearly_normal(std::uint64_t bits) {
  auto const sum =
      static_cast<std::int32_t>((bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48)) -
      2 * 65535;
  constexpr float kScale = 1.0F / 37837.2F;  // 1 / (65536 sqrt(4/12))
  return static_cast<float>(sum) * kScale;
}

class DummyWeights final : public WeightSource {
 public:
  explicit DummyWeights(std::uint64_t seed) : seed_(seed) {}

  [[nodiscard]] StoredTensor load(std::string_view name, std::span<std::size_t const> shape) const override {
    std::size_t count = 1;
    for (std::size_t n : shape) count *= n;
    StoredTensor tensor{.name = std::string(name),
                        .dtype = DType::bf16,
                        .shape = {shape.begin(), shape.end()},
                        .bytes = {},
                        .owned = {}};
    tensor.owned.resize(count * sizeof(bf16));
    tensor.bytes = tensor.owned;
    std::uint64_t const key = hash_name(seed_, name);
    bool const vector = shape.size() == 1;
    float const mean = vector ? 1.0F : 0.0F;
    float const deviation = vector ? 0.1F : 1.0F / std::sqrt(static_cast<float>(shape.back()));
    auto* out = reinterpret_cast<bf16*>(tensor.owned.data());
    for (std::size_t i = 0; i < count; ++i) out[i] = to_bf16(mean + deviation * nearly_normal(mix64(key + i)));
    return tensor;
  }
  void verify(ExpectedTensors const& /*expected*/) const override {}

 private:
  std::uint64_t seed_;
};

}  // namespace

std::unique_ptr<WeightSource> make_dummy_weights(std::uint64_t seed) {
  return std::make_unique<DummyWeights>(seed);
}

}  // namespace expertmesh
