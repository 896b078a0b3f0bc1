// GEMMs whose weights are shared out among NUMA nodes: plans of several nodes on a host that may have one.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "common/base/cores.h"
#include "common/kernels/gemm.h"
#include "common/kernels/grouped_ffn.h"
#include "tests/unit/kernels/reference.h"
#include "tests/unit/kernels/rig.h"

namespace expertmesh {
namespace {

using reference::random_matrix;
using reference::same_bits;

ThreadPlan plan_of(std::vector<std::size_t> const& threads) {
  std::vector<ThreadPlan::Node> nodes;
  for (std::size_t const count : threads)
    nodes.push_back({.index = static_cast<unsigned>(nodes.size()), .num_threads = count, .cores = allowed_cores()});
  return {nodes, ThreadPlan::Pinning::node};
}

std::vector<std::vector<std::size_t>> const kNodes = {{1, 1}, {2, 1}, {1, 3}, {2, 2, 2, 2}, {1, 1, 1, 1, 1, 1, 1, 1}};

// Few threads: with more than cores every call waits for its turn.
std::vector<std::vector<std::size_t>> const kFewThreads = {{1, 1}, {2, 1}, {1, 1, 1}};

PackedMatrix packed(WeightFormat const& format, MatrixView<float const> w, WeightHome const& home) {
  PackedMatrix out(format, w.rows, w.cols, home);
  for (std::size_t n = 0; n < w.rows; ++n) out.set_rows(n, 1, DType::f32, reinterpret_cast<std::byte const*>(w.row(n)));
  return out;
}

// Shapes that have less than a region, and several; fewer columns of tiles than nodes, and many.
struct Shape {
  std::size_t n, k;
};
constexpr Shape kShapes[] = {{5, 7}, {130, 33}, {1000, 80}, {96, 2048}, {700, 2048}, {4100, 512}};

TEST(NumaNodes, EveryTileIsForOneNode) {
  for (auto const& threads : kNodes) {
    ThreadPlan const plan = plan_of(threads);
    std::vector<PackedMatrix> weights;
    for (auto const& [n, k] : kShapes)
      for (bool const placed : {false, true})
        weights.push_back(PackedMatrix(kFloat32Weights, n, k, {.threads = placed ? &plan : nullptr}));
    std::size_t const rows[] = {1, 0, 65, 200};
    auto const job_of = [&](std::size_t i) {
      return GemmJob{.w = weights[i], .bias = nullptr, .x = nullptr, .y = nullptr, .m = rows[i % std::size(rows)]};
    };
    std::vector<std::vector<int>> times;
    std::vector<std::size_t> totals(threads.size());
    for (std::size_t i = 0; i < weights.size(); ++i) {
      GemmJob const job = job_of(i);
      std::size_t const columns = tile_columns(job.w);
      times.emplace_back(columns * num_row_blocks(job));
      std::vector<std::size_t> of_node(threads.size());
      for (TileStretch stretch; stretch.end < columns;) {
        std::size_t const before = stretch.end;
        stretch = stretch_from(before, job.w, plan);
        ASSERT_EQ(stretch.begin, before);
        ASSERT_LT(stretch.begin, stretch.end);
        ASSERT_LE(stretch.end, columns);
        of_node[stretch.node] += stretch.end - stretch.begin;
        for (std::size_t c = stretch.begin; c < stretch.end; ++c) {
          GemmTile const tile{{.w = job.w, .bias = nullptr, .x = nullptr, .y = nullptr, .m = 1}, c};
          if (job.w.lies_by_regions() && c + 1 < columns) {
            EXPECT_EQ(stretch.node, plan.node_of(tile.weights().data() + tile.weights().size() / 2)) << c;
          }
        }
      }
      for (std::size_t j = 0; j < threads.size(); ++j) {
        totals[j] += of_node[j] * num_row_blocks(job);
        if (!job.w.lies_by_regions()) {
          EXPECT_NEAR(static_cast<double>(of_node[j]),
                      static_cast<double>(columns * threads[j]) / static_cast<double>(plan.num_threads()), 1);
        }
      }
    }
    for (std::size_t j = 0; j < threads.size(); ++j) {
      NodeTiles tiles(job_of, plan, j);
      for (std::size_t place = 0; place < totals[j]; ++place) {
        GemmTile const tile = tiles.at(place);
        ++times[static_cast<std::size_t>(&tile.job.w - weights.data())].at(tile.tile);
      }
    }
    for (auto const& of_job : times) EXPECT_EQ(of_job, std::vector<int>(of_job.size(), 1));
  }
}

TEST(NumaNodes, WeightsLieByRegionsWhereTheyAreLargeAndNodesAreSeveral) {
  ThreadPlan const two = plan_of({1, 1});
  ThreadPlan const one = ThreadPlan::anywhere(2, "");
  auto const by_regions = [](std::size_t n, ThreadPlan const* plan) {
    return PackedMatrix(kFloat32Weights, n, 1024, {.threads = plan}).lies_by_regions();
  };
  EXPECT_EQ(by_regions(1024, &two), pages_come_when_written(std::size_t{4} << 20));
  EXPECT_FALSE(by_regions(16, &two));
  EXPECT_FALSE(by_regions(1024, &one));
  EXPECT_FALSE(by_regions(1024, nullptr));
}

TEST(NumaNodes, ThreadsTakeFromTheirNodeBeforeOthers) {
  for (auto const& counts : kNodes) {
    ThreadPlan const plan = plan_of(counts);
    for (std::size_t own = 0; own < plan.num_threads(); ++own) {
      std::size_t const near = counts[plan.node_of_thread(own)];
      std::set<std::size_t> seen;
      for (std::size_t r = 0; r < plan.num_threads(); ++r) {
        std::size_t const run = run_in_turn(plan, own, r);
        seen.insert(run);
        EXPECT_EQ(plan.node_of_thread(run) == plan.node_of_thread(own), r < near) << own << ", " << r;
      }
      EXPECT_EQ(run_in_turn(plan, own, 0), own);
      EXPECT_EQ(seen.size(), plan.num_threads());
    }
  }
  ThreadPlan const one = ThreadPlan::anywhere(3, "");
  for (std::size_t r = 0; r < 3; ++r) EXPECT_EQ(run_in_turn(one, 1, r), (1 + r) % 3);
}

// Also where the weights were spread over other nodes than those of the threads that meet them now.
TEST(NumaNodes, HaveTheBitsOfOne) {
  Rig one(best_isa());
  ThreadPlan const elsewhere = plan_of({1, 2, 1});
  for (WeightFormat const& format : {kBfloat16Weights, kInt4Weights})
    for (auto const& [n, k] : {Shape{100, 64}, Shape{2600, 320}}) {
      auto const w = random_matrix(n, k, n);
      auto const x = random_matrix(67, k, 2);
      auto const run = [&](Exec const& exec, PackedMatrix const& weights, std::size_t m) {
        Matrix<float> y(m, n);
        linear(exec, x.view().row_range(0, m), weights, {}, y.view());
        return y;
      };
      for (std::size_t const m : {1, 67}) {
        Matrix<float> const expected = run(one.exec, packed(format, w.view(), {}), m);
        for (auto const& threads : kFewThreads) {
          ThreadPlan const plan = plan_of(threads);
          ThreadPool pool(plan);
          Exec const exec(best_isa(), pool, {.max_rows = 67, .max_columns = 320});
          for (ThreadPlan const* home : {&plan, &elsewhere})
            EXPECT_TRUE(same_bits(run(exec, packed(format, w.view(), {.threads = home}), m).view(), expected.view()))
                << n << ", " << m << ", " << threads.size() << " nodes";
        }
      }
    }
}

TEST(NumaNodes, GroupedExpertsHaveTheBitsOfOne) {
  constexpr std::size_t kHidden = 320;
  constexpr std::size_t kIntermediate = 150;
  std::size_t const offsets[] = {0, 1, 1, 40, 42};
  auto const x = random_matrix(42, kHidden, 3);
  auto const run = [&](Exec const& exec, WeightHome const& home) {
    std::vector<FfnWeights> experts(4);
    std::vector<FfnWeights const*> groups;
    for (std::size_t e = 0; e < experts.size(); ++e) {
      experts[e].gate_up.w = packed(kBfloat16Weights, random_matrix(2 * kIntermediate, kHidden, 10 + e).view(), home);
      experts[e].down.w = packed(kBfloat16Weights, random_matrix(kHidden, kIntermediate, 20 + e).view(), home);
      experts[e].activation = {.kind = Activation::silu};
      groups.push_back(&experts[e]);
    }
    Matrix<float> y(42, kHidden);
    std::vector<std::byte const*> in;
    std::vector<std::byte*> out;
    for (std::size_t r = 0; r < 42; ++r) {
      in.push_back(reinterpret_cast<std::byte const*>(x.view().row(r)));
      out.push_back(reinterpret_cast<std::byte*>(y.view().row(r)));
    }
    grouped_ffn(exec, {.groups = groups, .offsets = offsets, .in = in, .out = out, .wire = DType::f32});
    return y;
  };
  Rig one(best_isa());
  Matrix<float> const expected = run(one.exec, {});
  for (auto const& threads : kFewThreads) {
    ThreadPlan const plan = plan_of(threads);
    ThreadPool pool(plan);
    Exec const exec(best_isa(), pool, {.max_rows = 42, .max_columns = kHidden});
    EXPECT_TRUE(same_bits(run(exec, {.threads = &plan}).view(), expected.view())) << threads.size() << " nodes";
  }
}

}  // namespace
}  // namespace expertmesh
