#include "common/experts/load_figures.h"

#include <spdlog/fmt/fmt.h>

#include <algorithm>

#include "common/checkpoint/packed_cache.h"

namespace expertmesh {
namespace {
std::size_t bytes_of(PackedCache const* cache) {
  return cache ? cache->bytes_read() : 0;
}
}  // namespace

std::string LoadFigures::text(std::optional<double> bytes_per_second) const {
  auto const read = static_cast<double>(checkpoint_bytes + cache_bytes.value_or(0));
  double const rate = read / std::max(seconds, 1e-9);
  std::string out = fmt::format("{} bytes of the checkpoint", checkpoint_bytes);
  if (cache_bytes) out += fmt::format(" and {} of the packed cache", *cache_bytes);
  out += fmt::format(" in {:.2f} s, {:.2f} GB/s", seconds, rate / 1e9);
  if (bytes_per_second && *bytes_per_second > 0)
    out += fmt::format(": {:.0f}% of the {:.1f} GB/s that memory gives", 100 * rate / *bytes_per_second,
                       *bytes_per_second / 1e9);
  return out;
}

LoadTimer::LoadTimer(WeightSource const& source)
    : source_(source), bytes_before_(source.bytes_loaded()), cache_bytes_before_(bytes_of(source.packed_cache())) {}

LoadFigures LoadTimer::figures() const {
  PackedCache const* const cache = source_.packed_cache();
  return {.checkpoint_bytes = source_.bytes_loaded() - bytes_before_,
          .cache_bytes = cache ? std::optional(cache->bytes_read() - cache_bytes_before_) : std::nullopt,
          .seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count()};
}

}  // namespace expertmesh
