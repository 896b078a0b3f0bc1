// Weights that are a pure function of (seed, tensor name, element index).
#include <algorithm>
#include <bit>
#include <cmath>

#include "common/base/bf16.h"
#include "common/base/counter_rng.h"
#include "common/checkpoint/weight_source.h"
#include "common/config/weight_slice.h"

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

// What the numbers of a tensor are for, as far as its name and shape tell.
struct Normal {
  float mean = 0;
  float deviation = 1;
};
constexpr float kFp8Deviation = 64;  // of a code times sqrt(K): far from E4M3's ends for any K that a model has

Normal distribution(std::string_view name, std::span<std::size_t const> shape) {
  if (name.ends_with("_scale_inv")) return {.mean = 1 / kFp8Deviation, .deviation = 0.1F / kFp8Deviation};
  if (shape.size() == 1) return {.mean = name.ends_with("bias") ? 0.0F : 1.0F, .deviation = 0.1F};
  return {.mean = 0, .deviation = 1 / std::sqrt(static_cast<float>(shape.back()))};
}

// The nearest finite code.
std::uint8_t to_e4m3(float x) {
  auto const bits = std::bit_cast<std::uint32_t>(std::abs(x));
  constexpr std::uint32_t kSmallestNormal = 121U << 23;  // 2^-6; below it codes are multiples of 2^-9
  std::uint32_t const code = bits < kSmallestNormal ? static_cast<std::uint32_t>(std::lround(std::abs(x) * 512))
                                                    : ((bits + 0x7ffffU + (bits >> 20 & 1U)) >> 20) - (120U << 3);
  return static_cast<std::uint8_t>(std::min(code, 0x7eU) | (std::signbit(x) ? 0x80U : 0U));
}

// Bytes of MXFP4: two codes of any value, or the scale of 32 of them. Codes of equal chances have the mean
// square 8.5625 (see e2m1_to_float); scales mix the two powers of two around 1/sqrt(8.5625 K) so that the weights' is
// 1/K.
std::uint8_t mxfp4_byte(bool scales, std::size_t k, std::uint64_t bits) {
  if (!scales) return static_cast<std::uint8_t>(bits);
  double const wanted = 1 / (8.5625 * static_cast<double>(k));  // mean square
  double const exponent = std::floor(std::log2(wanted) / 2);
  double const lower = std::exp2(2 * exponent);
  double const share_of_upper = (wanted - lower) / (3 * lower);
  double const uniform = static_cast<double>(bits >> 11) * 0x1p-53;
  return static_cast<std::uint8_t>(127 + static_cast<int>(exponent) + (uniform < share_of_upper ? 1 : 0));
}

DType dtype_of(TensorKind kind) {
  if (kind == TensorKind::fp8) return DType::f8_e4m3;
  return kind == TensorKind::bytes ? DType::u8 : DType::bf16;
}

class DummyWeights final : public WeightSource {
 public:
  explicit DummyWeights(std::uint64_t seed) : seed_(seed) {}
  void verify(ExpectedTensors const& /*expected*/) const override {}

 private:
  [[nodiscard]] StoredTensor read(TensorInfo const& info, std::optional<std::size_t> index) const override {
    StoredTensor tensor{.name = info.name, .dtype = dtype_of(info.kind), .shape = info.shape, .bytes = {}, .owned = {}};
    if (index) tensor.shape.erase(tensor.shape.begin());
    std::size_t count = 1;
    for (std::size_t n : tensor.shape) count *= n;
    tensor.owned.resize(count * size_of(tensor.dtype));
    tensor.bytes = tensor.owned;
    std::uint64_t const first = hash_name(seed_, info.name) + index.value_or(0) * count;
    Normal const normal = distribution(info.name, info.shape);
    auto const number = [&](std::size_t i) { return normal.mean + normal.deviation * nearly_normal(mix64(first + i)); };
    auto* out = tensor.owned.data();
    switch (info.kind) {
      case TensorKind::numbers:
        for (std::size_t i = 0; i < count; ++i) reinterpret_cast<bf16*>(out)[i] = to_bf16(number(i));
        break;
      case TensorKind::fp8:
        for (std::size_t i = 0; i < count; ++i) out[i] = std::byte{to_e4m3(kFp8Deviation * number(i))};
        break;
      case TensorKind::bytes: {
        bool const scales = info.name.ends_with("_scales");
        std::size_t const k = scales ? tensor.shape.back() * kMxfp4Group : 1;
        for (std::size_t i = 0; i < count; ++i) out[i] = std::byte{mxfp4_byte(scales, k, mix64(first + i))};
        break;
      }
    }
    return tensor;
  }

  std::uint64_t seed_;
};

}  // namespace

std::unique_ptr<WeightSource> make_dummy_weights(std::uint64_t seed) {
  return std::make_unique<DummyWeights>(seed);
}

}  // namespace expertmesh
