// The GEMMs of weights over rows that are already what meets them (activation_rows.h), shared out among the threads.
// Private to common/kernels.
#pragma once
#include <algorithm>
#include <optional>
#include <span>

#include "common/base/divided_up.h"
#include "common/kernels/activation_rows.h"
#include "common/kernels/exec.h"
#include "common/kernels/exec_scratch.h"
#include "common/kernels/kernel_table.h"
#include "common/kernels/packed_matrix.h"

namespace expertmesh {

// y = x W^T + bias for m rows.
struct GemmJob {
  PackedMatrix const& w;  // [N,K]
  float const* bias;      // [N], added to the finished sum; none: 0
  void const* const* x;   // [m] rows of K numbers that are ready for w
  float* const* y;        // [m] rows of N
  std::size_t m;
};

// A tile is what a thread takes at a time: 64 columns, enough independent sums to keep the units busy at m = 1, of 64
// rows, so that narrow weights with many rows are shared out too.
constexpr std::size_t kTilePanels = 2;
constexpr std::size_t kTileRowsMax = 64;

// Rows of a job's tiles, but for the last ones: nearly as many in each, since all threads have some of each job. In
// eights, which is what the fastest kernels take at once.
inline std::size_t tile_rows(std::size_t m) {
  constexpr std::size_t kRowStep = 8;
  return divided_up(divided_up(m, divided_up(m, kTileRowsMax)), kRowStep) * kRowStep;
}
inline std::size_t num_row_blocks(std::size_t m) {
  return m == 0 ? 0 : divided_up(m, tile_rows(m));
}

struct GemmTile {
  GemmJob job;
  std::size_t tile;  // of num_tiles(job): row blocks inside, so that the next tile has the same weights

  [[nodiscard]] std::size_t row() const { return tile % num_row_blocks(job.m) * tile_rows(job.m); }  // the first
  [[nodiscard]] std::size_t panel() const { return tile / num_row_blocks(job.m) * kTilePanels; }     // the first
  [[nodiscard]] std::span<std::byte const> weights() const {
    std::size_t const panels = divided_up(job.w.n(), kPanelColumns);
    std::size_t const panel_bytes = job.w.size_bytes() / panels;
    return {job.w.data() + panel() * panel_bytes, std::min(kTilePanels, panels - panel()) * panel_bytes};
  }
};

inline std::size_t num_tiles(GemmJob const& job) {
  return divided_up(divided_up(job.w.n(), kPanelColumns), kTilePanels) * num_row_blocks(job.m);
}

// next: what the same thread runs after it, or null.
inline void gemm_tile(Exec const& exec, GemmTile const& t, GemmTile const* next) {
  GemmJob const& job = t.job;
  std::size_t const panels = divided_up(job.w.n(), kPanelColumns);
  std::size_t const panel = t.panel();
  std::size_t const row = t.row();
  std::span<std::byte const> ahead;
  if (next != nullptr && next->weights().data() != t.weights().data()) ahead = next->weights();
  GemmPart const part{.x = job.x + row,
                      .y = job.y + row,
                      .m = std::min(job.m - row, tile_rows(job.m)),
                      .n = job.w.n(),
                      .k = job.w.k(),
                      .panels = job.w.data(),
                      .panel_begin = panel,
                      .panel_end = std::min(panel + kTilePanels, panels),
                      .group = job.w.format().group_size,
                      .next = ahead.data(),
                      .next_bytes = ahead.size()};
  gemm_of(exec, job.w.format(), part);
  if (job.bias == nullptr) return;
  std::size_t const column = panel * kPanelColumns;
  std::size_t const columns = std::min(kTilePanels * kPanelColumns, part.n - column);
  for (std::size_t r = 0; r < part.m; ++r) exec.table().add(part.y[r] + column, job.bias + column, columns);
}

// Runs job(0) … job(num_jobs - 1): all their tiles in one row, of which each thread takes an equal run, so that it
// reads memory from end to end; who is through takes what is left of the others' runs. No barrier between jobs, and
// they end together whatever the jobs' rows, also where one was late or lost its core for a moment.
template <class JobOf>
void run_gemms(Exec const& exec, std::size_t num_jobs, JobOf job_of) {
  std::size_t const num_threads = exec.pool().num_threads();
  std::size_t total = 0;
  for (std::size_t i = 0; i < num_jobs; ++i) total += num_tiles(job_of(i));
  std::span<TileRun> const runs = exec.scratch().tile_runs;
  for (std::size_t r = 0; r < num_threads; ++r) {
    runs[r].next.store(total * r / num_threads, std::memory_order_relaxed);
    runs[r].end = total * (r + 1) / num_threads;
  }
  exec.pool().parallel_for(num_threads, [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t own = begin; own < end; ++own) {
      std::optional<GemmTile> tile;  // taken, and run when the one after it is known
      for (std::size_t r = 0; r < num_threads; ++r) {
        TileRun& run = runs[(own + r) % num_threads];
        std::size_t job = 0;
        std::size_t end_of_job = 0;
        std::size_t first_of_job = 0;
        for (std::size_t next; (next = run.next.fetch_add(1, std::memory_order_relaxed)) < run.end;) {
          while (next >= end_of_job) {
            first_of_job = end_of_job;
            end_of_job += num_tiles(job_of(job++));
          }
          GemmTile const taken{job_of(job - 1), next - first_of_job};
          if (tile) gemm_tile(exec, *tile, &taken);
          tile.emplace(taken);
        }
      }
      if (tile) gemm_tile(exec, *tile, nullptr);
    }
  });
}

}  // namespace expertmesh
