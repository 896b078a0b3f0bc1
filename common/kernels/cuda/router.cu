// The router's decision, a warp for each token. The formulas and the order of every sum are those of common/moe/router:
// sums over experts are one lane's, term by term, while the terms are all lanes'.
#include <cfloat>

#include "common/base/check.h"
#include "common/kernels/cuda/cuda_device.h"
#include "common/kernels/cuda/numbers.h"

namespace expertmesh::EM_DEVICE_NAMESPACE {
namespace {

struct RouteArguments {
  float const* logits;  // [T,E]
  std::size_t logits_stride;
  float const* noise_scale;  // [T,E] or null
  std::size_t noise_scale_stride;
  float const* noise_eps;  // [T,E] or null
  std::size_t noise_eps_stride;
  float const* bias;        // [E] or null
  std::uint32_t* chosen;    // [T,K]
  float* weights;           // [T,K]
  unsigned experts;         // E
  unsigned experts_chosen;  // K
  RouterScoring scoring;
  RouterNormalisation normalisation;
  GroupScore group_score;
  unsigned groups;  // 0: none
  unsigned groups_chosen;
  float sum_offset, sum_floor, scale, jitter;
};

// Numbers in the order of the floats, -0 and 0 being the same; 0 comes before all of them. Not for NaN.
constexpr std::uint32_t kTaken = 0;
EM_BOTH inline std::uint32_t order_of(float x) {
  std::uint32_t const bits = bits_of_float(x == 0 ? 0.0F : x);
  return bits & 0x80000000U ? ~bits : bits | 0x80000000U;
}

EM_BOTH inline float finite(float logit) {
  return logit != logit ? -FLT_MAX : fminf(fmaxf(logit, -FLT_MAX), FLT_MAX);
}
EM_BOTH inline float softplus(float x) {
  return x > 20.0F ? x : log1pf(expf(x));
}
EM_BOTH inline float sigmoid(float x) {
  return 1.0F / (1.0F + expf(-x));
}

// The index of the largest of n orders, the lowest among equals; it is then taken. One that is not must be left.
__device__ inline unsigned take_best(std::uint32_t* orders, unsigned n) {
  std::uint32_t best = kTaken;
  unsigned index = n;
  for (unsigned i = threadIdx.x; i < n; i += kWarp)
    if (orders[i] > best) {
      best = orders[i];
      index = i;
    }
  for (unsigned apart = kWarp / 2; apart > 0; apart /= 2) {
    std::uint32_t const other = __shfl_xor_sync(kAllLanes, best, apart);
    unsigned const other_index = __shfl_xor_sync(kAllLanes, index, apart);
    if (other > best || (other == best && other_index < index)) {
      best = other;
      index = other_index;
    }
  }
  if (threadIdx.x == 0) orders[index] = kTaken;
  __syncwarp();
  return index;
}

__device__ inline float largest_of(float const* x, unsigned n) {
  float largest = -INFINITY;
  for (unsigned i = threadIdx.x; i < n; i += kWarp) largest = fmaxf(largest, x[i]);
  for (unsigned apart = kWarp / 2; apart > 0; apart /= 2)
    largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, apart));
  return largest;
}

// From the first to the last, known to all lanes.
__device__ inline float sum_of(float const* x, unsigned n) {
  __syncwarp();
  float sum = 0;
  if (threadIdx.x == 0)
    for (unsigned i = 0; i < n; ++i) sum += x[i];
  return __shfl_sync(kAllLanes, sum, 0);
}

__device__ inline void divide(float* x, unsigned n, float divisor) {
  for (unsigned i = threadIdx.x; i < n; i += kWarp) x[i] = x[i] / divisor;
}

__device__ inline void softmax_in_place(float* x, unsigned n) {
  float const largest = largest_of(x, n);
  for (unsigned i = threadIdx.x; i < n; i += kWarp) x[i] = expf(x[i] - largest);
  divide(x, n, sum_of(x, n));
}

// Of its n experts' scores.
__device__ inline std::uint32_t group_order(GroupScore kind, float const* scores, unsigned n) {
  float first = -INFINITY;
  float second = -INFINITY;
  for (unsigned i = 0; i < n; ++i) {
    if (scores[i] > first) {
      second = first;
      first = scores[i];
    } else if (scores[i] > second) {
      second = scores[i];
    }
  }
  return order_of(kind == GroupScore::largest ? first : first + second);
}

__device__ inline void normalise(RouteArguments const& a, float* weights) {
  unsigned const n = a.experts_chosen;
  switch (a.normalisation) {
    case RouterNormalisation::none:
      break;
    case RouterNormalisation::sum_to_one: {
      float const divisor = fmaxf(sum_of(weights, n) + a.sum_offset, a.sum_floor);
      if (divisor > 0) divide(weights, n, divisor);
      break;
    }
    case RouterNormalisation::softmax_of_chosen:
      softmax_in_place(weights, n);
      break;
    case RouterNormalisation::sigmoid_of_chosen:
      for (unsigned i = threadIdx.x; i < n; i += kWarp) weights[i] = sigmoid(weights[i]);
      break;
  }
}

// Grid: tokens. Shared: h [E], what they are chosen by [E], its orders [E], orders of groups [E], weights [K].
__global__ void __launch_bounds__(kWarp) route_tokens(RouteArguments a) {
  EM_DYNAMIC_SHARED(float, h);
  unsigned const lane = threadIdx.x;
  std::size_t const t = blockIdx.x;
  unsigned const n = a.experts;
  float* const choice = h + n;
  auto* const orders = reinterpret_cast<std::uint32_t*>(choice + n);
  std::uint32_t* const group_orders = orders + n;
  auto* const weights = reinterpret_cast<float*>(group_orders + n);
  std::uint32_t* const chosen = a.chosen + t * a.experts_chosen;

  for (unsigned e = lane; e < n; e += kWarp) {
    float x = a.logits[t * a.logits_stride + e];
    if (a.noise_eps)
      x += a.noise_eps[t * a.noise_eps_stride + e] * softplus(a.noise_scale[t * a.noise_scale_stride + e]);
    h[e] = finite(x);
  }
  if (a.scoring == RouterScoring::softmax) softmax_in_place(h, n);
  for (unsigned e = lane; e < n; e += kWarp) {
    if (a.scoring == RouterScoring::sigmoid) h[e] = sigmoid(h[e]);
    choice[e] = a.bias ? finite(h[e] + a.bias[e]) : h[e];
    orders[e] = order_of(choice[e]);
  }
  __syncwarp();

  if (a.groups > 0) {
    unsigned const size = n / a.groups;
    for (unsigned g = lane; g < a.groups; g += kWarp)
      group_orders[g] = group_order(a.group_score, choice + g * size, size);
    __syncwarp();
    for (unsigned i = 0; i < a.groups_chosen; ++i) take_best(group_orders, a.groups);
    for (unsigned e = lane; e < n; e += kWarp)
      if (group_orders[e / size] != kTaken) orders[e] = order_of(-INFINITY);
    __syncwarp();
  }

  for (unsigned k = 0; k < a.experts_chosen; ++k) {
    unsigned const best = take_best(orders, n);
    float weight = h[best];
    if (a.scoring == RouterScoring::sparsemixer) {  // its share among its near rivals
      for (unsigned e = lane; e < n; e += kWarp) {
        bool const left = orders[e] != kTaken || e == best;
        bool const far = (weight - h[e]) / fmaxf(fabsf(h[e]), weight) > 2 * a.jitter;
        choice[e] = left && !far ? expf(h[e] - weight) : 0.0F;
      }
      weight = 1.0F / sum_of(choice, n);
    }
    if (lane == 0) {
      chosen[k] = best;
      weights[k] = weight;
    }
  }
  __syncwarp();
  if (a.scoring != RouterScoring::sparsemixer) normalise(a, weights);
  for (unsigned k = lane; k < a.experts_chosen; k += kWarp)
    a.weights[t * a.experts_chosen + k] = a.scale == 1.0F ? weights[k] : weights[k] * a.scale;
}

}  // namespace

void CudaDevice::route(RouterSpec const& spec, RouterRows const& in, std::span<std::uint32_t> experts,
                       std::span<float> weights) {
  bool const noise = in.noise_eps.rows > 0;
  bool const mixes = spec.scoring == RouterScoring::sparsemixer;  // by the logits alone
  bool const groups = spec.groups && !mixes;
  RouteArguments const a{.logits = in.logits.data,
                         .logits_stride = in.logits.stride,
                         .noise_scale = noise ? in.noise_scale.data : nullptr,
                         .noise_scale_stride = in.noise_scale.stride,
                         .noise_eps = noise ? in.noise_eps.data : nullptr,
                         .noise_eps_stride = in.noise_eps.stride,
                         .bias = in.selection_bias.empty() || mixes ? nullptr : in.selection_bias.data(),
                         .chosen = experts.data(),
                         .weights = weights.data(),
                         .experts = static_cast<unsigned>(spec.num_experts),
                         .experts_chosen = static_cast<unsigned>(spec.experts_per_token),
                         .scoring = spec.scoring,
                         .normalisation = spec.normalisation,
                         .group_score = groups ? spec.groups->score : GroupScore::largest,
                         .groups = groups ? static_cast<unsigned>(spec.groups->count) : 0,
                         .groups_chosen = groups ? static_cast<unsigned>(spec.groups->chosen) : 0,
                         .sum_offset = spec.sum_offset,
                         .sum_floor = spec.sum_floor,
                         .scale = spec.scale,
                         .jitter = spec.sparse_mixer.jitter};
  std::size_t const shared = sizeof(float) * (4 * spec.num_experts + spec.experts_per_token);
  EM_CHECK(shared <= max_shared_bytes(*stream_), spec.num_experts << " experts");
  launch(&route_tokens, {.x = static_cast<unsigned>(in.logits.rows)}, kWarp, shared, *stream_, a);
  check_launch(*stream_, "route");
}

}  // namespace expertmesh::EM_DEVICE_NAMESPACE
