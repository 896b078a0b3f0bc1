// The static form of the exchange (step_layout.h), for steps of few rows between a coordinator and workers on devices
// that are all linked: every worker gets all rows of a layer and the experts of their slots, and gives a row back for
// every slot that is its own. The host sends each worker one message a step and then asks the device for layer after
// layer, some of them ahead, or launches the graph of a step like it; it reads no routing and waits for nothing. What
// passes grows with the number of workers.
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/experts/expert_store.h"
#include "common/kernels/exec.h"
#include "common/protocol/step_layout.h"
#include "coordinator/experts/exchange_slot.h"
#include "coordinator/experts/experts.h"
#include "coordinator/experts/remote_experts.h"

namespace expertmesh {

struct StaticExchangeOptions {
  std::size_t max_tokens = 1;  // T
  std::size_t experts_per_token = 1;
  std::size_t most_bytes = 0;  // that may pass by all links together for one layer, both ways; more rows are not taken
  // Takes a member for dead, for this reason.
  std::function<void(Member&, std::string const&)> lose;
};

class StaticExchange final : public StepExperts {
 public:
  // Steps that found an infinity or a NaN are run again, where it is seen whose it is. Those of a model that has them
  // are not all to be run twice: as many steps as this are not taken then.
  static constexpr std::size_t kStepsOfDoubt = 1000;

  // exec: with a device. traffic: added to. All must outlive this.
  StaticExchange(ExpertModelSpec const& model, StaticExchangeOptions options, Exec const& exec, Transport& transport,
                 RemoteExperts::Traffic& traffic);

  // Of the device, beside the buffers that the members have.
  static std::size_t buffer_bytes(ExpertModelSpec const& model, std::size_t max_tokens, std::size_t experts_per_token);

  // Members or placement are others from now on. What was known of them, graphs too, goes at once: a link's abort waits
  // for the graphs that it is in.
  void forget_placement() {
    placed_ = false;
    graphs_.clear();
  }
  // Meanwhile nothing but dispatch() and combine() may touch the device or a link.
  [[nodiscard]] bool is_recording() const { return graphs_.is_recording(); }
  // Whether the step is taken; then its messages are on their way. Not while rows of anything else are under way.
  // id: of the coordinator, the step and the attempt, with the flags of all messages. layers: of the model.
  bool begin(StepShape const& shape, ExchangeId id, std::span<std::shared_ptr<Member> const> members,
             std::span<PlacedLayer const> layers);
  // Whether it was about a message of this form. member: alive.
  bool take(Member& member, Completion const& completion);

  [[nodiscard]] RemoteExperts::StaticSteps const& steps() const { return steps_; }

  [[nodiscard]] bool wants_routing_on_host() const override { return false; }
  Exchange dispatch(std::uint32_t layer, MatrixView<float const> x, RoutingView routing) override;
  bool run(GraphCache::Key key, std::function<void()> const& ops) override;
  Outcome outcome() override;
  void progress() override;  // resumes who waits; RemoteExperts moves the messages
  void wake() override {}
  void idle() override {}

 protected:
  bool complete(Exchange exchange) override;
  void wait(Exchange exchange, std::coroutine_handle<> waiter) override;
  void finish(Exchange exchange, MatrixView<float> out) override;

 private:
  // One member's part in the step.
  struct Part {
    std::shared_ptr<Member> member;
    LegMessages* messages = nullptr;
    ExchangeId id{};
    OpId send{};
    OpId recv{};
    bool send_done = false;
    bool recv_done = false;
    [[nodiscard]] bool alive() const { return !member->lost(); }
  };
  struct Layer {
    StepLayer step;
    AlignedBuffer<std::uint32_t> holder_of;  // [E] index of a member; in the device's memory
  };

  void place(std::span<std::shared_ptr<Member> const> members, std::span<PlacedLayer const> layers);
  [[nodiscard]] std::size_t bytes_of_a_layer(std::size_t tokens, std::size_t num_members) const;
  void invite(std::shared_ptr<Member> const& member, ExchangeId id);
  void count_traffic();

  StaticExchangeOptions const options_;
  Exec const& exec_;
  Transport& transport_;
  RemoteExperts::Traffic& traffic_;
  DType const wire_;
  std::shared_ptr<AlignedBuffer<std::byte>> const out_;  // to all members; theirs, too, until their links are at rest
  AlignedBuffer<std::uint32_t> not_finite_;              // [1] on the device
  GraphCache graphs_;                                    // of this placement

  // Of a placement.
  bool placed_ = false;
  bool all_held_ = false;  // by members
  std::vector<Layer> layers_;
  AlignedBuffer<std::byte const*> rows_back_;  // [members] where their rows come to; on the device

  // Of the step under way.
  bool under_way_ = false;
  std::vector<Part> parts_;
  std::vector<std::size_t> order_;  // indices of layers
  std::vector<StepLayer> step_layers_;
  StepShape shape_;       // but its layers
  std::size_t next_ = 0;  // of order_, to be combined
  bool dispatched_ = false;
  RoutingView routing_;
  std::coroutine_handle<> waiter_;

  std::size_t steps_of_doubt_ = 0;
  RemoteExperts::StaticSteps steps_;
};

}  // namespace expertmesh
