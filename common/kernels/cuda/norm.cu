// Normalisations. So many threads have a row (or a head of it) as its length alone says, and each of them the same
// elements whatever their alignment: the order of the sums is a matter of the length alone.
#include "common/kernels/cuda/cuda_device.h"
#include "common/kernels/cuda/each.h"

namespace expertmesh::EM_DEVICE_NAMESPACE {
namespace {

constexpr unsigned kBlock = 256;  // threads, where a warp has a row
constexpr unsigned kMostThreads = 1024;

struct Norm {
  Rows<float const> x;
  Rows<float> out;
  std::size_t num_rows;
  unsigned num_heads;
  unsigned n;           // elements of a head
  float const* weight;  // [n] or null
  float const* bias;    // [n] or null
  float epsilon;
  bool centred;  // the mean is taken off
  bool aligned;
};

// f(i, N numbers) for the elements of a row that are this one's of kThreads threads.
template <unsigned kThreads, class F>
__device__ void for_own_elements(Norm const& a, float const* row, F f) {
  unsigned const me = threadIdx.x % kThreads;
  for (unsigned i = me * 4; i < a.n; i += kThreads * 4) {
    if (a.aligned && i + 4 <= a.n) {
      f(i, load<4>(row + i));
    } else {
      for (unsigned j = i; j < i + 4 && j < a.n; ++j) f(j, load<1>(row + j));
    }
  }
}

// Of the numbers of kThreads threads: a tree over the lanes, and one over the warps. All get it.
template <unsigned kThreads>
__device__ float sum_over_threads(float x) {
  for (unsigned step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  if constexpr (kThreads > kWarp) {
    EM_SHARED(float, of_warp, kWarp);
    unsigned const lane = threadIdx.x % kWarp;
    __syncthreads();  // the last sum has been read
    if (lane == 0) of_warp[threadIdx.x / kWarp] = x;
    __syncthreads();
    x = lane < kThreads / kWarp ? of_warp[lane] : 0.0F;
    for (unsigned step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  }
  return x;
}

template <unsigned kThreads>
__global__ void __launch_bounds__(kThreads == kWarp ? kBlock : kThreads) norm(Norm a) {
  std::size_t const row = kThreads == kWarp
                              ? static_cast<std::size_t>(blockIdx.x) * (kBlock / kWarp) + threadIdx.x / kWarp
                              : static_cast<std::size_t>(blockIdx.x);
  if (row >= a.num_rows) return;  // whole warps
  std::size_t const column = row % a.num_heads * a.n;
  float const* const x = a.x.at(row / a.num_heads, column);
  float* const out = a.out.at(row / a.num_heads, column);
  auto const count = static_cast<float>(a.n);

  float mean = 0;
  if (a.centred) {
    float sum = 0;
    for_own_elements<kThreads>(a, x, [&](unsigned, auto const& some) {
      for (float v : some.v) sum += v;
    });
    mean = sum_over_threads<kThreads>(sum) / count;
  }
  float squares = 0;
  for_own_elements<kThreads>(a, x, [&](unsigned, auto const& some) {
    for (float v : some.v) squares = fmaf(v - mean, v - mean, squares);
  });
  float const scale = 1.0F / sqrtf(sum_over_threads<kThreads>(squares) / count + a.epsilon);
  for_own_elements<kThreads>(a, x, [&](unsigned i, auto some) {
    constexpr unsigned kCount = sizeof(some) / sizeof(float);
    for (float& v : some.v) v = (v - mean) * scale;
    if (a.weight) {
      auto const weight = load<kCount>(a.weight + i);
      for (unsigned j = 0; j < kCount; ++j) some.v[j] *= weight.v[j];
    }
    if (a.bias) {
      auto const bias = load<kCount>(a.bias + i);
      for (unsigned j = 0; j < kCount; ++j) some.v[j] += bias.v[j];
    }
    store(out + i, some);
  });
}

template <unsigned kThreads>
void launch_norm(Stream& stream, Norm const& a) {
  constexpr unsigned kRows = kThreads == kWarp ? kBlock / kWarp : 1;
  launch(norm<kThreads>, {.x = static_cast<unsigned>((a.num_rows + kRows - 1) / kRows)}, kThreads * kRows, 0, stream,
         a);
}

void normalise(Stream& stream, char const* op, Norm a) {
  a.aligned = is_aligned(a.x) && is_aligned(a.out) && is_aligned(a.weight, 0) && is_aligned(a.bias, 0) &&
              (a.num_heads == 1 || a.n % 4 == 0);
  if (a.n <= 8 * kWarp)
    launch_norm<kWarp>(stream, a);
  else if (a.n <= 8 * kBlock)
    launch_norm<kBlock>(stream, a);
  else
    launch_norm<kMostThreads>(stream, a);
  check_launch(stream, op);
}

}  // namespace

void CudaDevice::rms_norm(MatrixView<float const> x, std::size_t num_heads, std::span<float const> weight,
                          float epsilon, MatrixView<float> out) {
  normalise(*stream_, "rms_norm",
            {.x = rows_of(x),
             .out = rows_of(out),
             .num_rows = x.rows * num_heads,
             .num_heads = static_cast<unsigned>(num_heads),
             .n = static_cast<unsigned>(x.cols / num_heads),
             .weight = weight.empty() ? nullptr : weight.data(),
             .bias = nullptr,
             .epsilon = epsilon,
             .centred = false,
             .aligned = false});
}

void CudaDevice::layer_norm(MatrixView<float const> x, std::span<float const> weight, std::span<float const> bias,
                            float epsilon, MatrixView<float> out) {
  normalise(*stream_, "layer_norm",
            {.x = rows_of(x),
             .out = rows_of(out),
             .num_rows = x.rows,
             .num_heads = 1,
             .n = static_cast<unsigned>(x.cols),
             .weight = weight.empty() ? nullptr : weight.data(),
             .bias = bias.empty() ? nullptr : bias.data(),
             .epsilon = epsilon,
             .centred = true,
             .aligned = false});
}

}  // namespace expertmesh::EM_DEVICE_NAMESPACE
