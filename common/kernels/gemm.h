// The GEMMs of weights over rows that are already what meets them (activation_rows.h), shared out among the threads.
// Private to common/kernels.
#pragma once
#include <algorithm>
#include <cstdint>
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
// rows, so that narrow weights with many rows are shared out too. Where they are but one tile wide, of 16.
constexpr std::size_t kTilePanels = 2;
constexpr std::size_t kTileRowsMax = 64;
constexpr std::size_t kTileRowsMaxOfOne = 16;

inline std::size_t tile_columns(PackedMatrix const& w) {
  return divided_up(divided_up(w.n(), kPanelColumns), kTilePanels);
}

// Rows of a job's tiles, but for the last ones: nearly as many in each, since all threads have some of each job. In
// eights, which is what the fastest kernels take at once.
inline std::size_t tile_rows(GemmJob const& job) {
  constexpr std::size_t kRowStep = 8;
  std::size_t const most = tile_columns(job.w) == 1 ? kTileRowsMaxOfOne : kTileRowsMax;
  return divided_up(divided_up(job.m, divided_up(job.m, most)), kRowStep) * kRowStep;
}
inline std::size_t num_row_blocks(GemmJob const& job) {
  return job.m == 0 ? 0 : divided_up(job.m, tile_rows(job));
}

struct GemmTile {
  GemmJob job;
  std::size_t tile;  // of tile_columns(w) x row blocks: row blocks inside, so that the next tile has the same weights

  [[nodiscard]] std::size_t row() const { return tile % num_row_blocks(job) * tile_rows(job); }  // the first
  [[nodiscard]] std::size_t panel() const { return tile / num_row_blocks(job) * kTilePanels; }   // the first
  [[nodiscard]] std::span<std::byte const> weights() const {
    std::size_t const panels = divided_up(job.w.n(), kPanelColumns);
    std::size_t const panel_bytes = job.w.size_bytes() / panels;
    return {job.w.data() + panel() * panel_bytes, std::min(kTilePanels, panels - panel()) * panel_bytes};
  }
};

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
                      .m = std::min(job.m - row, tile_rows(job)),
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

// Columns of tiles of a weight that are for the threads of one node.
struct TileStretch {
  std::size_t begin = 0;
  std::size_t end = 0;
  std::size_t node = 0;
};

// From column `begin` on, which is there. Weights that lie by regions are read by the nodes that have them; of others
// each node has a share that goes by its threads.
inline TileStretch stretch_from(std::size_t begin, PackedMatrix const& w, ThreadPlan const& threads) {
  std::size_t const columns = tile_columns(w);
  if (threads.nodes().size() == 1) return {begin, columns, 0};
  if (w.lies_by_regions()) {
    std::size_t const bytes = kTilePanels * (w.size_bytes() / divided_up(w.n(), kPanelColumns));
    std::byte const* const middle = w.data() + std::min(begin * bytes + bytes / 2, w.size_bytes() - 1);
    std::size_t const left =
        ThreadPlan::kRegionBytes - reinterpret_cast<std::uintptr_t>(middle) % ThreadPlan::kRegionBytes;
    return {begin, std::min(begin + divided_up(left, bytes), columns), threads.node_of(middle)};
  }
  std::size_t node = 0;
  while (columns * threads.first_thread(node + 1) / threads.num_threads() <= begin) ++node;
  return {begin, columns * threads.first_thread(node + 1) / threads.num_threads(), node};
}

// Goes through the tiles of all jobs that are for one node's threads, in one row.
template <class JobOf>
class NodeTiles {
 public:
  NodeTiles(JobOf const& job_of, ThreadPlan const& threads, std::size_t node)
      : job_of_(job_of), threads_(threads), node_(node) {}

  // By its place in the row, which rises from call to call.
  GemmTile at(std::size_t place) {
    while (place >= end_) go_on();
    return {job_of_(num_jobs_ - 1), stretch_.begin * row_blocks_ + (place - begin_)};
  }

 private:
  void go_on() {
    if (stretch_.end == columns_) {
      GemmJob const job = job_of_(num_jobs_++);
      columns_ = tile_columns(job.w);
      row_blocks_ = num_row_blocks(job);
      stretch_.end = 0;
    }
    stretch_ = stretch_from(stretch_.end, job_of_(num_jobs_ - 1).w, threads_);
    begin_ = end_;
    if (stretch_.node == node_) end_ += (stretch_.end - stretch_.begin) * row_blocks_;
  }

  JobOf const& job_of_;
  ThreadPlan const& threads_;
  std::size_t const node_;
  std::size_t num_jobs_ = 0;  // so far; the next are of the last one
  std::size_t columns_ = 0;
  std::size_t row_blocks_ = 0;
  TileStretch stretch_;
  std::size_t begin_ = 0;  // places of the stretch's tiles
  std::size_t end_ = 0;
};

// Whose run thread `own` takes from at its r-th turn: its own, then those of its node, then those of others.
inline std::size_t run_in_turn(ThreadPlan const& threads, std::size_t own, std::size_t r) {
  std::size_t const begin = threads.first_thread(threads.node_of_thread(own));
  std::size_t const end = threads.first_thread(threads.node_of_thread(own) + 1);
  std::size_t const near = end - begin;
  if (r < near) return begin + (own - begin + r) % near;
  std::size_t const far = threads.num_threads() - near;
  return (end + (own - begin + r) % far) % threads.num_threads();
}

// Runs job(0) … job(num_jobs - 1): all their tiles in one row for each node, of which each of its threads takes an
// equal run, so that it reads memory from end to end; who is through takes what is left of the others' runs. No barrier
// between jobs, and they end together whatever the jobs' rows, also where one was late or lost its core for a moment.
// One at a time of an Exec.
template <class JobOf>
class GemmRun {
 public:
  GemmRun(Exec const& exec, std::size_t num_jobs, JobOf const& job_of) : exec_(exec), job_of_(job_of) {
    ThreadPlan const& threads = exec.pool().plan();
    std::span<std::size_t> const totals = exec.scratch().node_tiles;
    std::ranges::fill(totals, 0);
    for (std::size_t i = 0; i < num_jobs; ++i) {
      GemmJob const job = job_of(i);
      std::size_t const columns = tile_columns(job.w);
      for (TileStretch stretch; stretch.end < columns;) {
        stretch = stretch_from(stretch.end, job.w, threads);
        totals[stretch.node] += (stretch.end - stretch.begin) * num_row_blocks(job);
      }
    }
    std::span<TileRun> const runs = exec.scratch().tile_runs;
    for (std::size_t r = 0; r < threads.num_threads(); ++r) {
      std::size_t const node = threads.node_of_thread(r);
      std::size_t const of_node = r - threads.first_thread(node);
      runs[r].next.store(totals[node] * of_node / threads.nodes()[node].num_threads, std::memory_order_relaxed);
      runs[r].end = totals[node] * (of_node + 1) / threads.nodes()[node].num_threads;
    }
  }
  // What is left of it for a thread: every thread has to call it.
  void work(std::size_t thread) const {
    ThreadPlan const& threads = exec_.pool().plan();
    std::optional<GemmTile> tile;  // taken, and run when the one after it is known
    for (std::size_t r = 0; r < threads.num_threads(); ++r) {
      std::size_t const whose = run_in_turn(threads, thread, r);
      TileRun& run = exec_.scratch().tile_runs[whose];
      NodeTiles tiles(job_of_, threads, threads.node_of_thread(whose));
      for (std::size_t next; (next = run.next.fetch_add(1, std::memory_order_relaxed)) < run.end;) {
        GemmTile const taken = tiles.at(next);
        if (tile) gemm_tile(exec_, *tile, &taken);
        tile.emplace(taken);
      }
    }
    if (tile) gemm_tile(exec_, *tile, nullptr);
  }

 private:
  Exec const& exec_;
  JobOf const& job_of_;
};

template <class JobOf>
void run_gemms(Exec const& exec, std::size_t num_jobs, JobOf job_of) {
  GemmRun const run(exec, num_jobs, job_of);
  exec.pool().parallel_for(exec.pool().num_threads(), [&](std::size_t begin, std::size_t end, std::size_t) {
    for (std::size_t thread = begin; thread < end; ++thread) run.work(thread);
  });
}

// All tiles of a job on the calling thread. next: what it runs after them, or null.
inline void run_alone(Exec const& exec, GemmJob const& job, GemmTile const* next) {
  std::size_t const tiles = tile_columns(job.w) * num_row_blocks(job);
  for (std::size_t i = 0; i < tiles; ++i) {
    GemmTile const after{job, i + 1};
    gemm_tile(exec, {job, i}, i + 1 < tiles ? &after : next);
  }
}

}  // namespace expertmesh
