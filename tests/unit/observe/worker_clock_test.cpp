// A worker's clock that is off, drifts or talks nonsense, over ways of random length.
#include "coordinator/observe/worker_clock.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

namespace expertmesh {
namespace {

constexpr std::int64_t kStart = 5'000'000'000;

// Exchanges with a worker whose clock shows `offset` more, and `drift` more for each nanosecond.
struct World {
  std::int64_t offset;
  double drift;
  std::mt19937 random{11};
  WorkerClock clock{};
  std::int64_t now = kStart;

  [[nodiscard]] std::uint64_t there(std::int64_t here) const {
    return static_cast<std::uint64_t>(here + offset +
                                      static_cast<std::int64_t>(drift * static_cast<double>(here - kStart)));
  }
  // Ways and work take up to `most` each.
  WorkerClock::Aligned exchange(std::int64_t most, TraceSpan& work) {
    auto const some = [&] { return std::uniform_int_distribution<std::int64_t>(0, most)(random); };
    std::int64_t const sent = now + some();
    work.begin_ns = sent + some();
    work.end_ns = work.begin_ns + some();
    now = work.end_ns + some();
    auto const aligned = clock.align({.begin_ns = sent, .end_ns = now}, there(work.begin_ns), there(work.end_ns));
    EXPECT_TRUE(aligned.has_value());
    return aligned.value_or(WorkerClock::Aligned{});
  }
};

TEST(WorkerClock, IsNeverFurtherOffThanItSays) {
  for (std::int64_t const offset : {std::int64_t{0}, std::int64_t{-4'000'000'000}, std::int64_t{3'600'000'000'000}})
    for (double const drift : {0.0, 4e-4, -4e-4}) {
      World world{.offset = offset, .drift = drift};
      std::int64_t last_end = 0;
      for (int i = 0; i < 3000; ++i) {
        TraceSpan work;
        auto const [span, seen_offset, uncertainty] = world.exchange(i % 100 == 0 ? 2'000 : 2'000'000, work);
        EXPECT_LE(std::abs(span.begin_ns - work.begin_ns), uncertainty) << i;
        EXPECT_LE(std::abs(span.end_ns - work.end_ns), uncertainty) << i;
        EXPECT_GE(span.begin_ns, last_end) << i;
        EXPECT_GE(span.end_ns, span.begin_ns) << i;
        last_end = span.end_ns;
      }
    }
}

TEST(WorkerClock, GoesByTheShortestWayAndKeepsIt) {
  World world{.offset = 77'000'000, .drift = 0};
  TraceSpan work;
  EXPECT_GT(world.exchange(1'000'000'000, work).uncertainty_ns, 10'000'000);
  EXPECT_LE(world.exchange(1'000, work).uncertainty_ns, 1'010);
  auto const later = world.exchange(1'000'000, work);  // a longer way is no reason to believe it
  EXPECT_LE(later.uncertainty_ns, 1'010 + 4'000'000 / 2'000);
  EXPECT_NEAR(static_cast<double>(later.offset_ns), 77'000'000, 1'010);
}

TEST(WorkerClock, AgesUntilANewerEstimateIsBetter) {
  World world{.offset = 0, .drift = 0};
  TraceSpan work;
  world.exchange(10, work);
  world.now += 3'600'000'000'000;
  world.offset = 1'000'000'000;  // a second in an hour: within what clocks do to each other
  auto const [span, offset, uncertainty] = world.exchange(1'000'000, work);
  EXPECT_LE(std::abs(offset - world.offset), uncertainty);
  EXPECT_LE(uncertainty, 1'010'000);
  EXPECT_LE(std::abs(span.end_ns - work.end_ns), uncertainty);
}

TEST(WorkerClock, TakesNoTimesThatCannotBe) {
  WorkerClock clock;
  TraceSpan const exchange{.begin_ns = 1'000, .end_ns = 3'000};
  EXPECT_FALSE(clock.align(exchange, 0, 0).has_value()) << "not said";
  EXPECT_FALSE(clock.align(exchange, 900, 800).has_value()) << "ends before it begins";
  EXPECT_FALSE(clock.align(exchange, 5'000, 7'010).has_value()) << "longer than the exchange";
  EXPECT_FALSE(clock.align(exchange, 1, ~std::uint64_t{0}).has_value());
  EXPECT_FALSE(clock.align(exchange, ~std::uint64_t{0} - 5, ~std::uint64_t{0}).has_value());
  EXPECT_TRUE(clock.align(exchange, 5'000, 7'000).has_value());
}

}  // namespace
}  // namespace expertmesh
