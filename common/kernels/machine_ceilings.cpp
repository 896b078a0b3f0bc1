#include "common/kernels/machine_ceilings.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "common/base/aligned_buffer.h"
#include "common/base/check.h"
#include "common/kernels/kernel_table.h"

namespace expertmesh {
namespace {

constexpr std::size_t kPeakRounds = std::size_t{1} << 20;  // of one pass: some milliseconds

// Shortest time of body(thread) on all threads at once. What the bodies return is kept, so that no work is left out.
template <class Body>
double best_seconds(Exec const& exec, std::size_t passes, Body body) {
  EM_CHECK(passes > 0, "no pass");
  std::size_t const threads = exec.pool().num_threads();
  std::vector<float> results(threads);
  double best = 0;
  for (std::size_t pass = 0; pass < passes; ++pass) {
    auto const start = std::chrono::steady_clock::now();
    exec.pool().parallel_for(threads, [&](std::size_t begin, std::size_t end, std::size_t) {
      for (std::size_t thread = begin; thread < end; ++thread) results[thread] = body(thread);
    });
    double const seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (pass == 0 || seconds < best) best = seconds;
  }
  return best;
}

constexpr double kLaunchSeconds = 100e-6;  // enough for the host to call for a pass
constexpr double kPeakSeconds = 1e-3;      // of a device's pass, at least
constexpr std::size_t kFirstRounds = 16;

// Shortest time of work() on the device.
template <class Work>
double best_seconds(Device& device, std::size_t passes, Work work) {
  EM_CHECK(passes > 0, "no pass");
  auto const marks = device.make_marks();
  double best = 0;
  for (std::size_t pass = 0; pass < passes; ++pass) {
    device.hold(kLaunchSeconds);  // else the first mark is passed before the work has come
    marks->set(0);
    work();
    marks->set(1);
    double const seconds = marks->seconds_between(0, 1);
    if (pass == 0 || seconds < best) best = seconds;
  }
  return best;
}

}  // namespace

double measure_read_bandwidth(Exec const& exec, std::size_t buffer_bytes, std::size_t passes) {
  std::size_t const threads = exec.pool().num_threads();
  std::size_t const strides = std::max<std::size_t>(1, buffer_bytes / (threads * kStreamFloats * sizeof(float)));
  std::size_t const share = strides * kStreamFloats;  // floats of a thread
  AlignedBuffer<float> buffer(threads * share);
  exec.pool().parallel_for(buffer.size(), [&](std::size_t begin, std::size_t end, std::size_t) {
    std::fill(buffer.data() + begin, buffer.data() + end, 1.0F);  // what nobody has written is one page of zeros
  });
  double const seconds = best_seconds(exec, passes, [&](std::size_t thread) {
    return exec.table().read_stream(buffer.data() + thread * share, share);
  });
  return static_cast<double>(buffer.size_bytes()) / seconds;
}

double measure_barrier(Exec const& exec, std::size_t passes) {
  constexpr std::size_t kCalls = 2000;
  std::size_t const threads = exec.pool().num_threads();
  double best = 0;
  for (std::size_t pass = 0; pass < passes; ++pass) {
    auto const start = std::chrono::steady_clock::now();
    for (std::size_t i = 0; i < kCalls; ++i)
      exec.pool().parallel_for(threads, [](std::size_t, std::size_t, std::size_t) {});
    double const seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / kCalls;
    if (pass == 0 || seconds < best) best = seconds;
  }
  return best;
}

double measure_peak_flops(Exec const& exec, DType weights, std::size_t passes) {
  KernelTable const& table = exec.table();
  struct Kind {
    DType weights;
    float (*peak)(std::size_t);
    std::size_t multiply_adds;  // of a vector
  };
  Kind const kinds[] = {{DType::f32, table.peak_f32, kLanes},
                        {DType::bf16, table.peak_bf16, 2 * kLanes},
                        {DType::i8, table.peak_int8, 4 * kLanes},
                        {DType::i4, table.peak_int4, 4 * kLanes}};
  auto const* const kind = std::ranges::find(kinds, weights, &Kind::weights);
  EM_CHECK(kind != std::end(kinds), "weights of " << name_of(weights));
  double const seconds = best_seconds(exec, passes, [&](std::size_t) { return kind->peak(kPeakRounds); });
  std::size_t const operations = 2 * kPeakRounds * table.peak_multiply_adds * kind->multiply_adds;
  return static_cast<double>(operations * exec.pool().num_threads()) / seconds;
}

double measure_read_bandwidth(Device& device, std::size_t buffer_bytes, std::size_t passes) {
  std::size_t constexpr kUnit = 16;
  AlignedBuffer<std::byte> const buffer((buffer_bytes + kUnit - 1) / kUnit * kUnit, &device);
  AlignedBuffer<std::uint32_t> sum(1, &device);
  double const seconds = best_seconds(device, passes, [&] { device.read_stream(buffer.span(), sum.data()); });
  return static_cast<double>(buffer.size_bytes()) / seconds;
}

std::optional<double> measure_peak_flops(Device& device, PeakKind kind, std::size_t passes) {
  AlignedBuffer<float> sum(1, &device);
  double operations = 0;
  std::size_t rounds = kFirstRounds;
  auto const time = [&](std::size_t times) {
    return best_seconds(device, times, [&] { operations = device.multiply_add(kind, rounds, sum.data()); });
  };
  while (time(1) < kPeakSeconds && operations > 0) rounds *= 2;
  if (operations == 0) return std::nullopt;
  double const seconds = time(passes);
  return operations / seconds;
}

}  // namespace expertmesh
