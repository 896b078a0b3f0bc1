// CUDA's language as far as portable.h says, for a plain C++ compiler: the same kernels run on the host for the tests.
// Every CUDA thread is a fiber, blocks run one after another on the OS thread that launches. What a GPU would answer
// with a hang or with nonsense aborts here, with the kernel and the place: threads that wait at different places, a
// thread that ends while others wait or before its copies are there, memory that was not allocated, pointers to the
// host's memory. Shared memory holds NaN at the start of a block, and device memory is out of the host's reach except
// while a kernel or a copy runs. Threads run from the last to the first in blocks of even number, else from the first
// on: what relies on an order without waiting for it shows.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <type_traits>
#include <typeinfo>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

#define EM_SHARED(type, name, count)         \
  static thread_local type name[count] = {}; \
  ::expertmesh::cuda_on_host::enter_shared(name, sizeof(name))
#define EM_DYNAMIC_SHARED(type, name) \
  type* const name = static_cast<type*>(::expertmesh::cuda_on_host::dynamic_shared())

namespace expertmesh::cuda_on_host {

struct Index3 {
  unsigned x = 0, y = 0, z = 0;
};
extern constinit thread_local Index3 threadIdx;
extern constinit thread_local Index3 blockIdx;
extern constinit thread_local Index3 blockDim;
extern constinit thread_local Index3 gridDim;

struct Place {
  char const* file = nullptr;
  int line = 0;
};

// ---- what the functions below are made of
void wait_for_block(Place place);
// The values that the 32 lanes of the warp gave, in order; good until this lane's next call.
std::uint32_t const* exchange_in_warp(std::uint32_t value, Place place);
// The `bytes` at `mine`, at most kMostOfLane, of all 32 lanes lie side by side in the order of the lanes when
// `together` is called, once; then each lane has its own back.
constexpr std::size_t kMostOfLane = 64;
void work_in_warp(void* mine, std::size_t bytes, void (*together)(void* of_lanes), Place place);
void check_mask(unsigned mask, Place place);
void enter_shared(void* memory, std::size_t bytes);  // filled with NaN once a block
void* dynamic_shared();

template <class T>
std::uint32_t const* exchange(unsigned mask, T value, Place place) {
  static_assert(sizeof(T) == 4 && std::is_trivially_copyable_v<T>);
  check_mask(mask, place);
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return exchange_in_warp(bits, place);
}
template <class T>
T value_of_lane(std::uint32_t const* lanes, unsigned lane) {
  T value;
  std::memcpy(&value, lanes + lane % 32, sizeof value);
  return value;
}

// ---- as CUDA has them
inline void __syncthreads(char const* file = __builtin_FILE(), int line = __builtin_LINE()) {
  wait_for_block({file, line});
}
inline void __syncwarp(unsigned mask = 0xffffffffU, char const* file = __builtin_FILE(), int line = __builtin_LINE()) {
  exchange(mask, 0U, {file, line});
}
template <class T>
T __shfl_sync(unsigned mask, T value, unsigned lane, char const* file = __builtin_FILE(), int line = __builtin_LINE()) {
  return value_of_lane<T>(exchange(mask, value, {file, line}), lane);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, unsigned lane_mask, char const* file = __builtin_FILE(),
                  int line = __builtin_LINE()) {
  return value_of_lane<T>(exchange(mask, value, {file, line}), threadIdx.x % 32 ^ lane_mask);
}
// The last lanes keep their own.
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, char const* file = __builtin_FILE(),
                   int line = __builtin_LINE()) {
  unsigned const lane = threadIdx.x % 32;
  return value_of_lane<T>(exchange(mask, value, {file, line}), lane + delta < 32 ? lane + delta : lane);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, char const* file = __builtin_FILE(),
                              int line = __builtin_LINE()) {
  std::uint32_t const* lanes = exchange(mask, predicate, {file, line});
  unsigned votes = 0;
  for (unsigned lane = 0; lane < 32; ++lane) votes |= (lanes[lane] != 0 ? 1U : 0U) << lane;
  return votes;
}

// ---- what tensor_core.h is made of (of its kinds of copies, each is done when it is waited for, and no sooner)
// d += a b as PTX's mma.m16n8k16 has it: bf16 times bf16, which is exact, added in float32 in order of k.
void mma_in_warp(float (&d)[4], std::array<std::uint32_t, 4> const& a, std::array<std::uint32_t, 2> const& b,
                 Place place = {__builtin_FILE(), __builtin_LINE()});
void copy_later(void* to, void const* from, std::size_t bytes);  // from null: zeros
void end_group_of_copies();
void wait_for_copies_but(unsigned groups);

template <class T>
requires std::is_integral_v<T> T atomicAdd(T* address, T value) {
  T const old = *address;
  *address = static_cast<T>(old + value);
  return old;
}
template <class T>
requires std::is_integral_v<T> T atomicMax(T* address, T value) {
  T const old = *address;
  if (value > old) *address = value;
  return old;
}

// ---- launches
struct Stream;
struct KernelCall {
  char const* arguments_type;  // mangled: names the kernel
  unsigned grid_x, grid_y, grid_z;
  unsigned threads;
  std::size_t shared_bytes;
  std::shared_ptr<void const> arguments;
  std::size_t arguments_bytes;
  std::function<void()> thread;  // what one thread does
};
// When it is its turn on the stream, or when the recording that is under way is launched.
void run_kernel(Stream& stream, KernelCall call);

template <class Grid, class Arguments>
void launch_on_host(void (*kernel)(Arguments), Grid grid, unsigned threads, std::size_t shared_bytes, Stream& stream,
                    Arguments const& arguments) {
  auto const own = std::make_shared<Arguments>(arguments);
#if defined(__has_builtin)
#if __has_builtin(__builtin_clear_padding)
  __builtin_clear_padding(own.get());  // run_kernel looks for pointers
#endif
#endif
  run_kernel(stream, {typeid(Arguments).name(), grid.x, grid.y, grid.z, threads, shared_bytes, own, sizeof(Arguments),
                      [kernel, own] { kernel(*own); }});
}

}  // namespace expertmesh::cuda_on_host
