#include "coordinator/front/backends.h"

#include <algorithm>

#include "common/base/log.h"
#include "coordinator/http/request_id.h"

namespace expertmesh {
namespace {

constexpr std::chrono::seconds kPollTime{5};  // a coordinator that takes longer is stopped, or cut off

BalancerOptions balancer_options(BackendsOptions const& options) {
  BalancerOptions balancer = options.balancer;
  balancer.num_backends = options.addresses.size();
  return balancer;
}

}  // namespace

Backends::Backends(boost::asio::io_context& io, BackendsOptions options)
    : io_(io), options_(std::move(options)), balancer_(balancer_options(options_)) {
  for (std::size_t b = 0; b < options_.addresses.size(); ++b) states_.emplace_back(io);
}

void Backends::start() {
  for (std::size_t b = 0; b < size(); ++b) poll(b);
}

void Backends::stop() {
  stopped_ = true;
  for (State& state : states_) {
    state.pause.cancel();
    if (state.poll) state.poll->cancel();
  }
}

void Backends::poll(std::size_t backend) {
  State& state = states_[backend];
  if (state.poll || stopped_) return;
  HttpRequest request{.method = "GET", .target = "/ready", .body = {}, .request_id = request_id_for("")};
  auto const status = std::make_shared<int>(0);
  state.poll = start_http_call(
      io_, address(backend), std::move(request), kPollTime,
      {.on_head = [status](HttpResponse const& head, auto) { *status = head.status; },
       .on_piece = [this, backend](auto const&) { states_[backend].poll->next(); },
       .on_end = [this, backend, status](std::string const& failure) { polled(backend, *status, failure); }});
}

void Backends::polled(std::size_t backend, int status, std::string const& failure) {
  State& state = states_[backend];
  state.poll = nullptr;
  bool const was_up = state.up;
  set_up(backend, failure.empty() && status == 200, failure.empty() ? "it is not ready" : failure);
  if (!std::exchange(state.asked, true) && !state.up)
    spdlog::warn("coordinator {} at {} gets no requests yet: {}", backend, address(backend).text(),
                 failure.empty() ? "it is not ready" : failure);
  if (was_up && !failure.empty() && options_.on_unreachable) options_.on_unreachable(backend);
  if (stopped_) return;
  state.pause.expires_after(options_.poll_interval);
  state.pause.async_wait([this, backend](boost::system::error_code error) {
    if (!error) poll(backend);
  });
}

void Backends::set_up(std::size_t backend, bool up, std::string const& why) {
  if (std::exchange(states_[backend].up, up) == up) return;
  if (up) {
    spdlog::info("coordinator {} at {} is ready", backend, address(backend).text());
  } else {
    spdlog::warn("coordinator {} at {} gets no requests: {}", backend, address(backend).text(), why);
    balancer_.forget(backend);
  }
  if (up && options_.on_up) options_.on_up(backend);
}

void Backends::look_again(std::size_t backend) {
  State& state = states_[backend];
  if (state.poll || stopped_) return;
  state.pause.cancel();
  poll(backend);
}

void Backends::failed(std::size_t backend, std::string const& why) {
  bool const was_up = states_[backend].up;
  set_up(backend, false, why);
  if (was_up && options_.on_unreachable) options_.on_unreachable(backend);
  // Not what was asked before: it may have been answered by a life that is over.
  if (auto const poll = std::exchange(states_[backend].poll, nullptr)) poll->cancel();
  look_again(backend);
}

bool Backends::any_up() const {
  return std::ranges::any_of(states_, [](State const& state) { return state.up; });
}

std::optional<std::size_t> Backends::choose(PromptSummary const& prompt, std::vector<bool> const& tried) {
  std::vector<bool> eligible(size());
  for (std::size_t b = 0; b < size(); ++b) eligible[b] = states_[b].up && !tried[b];
  auto const choice = balancer_.choose(prompt, eligible);
  if (!choice) return std::nullopt;
  ++states_[choice->backend].requests;
  if (choice->known_blocks > 0) ++states_[choice->backend].known;
  return choice->backend;
}

std::optional<std::size_t> Backends::first(std::vector<bool> const& tried) const {
  for (bool const up : {true, false})
    for (std::size_t b = 0; b < size(); ++b)
      if (!tried[b] && states_[b].up == up) return b;
  return std::nullopt;
}

void Backends::finish(std::size_t backend, PromptSummary const& prompt) {
  balancer_.finish(backend, prompt.tokens);
}

Backends::Counts Backends::counts(std::size_t backend) const {
  return {.requests = states_.at(backend).requests,
          .known = states_.at(backend).known,
          .outstanding_tokens = balancer_.outstanding_tokens(backend)};
}

}  // namespace expertmesh
