// What this machine can do at best with the ISA and the threads of an Exec, or what a device can, measured: what a
// benchmark's figures are shares of.
#pragma once
#include <cstddef>
#include <optional>

#include "common/kernels/device.h"
#include "common/kernels/exec.h"
#include "common/tensor/dtype.h"

namespace expertmesh {

// Bytes a second that all threads together read from memory: the best of `passes` over a buffer of this many bytes,
// which should be much larger than the caches.
double measure_read_bandwidth(Exec const& exec, std::size_t buffer_bytes, std::size_t passes);

// Operations (a multiply-add is two) a second on registers alone as the GEMMs of weights of this type have them (f32,
// bf16, i8 or i4): the best of `passes`.
double measure_peak_flops(Exec const& exec, DType weights, std::size_t passes);

// Seconds that parallel_for takes with nothing to do: what every op pays. The mean of many, the best of `passes`.
double measure_barrier(Exec const& exec, std::size_t passes);

// For a look in passing, some tens of milliseconds: a buffer much larger than caches keep, and few passes.
constexpr std::size_t kQuickReadBytes = std::size_t{128} << 20;
constexpr std::size_t kQuickPasses = 3;

// The same of a device, by its own clock. Throws DeviceError; the buffer must have room there.
double measure_read_bandwidth(Device& device, std::size_t buffer_bytes, std::size_t passes);
// None where the device has no multiply-adds of this kind.
std::optional<double> measure_peak_flops(Device& device, PeakKind kind, std::size_t passes);

}  // namespace expertmesh
