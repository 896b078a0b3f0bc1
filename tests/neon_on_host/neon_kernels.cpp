// neon_kernels ISA...: these are what this processor runs, and each computes what the scalar kernels do, bit for bit.
// Ends with 0 if so. Without GoogleTest, which is not there for another kind of processor.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "common/kernels/kernel_table.h"
#include "common/kernels/linear.h"
#include "tests/unit/kernels/reference.h"

using namespace expertmesh;
using reference::random_matrix;
using reference::same_bits;

namespace {

std::size_t num_checks = 0;
std::size_t num_failed = 0;

void check(bool holds, std::string const& what) {
  ++num_checks;
  if (holds) return;
  ++num_failed;
  std::printf("FAILED: %s\n", what.c_str());
}

struct Rig {
  explicit Rig(Isa isa, std::size_t threads = 1)
      : pool(threads), exec(isa, pool, {.max_rows = 32, .max_columns = 320}) {}
  ThreadPool pool;
  Exec exec;
};

Matrix<float> run(Exec const& exec, MatrixView<float const> x, PackedMatrix const& w) {
  Matrix<float> y(x.rows, w.n());
  linear(exec, x, w, y.view());
  return y;
}

// Numbers of every size, and those that are none.
std::vector<float> odd_numbers(std::size_t n) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  float const special[] = {0.0F,   -0.0F, kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN(),
                           1e-40F, 3e38F, -87.0F,    88.9F,      -104.0F,
                           0.5F,   1.5F,  2.5F};
  auto const numbers = random_matrix(1, n, 9);
  std::vector<float> out(n);
  for (std::size_t i = 0; i < n; ++i)
    out[i] = i % 3 == 0 ? special[i / 3 % std::size(special)]
                        : std::ldexp(numbers.view().data[i], static_cast<int>(i % 40) - 20);
  return out;
}

// But that one NaN is as good as another.
bool same_numbers(std::vector<float> const& a, std::vector<float> const& b) {
  return std::ranges::equal(
      a, b, [](float x, float y) { return std::memcmp(&x, &y, sizeof x) == 0 || (std::isnan(x) && std::isnan(y)); });
}

void check_linear(Isa isa) {
  Rig scalar(Isa::scalar);
  Rig rig(isa, 2);
  auto const x = random_matrix(17, 300, 1);
  for (WeightFormat const& format : {kFloat32Weights, kBfloat16Weights, kInt8Weights, kInt4Weights})
    for (std::size_t n : {1, 16, 33, 72})
      for (std::size_t k : {1, 2, 5, 33, 129, 300}) {
        auto const numbers = random_matrix(n, k, 2);
        PackedMatrix const w = reference::packed(format, numbers.view());
        auto const rows = x.view().columns(0, k);
        auto const expected = run(scalar.exec, rows, w);
        std::string const what = std::string(name_of(isa)) + ", " + std::string(name_of(format.storage)) + " N " +
                                 std::to_string(n) + " K " + std::to_string(k);
        check(reference::num_wrong(expected.view(), reference::linear(rows, numbers.view(), format)) == 0,
              "scalar against the reference, " + what);
        for (std::size_t m = 1; m <= rows.rows; m += m < 9 ? 1 : 4)
          check(same_bits(run(rig.exec, rows.row_range(17 - m, m), w).view(), expected.view().row_range(17 - m, m)),
                what + " M " + std::to_string(m));
      }
}

// Sums of whole numbers as large as they can be.
void check_largest_sums(Isa isa) {
  Rig scalar(Isa::scalar);
  Rig rig(isa);
  Matrix<float> x(4, 256);
  for (std::size_t i = 0; i < 256; ++i) {
    x.view().row(0)[i] = 1;
    x.view().row(1)[i] = -1;
    x.view().row(2)[i] = i % 2 == 0 ? 1.0F : -1.0F;
    x.view().row(3)[i] = i % 64 == 0 ? -8.0F : 7.0F;
  }
  for (WeightFormat const& format : {kInt8Weights, kInt4Weights}) {
    PackedMatrix const w = reference::packed(format, x.view());
    check(same_bits(run(rig.exec, x.view(), w).view(), run(scalar.exec, x.view(), w).view()),
          std::string(name_of(isa)) + ", largest sums in " + std::string(name_of(format.storage)));
  }
}

void check_rows(Isa isa) {
  Rig scalar(Isa::scalar);
  Rig rig(isa);
  KernelTable const& expected = scalar.exec.table();
  KernelTable const& table = rig.exec.table();
  auto const each = [&](std::string const& what, auto const& op) {
    std::vector<float> a(200);
    std::vector<float> b(200);
    op(expected, a);
    op(table, b);
    check(same_numbers(a, b), std::string(name_of(isa)) + ", " + what);
  };
  auto const odd = odd_numbers(200);
  auto const plain = random_matrix(3, 200, 4);
  float const* const x = plain.view().row(0);
  float const* const weight = plain.view().row(1);
  float const* const bias = plain.view().row(2);
  for (std::size_t n : {1, 15, 16, 33, 200}) {
    std::string const of = " of " + std::to_string(n);
    each("rms_norm" + of, [&](auto& t, auto& out) { t.rms_norm(x, weight, n, 1e-5F, out.data()); });
    each("layer_norm" + of, [&](auto& t, auto& out) { t.layer_norm(x, weight, bias, n, 1e-5F, out.data()); });
    each("axpy_f32" + of, [&](auto& t, auto& out) { t.axpy_f32(0.3F, odd.data(), n, out.data()); });
    each("bf16" + of, [&](auto& t, auto& out) {
      std::vector<std::uint16_t> half(n);
      t.round_bf16(odd.data(), n, half.data());
      t.widen_bf16(half.data(), n, out.data());
      t.axpy_bf16(0.3F, half.data(), n, out.data());
    });
    for (Activation kind :
         {Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu, Activation::clamped_silu})
      each("activation " + std::to_string(static_cast<int>(kind)) + of, [&](auto& t, auto& out) {
        t.activate({.kind = kind, .alpha = 1.7F, .limit = 7}, odd.data(), x, n, out.data());
      });
  }
}

template <class T>
void check_attention(Isa isa, bool values_in_keys) {
  constexpr std::size_t kHeads = 7;
  constexpr std::size_t kKeyDim = 35;
  constexpr std::size_t kValueDim = 33;
  constexpr std::size_t kBlocks = 10;
  constexpr AttendToken kTokens[] = {{5, 150, 150}, {70, 151, 151}, {128, 140, 152}};
  constexpr std::size_t kNumTokens = std::size(kTokens);
  auto const q = random_matrix(kNumTokens, kHeads * kKeyDim, 1);
  auto const sinks = random_matrix(1, kHeads, 2);
  // Of each block keys (an even number of them), values and scales.
  constexpr std::size_t kNumbers = ((kKeyDim + 1) / 2 * 2 + kValueDim) * 16;
  constexpr std::size_t kBlockBytes = kNumbers * sizeof(T) + 2 * 16 * sizeof(float);
  std::vector<std::byte> kv(kBlocks * kBlockBytes);
  auto const scales = random_matrix(kBlocks, 2 * 16, 3);
  for (std::size_t block = 0; block < kBlocks; ++block) {
    std::byte* to = kv.data() + block * kBlockBytes;
    for (std::size_t i = 0; i < kNumbers; ++i, to += sizeof(T)) {
      std::uint64_t const random = mix64(block * kNumbers + i);
      T const number = sizeof(T) == 4 ? static_cast<T>(static_cast<double>(random >> 11) * 0x1p-53)
                                      : static_cast<T>(0x3e00 + random % 0x200);
      std::memcpy(to, &number, sizeof number);
    }
    std::memcpy(to, scales.view().row(block), 2 * 16 * sizeof(float));
  }
  std::uint32_t const blocks[] = {2, 0, 3, 1, 9, 5, 4, 8, 7, 6};
  auto const attend = [&](Isa which) {
    Rig rig(which);
    std::vector<float> out(kNumTokens * kHeads * kValueDim);
    std::vector<float> scratch(attend_scratch_floats(kKeyDim));
    AttendPart part{};
    part.q = q.view().data;
    part.out = out.data();
    part.q_stride = kHeads * kKeyDim;
    part.out_stride = kHeads * kValueDim;
    part.token = kTokens;
    part.tokens = kNumTokens;
    part.kv_heads = 1;
    part.heads = kHeads;
    part.key_dim = kKeyDim;
    part.value_dim = kValueDim;
    part.blocks = blocks;
    part.kv = kv.data();
    part.head_bytes = part.block_bytes = kBlockBytes;
    part.value_offset = (kNumbers - kValueDim * 16) * sizeof(T);
    part.scale_offset = kNumbers * sizeof(T);
    part.values_in_keys = values_in_keys;
    part.scale = 0.2F;
    part.sinks = sinks.view().data;
    part.scratch = scratch.data();
    KernelTable const& table = rig.exec.table();
    (sizeof(T) == 4 ? table.attend_f32 : sizeof(T) == 2 ? table.attend_bf16 : table.attend_int8)(part);
    return out;
  };
  auto const expected = attend(Isa::scalar);
  check(expected[5] != 0 && same_numbers(attend(isa), expected), std::string(name_of(isa)) + ", attention over " +
                                                                     std::to_string(8 * sizeof(T)) + " bits" +
                                                                     (values_in_keys ? ", latent" : ""));
}

// That they run: what they give is the machine's own business.
void check_ceilings(Isa isa) {
  KernelTable const& table = Rig(isa).exec.table();
  for (auto const peak : {table.peak_f32, table.peak_bf16, table.peak_int8, table.peak_int4})
    check(std::isfinite(peak(100)), std::string(name_of(isa)) + ", a peak");
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string_view> const named(argv + 1, argv + argc);
  auto const runnable = runnable_isas();
  check(std::ranges::equal(runnable, named, {}, [](Isa isa) { return name_of(isa); }),
        "the processor runs something else");
  check(best_isa() == runnable.back(), "the best is the last");
  for (Isa const isa : runnable) {
    check_linear(isa);
    check_largest_sums(isa);
    check_rows(isa);
    check_ceilings(isa);
    for (bool const values_in_keys : {false, true}) {
      check_attention<float>(isa, values_in_keys);
      check_attention<std::uint16_t>(isa, values_in_keys);
      check_attention<std::int8_t>(isa, values_in_keys);
    }
  }
  std::printf("%zu checks, %zu failed, best %s\n", num_checks, num_failed, std::string(name_of(best_isa())).c_str());
  return num_failed == 0 ? 0 : 1;
}
