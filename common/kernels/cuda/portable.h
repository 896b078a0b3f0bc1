// What the files of this folder are written in: CUDA C++ as nvcc compiles it for the GPU, and the part of it that a
// plain C++ compiler runs on the host, thread by thread, for the tests (tests/cuda_on_host).
//
// A kernel takes one struct of plain members by value. It may use: threadIdx, blockIdx, blockDim, gridDim (x, y, z);
// __syncthreads, __syncwarp, __shfl_sync, __shfl_xor_sync, __shfl_down_sync, __ballot_sync (32-bit types, all 32
// lanes), atomicAdd and atomicMax on integers; EM_SHARED and EM_DYNAMIC_SHARED; the float functions of <cmath> by their
// C names (fmaf, expf, …); what tensor_core.h has. Blocks are whole warps in one dimension. Every thread of a block
// reaches every
// __syncthreads, every lane of a warp every shuffle and every product on
// tensor cores.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "common/kernels/both.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define EM_DEVICE_NAMESPACE cuda_device
#define EM_SHARED(type, name, count) __shared__ type name[count]
#define EM_DYNAMIC_SHARED(type, name)                                \
  extern __shared__ __align__(16) unsigned char em_dynamic_shared[]; \
  type* const name = reinterpret_cast<type*>(em_dynamic_shared)
#else
#include "cuda_on_host.h"
#define EM_DEVICE_NAMESPACE cuda_on_host
#endif

namespace expertmesh::EM_DEVICE_NAMESPACE {

constexpr unsigned kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffU;

struct Grid {
  unsigned x = 1, y = 1, z = 1;
};

// One device and its one stream, made current for the calling thread by every call.
struct Stream;
#if defined(__CUDACC__)
// What a launch takes of the stream. The kernel may then have so many bytes.
cudaStream_t ready_for_launch(Stream& stream, void const* kernel, std::size_t shared_bytes);
#endif

// kernel<<<grid, threads, shared_bytes, stream>>>(arguments). Nothing happens where the grid is empty.
template <class Arguments>
void launch(void (*kernel)(Arguments), Grid grid, unsigned threads, std::size_t shared_bytes, Stream& stream,
            Arguments const& arguments) {
  static_assert(std::is_trivially_copyable_v<Arguments> && sizeof(Arguments) <= 4096);
#if defined(__CUDACC__)
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  cudaStream_t const queue = ready_for_launch(stream, reinterpret_cast<void const*>(kernel), shared_bytes);
  kernel<<<dim3(grid.x, grid.y, grid.z), threads, shared_bytes, queue>>>(arguments);
#else
  launch_on_host(kernel, grid, threads, shared_bytes, stream, arguments);
#endif
}

}  // namespace expertmesh::EM_DEVICE_NAMESPACE
