// The coordinators behind a front: which of them are ready, and which one a request goes to. Used on the io_context's
// thread, of which there is one.
#pragma once
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/front/balancer.h"
#include "coordinator/http/http_call.h"

namespace expertmesh {

struct BackendsOptions {
  std::vector<HttpAddress> addresses;
  BalancerOptions balancer{};
  std::chrono::milliseconds poll_interval{500};
  std::function<void(std::size_t backend)> on_up{};
  std::function<void(std::size_t backend)> on_unreachable{};  // whoever waits for it waits in vain
};

class Backends {
 public:
  Backends(boost::asio::io_context& io, BackendsOptions options);
  void start();  // asks each for /ready, time and again
  void stop();

  [[nodiscard]] std::size_t size() const { return states_.size(); }
  [[nodiscard]] HttpAddress const& address(std::size_t backend) const { return options_.addresses.at(backend); }
  [[nodiscard]] bool is_up(std::size_t backend) const { return states_.at(backend).up; }
  [[nodiscard]] bool any_up() const;

  // For a prompt, among those that are up but for `tried` [size()]. None: there is none.
  std::optional<std::size_t> choose(PromptSummary const& prompt, std::vector<bool> const& tried);
  // For what every one can answer: the first that is up, or else the first.
  [[nodiscard]] std::optional<std::size_t> first(std::vector<bool> const& tried) const;
  void finish(std::size_t backend, PromptSummary const& prompt);  // one that choose() gave

  // It could not be reached, or ended before it answered: it gets nothing until /ready answers again.
  void failed(std::size_t backend, std::string const& why);
  void look_again(std::size_t backend);  // now, and not at the next turn

  struct Counts {
    std::uint64_t requests = 0;
    std::uint64_t known = 0;  // of them with a beginning that was there
    std::size_t outstanding_tokens = 0;
  };
  [[nodiscard]] Counts counts(std::size_t backend) const;

 private:
  struct State {
    explicit State(boost::asio::io_context& io) : pause(io) {}
    boost::asio::steady_timer pause;
    std::shared_ptr<HttpCall> poll;  // under way
    bool up = false;
    bool asked = false;  // once at least, and it has answered or not
    std::uint64_t requests = 0;
    std::uint64_t known = 0;
  };
  void poll(std::size_t backend);
  void polled(std::size_t backend, int status, std::string const& failure);
  void set_up(std::size_t backend, bool up, std::string const& why);

  boost::asio::io_context& io_;
  BackendsOptions options_;
  Balancer balancer_;
  std::vector<State> states_;
  bool stopped_ = false;
};

}  // namespace expertmesh
