// Products of rows of x with the rows of float32 weights, for linear.cu and experts.cu; tensor_rows.h has those of
// other formats.
//
// Bits: sum over k of x[m][k] w[n][k] is taken in an order that depends on K alone. Lane l of a warp takes the 128-bit
// units l, l+32, l+64, … of row n and adds their products to one sum, one fused multiply-add each in order of k; then
// the sums of lanes 16, 8, 4, 2, 1 apart are added. How many rows of x or of the weight a warp takes at once, and how
// much of x is in shared memory at a time, changes nothing.
//
// Speed, with few rows: the weights' bytes once through memory. An H200 delivers 4.8 TB/s some 700 ns after being
// asked, so that 3.4 MB have to be on their way at any time: 26 KB in each of 132 multiprocessors. A warp has asked for
// its next kLoadsAhead units of 512 bytes before it works on those it has. That keeps 32 to 64 KB on their way in the 8
// warps of a block; Thin has two of them. Wide multiplies up to 8 rows with every weight (16 multiply-adds for each 128
// bits of x from shared memory, so that arithmetic stays behind memory), for which a warp takes four rows of the weight
// at once and a block nearly all of a multiprocessor's registers and shared memory.
#pragma once
#include <algorithm>

#include "common/kernels/cuda/numbers.h"
#include "common/kernels/cuda/runtime.h"

namespace expertmesh::EM_DEVICE_NAMESPACE {

struct Thin {
  static constexpr unsigned kPassRows = 2;  // of x, that meet a weight at once
  static constexpr unsigned kBlocks = 2;    // in a multiprocessor
};
struct Wide {
  static constexpr unsigned kPassRows = 8;
  static constexpr unsigned kBlocks = 1;
};

constexpr unsigned kDotWarps = 8;
constexpr unsigned kDotThreads = kDotWarps * kWarp;
constexpr unsigned kLoadsAhead = 8;

struct alignas(16) Four {
  float x[4];
};

constexpr unsigned kUnit = 4;              // elements of 128 bits
constexpr unsigned kStep = kUnit * kWarp;  // elements of K that a warp takes at a time

// What a block does next: some rows of x with a tile of outputs.
struct DotPart {
  std::size_t tile = 0;
  std::size_t pass = 0;  // parts of the same pass have the same rows of x
  unsigned rows = 0;
};

// A Job is the argument of a kernel. Its members:
//   std::size_t k            elements of a row
//   bool rounds              x is rounded to bf16
//   unsigned chunk_steps     see DotChunks
//   num_parts(), part(i)     its work, in an order in which neighbours share weights or rows of x
//   rows_per_output()        rows of the weight that make an output: 1 or 2
//   weight_row(part, output, r), x_row(part, m)   the r-th row from that output's on: any row of the weight where there
//                            is none; a row of x
//   finish(part, place, sum) called by all lanes
struct DotPlace {
  unsigned m = 0;          // row of the pass, maybe one that is not there
  std::size_t output = 0;  // first of the warp
  unsigned r = 0;          // row of the weight, counted from that
  unsigned lanes = 1;      // that have the same sum; the next r is so many lanes away
  bool first = false;      // of those lanes
};

// How much of x is in shared memory at a time, [steps][rows][32] fours: all, or a number of steps that the loads
// ahead divide.
struct DotChunks {
  unsigned steps = 0;
  std::size_t bytes = 0;
};
template <class Shape>
DotChunks dot_chunks(Stream const& stream, unsigned pass_rows, std::size_t k) {
  constexpr std::size_t kReserved = 1024;  // bytes that every block takes besides
  std::size_t const room = (max_shared_bytes(stream) + kReserved) / Shape::kBlocks - kReserved;
  std::size_t const rows = pass_rows * 2 <= Shape::kPassRows ? Shape::kPassRows / 2 : Shape::kPassRows;
  std::size_t const step_bytes = rows * kStep * sizeof(float);
  std::size_t const all = (k + kStep - 1) / kStep;
  std::size_t const fitting = room / step_bytes;
  std::size_t const steps = all <= fitting ? all : fitting / kLoadsAhead * kLoadsAhead;
  return {static_cast<unsigned>(steps), steps * step_bytes};
}

// Read once: not worth a place in the cache nearest to the multiprocessor.
__device__ inline Words4 load_once(void const* p) {
#if defined(__CUDA_ARCH__)
  Words4 v;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3])
      : "l"(p));
  return v;
#else
  return *static_cast<Words4 const*>(p);
#endif
}

template <unsigned kDepth, unsigned R>
__device__ inline void load_ahead(float const* const (&w)[R], unsigned unit, unsigned units,
                                  Words4 (&ahead)[kDepth][R]) {
#pragma unroll
  for (unsigned d = 0; d < kDepth; ++d)
#pragma unroll
    for (unsigned r = 0; r < R; ++r)
      ahead[d][r] = unit + d * kWarp < units ? load_once(w[r] + std::size_t{unit + d * kWarp} * kUnit) : Words4{};
}

// Elements [k, k+4) of a row of `size` elements, with zeros behind it, or all zeros without a row.
__device__ inline Four load_four(float const* row, unsigned k, unsigned size) {
  if (row != nullptr && k + 4 <= size && reinterpret_cast<std::uintptr_t>(row + k) % sizeof(Four) == 0)
    return *reinterpret_cast<Four const*>(row + k);
  Four four{};
  if (row == nullptr) return four;
#pragma unroll
  for (unsigned i = 0; i < 4; ++i)
    if (k + i < size) four.x[i] = row[k + i];
  return four;
}

// Steps [first, first + steps) of M rows of x into shared memory; rows that the part does not have are zeros. A thread
// asks for kLoadsAhead fours at once, since all wait for them.
template <unsigned M, class Job>
__device__ inline void stage(Job const& job, DotPart const& part, unsigned first, unsigned steps, Four* shared) {
  constexpr unsigned kAtOnce = kLoadsAhead / M;
  auto const size = static_cast<unsigned>(job.k);
  float const* row[M];
#pragma unroll
  for (unsigned m = 0; m < M; ++m) row[m] = m < part.rows ? job.x_row(part, m) : nullptr;
  for (unsigned begin = threadIdx.x; begin < steps * kWarp; begin += kAtOnce * kDotThreads) {
    Four x[kAtOnce][M];
#pragma unroll
    for (unsigned j = 0; j < kAtOnce; ++j)
#pragma unroll
      for (unsigned m = 0; m < M; ++m) x[j][m] = load_four(row[m], (first * kWarp + begin + j * kDotThreads) * 4, size);
#pragma unroll
    for (unsigned j = 0; j < kAtOnce; ++j) {
      unsigned const i = begin + j * kDotThreads;
      if (i >= steps * kWarp) continue;
      Four* const to = shared + i / kWarp * M * kWarp + i % kWarp;
#pragma unroll
      for (unsigned m = 0; m < M; ++m) {
        if (job.rounds)
#pragma unroll
          for (float& e : x[j][m].x) e = rounded_to_bf16(e);
        to[m * kWarp] = x[j][m];
      }
    }
  }
}

// sums[m * R + r] += the products of a unit of M rows of x with that of R rows of the weight. x: this lane's.
template <unsigned M, unsigned R>
__device__ inline void multiply_add(Four const* x, Words4 const (&w)[R], float (&sums)[M * R]) {
#pragma unroll
  for (unsigned m = 0; m < M; ++m) {
    Four const four = x[m * kWarp];
#pragma unroll
    for (unsigned i = 0; i < 4; ++i)
#pragma unroll
      for (unsigned r = 0; r < R; ++r) sums[m * R + r] = fmaf(four.x[i], float_of_bits(w[r].w[i]), sums[m * R + r]);
  }
}

// v[i] summed over the lanes, for i = lane / (32 / C). Lanes that have several sums share them out: of two that are to
// be added each takes half of the sums.
template <unsigned kApart = kWarp / 2, unsigned C>
__device__ inline float sum_over_lanes(float const (&v)[C]) {
  if constexpr (kApart == 0) {
    return v[0];
  } else if constexpr (C == 1) {
    float const sum[1] = {v[0] + __shfl_xor_sync(kAllLanes, v[0], kApart)};
    return sum_over_lanes<kApart / 2>(sum);
  } else {
    bool const upper = (threadIdx.x & kApart) != 0;
    float sums[C / 2];
#pragma unroll
    for (unsigned i = 0; i < C / 2; ++i) {
      float const mine = upper ? v[i + C / 2] : v[i];
      float const other = upper ? v[i] : v[i + C / 2];
      sums[i] = mine + __shfl_xor_sync(kAllLanes, other, kApart);
    }
    return sum_over_lanes<kApart / 2>(sums);
  }
}

// A part with M rows of x, by R rows of the weight a warp. in_shared: its x is there already.
template <unsigned M, unsigned R, class Job>
__device__ inline void run_part(Job const& job, DotPart const& part, bool in_shared, Four* shared) {
  constexpr unsigned kDepth = kLoadsAhead / R;
  constexpr unsigned kLanesOfSum = kWarp / (M * R);
  unsigned const lane = threadIdx.x % kWarp;
  std::size_t const output = (part.tile * kDotWarps + threadIdx.x / kWarp) * (R / job.rows_per_output());
  float const* w[R];
#pragma unroll
  for (unsigned r = 0; r < R; ++r) w[r] = reinterpret_cast<float const*>(job.weight_row(part, output, r));
  float sums[M * R] = {};

  auto const units = static_cast<unsigned>((job.k + kUnit - 1) / kUnit);
  unsigned const steps = (units + kWarp - 1) / kWarp;
  Words4 ahead[kDepth][R];
  load_ahead<kDepth>(w, lane, units, ahead);
  for (unsigned first = 0; first < steps; first += job.chunk_steps) {
    unsigned const chunk = steps - first < job.chunk_steps ? steps - first : job.chunk_steps;
    if (!in_shared) {
      __syncthreads();  // all have read what was there
      stage<M>(job, part, first, chunk, shared);
      __syncthreads();
    }
    for (unsigned step = 0; step < chunk; step += kDepth) {
      Words4 now[kDepth][R];
#pragma unroll
      for (unsigned d = 0; d < kDepth; ++d)
#pragma unroll
        for (unsigned r = 0; r < R; ++r) now[d][r] = ahead[d][r];
      load_ahead<kDepth>(w, (first + step + kDepth) * kWarp + lane, units, ahead);
#pragma unroll
      for (unsigned d = 0; d < kDepth; ++d)
        if (step + d < chunk) multiply_add<M, R>(shared + (step + d) * (M * kWarp) + lane, now[d], sums);
    }
  }

  float const sum = sum_over_lanes(sums);
  unsigned const index = lane / kLanesOfSum;
  job.finish(
      part,
      DotPlace{
          .m = index / R, .output = output, .r = index % R, .lanes = kLanesOfSum, .first = lane % kLanesOfSum == 0},
      sum);
}

// Blocks share out the parts in runs of neighbours.
template <class Shape, unsigned R, class Job>
__global__ void __launch_bounds__(kDotThreads, Shape::kBlocks) dot_rows(Job job) {
  EM_DYNAMIC_SHARED(Four, shared);
  bool const whole = job.k <= std::size_t{job.chunk_steps} * kStep;
  std::size_t const num_parts = job.num_parts();
  std::size_t const begin = num_parts * blockIdx.x / gridDim.x;
  std::size_t const end = num_parts * (blockIdx.x + 1) / gridDim.x;
  std::size_t pass_in_shared = 0;
  for (std::size_t i = begin; i < end; ++i) {
    DotPart const part = job.part(i);
    bool const in_shared = whole && i > begin && part.pass == pass_in_shared;
    pass_in_shared = part.pass;
    if (part.rows * 2 <= Shape::kPassRows)
      run_part<Shape::kPassRows / 2, R>(job, part, in_shared, shared);
    else
      run_part<Shape::kPassRows, R>(job, part, in_shared, shared);
  }
}

// most_parts: no fewer than there will be.
template <class Shape, unsigned R, class Job>
void launch_dot_rows(Stream& stream, char const* op, std::size_t most_parts, unsigned pass_rows, Job job) {
  DotChunks const chunks = dot_chunks<Shape>(stream, pass_rows, job.k);
  job.chunk_steps = chunks.steps;
  std::size_t const blocks = std::min(most_parts, num_multiprocessors(stream) * Shape::kBlocks);
  launch(&dot_rows<Shape, R, Job>, {.x = static_cast<unsigned>(blocks)}, kDotThreads, chunks.bytes, stream, job);
  check_launch(stream, op);
}

}  // namespace expertmesh::EM_DEVICE_NAMESPACE
