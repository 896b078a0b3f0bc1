// The Device over CUDA. Its ops are defined file by file beside their kernels.
#pragma once
#include <mutex>

#include "common/kernels/cuda/runtime.h"
#include "common/kernels/device.h"

namespace expertmesh::EM_DEVICE_NAMESPACE {

// Memory of a device that only grows, at start-up: kernels' partial results. One op at a time uses it.
class Scratch {
 public:
  explicit Scratch(Stream& stream) : stream_(stream) {}
  ~Scratch() { release_bytes(stream_, memory_); }
  Scratch(Scratch const&) = delete;
  Scratch& operator=(Scratch const&) = delete;
  void reserve(std::size_t bytes);
  // At least `bytes` of it; asking for more than was reserved is a broken invariant.
  [[nodiscard]] std::byte* get(std::size_t bytes) const;

 private:
  Stream& stream_;
  void* memory_ = nullptr;
  std::size_t bytes_ = 0;
};

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(std::size_t index);
  ~CudaDevice() override;

  void* allocate(std::size_t bytes) override;
  void release(void* memory) noexcept override;
  void upload(void* to, void const* from, std::size_t bytes) override;
  void download(void* to, void const* from, std::size_t bytes) override;

  [[nodiscard]] std::string name() const override;
  [[nodiscard]] std::size_t free_bytes() const override;
  [[nodiscard]] std::size_t scratch_bytes(ExecLimits const& limits) const override;
  void reserve(ExecLimits const& limits) override;
  void synchronize() override;
  [[nodiscard]] std::unique_ptr<DeviceMarks> make_marks() override;
  void begin_recording() override;
  [[nodiscard]] std::unique_ptr<DeviceGraph> end_recording() override;
  void discard_recording() noexcept override;
  void hold(double seconds) override;

  // linear.cu
  void linear(MatrixView<float const> x, DeviceWeight const& w, std::span<float const> bias,
              MatrixView<float> y) override;
  void headwise_linear(MatrixView<float const> x, std::span<DeviceWeight const> w, HeadColumns const& columns,
                       MatrixView<float> y) override;
  // norm.cu
  void rms_norm(MatrixView<float const> x, std::size_t num_heads, std::span<float const> weight, float epsilon,
                MatrixView<float> out) override;
  void layer_norm(MatrixView<float const> x, std::span<float const> weight, std::span<float const> bias, float epsilon,
                  MatrixView<float> out) override;
  // rope.cu
  void apply_rope(MatrixView<float> x, RopeHeads const& heads, MatrixView<float const> cos,
                  MatrixView<float const> sin) override;
  // kv_write.cu
  void kv_write(MatrixView<float const> k, MatrixView<float const> v, TokenPlaces const& places,
                KvLayerShape const& shape, DeviceKv const& cache) override;
  // attention.cu
  void paged_attention(MatrixView<float const> q, TokenPlaces const& places, KvLayerShape const& kv,
                       DeviceKv const& cache, AttentionShape const& shape, std::size_t most_positions,
                       MatrixView<float> out) override;
  // rows.cu
  void ffn_activation(ActivationSpec const& f, bool gated, MatrixView<float const> in, MatrixView<float> out) override;
  void add(MatrixView<float> x, MatrixView<float const> y) override;
  void scale(MatrixView<float> x, float factor) override;
  void scale_by_position(MatrixView<float> x, std::span<std::uint32_t const> positions, float floor,
                         float scale) override;
  void scale_rows_by_sigmoid(MatrixView<float> x, MatrixView<float const> gate) override;
  void scale_rows_into_slots(MatrixView<float const> x, std::span<float const> weights, std::size_t experts_per_token,
                             MatrixView<float> out) override;
  void add_slots(MatrixView<float const> slots, std::size_t experts_per_token, MatrixView<float> out) override;
  void clip(MatrixView<float> x, float limit) override;
  void embedding(std::span<TokenId const> ids, DType type, std::byte const* table, MatrixView<float> out) override;
  void gather_rows(MatrixView<float const> x, std::span<std::uint32_t const> rows, MatrixView<float> out) override;
  void copy_head_columns(MatrixView<float const> x, HeadRange from, std::size_t num_heads, std::size_t count,
                         HeadRange to, MatrixView<float> out) override;
  void to_wire(MatrixView<float const> x, DType wire, std::byte* out) override;
  void to_wire_with(MatrixView<float const> x, DType wire, std::span<std::uint32_t const> numbers, std::byte* out,
                    std::uint32_t* numbers_out) override;
  void gather_to_wire(MatrixView<float const> x, std::span<std::uint32_t const> rows, DType wire,
                      std::byte* out) override;
  void from_wire(DType wire, std::byte const* rows, MatrixView<float> out) override;
  void gather_from_wire(DType wire, std::byte const* rows, std::span<std::uint32_t const> index,
                        MatrixView<float> out) override;
  void combine(DType wire, std::byte const* rows, std::span<std::uint32_t const> experts,
               std::span<float const> weights, std::size_t experts_per_token, MatrixView<float> out) override;
  void combine_scattered(DType wire, std::span<std::byte const* const> rows, std::span<float const> weights,
                         std::size_t experts_per_token, MatrixView<float> out) override;
  void combine_held(DType wire, HeldRows const& rows, std::span<std::uint32_t const> experts,
                    std::span<float const> weights, std::size_t experts_per_token, MatrixView<float> out) override;
  // link_queue.cu
  [[nodiscard]] std::unique_ptr<LinkQueue> make_link_queue() override;
  // router.cu
  void route(RouterSpec const& spec, RouterRows const& in, std::span<std::uint32_t> experts,
             std::span<float> weights) override;
  // experts.cu
  void run_experts(DeviceExperts const& layer, MatrixView<float const> x, std::span<std::uint32_t const> experts,
                   std::size_t experts_per_token, std::byte* out) override;
  // sampling.cu
  void choose_tokens(MatrixView<float> logits, RowChoices const& choices) override;
  // ceilings.cu
  void read_stream(std::span<std::byte const> memory, std::uint32_t* sum) override;
  double multiply_add(PeakKind kind, std::size_t rounds, float* sum) override;

 private:
  // How much of the scratch the largest call takes, of what is defined in the file named.
  static std::size_t attention_scratch_bytes(ExecLimits const& limits, std::size_t num_multiprocessors);
  static std::size_t experts_scratch_bytes(ExecLimits const& limits);

  std::size_t index_;
  // Threads that load take no part in a recording: they wait until it has ended.
  std::recursive_mutex turn_;
  std::unique_lock<std::recursive_mutex> recording_;  // while there is one
  StreamPointer stream_;
  Scratch scratch_;
};

}  // namespace expertmesh::EM_DEVICE_NAMESPACE
