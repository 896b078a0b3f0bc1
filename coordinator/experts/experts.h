// The experts as the decoder sees them: rows go out at dispatch, come back combined at combine. Where they run
// (in this process, in workers) is not visible here.
#pragma once
#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "common/base/cores.h"
#include "common/base/error.h"
#include "common/kernels/graph_cache.h"
#include "common/moe/routing.h"
#include "common/tensor/tensor.h"

namespace expertmesh {

// An expert that no worker holds could not be loaded by this process either. The step cannot be completed; its
// sequences end with an error.
class ExpertsLost : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;  // names layer and file
};

// A step whose exchanges are all known when it begins.
struct StepShape {
  std::size_t tokens = 0;                   // rows of every dispatch
  std::size_t experts_per_token = 0;        // K of them
  std::span<std::uint32_t const> layers{};  // that dispatch, in this order
  bool comes_again = false;                 // what it asks of a device may be kept as a graph
};

class StepExperts;

// Every member runs on the engine thread.
class Experts {
 public:
  virtual ~Experts() = default;

  // Whether dispatch() follows RoutingView::experts and weights; else a device's copy of them is enough.
  [[nodiscard]] virtual bool wants_routing_on_host() const { return true; }

  // Whether dispatch() computes, and does not only send.
  [[nodiscard]] virtual bool computes_at_dispatch() const { return false; }

  // One exchange of one micro-batch, between dispatch() and the end of combine().
  struct Exchange {
    std::uint32_t slot = 0;  // private to the implementation
  };

  // Sends the rows of x [T,H] to the workers that hold routing's experts. layer: numbered through all stacks. x and
  // routing must stay unchanged until the exchange has been combined.
  virtual Exchange dispatch(std::uint32_t layer, MatrixView<float const> x, RoutingView routing) = 0;

  // `co_await experts.answered(exchange)`: suspends until every row is back, and those of every exchange that began
  // earlier have been combined: micro-batches take turns in the order of their first exchange. combine() is then done
  // at once.
  struct Answered {
    Experts& experts;
    Exchange exchange;
    bool await_ready() { return experts.complete(exchange); }
    void await_suspend(std::coroutine_handle<> waiter) { experts.wait(exchange, waiter); }
    void await_resume() {}
  };
  [[nodiscard]] Answered answered(Exchange exchange) { return {*this, exchange}; }

  // `co_await experts.combine(exchange, out)`: suspends until every row is back, then out [T,H] = sum over slots
  // k = 0…K-1 in order of gate weight x expert row. Throws ExpertsLost.
  struct Combine {
    Experts& experts;
    Exchange exchange;
    MatrixView<float> out;
    bool await_ready() { return experts.complete(exchange); }
    void await_suspend(std::coroutine_handle<> waiter) { experts.wait(exchange, waiter); }
    void await_resume() { experts.finish(exchange, out); }
  };
  [[nodiscard]] Combine combine(Exchange exchange, MatrixView<float> out) { return {*this, exchange, out}; }

  // The same experts for one step that the host need not follow on its way, to the same bits: its exchanges go by what
  // is returned, layer by layer, until its outcome is known; progress() is called here all the while. Null: they go by
  // dispatch() here.
  virtual StepExperts* begin_step(StepShape const& /*shape*/) { return nullptr; }

  // Moves messages and resumes every waiter whose exchange became complete. Never waits for anyone; the engine calls it
  // until its micro-batches are done.
  virtual void progress() = 0;
  // Moves messages and resumes nobody: between two ops of a micro-batch, for the rows of the other one.
  virtual void move() {}
  // Between two calls of progress(): a moment, that a message may cut short.
  virtual void pause(PollPause pause) { pause_polling(pause); }

  // Before the first step after a pause / when there is nothing to do: workers wake from or go to sleep on their
  // control socket.
  virtual void wake() = 0;
  virtual void idle() = 0;

 protected:
  virtual bool complete(Exchange exchange) = 0;                              // all rows back, or given up
  virtual void wait(Exchange exchange, std::coroutine_handle<> waiter) = 0;  // at most one waiter an exchange
  virtual void finish(Exchange exchange, MatrixView<float> out) = 0;         // combines, frees the slot
};

// Of a step under way nothing may be waited for but its exchanges, and its outcome: a device that waits for a worker
// that has died goes on when this host says so.
class StepExperts : public Experts {
 public:
  enum class Outcome : std::uint8_t {
    under_way,
    good,
    lost,  // a worker died in it, or made something up: what came of it is of no worth, and it has to be run again
  };
  // Has the device do the step: what `ops` asks of it, with the exchanges in it, op by op or, for a step that comes
  // again, as a graph once its key has been seen before (graph_cache.h). True: that was one launch.
  virtual bool run(GraphCache::Key key, std::function<void()> const& ops) = 0;
  // When all its layers are combined. good and lost are said once, and the step is over.
  virtual Outcome outcome() = 0;
};

}  // namespace expertmesh
