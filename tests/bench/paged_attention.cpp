// Paged attention at the shapes that matter: decodes of B sequences over a context, and chunks of prompts. Prints what
// a call takes and the share of what it takes at least: the cache's bytes over the read bandwidth, or its operations
// over the float32 peak, both measured in the same run; and beside the same with a cache in bfloat16, the median of
// passes that take turns.
//
// bench_paged_attention [query heads] [KV heads] [head dim] [threads] [ISA], defaults 16, 4, 64, all cores, the best.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <vector>

#include "common/base/cores.h"
#include "common/kernels/machine_ceilings.h"
#include "common/kernels/paged_attention.h"

using namespace expertmesh;

namespace {

using Clock = std::chrono::steady_clock;

struct Heads {
  std::size_t query, kv, dim;
};
struct Case {
  std::size_t sequences;
  std::size_t tokens;   // of each sequence in a step
  std::size_t context;  // positions of each when the step ends
};
constexpr Case kCases[] = {{1, 1, 1024},  {1, 1, 8192},  {16, 1, 128},  {64, 1, 128},  {16, 1, 1024},  {64, 1, 1024},
                           {16, 1, 4096}, {64, 1, 4096}, {1, 512, 512}, {4, 128, 128}, {1, 512, 2048}, {1, 100, 8192}};
constexpr std::size_t kCacheBytes = std::size_t{256} << 20;  // of all layers: no cache keeps them
constexpr std::size_t kPasses = 5;

// Tokens of a step, sequence after sequence; a sequence's blocks lie anywhere, as they do after some requests.
struct Step {
  explicit Step(Case const& c) {
    std::size_t const blocks = (c.context + kKvBlockTokens - 1) / kKvBlockTokens;
    tables.resize(c.sequences * blocks);
    std::iota(tables.begin(), tables.end(), 0U);
    std::ranges::shuffle(tables, std::mt19937(1));
    for (std::size_t s = 0; s < c.sequences; ++s) {
      offsets.push_back(static_cast<std::uint32_t>(s * blocks));
      for (std::size_t t = 0; t < c.tokens; ++t) {
        positions.push_back(static_cast<std::uint32_t>(c.context - c.tokens + t));
        sequences.push_back(static_cast<std::uint32_t>(s));
      }
    }
  }
  [[nodiscard]] TokenPlaces places() const {
    return {.positions = positions, .sequences = sequences, .block_tables = tables, .table_offsets = offsets};
  }
  std::vector<std::uint32_t> positions, sequences, tables, offsets;
};

// Layers of one dtype.
struct Caches {
  Caches(DType type, Heads const& heads, std::size_t num_blocks)
      : dtype(type),
        shape{.num_blocks = num_blocks,
              .num_kv_heads = heads.kv,
              .key_dim = heads.dim,
              .value_dim = heads.dim,
              .dtype = type},
        layer_bytes(num_blocks * KvLayer::bytes_per_block(shape)) {
    for (std::size_t i = 0; i < std::max<std::size_t>(1, kCacheBytes / layer_bytes); ++i) {
      KvLayer& layer = layers.emplace_back(shape);
      // Small numbers, whatever their type.
      for (std::size_t j = 0; j < layer.blocks().size(); ++j)
        layer.blocks()[j] = std::byte{j % 2 != 0 ? std::uint8_t{0x3d} : std::uint8_t(j)};
    }
  }
  DType dtype;
  KvLayerShape shape;
  std::size_t layer_bytes;
  std::vector<KvLayer> layers;
  std::vector<double> seconds;  // of a call, in each pass
};

double median(std::vector<double> x) {
  std::ranges::sort(x);
  return x[x.size() / 2];
}

void run(Exec const& exec, Case const& c, Heads const& heads, double bandwidth, double peak) {
  Step const step(c);
  std::vector<Caches> all;
  for (DType const dtype : {DType::bf16, DType::i8, DType::f32}) all.emplace_back(dtype, heads, step.tables.size());
  std::size_t const tokens = step.positions.size();
  std::vector<float> q(tokens * heads.query * heads.dim);
  for (std::size_t i = 0; i < q.size(); ++i) q[i] = static_cast<float>(i % 11) * 0.1F - 0.5F;
  std::vector<float> out(q.size());
  for (std::size_t pass = 0; pass < kPasses; ++pass)
    for (Caches& caches : all) {
      auto const start = Clock::now();
      for (KvLayer const& layer : caches.layers)
        paged_attention(exec, {q.data(), tokens, heads.query * heads.dim}, step.places(), layer,
                        {.num_heads = heads.query, .scale = 0.125F}, {out.data(), tokens, heads.query * heads.dim});
      caches.seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count() /
                               static_cast<double>(caches.layers.size()));
    }
  double const pairs = std::accumulate(step.positions.begin(), step.positions.end(), 0.0,
                                       [](double sum, std::uint32_t position) { return sum + position + 1; });
  double const ops = 2.0 * 2 * pairs * static_cast<double>(heads.query * heads.dim);
  for (Caches const& caches : all) {
    double const best = std::ranges::min(caches.seconds);
    auto const bytes = static_cast<double>(caches.layer_bytes);
    std::vector<double> beside;
    for (std::size_t pass = 0; pass < kPasses; ++pass) beside.push_back(caches.seconds[pass] / all[0].seconds[pass]);
    std::printf("%5zu %6zu %8zu %9s %9.3f %8.1f %9.0f %6.1f%% %8.2f\n", c.sequences, c.tokens, c.context,
                std::string(name_of(caches.dtype)).c_str(), best * 1e3, bytes / best / 1e9, ops / best / 1e9,
                100 * std::max(bytes / bandwidth, ops / peak) / best, median(beside));
  }
}

}  // namespace

int main(int argc, char** argv) {
  auto const number = [&](int at, std::size_t otherwise) {
    return argc > at ? std::strtoul(argv[at], nullptr, 10) : otherwise;
  };
  Heads const heads{.query = number(1, 16), .kv = number(2, 4), .dim = number(3, 64)};
  std::size_t const threads = number(4, usable_cores());
  auto const isa = argc > 5 ? isa_from_name(argv[5]) : best_isa();
  if (heads.kv == 0 || heads.query % heads.kv != 0 || heads.dim == 0 || threads == 0 || !isa) {
    std::fprintf(stderr, "bench_paged_attention [query heads] [KV heads] [head dim] [threads] [ISA]\n");
    return 2;
  }
  ThreadPool pool(threads);
  Exec const exec(*isa, pool, {.max_rows = 1, .max_columns = 1, .max_head_dim = heads.dim});
  double const bandwidth = measure_read_bandwidth(exec, std::size_t{512} << 20, 4);
  double const peak = measure_peak_flops(exec, DType::f32, 3);
  std::printf("%zu threads, %s, %zu heads over %zu of %zu: reads %.1f GB/s, computes %.0f GFLOP/s\n", threads,
              std::string(name_of(*isa)).c_str(), heads.query, heads.kv, heads.dim, bandwidth / 1e9, peak / 1e9);
  std::printf("%5s %6s %8s %9s %9s %8s %9s %7s %8s\n", "B", "tokens", "context", "KV cache", "ms", "GB/s", "GFLOP/s",
              "share", "beside");
  for (Case const& c : kCases) run(exec, c, heads, bandwidth, peak);
}
