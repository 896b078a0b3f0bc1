// Work that shows how fast the device can be: reading, and multiply-adds on registers.
#include "common/base/check.h"
#include "common/kernels/cuda/cuda_device.h"
#include "common/kernels/cuda/numbers.h"

namespace expertmesh::EM_DEVICE_NAMESPACE {
namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kBlocksEach = 8;  // of a multiprocessor: all threads that it can have
constexpr unsigned kAhead = 8;       // units that a thread has asked for at once: 256 KiB of a multiprocessor

struct ReadStream {
  Words4 const* units;
  std::size_t count;
  std::uint32_t* sum;
};

__global__ void __launch_bounds__(kThreads) read_all(ReadStream a) {
  std::size_t const step = static_cast<std::size_t>(gridDim.x) * kThreads;
  std::size_t i = static_cast<std::size_t>(blockIdx.x) * kThreads + threadIdx.x;
  std::uint32_t sum = 0;
  auto const add = [&](Words4 const& unit) {
    for (std::uint32_t const word : unit.w) sum += word;
  };
  for (; i + (kAhead - 1) * step < a.count; i += kAhead * step) {
    Words4 units[kAhead];
#pragma unroll
    for (unsigned u = 0; u < kAhead; ++u) units[u] = a.units[i + u * step];
#pragma unroll
    for (unsigned u = 0; u < kAhead; ++u) add(units[u]);
  }
  for (; i < a.count; i += step) add(a.units[i]);
  for (unsigned lanes = kWarp / 2; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(kAllLanes, sum, lanes);
  if (threadIdx.x % kWarp == 0) atomicAdd(a.sum, sum);
}

struct MultiplyAdd {
  std::size_t rounds;
  float factor;
  float* sum;
};
constexpr float kFactor = 0.5F;  // sums of it stay between 0 and 1 …
constexpr float kNever = -1;     // … and never come here, which the compiler does not know

constexpr unsigned kChains = 16;  // of a thread, which do not wait for each other

__global__ void __launch_bounds__(kThreads) multiply_add_fp32(MultiplyAdd a) {
  float x[kChains];
#pragma unroll
  for (unsigned c = 0; c < kChains; ++c) x[c] = static_cast<float>(threadIdx.x + c) / (2 * kThreads);
  for (std::size_t round = 0; round < a.rounds; ++round)
#pragma unroll
    for (unsigned c = 0; c < kChains; ++c) x[c] = fmaf(x[c], a.factor, a.factor);
  float sum = 0;
#pragma unroll
  for (unsigned c = 0; c < kChains; ++c) sum += x[c];
  if (sum == kNever) *a.sum = sum;
}

#if defined(__CUDACC__)
// mma.sync of [16,16] and [16,8], the widest that all devices since the A100 have. Those since the H100 have others
// (wgmma, tcgen05) that alone reach their whole peak.
constexpr unsigned kTiles = 8;                         // of a warp, which do not wait for each other
constexpr double kTileOperations = 2.0 * 16 * 8 * 16;  // of a warp
constexpr std::uint32_t kTwoHalves = 0x3f003f00U;      // 0.5 twice, in bf16

__global__ void __launch_bounds__(kThreads) multiply_add_tiles(MultiplyAdd a) {
  float d[kTiles][4];
#pragma unroll
  for (unsigned t = 0; t < kTiles; ++t)
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) d[t][i] = static_cast<float>(threadIdx.x + t);
  std::uint32_t const x = kTwoHalves + threadIdx.x;
  std::uint32_t const w = kTwoHalves - threadIdx.x;
  for (std::size_t round = 0; round < a.rounds; ++round)
#pragma unroll
    for (unsigned t = 0; t < kTiles; ++t)
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %4, %4, %4}, {%5, %5}, "
          "{%0, %1, %2, %3};"
          : "+f"(d[t][0]), "+f"(d[t][1]), "+f"(d[t][2]), "+f"(d[t][3])
          : "r"(x), "r"(w));
  float sum = 0;
#pragma unroll
  for (unsigned t = 0; t < kTiles; ++t)
#pragma unroll
    for (unsigned i = 0; i < 4; ++i) sum += d[t][i];
  if (sum == kNever) *a.sum = sum;
}
#endif

}  // namespace

void CudaDevice::read_stream(std::span<std::byte const> memory, std::uint32_t* sum) {
  EM_CHECK(reinterpret_cast<std::uintptr_t>(memory.data()) % sizeof(Words4) == 0, "memory at " << memory.data());
  launch(read_all, {.x = static_cast<unsigned>(num_multiprocessors(*stream_)) * kBlocksEach}, kThreads, 0, *stream_,
         ReadStream{reinterpret_cast<Words4 const*>(memory.data()), memory.size() / sizeof(Words4), sum});
  check_launch(*stream_, "read_stream");
}

double CudaDevice::multiply_add(PeakKind kind, std::size_t rounds, float* sum) {
  auto const blocks = static_cast<unsigned>(num_multiprocessors(*stream_)) * kBlocksEach;
  MultiplyAdd const a{.rounds = rounds, .factor = kFactor, .sum = sum};
  double operations = 0;
  if (kind == PeakKind::fp32) {
    launch(multiply_add_fp32, {.x = blocks}, kThreads, 0, *stream_, a);
    operations = 2.0 * kChains * kThreads * blocks;
  } else {
#if defined(__CUDACC__)
    launch(multiply_add_tiles, {.x = blocks}, kThreads, 0, *stream_, a);
    operations = kTileOperations * kTiles * (kThreads / kWarp) * blocks;
#endif
  }
  check_launch(*stream_, "multiply_add");
  return operations * static_cast<double>(rounds);
}

}  // namespace expertmesh::EM_DEVICE_NAMESPACE
