// Products of rows of x with the rows of bfloat16 weights on tensor cores: what dot_rows.h is for float32 weights, with
// the same Jobs.
//
// Bits: sum over k of x[m][k] w[n][k] is taken in an order that depends on K alone. Chunks of 128 elements of K are
// added in order, in float32 and rounded to nearest, from zero. A chunk's own sum begins with zero and takes its four
// spans of 32 in order: of each the terms of x from the smallest to the largest (tensor_core.h; one term where x is
// rounded), of each term the two products of 16 elements that mma_16x8x16 adds. Which 16 of a span is told at kSpan. So
// tensor cores, which cut off what they add behind the 24th bit or a little later, do so 8 or 24 times in a chunk, and
// most of what they add up is in the last third of a span's. How many rows a block takes, and which warp takes which
// chunk, changes nothing.
//
// Speed. Few rows of x (stream_chunks): the weights' bytes once through memory, as in dot_rows.h. A block has 16 rows
// of the weight; its warps take every eighth chunk each, straight into registers, one chunk (4 KB) ahead, of the next
// tile too: 64 KB on their way in two blocks. The chunks' sums meet in shared memory. More rows (multiply_tiles): tiles
// of weights and of x pass through shared memory, weights by copies that run some steps ahead, x by way of registers,
// where it is split. Some rows are still a matter of memory, Many of tensor cores.
#pragma once
#include <algorithm>
#include <bit>

#include "common/base/check.h"
#include "common/kernels/cuda/dot_rows.h"
#include "common/kernels/cuda/tensor_core.h"

namespace expertmesh::EM_DEVICE_NAMESPACE {

constexpr unsigned kChunkSpans = 4;
constexpr unsigned kTileRows = 16;  // of the weight, in an mma
constexpr unsigned kTileX = 8;      // rows of x, in an mma

constexpr unsigned kTensorWarps = 8;
constexpr unsigned kTensorThreads = kTensorWarps * kWarp;

// Where a thread's sum `index` of an mma's d belongs.
__device__ inline DotPlace place_in_tile(std::size_t output, unsigned lane, unsigned index, unsigned first_row,
                                         unsigned first_x, unsigned lanes) {
  return {.m = first_x + lane % 4 * 2 + index % 2,
          .output = output,
          .r = first_row + lane / 4 + index / 2 * 8,
          .lanes = lanes,
          .first = true};
}

// Unit `unit` of a row of x, or zeros.
__device__ inline void load_unit(float const* row, unsigned unit, unsigned size, float (&x)[8]) {
  Four const low = load_four(row, unit * 8, size);
  Four const high = load_four(row, unit * 8 + 4, size);
#pragma unroll
  for (unsigned i = 0; i < 4; ++i) {
    x[i] = low.x[i];
    x[4 + i] = high.x[i];
  }
}

// ---- few rows of x
struct Few {
  static constexpr unsigned kRows = kTileRows;
  static constexpr unsigned kPassRows = kTileX;
  static constexpr unsigned kBlocks = 2;  // in a multiprocessor
};

template <class Job>
struct Streamed {
  Job job{};
  unsigned terms = 1;
  unsigned chunks_at_once = 0;  // of x in shared memory: all, or a multiple of kTensorWarps
  unsigned x_rows = 1;          // in shared memory: a power of two, those that are not there are zeros
};

// x: [span][term][row of x][unit of the span]
template <class Arguments>
__device__ inline void stage_chunks(Arguments const& a, DotPart const& part, unsigned first, unsigned chunks,
                                    Words4* x) {
  auto const size = static_cast<unsigned>(a.job.k);
  unsigned const units = a.x_rows * kSpanUnits;  // of a span
  for (unsigned i = threadIdx.x; i < chunks * kChunkSpans * units; i += kTensorThreads) {
    unsigned const span = i / units;
    unsigned const row = i % units / kSpanUnits;
    float unit[8];
    load_unit(row < part.rows ? a.job.x_row(part, row) : nullptr,
              (first * kChunkSpans + span) * kSpanUnits + i % kSpanUnits, size, unit);
    write_terms(unit, a.terms, x + span * a.terms * units + i % units, units);
  }
}

// A chunk of the 16 rows, as one lane has it.
struct ChunkOfRows {
  Words4 low[kChunkSpans];
  Words4 high[kChunkSpans];
};
__device__ inline void load_chunk(std::uint16_t const* low, std::uint16_t const* high, unsigned chunk, unsigned units,
                                  ChunkOfRows& out) {
#pragma unroll
  for (unsigned s = 0; s < kChunkSpans; ++s) {
    unsigned const unit = (chunk * kChunkSpans + s) * kSpanUnits + threadIdx.x % kSpanUnits;
    out.low[s] = unit < units ? load_once(low + std::size_t{unit} * 8) : Words4{};
    out.high[s] = unit < units ? load_once(high + std::size_t{unit} * 8) : Words4{};
  }
}

template <class Job>
__global__ void __launch_bounds__(kTensorThreads, Few::kBlocks) stream_chunks(Streamed<Job> a) {
  EM_DYNAMIC_SHARED(Words4, shared);
  Job const& job = a.job;
  unsigned const lane = threadIdx.x % kWarp;
  unsigned const warp = threadIdx.x / kWarp;
  auto const units = static_cast<unsigned>((job.k + 7) / 8);
  unsigned const spans = (units + kSpanUnits - 1) / kSpanUnits;
  unsigned const chunks = (spans + kChunkSpans - 1) / kChunkSpans;
  unsigned const term_units = a.x_rows * kSpanUnits;
  unsigned const x_unit = lane / 4 % a.x_rows * kSpanUnits + lane % 4;  // columns without a row have another's
  auto* const sums = reinterpret_cast<float*>(shared + a.chunks_at_once * kChunkSpans * a.terms * term_units);

  std::size_t const num_parts = job.num_parts();
  std::size_t const begin = num_parts * blockIdx.x / gridDim.x;
  std::size_t const end = num_parts * (blockIdx.x + 1) / gridDim.x;
  if (begin == end) return;
  std::size_t const outputs = kTileRows / job.rows_per_output();
  DotPart part = job.part(begin);
  std::uint16_t const* low = job.weight_row(part, part.tile * outputs, lane / 4);
  std::uint16_t const* high = job.weight_row(part, part.tile * outputs, lane / 4 + 8);
  ChunkOfRows ahead;
  load_chunk(low, high, warp, units, ahead);
  bool in_shared = false;
  for (std::size_t i = begin; i < end; ++i) {
    DotPart const next = i + 1 < end ? job.part(i + 1) : part;
    float sum = 0;  // of element threadIdx.x of the tile
    for (unsigned first = 0; first < chunks; first += a.chunks_at_once) {
      unsigned const count = chunks - first < a.chunks_at_once ? chunks - first : a.chunks_at_once;
      __syncthreads();  // all have read what was there
      if (!in_shared) {
        stage_chunks(a, part, first, count, shared);
        __syncthreads();
      }
      for (unsigned chunk = warp; chunk < count; chunk += kTensorWarps) {
        ChunkOfRows const now = ahead;
        load_chunk(low, high, first + chunk + kTensorWarps, units, ahead);
        float d[4] = {};
#pragma unroll
        for (unsigned s = 0; s < kChunkSpans; ++s) {
          if ((first + chunk) * kChunkSpans + s >= spans) continue;
          Words4 const* const x = shared + (chunk * kChunkSpans + s) * a.terms * term_units + x_unit;
          for (unsigned term = a.terms; term-- > 0;) multiply_span(now.low[s], now.high[s], x[term * term_units], d);
        }
        *reinterpret_cast<Four*>(sums + (chunk * kWarp + lane) * 4) = {d[0], d[1], d[2], d[3]};
      }
      if (first + count == chunks && i + 1 < end) {
        low = job.weight_row(next, next.tile * outputs, lane / 4);
        high = job.weight_row(next, next.tile * outputs, lane / 4 + 8);
        load_chunk(low, high, warp, units, ahead);
      }
      __syncthreads();
      if (threadIdx.x < kTileRows * kTileX)
        for (unsigned chunk = 0; chunk < count; ++chunk) sum += sums[chunk * (kTileRows * kTileX) + threadIdx.x];
    }
    if (threadIdx.x < kTileRows * kTileX)
      job.finish(part, place_in_tile(part.tile * outputs, threadIdx.x / 4, threadIdx.x % 4, 0, 0, 16), sum);
    in_shared = chunks <= a.chunks_at_once && next.pass == part.pass;
    part = next;
  }
}

// ---- more rows of x
// Warps kDown x kAcross; a warp has kA x kB mma tiles; kStepSpans of K are in shared memory at a time, and the weights'
// of kStages - 1 steps more are on their way.
template <unsigned kDownWarps, unsigned kAcrossWarps, unsigned kTilesA, unsigned kTilesB, unsigned kSpansOfStep,
          unsigned kStagesOfWeights, unsigned kBlocksOfMultiprocessor>
struct Tiles {
  static constexpr unsigned kAcross = kAcrossWarps;
  static constexpr unsigned kA = kTilesA;
  static constexpr unsigned kB = kTilesB;
  static constexpr unsigned kRows = kDownWarps * kTilesA * kTileRows;     // of the weight
  static constexpr unsigned kPassRows = kAcrossWarps * kTilesB * kTileX;  // of x
  static constexpr unsigned kStepSpans = kSpansOfStep;
  static constexpr unsigned kStages = kStagesOfWeights;
  static constexpr unsigned kBlocks = kBlocksOfMultiprocessor;
  static constexpr unsigned kWeightUnits = kRows * kSpanUnits;  // of a span
  static constexpr unsigned kXUnits = kPassRows * kSpanUnits;
  static_assert(kDownWarps * kAcrossWarps == kTensorWarps && kChunkSpans % kStepSpans == 0);
  static constexpr std::size_t shared_bytes(unsigned terms) {
    return sizeof(Words4) * kStepSpans * (kStages * kWeightUnits + 2 * terms * kXUnits);
  }
};
using Narrow = Tiles<4, 2, 1, 2, 4, 3, 2>;  // 64 rows of the weight, 32 of x: for weights of few rows
using Some = Tiles<8, 1, 1, 4, 2, 3, 2>;    // 128 rows of the weight, 32 of x
using Many = Tiles<2, 4, 4, 4, 1, 4, 1>;    // 128 rows of both

template <class Shape, class Job>
struct Tiled {
  Job job{};
  unsigned terms = 1;
};

template <class Shape, class Job>
__global__ void __launch_bounds__(kTensorThreads, Shape::kBlocks) multiply_tiles(Tiled<Shape, Job> a) {
  EM_DYNAMIC_SHARED(Words4, shared);
  constexpr unsigned kStepWeights = Shape::kStepSpans * Shape::kWeightUnits;
  constexpr unsigned kStepX = Shape::kStepSpans * Shape::kXUnits;
  constexpr unsigned kX = (kStepX + kTensorThreads - 1) / kTensorThreads;  // units of x that a thread splits in a step
  constexpr unsigned kMyWeights = kStepWeights / kTensorThreads;           // and of the weight that it copies
  static_assert(kStepWeights % kTensorThreads == 0);
  Job const& job = a.job;
  Words4* const weights = shared;                                  // [stage][span][row][unit of the span]
  Words4* const x_terms = shared + Shape::kStages * kStepWeights;  // [step % 2][span][term][row of x][unit of the span]
  unsigned const lane = threadIdx.x % kWarp;
  unsigned const first_row = threadIdx.x / kWarp / Shape::kAcross * (Shape::kA * kTileRows);  // of the warp
  unsigned const first_x = threadIdx.x / kWarp % Shape::kAcross * (Shape::kB * kTileX);
  auto const size = static_cast<unsigned>(job.k);
  unsigned const units = (size + 7) / 8;
  unsigned const spans = (units + kSpanUnits - 1) / kSpanUnits;
  unsigned const steps = (spans + Shape::kStepSpans - 1) / Shape::kStepSpans;
  std::size_t const outputs = Shape::kRows / job.rows_per_output();

  std::size_t const num_parts = job.num_parts();
  std::size_t const end = num_parts * (blockIdx.x + 1) / gridDim.x;
  for (std::size_t i = num_parts * blockIdx.x / gridDim.x; i < end; ++i) {
    DotPart const part = job.part(i);
    std::size_t const output = part.tile * outputs;
    std::uint16_t const* row[kMyWeights];
    float const* x_row[kX];
#pragma unroll
    for (unsigned j = 0; j < kMyWeights; ++j)
      row[j] = job.weight_row(part, output, (threadIdx.x + j * kTensorThreads) % Shape::kWeightUnits / kSpanUnits);
#pragma unroll
    for (unsigned j = 0; j < kX; ++j) {
      unsigned const m = (threadIdx.x + j * kTensorThreads) % Shape::kXUnits / kSpanUnits;
      x_row[j] = m < part.rows ? job.x_row(part, m) : nullptr;
    }
    auto const copy_weights = [&](unsigned step) {
      if (step < steps) {
#pragma unroll
        for (unsigned j = 0; j < kMyWeights; ++j) {
          unsigned const at = threadIdx.x + j * kTensorThreads;
          unsigned const span = step * Shape::kStepSpans + at / Shape::kWeightUnits;
          unsigned const unit = span * kSpanUnits + threadIdx.x % kSpanUnits;
          bool const zeros = unit >= units;
          copy_ahead(weights + step % Shape::kStages * kStepWeights + at,
                     row[j] + (zeros ? std::size_t{0} : std::size_t{unit} * 8), zeros);
        }
      }
      end_copy_group();
    };
    float x[kX][8];
    auto const load_x = [&](unsigned step) {
#pragma unroll
      for (unsigned j = 0; j < kX; ++j) {
        unsigned const span = step * Shape::kStepSpans + (threadIdx.x + j * kTensorThreads) / Shape::kXUnits;
        load_unit(x_row[j], span * kSpanUnits + threadIdx.x % kSpanUnits, size, x[j]);
      }
    };
    auto const write_x = [&](unsigned step) {
#pragma unroll
      for (unsigned j = 0; j < kX; ++j) {
        unsigned const at = threadIdx.x + j * kTensorThreads;
        if (at >= kStepX) continue;
        write_terms(x[j], a.terms,
                    x_terms + (step % 2 * Shape::kStepSpans + at / Shape::kXUnits) * a.terms * Shape::kXUnits +
                        at % Shape::kXUnits,
                    Shape::kXUnits);
      }
    };

    __syncthreads();  // all have done with the part before
    for (unsigned step = 0; step + 1 < Shape::kStages; ++step) copy_weights(step);
    load_x(0);
    write_x(0);
    float sums[Shape::kA][Shape::kB][4] = {};
    float of_chunk[Shape::kA][Shape::kB][4] = {};
    for (unsigned step = 0; step < steps; ++step) {
      wait_for_copies<Shape::kStages - 2>();
      __syncthreads();  // the step is in shared memory, and all have done with the one before
      copy_weights(step + Shape::kStages - 1);
      if (step + 1 < steps) load_x(step + 1);
      if (first_x < part.rows) {
#pragma unroll
        for (unsigned s = 0; s < Shape::kStepSpans; ++s) {
          unsigned const span = step * Shape::kStepSpans + s;
          if (span >= spans) continue;
          Words4 w[Shape::kA][2];
#pragma unroll
          for (unsigned r = 0; r < Shape::kA; ++r)
#pragma unroll
            for (unsigned half = 0; half < 2; ++half)
              w[r][half] = weights[(step % Shape::kStages * Shape::kStepSpans + s) * Shape::kWeightUnits +
                                   (first_row + r * kTileRows + half * 8) * kSpanUnits + lane];
#pragma unroll 1
          for (unsigned term = a.terms; term-- > 0;)
#pragma unroll
            for (unsigned m = 0; m < Shape::kB; ++m) {
              Words4 const terms = x_terms[((step % 2 * Shape::kStepSpans + s) * a.terms + term) * Shape::kXUnits +
                                           (first_x + m * kTileX) * kSpanUnits + lane];
#pragma unroll
              for (unsigned r = 0; r < Shape::kA; ++r) multiply_span(w[r][0], w[r][1], terms, of_chunk[r][m]);
            }
          if (span % kChunkSpans != kChunkSpans - 1 && span + 1 != spans) continue;
#pragma unroll
          for (unsigned r = 0; r < Shape::kA; ++r)
#pragma unroll
            for (unsigned m = 0; m < Shape::kB; ++m)
#pragma unroll
              for (unsigned c = 0; c < 4; ++c) {
                sums[r][m][c] += of_chunk[r][m][c];
                of_chunk[r][m][c] = 0;
              }
        }
      }
      if (step + 1 < steps) write_x(step + 1);
    }
    if (first_x >= part.rows) continue;
#pragma unroll
    for (unsigned r = 0; r < Shape::kA; ++r)
#pragma unroll
      for (unsigned m = 0; m < Shape::kB; ++m)
#pragma unroll
        for (unsigned c = 0; c < 4; ++c)
          job.finish(part, place_in_tile(output, lane, c, first_row + r * kTileRows, first_x + m * kTileX, 4),
                     sums[r][m][c]);
  }
}

// ---- launches. most_parts: no fewer than there will be; pass_rows: at most Shape::kPassRows.
template <class Shape, class Job>
void launch_tensor_rows(Stream& stream, char const* op, std::size_t most_parts, unsigned pass_rows, Job const& job) {
  Grid const grid{
      .x = static_cast<unsigned>(std::min(most_parts, num_multiprocessors(stream) * std::size_t{Shape::kBlocks}))};
  unsigned const terms = job.rounds ? 1 : kExactTerms;
  if constexpr (std::is_same_v<Shape, Few>) {
    constexpr std::size_t kReserved = 1024;  // bytes that every block takes besides
    constexpr std::size_t kSumsBytes = kTileRows * kTileX * sizeof(float);
    unsigned const x_rows = std::bit_ceil(pass_rows);
    std::size_t const chunk_bytes =
        std::size_t{kChunkSpans} * terms * x_rows * kSpanUnits * sizeof(Words4) + kSumsBytes;
    std::size_t fitting = ((max_shared_bytes(stream) + kReserved) / Few::kBlocks - kReserved) / chunk_bytes;
    // GPUs of compute capability 8.6, 8.9 and 12 have 99 KiB: one block then.
    if (fitting < kTensorWarps) fitting = max_shared_bytes(stream) / chunk_bytes;
    std::size_t const all = (job.k + kChunkSpans * kSpan - 1) / (kChunkSpans * kSpan);
    std::size_t const chunks = all <= fitting ? all : fitting / kTensorWarps * kTensorWarps;
    EM_CHECK(chunks > 0, op << ": " << max_shared_bytes(stream) << " bytes of shared memory are too few");
    Streamed<Job> const streamed{
        .job = job, .terms = terms, .chunks_at_once = static_cast<unsigned>(chunks), .x_rows = x_rows};
    launch(&stream_chunks<Job>, grid, kTensorThreads, chunks * chunk_bytes, stream, streamed);
  } else {
    launch(&multiply_tiles<Shape, Job>, grid, kTensorThreads, Shape::shared_bytes(terms), stream,
           Tiled<Shape, Job>{.job = job, .terms = terms});
  }
  check_launch(stream, op);
}

}  // namespace expertmesh::EM_DEVICE_NAMESPACE
