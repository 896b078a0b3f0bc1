// The emulation itself: right kernels do what they would on a GPU, wrong ones die with a word about where. Skipped
// where the tests run on a GPU: its driver's threads do not outlive the fork of a death test.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "common/kernels/cuda/runtime.h"
#include "common/kernels/cuda/tensor_core.h"
#include "tests/unit/device/test_device.h"

namespace expertmesh::cuda_on_host {
namespace {

// Numbers in the device's memory, for one test.
template <class T>
class OnDevice {
 public:
  OnDevice(Stream& stream, std::vector<T> const& values)
      : stream_(stream), count_(values.size()), data_(allocate_bytes(stream, count_ * sizeof(T))) {
    copy_in(stream_, data_, values.data(), count_ * sizeof(T));
  }
  ~OnDevice() { release_bytes(stream_, data_); }
  OnDevice(OnDevice const&) = delete;
  OnDevice& operator=(OnDevice const&) = delete;
  [[nodiscard]] T* data() const { return static_cast<T*>(data_); }
  [[nodiscard]] std::vector<T> values() const {
    std::vector<T> out(count_);
    copy_out(stream_, out.data(), data_, count_ * sizeof(T));
    return out;
  }

 private:
  Stream& stream_;
  std::size_t count_;
  void* data_;
};

class CudaOnHost : public testing::Test {
 protected:
  void SetUp() override {
    if (test::on_gpu()) GTEST_SKIP() << "of the emulation, and EM_TEST_DEVICE is cuda";
  }
  StreamPointer stream_ = open_stream(0);
};
using CudaOnHostDeathTest = CudaOnHost;

// ---- right kernels
struct SumRows {
  float const* x;  // [gridDim.x, n]
  float* out;      // [gridDim.x]
  unsigned n;
};

// Every thread's part, a warp's by shuffles, the block's by shared memory.
__global__ void __launch_bounds__(128) sum_rows(SumRows a) {
  EM_SHARED(float, of_warp, 4);
  float sum = 0;
  for (unsigned i = threadIdx.x; i < a.n; i += blockDim.x) sum += a.x[blockIdx.x * a.n + i];
#pragma unroll
  for (unsigned step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = sum;
  __syncthreads();
  if (threadIdx.x == 0) a.out[blockIdx.x] = of_warp[0] + of_warp[1] + of_warp[2] + of_warp[3];
}

TEST_F(CudaOnHost, BarriersShufflesAndSharedMemoryMakeSums) {
  unsigned const n = 1000;
  std::vector<float> x(7 * n);
  std::iota(x.begin(), x.end(), 0.0F);
  OnDevice<float> const in(*stream_, x);
  OnDevice<float> const out(*stream_, std::vector<float>(7));
  launch(sum_rows, {.x = 7}, 128, 0, *stream_, SumRows{.x = in.data(), .out = out.data(), .n = n});
  std::vector<float> const sums = out.values();
  for (unsigned row = 0; row < 7; ++row)
    EXPECT_NEAR(sums[row], std::accumulate(x.begin() + row * n, x.begin() + (row + 1) * n, 0.0), 16);
}

struct Everything {
  unsigned* of_thread;  // [blocks, 64, 6]
  unsigned* counter;
  unsigned* largest;
};

__global__ void everything(Everything a) {
  unsigned const lane = threadIdx.x % kWarp;
  unsigned const block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  unsigned* out = a.of_thread + (block * blockDim.x + threadIdx.x) * 6;
  out[0] = __shfl_sync(kAllLanes, threadIdx.x, 3);
  out[1] = __shfl_xor_sync(kAllLanes, threadIdx.x, 1);
  out[2] = __shfl_down_sync(kAllLanes, threadIdx.x, 5);
  out[3] = __ballot_sync(kAllLanes, lane % 3 == 0);
  __syncwarp();
  out[4] = atomicAdd(a.counter, 2U);
  atomicMax(a.largest, block * 100 + threadIdx.x);
  EM_DYNAMIC_SHARED(unsigned, shared);
  shared[threadIdx.x] = threadIdx.x;
  __syncthreads();
  out[5] = shared[blockDim.x - 1 - threadIdx.x];
}

TEST_F(CudaOnHost, ThreadsHaveTheirIndicesLanesAndMemory) {
  OnDevice<unsigned> const out(*stream_, std::vector<unsigned>(2 * 3 * 4 * 64 * 6));
  OnDevice<unsigned> const counter(*stream_, {0});
  OnDevice<unsigned> const largest(*stream_, {0});
  launch(everything, {.x = 2, .y = 3, .z = 4}, 64, 64 * sizeof(unsigned), *stream_,
         Everything{.of_thread = out.data(), .counter = counter.data(), .largest = largest.data()});
  EXPECT_EQ(counter.values()[0], 2U * 24 * 64);
  EXPECT_EQ(largest.values()[0], 2363U);
  std::vector<unsigned> const values = out.values();
  std::vector<bool> taken(24 * 64);
  for (unsigned i = 0; i < 24 * 64; ++i) {
    unsigned const* const v = values.data() + i * 6;
    unsigned const thread = i % 64;
    unsigned const lane = thread % 32;
    EXPECT_EQ(v[0], thread / 32 * 32 + 3);
    EXPECT_EQ(v[1], thread ^ 1U);
    EXPECT_EQ(v[2], lane + 5 < 32 ? thread + 5 : thread);
    EXPECT_EQ(v[3], 0x49249249U);
    taken[v[4] / 2] = true;
    EXPECT_EQ(v[5], 63 - thread);
  }
  EXPECT_EQ(std::count(taken.begin(), taken.end(), true), 24 * 64);
}

TEST_F(CudaOnHost, NothingHappensOnAnEmptyGrid) {
  launch(sum_rows, {.x = 0}, 128, 0, *stream_, SumRows{.x = nullptr, .out = nullptr, .n = 1});
}

struct Leftovers {
  float* out;  // [4]: of static and of dynamic shared memory, for two blocks
};
__global__ void leftovers(Leftovers a) {
  EM_SHARED(float, fixed, 32);
  EM_DYNAMIC_SHARED(float, dynamic);
  if (threadIdx.x == 31) {  // the last one comes first in block 0
    a.out[2 * blockIdx.x] = fixed[7];
    a.out[2 * blockIdx.x + 1] = dynamic[7];
  }
  __syncthreads();
  fixed[threadIdx.x] = 1;
  dynamic[threadIdx.x] = 1;
}

TEST_F(CudaOnHost, SharedMemoryHoldsNanAtTheStartOfABlock) {
  OnDevice<float> const out(*stream_, std::vector<float>(4));
  for (int i = 0; i < 2; ++i) launch(leftovers, {.x = 2}, 32, 128, *stream_, Leftovers{.out = out.data()});
  for (float x : out.values()) EXPECT_TRUE(std::isnan(x));
}

struct Unsynchronised {
  float* out;  // [64]
  unsigned writer;
};
__global__ void unsynchronised(Unsynchronised a) {
  EM_SHARED(float, shared, 1);
  if (threadIdx.x == a.writer) shared[0] = 1;
  a.out[blockIdx.x * 32 + threadIdx.x] = shared[0];
}

TEST_F(CudaOnHost, AMissingBarrierShowsWhoeverWrites) {
  for (unsigned writer : {0U, 31U}) {
    OnDevice<float> const out(*stream_, std::vector<float>(64));
    launch(unsynchronised, {.x = 2}, 32, 0, *stream_, Unsynchronised{.out = out.data(), .writer = writer});
    std::vector<float> const values = out.values();
    EXPECT_TRUE(std::any_of(values.begin(), values.end(), [](float x) { return std::isnan(x); }));
  }
}

// ---- tensor cores
struct Fragments {
  std::uint16_t const* a;  // [32 lanes][8]
  std::uint16_t const* b;  // [32][4]
  float* d;                // [32][4]
};
__global__ void multiply_fragments(Fragments f) {
  std::uint32_t a[4];
  std::uint32_t b[2];
  float d[4];
  memcpy(a, f.a + threadIdx.x * 8, sizeof a);
  memcpy(b, f.b + threadIdx.x * 4, sizeof b);
  memcpy(d, f.d + threadIdx.x * 4, sizeof d);
  mma_16x8x16(d, a[0], a[1], a[2], a[3], b[0], b[1]);
  memcpy(f.d + threadIdx.x * 4, d, sizeof d);
}

// Every element is where the PTX ISA's formulas for mma.m16n8k16 have it; numbers so small that sums are exact.
TEST_F(CudaOnHost, AWarpMultipliesMatrices) {
  float a[16][16];
  float b[16][8];
  float d[16][8];
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < 16; ++k) a[row][k] = static_cast<float>((row * 7 + k * 5 + row * k) % 23 - 11);
  for (int k = 0; k < 16; ++k)
    for (int column = 0; column < 8; ++column)
      b[k][column] = static_cast<float>((k * 3 + column * 11 + k * column) % 19 - 9);
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) d[row][column] = static_cast<float>(row * 100 - column);
  std::vector<std::uint16_t> of_a;
  std::vector<std::uint16_t> of_b;
  std::vector<float> of_d;
  for (int lane = 0; lane < 32; ++lane) {
    int const group = lane >> 2;
    int const in_group = lane % 4;
    for (int i = 0; i < 8; ++i) {
      int const row = i < 2 || (4 <= i && i < 6) ? group : group + 8;
      int const k = in_group * 2 + (i & 1) + (i < 4 ? 0 : 8);
      of_a.push_back(bf16_of_float(a[row][k]));
    }
    for (int i = 0; i < 4; ++i) of_b.push_back(bf16_of_float(b[in_group * 2 + (i & 1) + (i < 2 ? 0 : 8)][group]));
    for (int i = 0; i < 4; ++i) of_d.push_back(d[i < 2 ? group : group + 8][in_group * 2 + (i & 1)]);
  }
  OnDevice<std::uint16_t> const a_there(*stream_, of_a);
  OnDevice<std::uint16_t> const b_there(*stream_, of_b);
  OnDevice<float> const d_there(*stream_, of_d);
  launch(multiply_fragments, {}, 32, 0, *stream_,
         Fragments{.a = a_there.data(), .b = b_there.data(), .d = d_there.data()});
  std::vector<float> const sums = d_there.values();
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) {
      int const row = lane / 4 + (i < 2 ? 0 : 8);
      int const column = lane % 4 * 2 + (i & 1);
      float expected = d[row][column];
      for (int k = 0; k < 16; ++k) expected += a[row][k] * b[k][column];
      EXPECT_EQ(sums[lane * 4 + i], expected) << "row " << row << ", column " << column;
    }
}

TEST(TensorTerms, AreExactlyTheNumber) {
  std::uint64_t state = 1;
  for (int i = 0; i < 100000; ++i) {
    state = state * 6364136223846793005U + 1442695040888963407U;
    float x[8];
    float rest[8];
    for (unsigned j = 0; j < 8; ++j) x[j] = float_of_bits(static_cast<std::uint32_t>(state >> 32) * (2 * j + 1));
    std::copy_n(x, 8, rest);
    Words4 terms[kExactTerms];
    write_terms(rest, kExactTerms, terms, 1);
    for (unsigned j = 0; j < 8; ++j) {
      float term[kExactTerms];
      for (unsigned t = 0; t < kExactTerms; ++t)
        term[t] = j % 2 == 0 ? low_bf16(terms[t].w[j / 2]) : high_bf16(terms[t].w[j / 2]);
      if (!std::isfinite(x[j])) {
        EXPECT_TRUE(std::isnan(x[j]) ? std::isnan(term[0]) : term[0] == x[j]);
        EXPECT_TRUE(term[1] == 0 && term[2] == 0);
        continue;
      }
      double const sum = static_cast<double>(term[0]) + term[1] + term[2];
      EXPECT_LE(std::abs(sum - x[j]), std::abs(x[j]) < 0x1p-109F ? 0x1p-133 : 0.0) << x[j];
    }
  }
  float extremes[8] = {std::numeric_limits<float>::max(), float_of_bits(0x7f800001U), 0, 0, 0, 0, 0, 0};
  Words4 terms[kExactTerms];
  write_terms(extremes, kExactTerms, terms, 1);
  EXPECT_TRUE(std::isfinite(low_bf16(terms[0].w[0])));
  EXPECT_TRUE(std::isnan(high_bf16(terms[0].w[0]))) << "a NaN whose upper half alone is an infinity";
}

// ---- copies that run beside
struct CopiesAhead {
  Words4 const* from;  // [32]
  Words4* out;         // [3][32]: what is there after none, one and both of two groups
  bool waits;
};
__global__ void copies_ahead(CopiesAhead a) {
  EM_SHARED(Words4, shared, 64);
  unsigned const i = threadIdx.x;
  copy_ahead(&shared[i], a.from + i, false);
  end_copy_group();
  copy_ahead(&shared[32 + i], a.from + i, i % 2 == 1);
  end_copy_group();
  a.out[i] = shared[i];
  wait_for_copies<1>();
  a.out[32 + i] = shared[i];
  if (!a.waits) return;
  wait_for_copies<0>();
  a.out[64 + i] = shared[32 + i];
}

TEST_F(CudaOnHost, CopiesAreThereWhenTheirGroupIsWaitedFor) {
  std::vector<Words4> words(32);
  for (unsigned i = 0; i < 32; ++i) words[i] = {{i, i + 1, i + 2, i + 3}};
  OnDevice<Words4> const from(*stream_, words);
  OnDevice<Words4> const out(*stream_, std::vector<Words4>(96));
  launch(copies_ahead, {}, 32, 0, *stream_, CopiesAhead{.from = from.data(), .out = out.data(), .waits = true});
  std::vector<Words4> const values = out.values();
  for (unsigned i = 0; i < 32; ++i) {
    EXPECT_EQ(values[i].w[3], 0xffffffffU);
    EXPECT_EQ(values[32 + i].w[3], i + 3);
    EXPECT_EQ(values[64 + i].w[3], i % 2 == 1 ? 0 : i + 3);
  }
}

TEST_F(CudaOnHostDeathTest, NoThreadEndsBeforeItsCopies) {
  OnDevice<Words4> const from(*stream_, std::vector<Words4>(32));
  OnDevice<Words4> const out(*stream_, std::vector<Words4>(96));
  EXPECT_DEATH(
      launch(copies_ahead, {}, 32, 0, *stream_, CopiesAhead{.from = from.data(), .out = out.data(), .waits = false}),
      "kernel of .*CopiesAhead.* ends before its copies are there");
}

// ---- memory
TEST_F(CudaOnHost, MemoryIsZeroedAlignedAndCounted) {
  std::size_t const before = free_bytes(*stream_);
  for (std::size_t bytes : {1, 255, 256, 257, 4095, 4096, 4097, 100000}) {
    void* const memory = allocate_bytes(*stream_, bytes);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(memory) % 256, 0U);
    std::vector<char> contents(bytes, 'x');
    copy_out(*stream_, contents.data(), memory, bytes);
    EXPECT_EQ(contents, std::vector<char>(bytes));
    EXPECT_LE(free_bytes(*stream_), before - bytes);
    release_bytes(*stream_, memory);
  }
  EXPECT_EQ(free_bytes(*stream_), before);
  EXPECT_THROW(allocate_bytes(*stream_, before + 1), std::runtime_error);
}

TEST_F(CudaOnHostDeathTest, TheHostCannotTouchIt) {
  OnDevice<float> const x(*stream_, {1.0F});
  EXPECT_DEATH(*static_cast<float volatile*>(x.data()) = 2, "");
}

TEST_F(CudaOnHostDeathTest, CopiesStayInsideAnAllocation) {
  OnDevice<float> const x(*stream_, {1, 2, 3});
  float host[4] = {};
  EXPECT_DEATH(copy_out(*stream_, host, x.data(), sizeof host), "16 bytes from");
  EXPECT_DEATH(copy_in(*stream_, host, host, sizeof host), "16 bytes to");
}

// ---- wrong kernels
enum class Fault : unsigned {
  none,
  leaves_barrier,
  leaves_warp,
  two_barriers,
  barrier_and_shuffle,
  behind_allocation,
  behind_dynamic_shared,
  wild_pointer,
  half_a_mask,
  too_much_shared
};
struct Broken {
  Fault fault;
  float* x;  // [1024]
};
__global__ void broken(Broken a) {
  bool const one = threadIdx.x == 5;
  switch (a.fault) {
    case Fault::none:
      break;
    case Fault::leaves_barrier:
      if (one) return;
      __syncthreads();
      break;
    case Fault::leaves_warp:
      if (one) return;
      __syncwarp();
      break;
    case Fault::two_barriers:
      if (one)
        __syncthreads();
      else
        __syncthreads();
      break;
    case Fault::barrier_and_shuffle:
      if (one)
        __syncwarp();
      else
        __syncthreads();
      break;
    case Fault::behind_allocation:
      a.x[1024 + threadIdx.x * 1024] = 1;
      break;
    case Fault::behind_dynamic_shared: {
      EM_DYNAMIC_SHARED(float, shared);
      shared[threadIdx.x + 1] = 1;
      break;
    }
    case Fault::wild_pointer:
      *reinterpret_cast<float volatile*>(std::uintptr_t{64} + 4 * threadIdx.x) = 1;
      break;
    case Fault::half_a_mask:
      __syncwarp(0xffffU);
      break;
    case Fault::too_much_shared: {
      EM_SHARED(float, shared, (12 << 10) + 1);
      shared[0] = 1;
      break;
    }
  }
  a.x[threadIdx.x] = 0;
}

class BrokenKernelDeathTest : public CudaOnHost {
 protected:
  void run(Fault fault) {
    launch(broken, {}, 64, 64 * sizeof(float), *stream_, Broken{.fault = fault, .x = x_.data()});
  }
  OnDevice<float> x_{*stream_, std::vector<float>(1024)};
};

TEST_F(BrokenKernelDeathTest, DiesWithItsPlace) {
  run(Fault::none);
  EXPECT_DEATH(run(Fault::leaves_barrier), "kernel of .*Broken.* waits for the block at .*cuda_on_host_test.cpp:");
  EXPECT_DEATH(run(Fault::leaves_barrier), "thread 5 has ended");
  EXPECT_DEATH(run(Fault::leaves_warp), "kernel of .*Broken.*thread 5 has ended");
  EXPECT_DEATH(run(Fault::two_barriers), "thread 5 waits for the block at .*cuda_on_host_test.cpp:");
  EXPECT_DEATH(run(Fault::barrier_and_shuffle), "thread 5 waits for the warp at .*cuda_on_host_test.cpp:");
  EXPECT_DEATH(run(Fault::behind_allocation), "kernel of .*Broken.* not allocated in the device's memory");
  EXPECT_DEATH(run(Fault::behind_dynamic_shared), "thread 63: touches .* behind the dynamic shared memory");
  EXPECT_DEATH(run(Fault::wild_pointer), "neither the device's nor shared memory");
  EXPECT_DEATH(run(Fault::half_a_mask), "not all lanes at .*cuda_on_host_test.cpp:");
  EXPECT_DEATH(run(Fault::too_much_shared), "bytes of shared memory");
}

TEST_F(BrokenKernelDeathTest, DiesOfWhatALaunchMayNotAskFor) {
  Broken const right{.fault = Fault::none, .x = x_.data()};
  EXPECT_DEATH(launch(broken, {}, 33, 0, *stream_, right), "33 threads");
  EXPECT_DEATH(launch(broken, {}, 1056, 0, *stream_, right), "1056 threads");
  EXPECT_DEATH(launch(broken, {.y = 1 << 16}, 32, 0, *stream_, right), "grid");
  EXPECT_DEATH(launch(broken, {}, 32, max_shared_bytes(*stream_) + 1, *stream_, right), "bytes shared");
  float host[64] = {};
  EXPECT_DEATH(launch(broken, {}, 32, 0, *stream_, Broken{.fault = Fault::none, .x = host}),
               "arguments point to memory of the host at byte 8");
}

struct Overrun {
  float* x;
};
__global__ void overrun(Overrun a) {
  if (threadIdx.x == 0) a.x[3] = 1;
}
TEST_F(CudaOnHostDeathTest, WhatIsWrittenJustBehindAnAllocationIsFoundWhenItGoes) {
  EXPECT_DEATH(
      {
        OnDevice<float> const x(*stream_, {1, 2, 3});
        launch(overrun, {}, 32, 0, *stream_, Overrun{.x = x.data()});
      },
      "behind an allocation of 12 bytes");
}

}  // namespace
}  // namespace expertmesh::cuda_on_host
