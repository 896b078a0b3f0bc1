#include "worker/control_client.h"

#include <netinet/tcp.h>
#include <sys/socket.h>

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
#include "common/transport/mpi_runtime.h"

namespace expertmesh {
namespace {

[[noreturn]] void end_process(int exit_code) {
  spdlog::default_logger()->flush();
  exit_without_finalize(exit_code);
}

constexpr int kExitRefused = 2;  // as it is, this worker will never be taken in

// How long what was sent may stay unacknowledged: a coordinator's host that is gone says nothing any more.
constexpr unsigned kUnansweredMs = 3000;

boost::asio::ip::tcp::socket connect(boost::asio::io_context& io, std::string const& address) {
  auto socket = connect_to(io, address);
  if (setsockopt(socket.native_handle(), IPPROTO_TCP, TCP_USER_TIMEOUT, &kUnansweredMs, sizeof kUnansweredMs) != 0)
    throw NetworkError("setsockopt", errno, std::strerror(errno), address);
  return socket;
}

}  // namespace

class ControlClient::Impl {
 public:
  Impl(std::string const& address, std::string secret, control::Hello hello)
      : secret_(std::move(secret)),
        hello_(std::move(hello)),
        connection_(std::make_shared<ControlConnection>(connect(io_, address))),
        heartbeat_timer_(io_) {
    asked_to_end_.async_wait([this](boost::system::error_code const& error, int) {
      if (error) return;
      // The coordinator has the experts loaded elsewhere first. Without one there is nobody to wait for.
      if (!welcome_) closed("asked to end before it was taken in");
      connection_->send(control::Leaving{});
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
  [[nodiscard]] control::Hello const& hello() const { return hello_; }
  void send(control::Message const& message) { connection_->send(message); }
  ServingGate& gate() { return gate_; }
  void on_hold(std::function<void(control::Hold)> handler) {
    boost::asio::post(io_, [this, handler = std::move(handler)]() mutable { on_hold_ = std::move(handler); });
  }

  [[noreturn]] void fail(control::FailureKind kind, std::string const& reason, int exit_code) {
    boost::asio::post(io_, [this, exit_code] { exit_code_ = exit_code; });
    connection_->send(control::Failed{.kind = kind, .reason = reason});
    thread_.join();  // until the coordinator hangs up, which ends the process
    end_process(exit_code);
  }

 private:
  void receive(control::Message message) {
    if (auto const* refuse = std::get_if<control::Refuse>(&message)) {
      exit_code_ = kExitRefused;
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
    } else if (std::holds_alternative<control::Shutdown>(message)) {
      exit_code_ = 0;
      if (gate_.mode() == ServingGate::Mode::loading) end_process(0);
      gate_.set(ServingGate::Mode::stopped);
    } else {
      closed("a message that is not for workers");
    }
  }

  // Until both ends have shown that they know the secret.
  void introduce(control::Message const& message) {
    if (auto const* challenge = std::get_if<control::Challenge>(&message); challenge != nullptr && nonce_.empty()) {
      nonce_ = challenge->nonce;
      if (nonce_.empty()) closed("a challenge without a nonce");
      hello_.nonce = random_nonce();
      hello_.proof = control::hello_proof(secret_, nonce_, hello_);
      connection_->send(hello_);
    } else if (auto const* welcome = std::get_if<control::Welcome>(&message); welcome != nullptr && !nonce_.empty()) {
      if (!same_proof(welcome->proof,
                      control::welcome_proof(secret_, nonce_, hello_, welcome->worker, welcome->incarnation)))
        closed("the coordinator does not know the secret");
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

  [[noreturn]] void closed(std::string const& reason) {
    if (exit_code_ != 0) spdlog::error("control connection: {}", reason);
    end_process(exit_code_);
  }

  std::string const secret_;
  control::Hello hello_;
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
  int exit_code_ = 1;  // of an end that nobody asked for
  ServingGate gate_;
  std::thread thread_;
};

ControlClient::ControlClient(std::string const& address, std::string secret, control::Hello hello)
    : impl_(std::make_unique<Impl>(address, std::move(secret), std::move(hello))) {}
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
void ControlClient::fail(control::FailureKind kind, std::string const& reason, int exit_code) {
  impl_->fail(kind, reason, exit_code);
}
control::Welcome ControlClient::wait_for_welcome() {
  return impl_->wait_for_welcome();
}
control::Connect ControlClient::wait_for_connect() {
  return impl_->wait_for_connect();
}
control::Hello const& ControlClient::hello() const {
  return impl_->hello();
}
ServingGate& ControlClient::gate() {
  return impl_->gate();
}

}  // namespace expertmesh
