// All experts in the memory of the device that runs the coordinator: rows never leave it, and nobody waits for the
// host.
#pragma once
#include <array>
#include <vector>

#include "common/experts/expert_store.h"
#include "common/kernels/device.h"
#include "coordinator/experts/experts.h"

namespace expertmesh {

class ResidentExperts final : public Experts {
 public:
  // max_tokens, experts_per_token: of one dispatch. exec: with a device, which must outlive this. Throws what the
  // source throws, and DeviceError.
  ResidentExperts(ExpertModelSpec const& model, WeightSource const& source, std::size_t max_tokens,
                  std::size_t experts_per_token, Exec const& exec, ExpertStore::OnBytes const& on_bytes);

  // What is reserved of the device for its calls, and the bytes of its other buffers; the weights are apart.
  static ExecLimits exec_limits(ExpertModelSpec const& model, std::size_t max_tokens, std::size_t experts_per_token);
  static std::size_t buffer_bytes(ExpertModelSpec const& model, std::size_t max_tokens, std::size_t experts_per_token);

  [[nodiscard]] bool wants_routing_on_host() const override { return false; }
  [[nodiscard]] bool computes_at_dispatch() const override { return true; }
  Exchange dispatch(std::uint32_t layer, MatrixView<float const> x, RoutingView routing) override;
  void progress() override {}
  void wake() override {}
  void idle() override {}
  [[nodiscard]] std::size_t resident_bytes() const { return store_.resident_bytes(); }

 protected:
  bool complete(Exchange /*exchange*/) override { return true; }
  void wait(Exchange exchange, std::coroutine_handle<> waiter) override;
  void finish(Exchange exchange, MatrixView<float> out) override;

 private:
  struct Layer {
    std::uint32_t layer = 0;  // through all stacks
    AlignedBuffer<DeviceExpert> table;
    DeviceExperts experts;
  };
  static constexpr std::size_t kSlots = 2;  // micro-batches in flight at most
  struct Slot {
    bool in_use = false;
    RoutingView routing;
    AlignedBuffer<std::byte> rows;  // [T*K,H] of the wire dtype
  };

  Device& device_;
  DType const wire_;
  ExpertStore const store_;
  std::vector<Layer> layers_;
  std::array<Slot, kSlots> slots_;
};

}  // namespace expertmesh
