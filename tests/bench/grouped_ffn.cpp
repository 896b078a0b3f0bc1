// The experts' kernel at the numbers of rows that matter: layers of experts that lie in memory, every expert with M
// rows, in every format. Prints what a layer takes and the share of what it takes at least: its bytes over the read
// bandwidth, or its operations over the peak, both measured in the same run.
//
// bench_grouped_ffn [H] [F] [threads] [ISA], defaults 1024, 512, all cores, the best.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "common/base/cores.h"
#include "common/kernels/grouped_ffn.h"
#include "common/kernels/machine_ceilings.h"

using namespace expertmesh;

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kExperts = 32;                          // of a layer
constexpr std::size_t kWeightBytes = std::size_t{384} << 20;  // of all layers: no cache keeps them
constexpr std::size_t kRows[] = {1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 256};
constexpr std::size_t kMostRows = 256;
constexpr std::size_t kPasses = 5;

PackedMatrix random_matrix(WeightFormat format, std::size_t n, std::size_t k, std::mt19937& random) {
  PackedMatrix w(format, n, k);
  if (from_codes(format)) {
    CodedRowBytes const bytes = coded_row_bytes(format, k);
    std::vector<std::byte> codes(bytes.codes);
    std::vector<std::byte> scales(bytes.scales, std::byte{120});  // small numbers, in E8M0 and as floats
    for (std::size_t i = 0; i < n; ++i) {
      for (std::byte& code : codes) code = static_cast<std::byte>(random() % 0x7f);
      w.set_codes(i, 1, codes.data(), scales.data());
    }
    return w;
  }
  std::vector<float> row(k);
  for (std::size_t i = 0; i < n; ++i) {
    for (float& x : row) x = static_cast<float>(static_cast<int>(random() % 2001) - 1000) * 1e-5F;
    w.set_rows(i, 1, DType::f32, reinterpret_cast<std::byte const*>(row.data()));
  }
  return w;
}

struct Layers {
  std::vector<FfnWeights> experts;
  std::size_t num_layers;
  std::size_t layer_bytes;
};

// All layers have the numbers of the first few experts: it is their places that matter.
Layers make_layers(WeightFormat format, std::size_t hidden, std::size_t intermediate) {
  std::size_t const bytes = packed_bytes(format, 2 * intermediate, hidden) + packed_bytes(format, hidden, intermediate);
  std::size_t const layers = std::max<std::size_t>(2, kWeightBytes / (kExperts * bytes));
  std::mt19937 random(1);
  Layers out{.experts = {}, .num_layers = layers, .layer_bytes = kExperts * bytes};
  for (std::size_t e = 0; e < layers * kExperts; ++e) {
    FfnWeights ffn;
    ffn.gate_up.w = random_matrix(format, 2 * intermediate, hidden, random);
    ffn.down.w = random_matrix(format, hidden, intermediate, random);
    ffn.activation = {.kind = Activation::silu};
    out.experts.push_back(std::move(ffn));
  }
  return out;
}

// Seconds for a layer in which every expert has m rows: the best pass over all layers.
double seconds_of(Exec const& exec, Layers const& layers, std::size_t m, std::size_t hidden) {
  std::size_t const rows = kExperts * m;
  std::vector<std::uint16_t> in(m * hidden);
  for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<std::uint16_t>(0x3f00U + i % 97);
  std::vector<std::uint16_t> out(rows * hidden);
  std::vector<std::byte const*> in_rows(rows);
  std::vector<std::byte*> out_rows(rows);
  std::vector<std::size_t> offsets(kExperts + 1);
  for (std::size_t r = 0; r < rows; ++r) {
    in_rows[r] = reinterpret_cast<std::byte const*>(&in[r % m * hidden]);
    out_rows[r] = reinterpret_cast<std::byte*>(&out[r * hidden]);
  }
  for (std::size_t e = 0; e <= kExperts; ++e) offsets[e] = e * m;
  std::vector<FfnWeights const*> groups(kExperts);
  double best = 1e9;
  for (std::size_t pass = 0; pass < kPasses; ++pass) {
    auto const start = Clock::now();
    for (std::size_t layer = 0; layer < layers.num_layers; ++layer) {
      for (std::size_t e = 0; e < kExperts; ++e) groups[e] = &layers.experts[layer * kExperts + e];
      grouped_ffn(exec, {.groups = groups, .offsets = offsets, .in = in_rows, .out = out_rows, .wire = DType::bf16});
    }
    double const seconds = std::chrono::duration<double>(Clock::now() - start).count();
    best = std::min(best, seconds / static_cast<double>(layers.num_layers));
  }
  return best;
}

}  // namespace

int main(int argc, char** argv) {
  std::size_t const hidden = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 1024;
  std::size_t const intermediate = argc > 2 ? std::strtoul(argv[2], nullptr, 10) : 512;
  std::size_t const threads = argc > 3 ? std::strtoul(argv[3], nullptr, 10) : usable_cores();
  auto const isa = argc > 4 ? isa_from_name(argv[4]) : best_isa();
  if (hidden == 0 || intermediate == 0 || threads == 0 || !isa) {
    std::fprintf(stderr, "bench_grouped_ffn [H] [F] [threads] [ISA]\n");
    return 2;
  }
  ThreadPool pool(threads);
  Exec const exec(*isa, pool, {.max_rows = kExperts * kMostRows, .max_columns = std::max(hidden, 2 * intermediate)});
  double const bandwidth = measure_read_bandwidth(exec, std::size_t{512} << 20, 4);
  std::printf("%zu threads, %s, H %zu, F %zu, %zu experts a layer: reads %.1f GB/s\n", threads,
              std::string(name_of(*isa)).c_str(), hidden, intermediate, kExperts, bandwidth / 1e9);
  for (WeightFormat const& format : {kBfloat16Weights, fp8_weights(128), kMxfp4Weights, kInt8Weights, kInt4Weights}) {
    double const peak = measure_peak_flops(exec, from_codes(format) ? DType::bf16 : format.storage, 3);
    Layers const layers = make_layers(format, hidden, intermediate);
    std::printf("%s: computes %.0f GOP/s, %.1f MB a layer\n%6s %9s %8s %9s %7s\n",
                std::string(name_of(format.storage)).c_str(), peak / 1e9, static_cast<double>(layers.layer_bytes) / 1e6,
                "M", "ms", "GB/s", "GOP/s", "share");
    for (std::size_t const m : kRows) {
      double const seconds = seconds_of(exec, layers, m, hidden);
      auto const bytes = static_cast<double>(layers.layer_bytes);
      double const ops = 2.0 * 3 * static_cast<double>(kExperts * m * hidden * intermediate);
      double const floor = std::max(bytes / bandwidth, ops / peak);
      std::printf("%6zu %9.3f %8.1f %9.0f %6.1f%%\n", m, seconds * 1e3, bytes / seconds / 1e9, ops / seconds / 1e9,
                  100 * floor / seconds);
    }
  }
}
