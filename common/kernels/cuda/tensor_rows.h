// Products of rows of x with the rows of weights in bfloat16, FP8 or MXFP4 on tensor cores: what dot_rows.h is for
// float32 weights, with the same Jobs.
//
// Bits: sum over k of x[m][k] w[n][k] is taken in an order that depends on K alone. Chunks of 128 elements of K are
// added in order, in float32 and rounded to nearest, from zero; where a chunk has a scale its sum is multiplied by it
// first, which is rounded, too. A chunk's own sum begins with zero and takes its four spans of 32 in order: of each the
// terms of x from the smallest to the largest (tensor_core.h; one term where x is rounded), of each term the two
// products of 16 elements that mma_16x8x16 adds. Which 16 of a span is told at kSpan. So tensor cores, which cut off
// what they add behind the 24th bit or a little later, do so 8 or 24 times in a chunk, and most of what they add up is
// in the last third of a span's. How many rows a block takes, and which warp takes which chunk, changes nothing.
//
// Speed. Few rows of x (stream_chunks): the weights' bytes once through memory, as in dot_rows.h. A block has 16 rows
// of the weight; its warps take every eighth chunk each, straight into registers, one chunk (4 KB of bfloat16) ahead or
// two, of the next tile too: 64 KB on their way in two blocks, 32 KB of MXFP4. The chunks' sums meet in shared memory.
// More rows (multiply_tiles): tiles of weights and of x pass through shared memory, weights by copies that run some
// steps ahead, as the bytes that they are, x by way of registers, where it is split. Some rows are still a matter of
// memory, Many of tensor cores. Codes become bfloat16 where a warp reads them, in registers.
#pragma once
#include <algorithm>
#include <bit>

#include "common/base/check.h"
#include "common/kernels/cuda/dot_rows.h"
#include "common/kernels/cuda/tensor_core.h"
#include "common/kernels/cuda/weight_codes.h"
#include "common/kernels/device_rows.h"

namespace expertmesh::EM_DEVICE_NAMESPACE {

constexpr unsigned kChunkSpans = 4;
static_assert(kChunkSpans * kSpan == kDeviceChunk && kSpanUnits * sizeof(Words4) == kDeviceBlock);
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
  unsigned units = 0;           // 16 bytes each, of a row's numbers
  unsigned chunks_at_once = 0;  // of x in shared memory: all, or a multiple of kTensorWarps
  unsigned x_rows = 1;          // in shared memory: a power of two, those that are not there are zeros
};

// x: [span][term][row of x][unit of the span]
template <class Arguments>
__device__ inline void stage_chunks(Arguments const& a, unsigned terms, DotPart const& part, unsigned first,
                                    unsigned chunks, Words4* x) {
  auto const size = static_cast<unsigned>(a.job.k);
  unsigned const units = a.x_rows * kSpanUnits;  // of a span
  for (unsigned i = threadIdx.x; i < chunks * kChunkSpans * units; i += kTensorThreads) {
    unsigned const span = i / units;
    unsigned const row = i % units / kSpanUnits;
    float unit[8];
    load_unit(row < part.rows ? a.job.x_row(part, row) : nullptr,
              (first * kChunkSpans + span) * kSpanUnits + i % kSpanUnits, size, unit);
    write_terms(unit, terms, x + span * terms * units + i % units, units);
  }
}

// A chunk of a row, as one lane has it.
template <class W>
struct ChunkOfRow {
  Words4 units[kChunkSpans / W::kUnitSpans];
  std::uint32_t scales;

  // units_of_row: chunks that are not there are zeros.
  __device__ void load(std::byte const* row, unsigned chunk, unsigned units_of_row) {
    constexpr unsigned kUnits = kChunkSpans / W::kUnitSpans;
#pragma unroll
    for (unsigned i = 0; i < kUnits; ++i) {
      unsigned const unit = (chunk * kUnits + i) * kSpanUnits + threadIdx.x % kSpanUnits;
      units[i] = unit < units_of_row ? load_once(row + std::size_t{unit} * sizeof(Words4)) : Words4{};
    }
    scales = 0;
    if constexpr (W::kHasScales)
      if (chunk * kUnits * kSpanUnits < units_of_row)
        scales = reinterpret_cast<std::uint32_t const*>(row + std::size_t{units_of_row} * sizeof(Words4))[chunk];
  }
  template <bool kPlain>
  __device__ Words4 numbers(unsigned span) const {
    Words4 const& unit = units[span / W::kUnitSpans];
    constexpr unsigned kWords = 4 / W::kUnitSpans;
    std::uint32_t words[kWords];
#pragma unroll
    for (unsigned i = 0; i < kWords; ++i) words[i] = unit.w[span % W::kUnitSpans * kWords + i];
    typename W::Codes codes;
    memcpy(&codes, words, sizeof codes);
    return W::template numbers<kPlain>(codes, span, scales);
  }
};

// d: the chunk's sums. x: this lane's, [span][term] units `apart`. What is behind K is zeros in both.
template <bool kPlain, class W>
__device__ inline void multiply_chunk(ChunkOfRow<W> const& low, ChunkOfRow<W> const& high, Words4 const* x,
                                      unsigned terms, unsigned apart, float (&d)[4]) {
#pragma unroll
  for (unsigned s = 0; s < kChunkSpans; ++s) {
    Words4 const low_numbers = low.template numbers<kPlain>(s);
    Words4 const high_numbers = high.template numbers<kPlain>(s);
    for (unsigned term = terms; term-- > 0;) multiply_span(low_numbers, high_numbers, x[(s * terms + term) * apart], d);
  }
}

template <class W, class Job>
__global__ void __launch_bounds__(kTensorThreads, Few::kBlocks) stream_chunks(Streamed<Job> a) {
  EM_DYNAMIC_SHARED(Words4, shared);
  Job const& job = a.job;
  unsigned const terms = W::kRounded ? 1 : a.terms;
  unsigned const lane = threadIdx.x % kWarp;
  unsigned const warp = threadIdx.x / kWarp;
  unsigned const chunks = (static_cast<unsigned>(job.k) + kChunkSpans * kSpan - 1) / (kChunkSpans * kSpan);
  unsigned const term_units = a.x_rows * kSpanUnits;
  unsigned const x_unit = lane / 4 % a.x_rows * kSpanUnits + lane % 4;  // columns without a row have another's
  auto* const sums = reinterpret_cast<float*>(shared + a.chunks_at_once * kChunkSpans * terms * term_units);

  std::size_t const num_parts = job.num_parts();
  std::size_t const begin = num_parts * blockIdx.x / gridDim.x;
  std::size_t const end = num_parts * (blockIdx.x + 1) / gridDim.x;
  if (begin == end) return;
  std::size_t const outputs = kTileRows / job.rows_per_output();

  // What this warp asks for next: of tile `asked`.
  std::size_t asked = begin;
  unsigned asked_chunk = warp;
  std::byte const* low_row = nullptr;
  std::byte const* high_row = nullptr;
  auto const find_rows = [&] {
    DotPart const part = job.part(asked);
    low_row = job.weight_row(part, part.tile * outputs, lane / 4);
    high_row = job.weight_row(part, part.tile * outputs, lane / 4 + 8);
  };
  auto const ask = [&](ChunkOfRow<W>& low, ChunkOfRow<W>& high) {
    if (asked_chunk >= chunks && asked + 1 < end) {
      ++asked;
      asked_chunk = warp;
      find_rows();
    }
    low.load(low_row, asked_chunk, a.units);
    high.load(high_row, asked_chunk, a.units);
    asked_chunk += kTensorWarps;
  };
  ChunkOfRow<W> low[W::kChunksAhead];
  ChunkOfRow<W> high[W::kChunksAhead];
  find_rows();
#pragma unroll
  for (unsigned i = 0; i < W::kChunksAhead; ++i) ask(low[i], high[i]);

  std::size_t pass_in_shared = 0;
  for (std::size_t i = begin; i < end; ++i) {
    DotPart const part = job.part(i);
    bool const in_shared = i > begin && chunks <= a.chunks_at_once && part.pass == pass_in_shared;
    pass_in_shared = part.pass;
    float sum = 0;  // of element threadIdx.x of the tile
    for (unsigned first = 0; first < chunks; first += a.chunks_at_once) {
      unsigned const count = chunks - first < a.chunks_at_once ? chunks - first : a.chunks_at_once;
      __syncthreads();  // all have read what was there
      if (!in_shared) {
        stage_chunks(a, terms, part, first, count, shared);
        __syncthreads();
      }
      for (unsigned chunk = warp; chunk < count; chunk += kTensorWarps) {
        ChunkOfRow<W> const low_now = low[0];
        ChunkOfRow<W> const high_now = high[0];
#pragma unroll
        for (unsigned ahead = 1; ahead < W::kChunksAhead; ++ahead) {
          low[ahead - 1] = low[ahead];
          high[ahead - 1] = high[ahead];
        }
        ask(low[W::kChunksAhead - 1], high[W::kChunksAhead - 1]);
        float d[4] = {};
        Words4 const* const x = shared + chunk * kChunkSpans * terms * term_units + x_unit;
        bool plain = true;  // in all lanes or in none, for the sake of mma
        if constexpr (W::kHasPlainScales)
          plain = __ballot_sync(kAllLanes, !W::are_plain(low_now.scales | high_now.scales)) == 0;
        if (plain)
          multiply_chunk<true>(low_now, high_now, x, terms, term_units, d);
        else
          multiply_chunk<false>(low_now, high_now, x, terms, term_units, d);
        *reinterpret_cast<Four*>(sums + (chunk * kWarp + lane) * 4) = {
            W::scaled(d[0], low_now.scales), W::scaled(d[1], low_now.scales), W::scaled(d[2], high_now.scales),
            W::scaled(d[3], high_now.scales)};
      }
      __syncthreads();
      if (threadIdx.x < kTileRows * kTileX)
        for (unsigned chunk = 0; chunk < count; ++chunk) sum += sums[chunk * (kTileRows * kTileX) + threadIdx.x];
    }
    if (threadIdx.x < kTileRows * kTileX)
      job.finish(part, place_in_tile(part.tile * outputs, threadIdx.x / 4, threadIdx.x % 4, 0, 0, 16), sum);
  }
}

// ---- more rows of x
// Warps kDown x kAcross; a warp has kA x kB mma tiles; kStepSpans of K are in shared memory at a time, and the weights'
// of kStages - 1 copies more are on their way. A copy has those of a step, or of the steps of a unit of 16 bytes.
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
  static constexpr unsigned kBlockUnits = kRows * kSpanUnits;  // of weights: kUnitSpans spans of each row
  static constexpr unsigned kXUnits = kPassRows * kSpanUnits;  // of a span
  static_assert(kDownWarps * kAcrossWarps == kTensorWarps && kChunkSpans % kStepSpans == 0);
};
using Narrow = Tiles<4, 2, 1, 2, 4, 3, 2>;       // 64 rows of the weight, 32 of x: for weights of few rows
using Some = Tiles<8, 1, 1, 4, 2, 3, 2>;         // 128 rows of the weight, 32 of x
using Many = Tiles<2, 4, 4, 4, 1, 4, 1>;         // 128 rows of both
using ManyOfCodes = Tiles<4, 2, 2, 8, 1, 4, 1>;  // the same where each warp that reads a weight decodes it
template <class W>
using ManyOf = std::conditional_t<W::kHasScales, ManyOfCodes, Many>;

// How a shape has the weights of a format: spans of a copy, and units of them.
template <class Shape, class W>
struct CopiedWeights {
  static constexpr unsigned kSpans = std::max(Shape::kStepSpans, W::kUnitSpans);
  static constexpr unsigned kSteps = kSpans / Shape::kStepSpans;
  static constexpr unsigned kUnits = kSpans / W::kUnitSpans * Shape::kBlockUnits;
  static constexpr unsigned kScales = W::kHasScales ? Shape::kRows : 0;  // words: a copy is of one chunk
  static constexpr std::size_t shared_bytes(unsigned terms) {
    return Shape::kStages * (sizeof(Words4) * kUnits + sizeof(std::uint32_t) * kScales) +
           sizeof(Words4) * 2 * Shape::kStepSpans * terms * Shape::kXUnits;
  }
};

template <class Shape, class W, class Job>
struct Tiled {
  Job job{};
  unsigned terms = 1;
  unsigned units = 0;  // 16 bytes each, of a row's numbers
};

template <class Shape, class W, class Job>
__global__ void __launch_bounds__(kTensorThreads, Shape::kBlocks) multiply_tiles(Tiled<Shape, W, Job> a) {
  EM_DYNAMIC_SHARED(Words4, shared);
  using Copied = CopiedWeights<Shape, W>;
  constexpr unsigned kStepX = Shape::kStepSpans * Shape::kXUnits;
  constexpr unsigned kX = (kStepX + kTensorThreads - 1) / kTensorThreads;  // units of x that a thread splits in a step
  constexpr unsigned kMyWeights = Copied::kUnits / kTensorThreads;         // and of the weight, that it copies
  static_assert(Copied::kUnits % kTensorThreads == 0);
  Job const& job = a.job;
  unsigned const terms = W::kRounded ? 1 : a.terms;
  Words4* const weights = shared;  // [stage][block][row][lane of four]
  Words4* const x_terms =
      shared + Shape::kStages * Copied::kUnits;  // [step % 2][span][term][row of x][unit of the span]
  auto* const scales = reinterpret_cast<std::uint32_t*>(x_terms + 2 * terms * kStepX);  // [stage][row]
  unsigned const lane = threadIdx.x % kWarp;
  unsigned const first_row = threadIdx.x / kWarp / Shape::kAcross * (Shape::kA * kTileRows);  // of the warp
  unsigned const first_x = threadIdx.x / kWarp % Shape::kAcross * (Shape::kB * kTileX);
  auto const size = static_cast<unsigned>(job.k);
  unsigned const spans = (size + kSpan - 1) / kSpan;
  unsigned const steps = (spans + Shape::kStepSpans - 1) / Shape::kStepSpans;
  unsigned const copies = (spans + Copied::kSpans - 1) / Copied::kSpans;
  std::size_t const outputs = Shape::kRows / job.rows_per_output();

  std::size_t const num_parts = job.num_parts();
  std::size_t const end = num_parts * (blockIdx.x + 1) / gridDim.x;
  for (std::size_t i = num_parts * blockIdx.x / gridDim.x; i < end; ++i) {
    DotPart const part = job.part(i);
    std::size_t const output = part.tile * outputs;
    std::byte const* row[kMyWeights];
    float const* x_row[kX];
#pragma unroll
    for (unsigned j = 0; j < kMyWeights; ++j)
      row[j] = job.weight_row(part, output, (threadIdx.x + j * kTensorThreads) % Shape::kBlockUnits / kSpanUnits);
#pragma unroll
    for (unsigned j = 0; j < kX; ++j) {
      unsigned const m = (threadIdx.x + j * kTensorThreads) % Shape::kXUnits / kSpanUnits;
      x_row[j] = m < part.rows ? job.x_row(part, m) : nullptr;
    }
    auto const copy_weights = [&](unsigned copy) {
      if (copy < copies) {
        unsigned const stage = copy % Shape::kStages;
#pragma unroll
        for (unsigned j = 0; j < kMyWeights; ++j) {
          unsigned const at = threadIdx.x + j * kTensorThreads;
          unsigned const block = copy * (Copied::kSpans / W::kUnitSpans) + at / Shape::kBlockUnits;
          unsigned const unit = block * kSpanUnits + threadIdx.x % kSpanUnits;
          bool const zeros = unit >= a.units;
          copy_ahead(weights + stage * Copied::kUnits + at,
                     row[j] + (zeros ? std::size_t{0} : std::size_t{unit} * sizeof(Words4)), zeros);
          if constexpr (W::kHasScales)
            if (at < Shape::kBlockUnits && threadIdx.x % kSpanUnits == 0)
              copy_word_ahead(scales + stage * Copied::kScales + at / kSpanUnits,
                              row[j] + std::size_t{a.units} * sizeof(Words4) +
                                  copy * Copied::kSpans / kChunkSpans * sizeof(std::uint32_t));
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
        write_terms(x[j], terms,
                    x_terms + (step % 2 * Shape::kStepSpans + at / Shape::kXUnits) * terms * Shape::kXUnits +
                        at % Shape::kXUnits,
                    Shape::kXUnits);
      }
    };

    __syncthreads();  // all have done with the part before
    for (unsigned copy = 0; copy + 1 < Shape::kStages; ++copy) copy_weights(copy);
    load_x(0);
    write_x(0);
    float sums[Shape::kA][Shape::kB][4] = {};
    float of_chunk[Shape::kA][Shape::kB][4] = {};
    for (unsigned step = 0; step < steps; ++step) {
      unsigned const stage = step / Copied::kSteps % Shape::kStages;
      bool const begins = step % Copied::kSteps == 0;
      if (begins) wait_for_copies<Shape::kStages - 2>();
      __syncthreads();  // the step is in shared memory, and all have done with the one before
      if (begins) copy_weights(step / Copied::kSteps + Shape::kStages - 1);
      if (step + 1 < steps) load_x(step + 1);
      auto const scales_of = [&](unsigned r, unsigned half) {
        if constexpr (W::kHasScales)
          return scales[stage * Copied::kScales + first_row + r * kTileRows + half * 8 + lane / 4];
        else
          return 0U;
      };
      if (first_x < part.rows) {
#pragma unroll
        for (unsigned s = 0; s < Shape::kStepSpans; ++s) {
          unsigned const span = step * Shape::kStepSpans + s;
          if (span >= spans) continue;
          Words4 w[Shape::kA][2];
#pragma unroll
          for (unsigned r = 0; r < Shape::kA; ++r)
#pragma unroll
            for (unsigned half = 0; half < 2; ++half) {
              Words4 const* const unit = weights + stage * Copied::kUnits +
                                         span % Copied::kSpans / W::kUnitSpans * Shape::kBlockUnits +
                                         (first_row + r * kTileRows + half * 8) * kSpanUnits + lane;
              auto const codes = reinterpret_cast<typename W::Codes const*>(unit)[span % W::kUnitSpans];
              w[r][half] = W::template numbers<false>(codes, span % kChunkSpans, scales_of(r, half));
            }
#pragma unroll 1
          for (unsigned term = terms; term-- > 0;)
#pragma unroll
            for (unsigned m = 0; m < Shape::kB; ++m) {
              Words4 const of_x = x_terms[((step % 2 * Shape::kStepSpans + s) * terms + term) * Shape::kXUnits +
                                          (first_x + m * kTileX) * kSpanUnits + lane];
#pragma unroll
              for (unsigned r = 0; r < Shape::kA; ++r) multiply_span(w[r][0], w[r][1], of_x, of_chunk[r][m]);
            }
          if (span % kChunkSpans != kChunkSpans - 1 && span + 1 != spans) continue;
#pragma unroll
          for (unsigned r = 0; r < Shape::kA; ++r)
#pragma unroll
            for (unsigned c = 0; c < 4; ++c) {
              std::uint32_t const scale = scales_of(r, c / 2);
#pragma unroll
              for (unsigned m = 0; m < Shape::kB; ++m) {
                sums[r][m][c] += W::scaled(of_chunk[r][m][c], scale);
                of_chunk[r][m][c] = 0;
              }
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
template <class Shape, class W, class Job>
void launch_tensor_rows(Stream& stream, char const* op, std::size_t most_parts, unsigned pass_rows, Job const& job) {
  Grid const grid{
      .x = static_cast<unsigned>(std::min(most_parts, num_multiprocessors(stream) * std::size_t{Shape::kBlocks}))};
  unsigned const terms = job.rounds ? 1 : kExactTerms;
  EM_CHECK(terms == 1 || !W::kRounded, op << ": activations of weights in codes are rounded");
  auto const units = static_cast<unsigned>(device_row(W::kStorage, job.k).numbers / sizeof(Words4));
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
        .job = job, .terms = terms, .units = units, .chunks_at_once = static_cast<unsigned>(chunks), .x_rows = x_rows};
    launch(&stream_chunks<W, Job>, grid, kTensorThreads, chunks * chunk_bytes, stream, streamed);
  } else {
    launch(&multiply_tiles<Shape, W, Job>, grid, kTensorThreads, CopiedWeights<Shape, W>::shared_bytes(terms), stream,
           Tiled<Shape, W, Job>{.job = job, .terms = terms, .units = units});
  }
  check_launch(stream, op);
}

}  // namespace expertmesh::EM_DEVICE_NAMESPACE
