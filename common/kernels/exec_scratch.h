// Scratch of the ops, allocated once from ExecLimits. Private to common/kernels.
#pragma once
#include <algorithm>
#include <atomic>
#include <vector>

#include "common/base/aligned_buffer.h"
#include "common/base/check.h"
#include "common/kernels/device.h"
#include "common/kernels/exec.h"
#include "common/kernels/kernel_table.h"

namespace expertmesh {

// A thread's run of a call's tiles (see run_gemms()), from which others may take, too. A line of its own.
struct alignas(64) TileRun {
  std::atomic<std::size_t> next = 0;  // that nobody has taken
  std::size_t end = 0;
};

struct Exec::Scratch {
  explicit Scratch(ExecLimits const& limits, ThreadPlan const& threads)
      : row_bytes(odd_lines(std::max(limits.max_columns * sizeof(float), quantised_row_bytes(limits.max_columns)))),
        shared_rows(limits.max_rows),
        own_rows(std::clamp<std::size_t>(std::min(kOwnBytes / row_bytes, limits.max_rows), 8, kMostOwnRows) / 8 * 8),
        input(num_rows(threads) * row_bytes),
        hidden(num_rows(threads) * row_bytes),
        output(num_rows(threads) * row_bytes),
        x_rows(num_rows(threads)),
        y_rows(num_rows(threads)),
        attention_row(attend_scratch_floats(limits.max_head_dim)),
        attention(threads.num_threads() * attention_row),
        tile_runs(threads.num_threads()),
        node_tiles(threads.nodes().size()) {}

  // Room for so many bytes, an odd number of lines: else the same places of many rows would share few sets of a cache.
  static std::size_t odd_lines(std::size_t bytes) {
    constexpr std::size_t kLine = 64;
    return ((bytes + kLine - 1) / kLine | 1) * kLine;
  }
  // A thread's rows, where it computes by itself: of each buffer at most. Few weights are as wide as the widest, so
  // that all three have room in the nearer caches.
  static constexpr std::size_t kOwnBytes = std::size_t{2} << 20;
  static constexpr std::size_t kMostOwnRows = 128;
  [[nodiscard]] std::size_t num_rows(ThreadPlan const& threads) const {
    return shared_rows + threads.num_threads() * own_rows;
  }
  // What passes between the host and the device.
  Scratch(ExecLimits const& limits, Device& device)
      : row_bytes(0),
        shared_rows(0),
        own_rows(0),
        input(wire_bytes(limits)),
        attention_row(0),
        wire_rows(wire_bytes(limits), &device),
        wide_rows(wide_bytes(limits), &device),
        experts(expert_entries(limits), &device),
        staging(staging_bytes(limits), &device),
        memory(&device) {}
  static std::size_t wire_bytes(ExecLimits const& limits) {
    return limits.max_rows * limits.max_hidden * sizeof(float);  // of the wider of the wire dtypes
  }
  static std::size_t wide_bytes(ExecLimits const& limits) {
    return limits.max_intermediate == 0 ? 0 : wire_bytes(limits);
  }
  static std::size_t expert_entries(ExecLimits const& limits) {
    return limits.max_intermediate == 0 ? 0 : limits.max_rows;
  }
  static std::size_t staging_bytes(ExecLimits const& limits) {
    return kStagedArrays * (limits.max_rows * sizeof(std::uint64_t) + kStagedAlignment);
  }
  // Before rows of so many bytes together go through `input` and `wire_rows`.
  void check_wire(std::size_t bytes) const {
    EM_CHECK(bytes <= wire_rows.size(), bytes << " bytes of rows, room for " << wire_rows.size());
  }

  // Numbers of the host for the device's next op. At most kStagedArrays for an op, of at most max_rows numbers each.
  template <class T>
  std::span<T const> stage(std::size_t array, std::span<T const> numbers) {
    std::size_t const room = staging.size() / kStagedArrays / kStagedAlignment * kStagedAlignment;
    EM_CHECK(array < kStagedArrays && numbers.size_bytes() <= room,
             numbers.size() << " numbers in array " << array << ", room for " << room << " bytes");
    if (numbers.empty()) return {};
    std::byte* const to = staging.data() + array * room;
    memory->upload(to, numbers.data(), numbers.size_bytes());
    return {reinterpret_cast<T const*>(to), numbers.size()};
  }
  static constexpr std::size_t kStagedArrays = 3;
  static constexpr std::size_t kStagedAlignment = 256;

  // Rows: max_rows for all threads together, and behind them own_rows for each thread.
  std::size_t row_bytes;  // of one row of the three buffers
  std::size_t shared_rows;
  std::size_t own_rows;
  AlignedBuffer<std::byte> input;       // [rows] inputs as they meet the weight; the activated FFN rows
  AlignedBuffer<std::byte> hidden;      // [rows] fp32 gate and up
  AlignedBuffer<std::byte> output;      // [rows] fp32 FFN outputs before rounding
  AlignedBuffer<void const*> x_rows;    // [rows]
  AlignedBuffer<float*> y_rows;         // [rows]
  std::size_t attention_row;            // floats of one thread in the next
  AlignedBuffer<float> attention;       // [threads] AttendPart::scratch
  std::vector<TileRun> tile_runs;       // [threads]
  std::vector<std::size_t> node_tiles;  // [nodes] of a call

  // With a device only, which uses `input` for rows that are on their way.
  AlignedBuffer<std::byte> wire_rows;   // [max_rows] of a wire dtype, on the device
  AlignedBuffer<std::byte> wide_rows;   // [max_rows] fp32, on the device; of grouped_ffn() alone
  AlignedBuffer<DeviceExpert> experts;  // [max_rows], on the device: those of a grouped_ffn()
  AlignedBuffer<std::byte> staging;     // stage(), on the device
  DeviceMemory* memory = nullptr;

  [[nodiscard]] std::size_t first_own_row(std::size_t thread) const { return shared_rows + thread * own_rows; }
  float* attention_of(std::size_t thread) { return attention.data() + thread * attention_row; }
  std::byte* input_row(std::size_t r) { return input.data() + r * row_bytes; }
  float* hidden_row(std::size_t r) { return reinterpret_cast<float*>(hidden.data() + r * row_bytes); }
  float* output_row(std::size_t r) { return reinterpret_cast<float*>(output.data() + r * row_bytes); }
};

}  // namespace expertmesh
