// Steps whose experts offer another form of their exchanges: what is lost is run again, and leaves nothing behind.
#include <gtest/gtest.h>

#include <limits>

#include "tests/unit/device/test_device.h"
#include "tests/unit/device_model/step_rig.h"

namespace expertmesh {
namespace {

using test::Model;
using test::Said;
using test::say;

// Those of a model, who take the steps that they are asked for and lose every third, with nonsense in it.
class MoodyExperts final : public Experts {
 public:
  MoodyExperts(Experts& inner, Device& device) : inner_(inner), form_(*this, device) {}
  std::size_t num_good = 0;
  std::size_t num_lost = 0;

  Exchange dispatch(std::uint32_t layer, MatrixView<float const> x, RoutingView routing) override {
    return inner_.dispatch(layer, x, routing);
  }
  StepExperts* begin_step(StepShape const& shape) override {
    form_.begin(shape);
    return &form_;
  }
  void progress() override { inner_.progress(); }
  void wake() override {}
  void idle() override {}

 protected:
  bool complete(Exchange) override { return true; }
  void wait(Exchange, std::coroutine_handle<>) override {}
  void finish(Exchange exchange, MatrixView<float> out) override { inner_.combine(exchange, out).await_resume(); }

 private:
  class Form final : public StepExperts {
   public:
    Form(MoodyExperts& owner, Device& device) : owner_(owner), device_(device), graphs_(device) {}
    void begin(StepShape const& shape) {
      shape_ = shape;
      next_ = 0;
      asked_ = 0;
      ++steps_;
    }
    [[nodiscard]] bool wants_routing_on_host() const override { return false; }
    Exchange dispatch(std::uint32_t layer, MatrixView<float const> x, RoutingView routing) override {
      EXPECT_EQ(layer, shape_.layers[next_]);
      EXPECT_EQ(x.rows, shape_.tokens);
      EXPECT_EQ(routing.experts_per_token, shape_.experts_per_token);
      EXPECT_TRUE(routing.experts.empty()) << "the host has waited for them";
      ++next_;
      return owner_.inner_.dispatch(layer, x, routing);
    }
    bool run(GraphCache::Key key, std::function<void()> const& ops) override {
      DeviceGraph* const graph = shape_.comes_again && !loses() ? graphs_.find_or_record(key, ops) : nullptr;
      next_ = 0;
      if (graph) {
        graph->launch();
        next_ = shape_.layers.size();
      } else {
        ops();
      }
      return graph != nullptr;
    }
    Outcome outcome() override {
      EXPECT_EQ(next_, shape_.layers.size());
      if (asked_++ < 2) return Outcome::under_way;
      ++(loses() ? owner_.num_lost : owner_.num_good);
      return loses() ? Outcome::lost : Outcome::good;
    }
    void progress() override {}
    void wake() override {}
    void idle() override {}

   protected:
    bool complete(Exchange) override { return true; }
    void wait(Exchange, std::coroutine_handle<>) override {}
    void finish(Exchange exchange, MatrixView<float> out) override {
      owner_.inner_.combine(exchange, out).await_resume();
      if (loses()) device_.scale(out, std::numeric_limits<float>::quiet_NaN());
    }

   private:
    [[nodiscard]] bool loses() const { return steps_ % 3 == 0; }
    MoodyExperts& owner_;
    Device& device_;
    GraphCache graphs_;
    StepShape shape_;
    std::size_t next_ = 0;
    std::size_t asked_ = 0;
    std::size_t steps_ = 0;
  };

  Experts& inner_;
  Form form_;
};

// Grouped and latent attention; a gate on the input, whose rows are one a slot.
class StepForms : public testing::TestWithParam<std::string> {};

TEST_P(StepForms, GiveTheSameBitsAndTheSameRouting) {
  Model model(test::model_dir(GetParam()), DType::bf16, 1, best_isa(), &test::test_device());
  Said const plain = say(model, false);
  for (bool const graphs : {false, true}) {
    MoodyExperts moody(*model.resident, test::test_device());
    Said const formed = say(model, graphs, &moody);
    EXPECT_EQ(formed.tokens, plain.tokens);
    EXPECT_EQ(formed.logprobs, plain.logprobs);
    EXPECT_EQ(formed.experts, plain.experts);
    EXPECT_EQ(moody.num_good + moody.num_lost, formed.decode_steps);
    EXPECT_GT(moody.num_lost, 2U);
    if (graphs)
      EXPECT_GT(formed.launches, 2U);
    else
      EXPECT_EQ(formed.launches, 0U);
  }
}
INSTANTIATE_TEST_SUITE_P(Cases, StepForms, testing::Values("gpt_oss", "deepseek_v3", "llama4"),
                         [](auto const& tested) { return tested.param; });

}  // namespace
}  // namespace expertmesh
