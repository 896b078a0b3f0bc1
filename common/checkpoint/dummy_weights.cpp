// Weights that are a pure function of (seed, tensor name, element index).
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <tuple>

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

// The random bits of a tensor's elements: 32 of each, so that eight are made at once. Two multiplications as in
// lowbias32 (Wellons 2018); the second half of the key comes between them, so that no tensor's bits are another's,
// shifted.
struct ElementBits {
  std::uint32_t first;
  std::uint32_t middle;
  // The elements [block * 2^32, (block + 1) * 2^32) of the tensor.
  ElementBits(std::uint64_t tensor, std::uint64_t block) {
    std::uint64_t const key = mix64(tensor + block);
    first = static_cast<std::uint32_t>(key);
    middle = static_cast<std::uint32_t>(key >> 32);
  }
  [[gnu::always_inline]] std::uint32_t operator()(std::uint32_t element) const {
    std::uint32_t x = element + first;
    x = (x ^ (x >> 16)) * 0x7feb352dU ^ middle;
    x = (x ^ (x >> 15)) * 0x846ca68bU;
    return x ^ (x >> 16);
  }
};

// The sum of four independent uniform 8-bit numbers: close to normal (Irwin-Hall), mean 0, standard deviation 1.
[[gnu::always_inline]] inline float nearly_normal(std::uint32_t bits) {
  auto const sum =
      static_cast<std::int32_t>((bits & 0xffU) + (bits >> 8 & 0xffU) + (bits >> 16 & 0xffU) + (bits >> 24));
  constexpr float kScale = 1.0F / 147.7989F;  // 1 / sqrt(4 (256^2 - 1) / 12)
  return static_cast<float>(sum - 2 * 255) * kScale;
}

// What the numbers of a tensor are for, as far as its name and shape tell.
struct Normal {
  float mean = 0;
  float deviation = 1;
};
constexpr float kFp8Deviation = 64;  // of a code times sqrt(K): far from E4M3's ends for any K that a model has

Normal distribution(TensorInfo const& info) {
  auto const& [name, shape] = std::tie(info.name, info.shape);
  if (info.magnitude > 0) return {.mean = info.magnitude, .deviation = 0.1F * info.magnitude};
  if (name.ends_with("_scale_inv") || name.ends_with("_scale"))
    return {.mean = 1 / kFp8Deviation, .deviation = 0.1F / kFp8Deviation};
  if (shape.size() == 1) return {.mean = name.ends_with("bias") ? 0.0F : 1.0F, .deviation = 0.1F};
  return {.mean = 0, .deviation = 1 / std::sqrt(static_cast<float>(shape.back()))};
}

// The nearest finite code.
[[gnu::always_inline]] inline std::uint8_t to_e4m3(float x) {
  auto const sign_and_bits = std::bit_cast<std::uint32_t>(x);
  std::uint32_t const bits = sign_and_bits & 0x7fffffffU;
  constexpr std::uint32_t kSmallestNormal = 121U << 23;  // 2^-6; below it codes are multiples of 2^-9
  // Without a branch: both are worked out.
  float const below = std::bit_cast<float>(std::min(bits, kSmallestNormal));
  auto const small = static_cast<std::uint32_t>(static_cast<std::int32_t>(below * 512 + 0.5F));
  std::uint32_t const large = ((bits + 0x7ffffU + (bits >> 20 & 1U)) >> 20) - (120U << 3);
  std::uint32_t const normal = std::uint32_t{0} - static_cast<std::uint32_t>(bits >= kSmallestNormal);  // all ones: yes
  std::uint32_t const code = std::min((large & normal) | (small & ~normal), 0x7eU);
  return static_cast<std::uint8_t>(code | (sign_and_bits >> 24 & 0x80U));
}

// Bytes of MXFP4: two codes of any value, or the scale of 32 of them. Codes of equal chances have the mean
// square 8.5625 (see e2m1_to_float); scales mix the two powers of two around 1/sqrt(8.5625 K) so that the weights' is
// 1/K.
std::uint8_t mxfp4_byte(bool scales, std::size_t k, std::uint32_t bits) {
  if (!scales) return static_cast<std::uint8_t>(bits);
  double const wanted = 1 / (8.5625 * static_cast<double>(k));  // mean square
  double const exponent = std::floor(std::log2(wanted) / 2);
  double const lower = std::exp2(2 * exponent);
  double const share_of_upper = (wanted - lower) / (3 * lower);
  double const uniform = static_cast<double>(bits) * 0x1p-32;
  return static_cast<std::uint8_t>(127 + static_cast<int>(exponent) + (uniform < share_of_upper ? 1 : 0));
}

// Elements [first, first + count) of one block.
struct Run {
  std::uint32_t first;
  std::size_t count;
};

[[gnu::always_inline]] inline void fill_bf16(bf16* out, Run run, ElementBits bits, Normal normal) {
  for (std::size_t i = 0; i < run.count; ++i) {
    // Finite, hence without to_bf16()'s look for NaN.
    auto const u = std::bit_cast<std::uint32_t>(
        normal.mean + normal.deviation * nearly_normal(bits(run.first + static_cast<std::uint32_t>(i))));
    out[i].bits = static_cast<std::uint16_t>((u + 0x7fffU + (u >> 16 & 1U)) >> 16);
  }
}
[[gnu::always_inline]] inline void fill_e4m3(std::byte* out, Run run, ElementBits bits, Normal normal) {
  for (std::size_t i = 0; i < run.count; ++i)
    out[i] = std::byte{
        to_e4m3(kFp8Deviation *
                (normal.mean + normal.deviation * nearly_normal(bits(run.first + static_cast<std::uint32_t>(i)))))};
}

// The same numbers wherever they are made: nothing here is contracted or reordered.
void fill_plain(DType type, std::byte* out, Run run, ElementBits bits, Normal normal) {
  if (type == DType::bf16) fill_bf16(reinterpret_cast<bf16*>(out), run, bits, normal);
  if (type == DType::f8_e4m3) fill_e4m3(out, run, bits, normal);
}
[[gnu::target("avx2")]] void fill_avx2(DType type, std::byte* out, Run run, ElementBits bits, Normal normal) {
  if (type == DType::bf16) fill_bf16(reinterpret_cast<bf16*>(out), run, bits, normal);
  if (type == DType::f8_e4m3) fill_e4m3(out, run, bits, normal);
}

DType dtype_of(TensorKind kind) {
  switch (kind) {
    case TensorKind::numbers:
      return DType::bf16;
    case TensorKind::fp8:
      return DType::f8_e4m3;
    case TensorKind::bytes:
      return DType::u8;
    case TensorKind::words:
    case TensorKind::indices:
      return DType::i32;
    case TensorKind::int8:
      return DType::i8;
    case TensorKind::sizes:
      return DType::i64;
  }
  return DType::bf16;
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
    tensor.owned = AlignedBuffer<std::byte>(count * size_of(tensor.dtype));
    tensor.bytes = tensor.owned.span();
    static auto const fill = __builtin_cpu_supports("avx2") ? fill_avx2 : fill_plain;
    Normal const normal = distribution(info);
    bool const scales = info.name.ends_with("_scales");
    std::size_t const k = scales ? tensor.shape.back() * kMxfp4Group : 1;
    std::uint64_t const name = hash_name(seed_, info.name);
    std::uint64_t const first = index.value_or(0) * count;
    constexpr std::uint64_t kBlock = std::uint64_t{1} << 32;
    for (std::uint64_t at = first; at < first + count;) {
      ElementBits const bits(name, at / kBlock);
      Run const run{static_cast<std::uint32_t>(at), std::min(first + count, (at / kBlock + 1) * kBlock) - at};
      std::byte* const out = tensor.owned.data() + (at - first) * size_of(tensor.dtype);
      if (info.kind == TensorKind::words || info.kind == TensorKind::int8) {
        for (std::size_t i = 0; i < run.count; ++i) {
          std::uint32_t const random = bits(run.first + static_cast<std::uint32_t>(i));
          std::memcpy(out + i * size_of(tensor.dtype), &random, size_of(tensor.dtype));
        }
      } else if (info.kind == TensorKind::indices || info.kind == TensorKind::sizes) {
        std::memset(out, 0, run.count * size_of(tensor.dtype));  // of a group that is always there
      } else if (info.kind == TensorKind::bytes) {
        for (std::size_t i = 0; i < run.count; ++i)
          out[i] = std::byte{mxfp4_byte(scales, k, bits(run.first + static_cast<std::uint32_t>(i)))};
      } else {
        fill(tensor.dtype, out, run, bits, normal);
      }
      at += run.count;
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
