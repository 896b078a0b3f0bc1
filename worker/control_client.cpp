#include "worker/control_client.h"

#include <netinet/tcp.h>
#include <sys/socket.h>

#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <future>
#include <thread>

#include "common/base/error.h"
#include "common/base/log.h"
#include "common/protocol/control_connection.h"
#include "common/protocol/secret_proof.h"

namespace expertmesh {
namespace {

// How long what was sent may stay unacknowledged: a coordinator's host that is gone says nothing any more.
constexpr unsigned kUnansweredMs = 3000;

boost::asio::ip::tcp::socket connect(boost::asio::io_context& io, std::string const& address) {
  auto socket = connect_to(io, address);
  if (setsockopt(socket.native_handle(), IPPROTO_TCP, TCP_USER_TIMEOUT, &kUnansweredMs, sizeof kUnansweredMs) != 0)
    throw NetworkError("setsockopt", errno, std::strerror(errno), address);
  return socket;
}

// Whoever waits for it, now or later, gets the exception instead; not if it was kept.
template <class T>
void break_promise(std::promise<T>& promise, std::exception_ptr const& exception) {
  try {
    promise.set_exception(exception);
  } catch (std::future_error const&) {
  }
}

}  // namespace

class ControlClient::Impl {
 public:
  Impl(std::string const& address, std::string secret, control::Hello hello, Doorbell& bell, Handlers handlers)
      : address_(address),
        secret_(std::move(secret)),
        hello_(std::move(hello)),
        handlers_(std::move(handlers)),
        connection_(std::make_shared<ControlConnection>(connect(io_, address))),
        heartbeat_timer_(io_),
        gate_(bell) {
    asked_to_end_.async_wait([this](boost::system::error_code const& error, int) {
      if (error || ended_) return;
      // The coordinator has the experts loaded elsewhere first. Without one there is nobody to wait for.
      if (welcome_)
        connection_->send(control::Leaving{});
      else
        closed("asked to end before it was taken in");
      if (handlers_.on_asked_to_end) handlers_.on_asked_to_end();
    });
    boost::asio::post(io_, [this] {
      connection_->start({.on_message = [this](control::Message message) { receive(std::move(message)); },
                          .on_closed = [this](std::string const& reason) { closed(reason); }},
                         kMaxFrameBytes);
    });
    thread_ = std::thread([this] { io_.run(); });
  }

  ~Impl() {
    io_.stop();
    thread_.join();
  }

  control::Welcome wait_for_welcome() { return welcomed_.get_future().get(); }
  control::Connect wait_for_connect() { return connect_.get_future().get(); }
  control::Assign wait_for_assign() { return assigned_.get_future().get(); }
  ControlEnd wait_for_end() { return end_.get_future().get(); }
  [[nodiscard]] bool ended() const { return ended_; }
  void send(control::Message const& message) { connection_->send(message); }
  ServingGate& gate() { return gate_; }
  void on_hold(std::function<void(control::Hold)> handler) {
    boost::asio::post(io_, [this, handler = std::move(handler)]() mutable { on_hold_ = std::move(handler); });
  }

  void fail(control::FailureKind kind, std::string const& reason, ExitCode code) {
    boost::asio::post(io_, [this, code] {
      exit_code_ = code;
      for_good_ = code == ExitCode::refused;
      failing_ = true;
    });
    connection_->send(control::Failed{.kind = kind, .reason = reason});
  }

  void hang_up() {
    boost::asio::post(io_, [this] {
      if (!failing_) closed("hung up");
    });
  }

 private:
  void receive(control::Message message) {
    if (ended_) return;
    if (auto const* refuse = std::get_if<control::Refuse>(&message)) {
      exit_code_ = ExitCode::refused;
      for_good_ = true;
      return closed("refused by the coordinator: " + refuse->reason);
    }
    if (!welcome_) return introduce(message);
    if (auto const* how = std::get_if<control::Connect>(&message)) {
      if (std::exchange(connects_, true)) return closed("told twice how to connect");
      connect_.set_value(*how);
    } else if (auto* assign = std::get_if<control::Assign>(&message)) {
      if (assigned_before_) return closed("a second assignment");
      assigned_before_ = true;
      awake_interval_ = heartbeat_interval_ = std::chrono::milliseconds(assign->heartbeat_ms);
      beat();
      assigned_.set_value(std::move(*assign));
    } else if (auto* hold = std::get_if<control::Hold>(&message)) {
      if (!on_hold_) return closed("another placement before the first is served");
      on_hold_(std::move(*hold));
    } else if (std::holds_alternative<control::Idle>(message)) {
      gate_.set(ServingGate::Mode::idle);
      heartbeat_interval_ = control::kIdleHeartbeatFactor * awake_interval_;
    } else if (std::holds_alternative<control::Wake>(message)) {
      gate_.set(ServingGate::Mode::serving);
      heartbeat_interval_ = awake_interval_;
      beat();
    } else if (auto const* shutdown = std::get_if<control::Shutdown>(&message)) {
      exit_code_ = ExitCode::told;
      for_good_ = shutdown->for_good;
      // It hangs up when the loop has ended its part; before there is any, at once.
      if (gate_.mode() == ServingGate::Mode::loading) return closed("told to end");
      gate_.set(ServingGate::Mode::stopped);
    } else {
      closed("a message that is not for workers");
    }
  }

  // Until both ends have shown that they know the secret.
  void introduce(control::Message const& message) {
    if (auto const* challenge = std::get_if<control::Challenge>(&message); challenge != nullptr && nonce_.empty()) {
      nonce_ = challenge->nonce;
      if (nonce_.empty()) return closed("a challenge without a nonce");
      hello_.nonce = random_nonce();
      hello_.proof = control::hello_proof(secret_, nonce_, hello_);
      connection_->send(hello_);
    } else if (auto const* welcome = std::get_if<control::Welcome>(&message); welcome != nullptr && !nonce_.empty()) {
      if (!same_proof(welcome->proof,
                      control::welcome_proof(secret_, nonce_, hello_, welcome->worker, welcome->incarnation)))
        return closed("the coordinator does not know the secret");
      welcome_ = true;
      welcomed_.set_value(*welcome);
    } else {
      closed("a message before challenge and welcome");
    }
  }

  // Sends one and sets the clock for the next, in place of the one it was set for.
  void beat() {
    connection_->send(control::Heartbeat{});
    heartbeat_timer_.expires_after(heartbeat_interval_);
    heartbeat_timer_.async_wait([this](boost::system::error_code const& error) {
      if (!error) beat();
    });
  }

  void closed(std::string const& reason) {
    if (ended_.exchange(true)) return;
    if (exit_code_ != ExitCode::told) spdlog::error("control connection to {}: {}", address_, reason);
    spdlog::default_logger()->flush();
    handlers_.on_end(exit_code_);
    heartbeat_timer_.cancel();
    asked_to_end_.cancel();
    connection_->close();
    auto const gone = std::make_exception_ptr(CoordinatorGone(reason));
    break_promise(welcomed_, gone);
    break_promise(connect_, gone);
    break_promise(assigned_, gone);
    gate_.set(ServingGate::Mode::stopped);
    end_.set_value({.code = exit_code_, .for_good = for_good_});
  }

  std::string const address_;
  std::string const secret_;
  control::Hello hello_;
  Handlers const handlers_;
  std::string nonce_;  // the coordinator's; empty before its challenge
  bool welcome_ = false;
  boost::asio::io_context io_;
  std::shared_ptr<ControlConnection> connection_;
  boost::asio::steady_timer heartbeat_timer_;
  boost::asio::signal_set asked_to_end_{io_, SIGTERM};
  std::chrono::milliseconds awake_interval_{0};
  std::chrono::milliseconds heartbeat_interval_{0};
  std::promise<control::Welcome> welcomed_;
  std::promise<control::Connect> connect_;
  bool connects_ = false;
  std::promise<control::Assign> assigned_;
  bool assigned_before_ = false;
  std::function<void(control::Hold)> on_hold_;
  std::promise<ControlEnd> end_;
  std::atomic<bool> ended_ = false;
  bool failing_ = false;                 // last words are on their way
  ExitCode exit_code_ = ExitCode::lost;  // of an end that nobody asked for
  bool for_good_ = false;
  ServingGate gate_;
  std::thread thread_;
};

ControlClient::ControlClient(std::string const& address, std::string secret, control::Hello hello, Doorbell& bell,
                             Handlers handlers)
    : impl_(std::make_unique<Impl>(address, std::move(secret), std::move(hello), bell, std::move(handlers))) {}
ControlClient::~ControlClient() = default;
control::Assign ControlClient::wait_for_assign() {
  return impl_->wait_for_assign();
}
void ControlClient::on_hold(std::function<void(control::Hold)> handler) {
  impl_->on_hold(std::move(handler));
}
void ControlClient::send(control::Message const& message) {
  impl_->send(message);
}
void ControlClient::fail(control::FailureKind kind, std::string const& reason, ExitCode code) {
  impl_->fail(kind, reason, code);
}
ControlEnd ControlClient::wait_for_end() {
  return impl_->wait_for_end();
}
void ControlClient::hang_up() {
  impl_->hang_up();
}
bool ControlClient::ended() const {
  return impl_->ended();
}
control::Welcome ControlClient::wait_for_welcome() {
  return impl_->wait_for_welcome();
}
control::Connect ControlClient::wait_for_connect() {
  return impl_->wait_for_connect();
}
ServingGate& ControlClient::gate() {
  return impl_->gate();
}

}  // namespace expertmesh
