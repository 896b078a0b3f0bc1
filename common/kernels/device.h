// A GPU behind the ops of this folder: rms_norm(), linear(), … hand their work to the device of their Exec, if it has
// one. Everything happens in the order of the calls, on one stream; calls return before it is done. An op of this class
// does what the op of the same name does whose header is named, with the same shapes; every view and span that it is
// given points into the device's memory unless said otherwise, and has been checked by the op. Deterministic: a row's
// bits depend on that row alone, whatever else is in the batch.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "common/base/device_memory.h"
#include "common/base/strong_id.h"
#include "common/config/activation.h"
#include "common/config/router_spec.h"
#include "common/config/weight_format.h"
#include "common/kernels/device_graph.h"
#include "common/kernels/device_marks.h"
#include "common/kernels/link_queue.h"
#include "common/tensor/tensor.h"

namespace expertmesh {

struct AttentionShape;
struct ExecLimits;
struct GroupedRows;
struct HeadColumns;
struct KvLayerShape;
struct RopeHeads;
struct RowChoice;
struct RowChosen;
struct TokenAdjustment;
struct TokenPlaces;

// A weight [N,K] in device memory: rows as in device_rows.h, one behind the other.
struct DeviceWeight {
  DType storage = DType::f32;  // f32, bf16, f8_e4m3 or f4_e2m1
  ActivationRule activation = ActivationRule::none;
  std::size_t n = 0;
  std::size_t k = 0;
  std::byte const* data = nullptr;
};

// Keys and values in device memory. keys: [blocks][G][16][key_dim], values: [blocks][G][16][value_dim] of the shape's
// dtype; no values where they are in the keys.
struct DeviceKv {
  std::byte* keys = nullptr;
  std::byte* values = nullptr;
};

// An expert's weights, as the kernels read them.
struct DeviceExpert {
  std::byte const* gate_up = nullptr;  // [2F,H], or [F,H] without a gate; null: not held
  float const* gate_up_bias = nullptr;
  std::byte const* down = nullptr;  // [H,F]
  float const* down_bias = nullptr;
};

// All experts of a layer; they have one shape and one format.
struct DeviceExperts {
  std::span<DeviceExpert const> experts;  // [E], in device memory
  DType gate_up_storage = DType::f32;     // as of a DeviceWeight; both f32, or none of them
  DType down_storage = DType::f32;
  ActivationRule activation_rule = ActivationRule::none;
  std::size_t hidden = 0;        // H
  std::size_t intermediate = 0;  // F
  bool gated = true;
  ActivationSpec activation{};
  DType wire = DType::f32;  // rows are rounded to it on their way in and out
};

// Where the columns of head h begin: at h * stride + first.
struct HeadRange {
  std::size_t stride = 0;
  std::size_t first = 0;
};

enum class PeakKind : std::uint8_t { fp32, bf16_tensor };

class Device : public DeviceMemory {
 public:
  [[nodiscard]] virtual std::string name() const = 0;  // "cuda:0 NVIDIA H200"
  [[nodiscard]] virtual std::size_t free_bytes() const = 0;
  // Room for the largest call that an Exec will make, shared by all that reserve some. At start-up.
  virtual void reserve(ExecLimits const& limits) = 0;
  [[nodiscard]] virtual std::size_t scratch_bytes(ExecLimits const& limits) const = 0;  // that it takes
  virtual void synchronize() = 0;  // throws DeviceError of anything since the last one
  [[nodiscard]] virtual std::unique_ptr<DeviceMarks> make_marks() = 0;
  [[nodiscard]] virtual std::unique_ptr<LinkQueue> make_link_queue() = 0;  // the device must outlive it
  // From now on ops are recorded, with the addresses and sizes that they are called with, and not done, until
  // end_recording() gives what does them, or discard_recording(). Nothing may be allocated, copied or waited for in
  // between, nor a mark be set; what other threads copy or allocate waits until then.
  virtual void begin_recording() = 0;
  [[nodiscard]] virtual std::unique_ptr<DeviceGraph> end_recording() = 0;
  virtual void discard_recording() noexcept = 0;
  // What is called for from now on begins so much later, so that it then lies ready and runs without a gap.
  virtual void hold(double seconds) = 0;

  // linear.h, headwise_linear.h. bias: [N] or empty. w of headwise_linear: [Q], on the host; f32 or bf16.
  virtual void linear(MatrixView<float const> x, DeviceWeight const& w, std::span<float const> bias,
                      MatrixView<float> y) = 0;
  virtual void headwise_linear(MatrixView<float const> x, std::span<DeviceWeight const> w, HeadColumns const& columns,
                               MatrixView<float> y) = 0;
  // rms_norm.h, layer_norm.h. weight, bias: empty where there is none. heads: of x; 1 for whole rows.
  virtual void rms_norm(MatrixView<float const> x, std::size_t num_heads, std::span<float const> weight, float epsilon,
                        MatrixView<float> out) = 0;
  virtual void layer_norm(MatrixView<float const> x, std::span<float const> weight, std::span<float const> bias,
                          float epsilon, MatrixView<float> out) = 0;
  virtual void apply_rope(MatrixView<float> x, RopeHeads const& heads, MatrixView<float const> cos,
                          MatrixView<float const> sin) = 0;
  virtual void ffn_activation(ActivationSpec const& f, bool gated, MatrixView<float const> in,
                              MatrixView<float> out) = 0;

  // paged_attention.h. places: its spans are in device memory.
  virtual void kv_write(MatrixView<float const> k, MatrixView<float const> v, TokenPlaces const& places,
                        KvLayerShape const& shape, DeviceKv const& cache) = 0;
  // bias: of the shape's RelativeBias. most_positions: no token attends to more keys than this, blocks' edges included.
  virtual void paged_attention(MatrixView<float const> q, TokenPlaces const& places, KvLayerShape const& kv,
                               DeviceKv const& cache, AttentionShape const& shape, std::size_t most_positions,
                               MatrixView<float> out) = 0;

  // rows.h
  virtual void add(MatrixView<float> x, MatrixView<float const> y) = 0;
  virtual void scale(MatrixView<float> x, float factor) = 0;
  // x[t] *= 1 + scale * ln(floor((positions[t] + 1) / floor) + 1); positions: [T].
  virtual void scale_by_position(MatrixView<float> x, std::span<std::uint32_t const> positions, float floor,
                                 float scale) = 0;
  virtual void scale_rows_by_sigmoid(MatrixView<float> x, MatrixView<float const> gate) = 0;
  virtual void scale_rows_into_slots(MatrixView<float const> x, std::span<float const> weights,
                                     std::size_t experts_per_token, MatrixView<float> out) = 0;
  virtual void add_slots(MatrixView<float const> slots, std::size_t experts_per_token, MatrixView<float> out) = 0;
  virtual void clip(MatrixView<float> x, float limit) = 0;
  // table: rows of `type`, V of them; ids in device memory.
  virtual void embedding(std::span<TokenId const> ids, DType type, std::byte const* table, MatrixView<float> out) = 0;
  virtual void gather_rows(MatrixView<float const> x, std::span<std::uint32_t const> rows, MatrixView<float> out) = 0;
  virtual void copy_head_columns(MatrixView<float const> x, HeadRange from, std::size_t num_heads, std::size_t count,
                                 HeadRange to, MatrixView<float> out) = 0;
  // Rows rounded to `wire` one behind the other: out [T * H * size_of(wire)] bytes. And back.
  virtual void to_wire(MatrixView<float const> x, DType wire, std::byte* out) = 0;
  // The same, and numbers along with them: numbers_out = numbers.
  virtual void to_wire_with(MatrixView<float const> x, DType wire, std::span<std::uint32_t const> numbers,
                            std::byte* out, std::uint32_t* numbers_out) = 0;
  // Only the rows named, in this order.
  virtual void gather_to_wire(MatrixView<float const> x, std::span<std::uint32_t const> rows, DType wire,
                              std::byte* out) = 0;
  virtual void from_wire(DType wire, std::byte const* rows, MatrixView<float> out) = 0;
  // out[i] = rows[index[i]]; rows of `wire` one behind the other.
  virtual void gather_from_wire(DType wire, std::byte const* rows, std::span<std::uint32_t const> index,
                                MatrixView<float> out) = 0;
  // out[t] = sum over k in order of weights[t*K+k] * rows[t*K+k], one fused multiply-add a term, starting from 0; rows:
  // [T*K,H] of `wire`; a slot whose expert is kNoExpert (0xffffffff) adds nothing.
  virtual void combine(DType wire, std::byte const* rows, std::span<std::uint32_t const> experts,
                       std::span<float const> weights, std::size_t experts_per_token, MatrixView<float> out) = 0;
  // The same of rows that lie anywhere in the device's memory; a null row adds nothing.
  virtual void combine_scattered(DType wire, std::span<std::byte const* const> rows, std::span<float const> weights,
                                 std::size_t experts_per_token, MatrixView<float> out) = 0;
  // The same of rows that lie with the holders of their experts, with all slots at each: the row of slot s at
  // of_holder[holder_of[experts[s]]] + s * H * size_of(wire). A slot with an expert that is not in the table adds
  // nothing. Everything is in the device's memory.
  struct HeldRows {
    std::span<std::byte const* const> of_holder;  // [W] at 256 bytes each
    std::span<std::uint32_t const> holder_of;     // [E] below W
    std::uint32_t* not_finite = nullptr;  // [1] not 0 from then on if a row that is added has an infinity or NaN
  };
  virtual void combine_held(DType wire, HeldRows const& rows, std::span<std::uint32_t const> experts,
                            std::span<float const> weights, std::size_t experts_per_token, MatrixView<float> out) = 0;

  // common/moe/router.h. noise: eps and scale logits [T,E], or no rows; selection_bias [E] or empty; experts, weights
  // [T*K].
  struct RouterRows {
    MatrixView<float const> logits;
    MatrixView<float const> noise_scale{};
    MatrixView<float const> noise_eps{};
    std::span<float const> selection_bias{};
  };
  virtual void route(RouterSpec const& spec, RouterRows const& in, std::span<std::uint32_t> experts,
                     std::span<float> weights) = 0;

  // The experts of a layer over the rows of its tokens: slot s = t*K + k of x [T,H] through expert experts[s], rounded
  // to the wire dtype before and after, to out + s * H * size_of(wire). Slots with kNoExpert, or with an expert that is
  // not held, are left alone. experts: [T*K] in device memory.
  virtual void run_experts(DeviceExperts const& layer, MatrixView<float const> x,
                           std::span<std::uint32_t const> experts, std::size_t experts_per_token, std::byte* out) = 0;

  // token_choice.h: the tokens of R rows, and what their log-probabilities are made of, to the bits of that header.
  // logits: [R,V], V <= kMostTokens. Rows with adjustments are adjusted in place. Everything lies in device memory.
  struct RowChoices {
    RowChoice const* rows = nullptr;          // [R]
    TokenAdjustment* adjustments = nullptr;   // of the rows' ranges; each token of a row once
    RowChosen* chosen = nullptr;              // [R] zeros
    unsigned long long* ranked = nullptr;     // [R][kMostRanked]: rank_of() a row's num_ranked best, best first
    unsigned long long* part_sums = nullptr;  // [R][V / kLogitsPart, rounded up] scratch
    // Whether some row has a log_sum, num_ranked, num_adjustments, or is drawn.
    bool any_log_sum = false, any_ranked = false, any_adjusted = false, any_drawn = false;
  };
  static constexpr std::size_t kLogitsPart = 1024;
  virtual void choose_tokens(MatrixView<float> logits, RowChoices const& choices) = 0;

  // machine_ceilings.h: one kind of work alone, on the whole device.
  // Adds up the memory's 32-bit words; a rest of less than 16 bytes is left out. sum: in device memory, added to.
  virtual void read_stream(std::span<std::byte const> memory, std::uint32_t* sum) = 0;
  // Multiply-adds on registers: fused fp32 ones, of which the ops above are made, or bf16 ones of the tensor cores with
  // fp32 sums. Returns how many operations they are (a multiply-add is two), for each round the same; 0: this device
  // has none of this kind, nothing was done. sum: in device memory, of no meaning.
  virtual double multiply_add(PeakKind kind, std::size_t rounds, float* sum) = 0;
};

// Of a command line: "cpu", "cuda" (the first GPU) or "cuda:N". Empty, or what is wrong with it.
std::string valid_device_name(std::string const& name);
// "cpu": none.
std::optional<std::size_t> cuda_index(std::string const& name);

// The GPU with this number, with all kernels of this build on it. Throws DeviceError that says why there is none: a
// build without CUDA, no driver, no such device, a device these kernels were not compiled for.
std::unique_ptr<Device> open_cuda_device(std::size_t index);

}  // namespace expertmesh
