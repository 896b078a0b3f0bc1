// The experts of a layer in three kernels: slots are grouped by their expert; gate and up with the activation; down.
#include "common/base/check.h"
#include "common/kernels/cuda/activation.h"
#include "common/kernels/cuda/cuda_device.h"
#include "common/kernels/cuda/tensor_rows.h"
#include "common/kernels/exec.h"

namespace expertmesh::EM_DEVICE_NAMESPACE {
namespace {

constexpr unsigned kGroupWarps = 8;
constexpr unsigned kGroupThreads = kGroupWarps * kWarp;
constexpr unsigned kNotHeld = 0xffffffffU;  // in place of a count: of an expert that is hit, but not there

// Slots of one expert that meet its weights at once: places [first, first + rows) of the grouped slots.
struct ExpertPass {
  DeviceExpert weights;
  unsigned first = 0;
  unsigned rows = 0;
  unsigned first_pass = 0;  // of the expert's
  unsigned num_passes = 0;
};

// The grouped slots, in the device's scratch.
struct Groups {
  unsigned* num_passes = nullptr;  // [1]
  ExpertPass* passes = nullptr;    // [S]
  unsigned* slots = nullptr;       // [S] in order of expert, and then of slot
  float* activated = nullptr;      // [S,F] f(gate) * up, in the order of `slots`
};
constexpr std::size_t kGroupsHead = 256;  // bytes
constexpr std::size_t groups_bytes(std::size_t slots, std::size_t intermediate) {
  return kGroupsHead + slots * (sizeof(ExpertPass) + sizeof(float) * intermediate + sizeof(unsigned));
}
Groups groups_in(std::byte* memory, std::size_t slots, std::size_t intermediate) {
  std::byte* const passes = memory + kGroupsHead;
  std::byte* const activated = passes + slots * sizeof(ExpertPass);
  static_assert(sizeof(ExpertPass) % alignof(Four) == 0);
  return {.num_passes = reinterpret_cast<unsigned*>(memory),
          .passes = reinterpret_cast<ExpertPass*>(passes),
          .slots = reinterpret_cast<unsigned*>(activated + slots * intermediate * sizeof(float)),
          .activated = reinterpret_cast<float*>(activated)};
}

// ---- grouping
struct GroupJob {
  std::uint32_t const* expert_of = nullptr;  // [S]
  DeviceExpert const* experts = nullptr;     // [E]
  unsigned num_slots = 0;
  unsigned num_experts = 0;
  unsigned pass_rows = 0;
  Groups out{};
};

// The sum of the values of the threads before this one. of_warp: [kGroupWarps], free again at the block's next barrier.
__device__ inline unsigned sum_of_threads_before(unsigned value, unsigned* of_warp) {
  unsigned const lane = threadIdx.x % kWarp;
  unsigned sum = value;  // of the lanes up to this one
#pragma unroll
  for (unsigned apart = 1; apart < kWarp; apart *= 2) {
    unsigned const before = __shfl_sync(kAllLanes, sum, lane - apart);
    if (lane >= apart) sum += before;
  }
  if (lane == kWarp - 1) of_warp[threadIdx.x / kWarp] = sum;
  __syncthreads();
  sum -= value;
  for (unsigned warp = 0; warp < threadIdx.x / kWarp; ++warp) sum += of_warp[warp];
  return sum;
}

// One block. Each warp has a part of the slots, one behind the other, and counts them; an expert's slots then lie in
// the order of the warps, and of a warp's slots.
__global__ void __launch_bounds__(kGroupThreads) group_slots(GroupJob job) {
  EM_DYNAMIC_SHARED(unsigned, of_warps);  // [kGroupWarps][E] slots of the warp; then the place of its next one
  EM_SHARED(unsigned, slot_sums, kGroupWarps);
  EM_SHARED(unsigned, pass_sums, kGroupWarps);
  unsigned const lane = threadIdx.x % kWarp;
  unsigned const warp = threadIdx.x / kWarp;
  unsigned* const mine = of_warps + warp * job.num_experts;
  unsigned const part = (job.num_slots + kGroupThreads - 1) / kGroupThreads * kWarp;
  unsigned const begin = warp * part < job.num_slots ? warp * part : job.num_slots;
  unsigned const end = job.num_slots - begin < part ? job.num_slots : begin + part;

  for (unsigned e = lane; e < job.num_experts; e += kWarp) mine[e] = 0;
  __syncwarp();
  for (unsigned slot = begin + lane; slot < end; slot += kWarp)
    if (unsigned const expert = job.expert_of[slot]; expert < job.num_experts) atomicAdd(&mine[expert], 1U);
  __syncthreads();

  // A thread has some of the experts.
  unsigned const share = (job.num_experts + kGroupThreads - 1) / kGroupThreads;
  unsigned const first_expert = threadIdx.x * share < job.num_experts ? threadIdx.x * share : job.num_experts;
  unsigned const last_expert =
      job.num_experts - first_expert < share ? job.num_experts : first_expert + share;  // behind it
  unsigned slots = 0;
  unsigned passes = 0;
  for (unsigned e = first_expert; e < last_expert; ++e) {
    unsigned count = 0;
    for (unsigned w = 0; w < kGroupWarps; ++w) count += of_warps[w * job.num_experts + e];
    if (count > 0 && job.experts[e].gate_up == nullptr) {
      for (unsigned w = 0; w < kGroupWarps; ++w) of_warps[w * job.num_experts + e] = kNotHeld;
      count = 0;
    }
    slots += count;
    passes += (count + job.pass_rows - 1) / job.pass_rows;
  }
  unsigned place = sum_of_threads_before(slots, slot_sums);
  unsigned pass = sum_of_threads_before(passes, pass_sums);
  if (threadIdx.x == kGroupThreads - 1) *job.out.num_passes = pass + passes;
  for (unsigned e = first_expert; e < last_expert; ++e) {
    unsigned const first = place;
    for (unsigned w = 0; w < kGroupWarps && of_warps[e] != kNotHeld; ++w) {
      unsigned& of_warp = of_warps[w * job.num_experts + e];
      unsigned const count = of_warp;
      of_warp = place;
      place += count;
    }
    if (place == first) continue;
    DeviceExpert const weights = job.experts[e];
    unsigned const num_passes = (place - first + job.pass_rows - 1) / job.pass_rows;
    for (unsigned p = 0; p < num_passes; ++p) {
      unsigned const from = first + p * job.pass_rows;
      job.out.passes[pass + p] = {.weights = weights,
                                  .first = from,
                                  .rows = place - from < job.pass_rows ? place - from : job.pass_rows,
                                  .first_pass = pass,
                                  .num_passes = num_passes};
    }
    pass += num_passes;
  }
  __syncthreads();

  for (unsigned base = begin; base < end; base += kWarp) {
    unsigned const slot = base + lane;
    unsigned const asked = slot < end ? job.expert_of[slot] : job.num_experts;
    unsigned const expert = asked < job.num_experts && mine[asked] != kNotHeld ? asked : job.num_experts;
    unsigned before = 0;  // lanes with the same expert
    unsigned behind = 0;
    for (unsigned other = 0; other < kWarp; ++other) {
      bool const same = __shfl_sync(kAllLanes, expert, other) == expert;
      before += same && other < lane ? 1U : 0U;
      behind += same && other > lane ? 1U : 0U;
    }
    if (expert < job.num_experts) job.out.slots[mine[expert] + before] = slot;
    __syncwarp();
    if (expert < job.num_experts && behind == 0) mine[expert] += before + 1;
    __syncwarp();
  }
}

// ---- what gate-up and down share: parts are the tiles of a hit expert, each with all of the expert's passes
struct ExpertJob {
  Groups groups{};
  std::size_t n = 0;  // outputs
  std::size_t k = 0;
  std::size_t row_bytes = 0;  // of the weight
  std::size_t tiles = 0;
  unsigned chunk_steps = 0;
  bool rounds = false;

  __device__ std::size_t num_parts() const { return *groups.num_passes * tiles; }
  __device__ DotPart part(std::size_t i) const {
    ExpertPass const& any = groups.passes[i / tiles];
    std::size_t const of_expert = i - any.first_pass * tiles;
    std::size_t const pass = any.first_pass + of_expert % any.num_passes;
    return {.tile = of_expert / any.num_passes, .pass = pass, .rows = groups.passes[pass].rows};
  }
  __device__ ExpertPass const& pass(DotPart const& part) const { return groups.passes[part.pass]; }
  __device__ unsigned slot(DotPart const& part, unsigned m) const { return groups.slots[pass(part).first + m]; }
};

// Where the output is gated, the rows of the weight that a warp takes are gate, up, gate, up, …
struct GateUpJob : ExpertJob {
  float const* x = nullptr;  // [T,H]
  std::size_t x_stride = 0;
  unsigned experts_per_token = 1;
  bool gated = true;
  bool rounds_output = false;
  ActivationSpec f{};

  __device__ unsigned rows_per_output() const { return gated ? 2 : 1; }
  __device__ std::size_t row(std::size_t first, unsigned r) const {
    std::size_t const output = first + (gated ? r / 2 : r);
    return (output < n ? output : n - 1) + (gated && r % 2 == 1 ? n : 0);
  }
  __device__ std::byte const* weight_row(DotPart const& part, std::size_t output, unsigned r) const {
    return pass(part).weights.gate_up + row(output, r) * row_bytes;
  }
  __device__ float const* x_row(DotPart const& part, unsigned m) const {
    return x + slot(part, m) / experts_per_token * x_stride;
  }
  __device__ void finish(DotPart const& part, DotPlace const& place, float sum) const {
    float const* const bias = pass(part).weights.gate_up_bias;
    float const mine = bias ? sum + bias[row(place.output, place.r)] : sum;
    float const up = __shfl_xor_sync(kAllLanes, mine, place.lanes);  // where this one is gate
    std::size_t const column = place.output + (gated ? place.r / 2 : place.r);
    if (!place.first || place.m >= part.rows || column >= n || (gated && place.r % 2 == 1)) return;
    float const y = gated ? gated_activation(f, mine, up) : activation(f.kind, mine);
    groups.activated[(pass(part).first + place.m) * n + column] = rounds_output ? rounded_to_bf16(y) : y;
  }
};

struct DownJob : ExpertJob {
  std::byte* out = nullptr;  // [S,H] of the wire dtype
  bool to_bf16 = false;

  __device__ unsigned rows_per_output() const { return 1; }
  __device__ std::byte const* weight_row(DotPart const& part, std::size_t output, unsigned r) const {
    std::size_t const row = output + r < n ? output + r : n - 1;
    return pass(part).weights.down + row * row_bytes;
  }
  __device__ float const* x_row(DotPart const& part, unsigned m) const {
    return groups.activated + (pass(part).first + m) * k;
  }
  __device__ void finish(DotPart const& part, DotPlace const& place, float sum) const {
    std::size_t const column = place.output + place.r;
    if (!place.first || place.m >= part.rows || column >= n) return;
    float const* const bias = pass(part).weights.down_bias;
    float const y = bias ? sum + bias[column] : sum;
    std::size_t const at = slot(part, place.m) * n + column;
    if (to_bf16)
      reinterpret_cast<std::uint16_t*>(out)[at] = bf16_of_float(y);
    else
      reinterpret_cast<float*>(out)[at] = y;
  }
};

std::size_t tiles_of(std::size_t outputs, std::size_t of_tile) {
  return (outputs + of_tile - 1) / of_tile;
}

// Loops over weights: how many rows of x and of the weights are taken at once, and by which kernel.
template <class Shape, unsigned kGateUpR, unsigned kDownR>
struct Float32Loop {
  static constexpr unsigned kPassRows = Shape::kPassRows;
  static constexpr unsigned kGateUpRows = kDotWarps * kGateUpR;
  static constexpr unsigned kDownRows = kDotWarps * kDownR;
  static void launch_gate_up(Stream& stream, DType /*storage*/, std::size_t most_parts, unsigned pass_rows,
                             GateUpJob const& job) {
    launch_dot_rows<Shape, kGateUpR>(stream, "gate and up", most_parts, pass_rows, job);
  }
  static void launch_down(Stream& stream, DType /*storage*/, std::size_t most_parts, unsigned pass_rows,
                          DownJob const& job) {
    launch_dot_rows<Shape, kDownR>(stream, "down", most_parts, pass_rows, job);
  }
};
// Shape<W>: for weights of W, the same rows whatever that is.
template <template <class W> class Shape>
struct TensorLoop {
  static constexpr unsigned kPassRows = Shape<Bf16Weights>::kPassRows;
  static constexpr unsigned kGateUpRows = Shape<Bf16Weights>::kRows;
  static constexpr unsigned kDownRows = Shape<Bf16Weights>::kRows;
  static void launch_gate_up(Stream& stream, DType storage, std::size_t most_parts, unsigned pass_rows,
                             GateUpJob const& job) {
    launch_any(stream, "gate and up", storage, most_parts, pass_rows, job);
  }
  static void launch_down(Stream& stream, DType storage, std::size_t most_parts, unsigned pass_rows,
                          DownJob const& job) {
    launch_any(stream, "down", storage, most_parts, pass_rows, job);
  }

 private:
  template <class Job>
  static void launch_any(Stream& stream, char const* op, DType storage, std::size_t most_parts, unsigned pass_rows,
                         Job const& job) {
    with_format(storage, [&](auto format) {
      using W = decltype(format);
      static_assert(Shape<W>::kPassRows == kPassRows && Shape<W>::kRows == kDownRows);
      launch_tensor_rows<Shape<W>, W>(stream, op, most_parts, pass_rows, job);
    });
  }
};
template <class W>
using FewOf = Few;
template <class W>
using SomeOf = Some;

template <class Loop>
void run(Stream& stream, DeviceExperts const& layer, MatrixView<float const> x, std::span<std::uint32_t const> experts,
         std::size_t experts_per_token, Groups const& groups, std::byte* out) {
  // A token seldom has an expert twice, so that none has more rows than there are tokens; one that has takes a pass
  // more.
  auto const pass_rows = static_cast<unsigned>(std::min<std::size_t>(x.rows, Loop::kPassRows));
  GroupJob const group{.expert_of = experts.data(),
                       .experts = layer.experts.data(),
                       .num_slots = static_cast<unsigned>(experts.size()),
                       .num_experts = static_cast<unsigned>(layer.experts.size()),
                       .pass_rows = pass_rows,
                       .out = groups};
  launch(&group_slots, {}, kGroupThreads, kGroupWarps * layer.experts.size() * sizeof(unsigned), stream, group);
  check_launch(stream, "group_slots");

  bool const rounds = layer.activation_rule == ActivationRule::round_to_bf16;
  GateUpJob gate_up{};
  gate_up.groups = groups;
  gate_up.n = layer.intermediate;
  gate_up.k = layer.hidden;
  gate_up.row_bytes = device_row(layer.gate_up_storage, gate_up.k).bytes;
  gate_up.tiles = tiles_of(gate_up.n, Loop::kGateUpRows / (layer.gated ? 2 : 1));
  gate_up.rounds = rounds || layer.wire == DType::bf16;
  gate_up.x = x.data;
  gate_up.x_stride = x.stride;
  gate_up.experts_per_token = static_cast<unsigned>(experts_per_token);
  gate_up.gated = layer.gated;
  gate_up.rounds_output = rounds;
  gate_up.f = layer.activation;
  Loop::launch_gate_up(stream, layer.gate_up_storage, experts.size() * gate_up.tiles, pass_rows, gate_up);

  DownJob down{};
  down.groups = groups;
  down.n = layer.hidden;
  down.k = layer.intermediate;
  down.row_bytes = device_row(layer.down_storage, down.k).bytes;
  down.tiles = tiles_of(down.n, Loop::kDownRows);
  down.rounds = rounds;  // a second time, which changes nothing
  down.out = out;
  down.to_bf16 = layer.wire == DType::bf16;
  Loop::launch_down(stream, layer.down_storage, experts.size() * down.tiles, pass_rows, down);
}

// For so many tokens in so many slots. An expert with a few more than it has on average is to need no second pass. All
// loops but those over float32 have the same bits.
auto loop_of(DeviceExperts const& layer, std::size_t tokens, std::size_t num_slots) {
  if (layer.gate_up_storage == DType::f32)
    return tokens <= Thin::kPassRows ? run<Float32Loop<Thin, 2, 1>> : run<Float32Loop<Wide, 4, 4>>;
  std::size_t const of_expert = num_slots / std::max<std::size_t>(layer.experts.size(), 1);
  if (tokens <= Few::kPassRows || of_expert <= Few::kPassRows / 2) return run<TensorLoop<FewOf>>;
  return of_expert <= Some::kPassRows * 3 / 4 ? run<TensorLoop<SomeOf>> : run<TensorLoop<ManyOf>>;
}

}  // namespace

std::size_t CudaDevice::experts_scratch_bytes(ExecLimits const& limits) {
  return limits.max_intermediate == 0 ? 0 : groups_bytes(limits.max_rows, limits.max_intermediate);
}

void CudaDevice::run_experts(DeviceExperts const& layer, MatrixView<float const> x,
                             std::span<std::uint32_t const> experts, std::size_t experts_per_token, std::byte* out) {
  EM_CHECK(experts.size() == x.rows * experts_per_token && x.cols == layer.hidden,
           "x [" << x.rows << "," << x.cols << "], H " << layer.hidden << ", " << experts.size() << " slots, "
                 << experts_per_token << " a token");
  EM_CHECK((layer.gate_up_storage == DType::f32) == (layer.down_storage == DType::f32) &&
               (layer.wire == DType::f32 || layer.wire == DType::bf16),
           "weights " << name_of(layer.gate_up_storage) << ", " << name_of(layer.down_storage) << ", wire "
                      << name_of(layer.wire));
  if (experts.empty()) return;
  Groups const groups =
      groups_in(scratch_.get(groups_bytes(experts.size(), layer.intermediate)), experts.size(), layer.intermediate);
  loop_of(layer, x.rows, experts.size())(*stream_, layer, x, experts, experts_per_token, groups, out);
}

}  // namespace expertmesh::EM_DEVICE_NAMESPACE
