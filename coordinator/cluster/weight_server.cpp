#include "coordinator/cluster/weight_server.h"

#include <algorithm>
#include <boost/asio/ip/tcp.hpp>
#include <chrono>
#include <list>
#include <mutex>
#include <thread>

#include "common/base/error.h"
#include "common/base/log.h"
#include "common/protocol/blocking_connection.h"
#include "common/protocol/secret_proof.h"

namespace expertmesh {
namespace {

using boost::asio::ip::tcp;
using Clock = std::chrono::steady_clock;

constexpr auto kHelloTimeout = std::chrono::seconds(5);
constexpr auto kSendTimeout = std::chrono::seconds(30);
constexpr std::size_t kChunkBytes = std::size_t{1} << 20;

}  // namespace

class WeightServer::Impl {
 public:
  Impl(WeightSource const& source, Options options) : source_(source), options_(std::move(options)), acceptor_(io_) {
    boost::system::error_code error;
    tcp::endpoint const endpoint(boost::asio::ip::make_address(options_.address, error), 0);
    if (!error && !acceptor_.open(endpoint.protocol(), error) && !acceptor_.bind(endpoint, error))
      acceptor_.listen(boost::asio::socket_base::max_listen_connections, error);
    if (error) throw NetworkError("listen", error.value(), error.message(), options_.address);
    address_ = options_.address + ":" + std::to_string(acceptor_.local_endpoint().port());
    thread_ = std::thread([this] { accept(); });
  }

  ~Impl() {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
      for (auto& served : served_) served.connection->shut_down();
    }
    ::shutdown(acceptor_.native_handle(), SHUT_RDWR);  // wakes the accepting thread
    thread_.join();
    for (auto& served : served_) served.thread.join();
  }

  [[nodiscard]] std::string const& address() const { return address_; }

 private:
  struct Served {
    std::unique_ptr<BlockingConnection> connection;
    std::thread thread;
    bool over = false;
  };

  void accept() {
    for (;;) {
      boost::system::error_code error;
      tcp::socket socket(io_);
      acceptor_.accept(socket, error);
      std::lock_guard lock(mutex_);
      if (stopping_) return;
      for (auto served = served_.begin(); served != served_.end();) {
        if (served->over) served->thread.join();
        served = served->over ? served_.erase(served) : std::next(served);
      }
      if (error || served_.size() >= options_.max_connections) continue;
      auto const peer = socket.remote_endpoint(error);
      if (error) continue;
      Served& served = served_.emplace_back();
      served.connection = std::make_unique<BlockingConnection>(std::move(socket), peer.address().to_string());
      served.thread = std::thread([this, &served] {
        serve(*served.connection);
        std::lock_guard done(mutex_);
        served.connection->shut_down();
        served.over = true;
      });
    }
  }

  void serve(BlockingConnection& connection) {
    try {
      if (!admit(connection)) return;
      for (;;) {
        connection.set_timeout(std::chrono::milliseconds{0});  // it asks when it needs something
        auto const message = connection.receive(kMaxHelloBytes);
        connection.set_timeout(kSendTimeout);
        auto const* fetch = std::get_if<control::Fetch>(&message);
        if (fetch == nullptr) return;
        send(connection, *fetch);
      }
    } catch (NetworkError const&) {  // NOLINT(bugprone-empty-catch): it left, as they do
    }
  }

  bool admit(BlockingConnection& connection) const {
    connection.set_timeout(kHelloTimeout);
    std::string const nonce = random_nonce();
    connection.send(control::Challenge{.nonce = nonce});
    auto const message = connection.receive(kMaxHelloBytes);
    auto const* hello = std::get_if<control::Hello>(&message);
    if (hello == nullptr || !same_proof(hello->proof, control::hello_proof(options_.secret, nonce, *hello)))
      return false;
    connection.send(control::Welcome{
        .worker = hello->worker,
        .incarnation = hello->incarnation,
        .proof = control::welcome_proof(options_.secret, nonce, *hello, hello->worker, hello->incarnation)});
    return true;
  }

  void send(BlockingConnection& connection, control::Fetch const& fetch) {
    try {
      StoredTensor const tensor =
          fetch.index ? source_.load_entry(fetch.tensor, *fetch.index) : source_.load(fetch.tensor);
      connection.send(
          control::Tensor{.dtype = std::string(safetensors_name_of(tensor.dtype)), .num_bytes = tensor.bytes.size()});
      for (auto left = tensor.bytes; !left.empty();) {
        auto const chunk = left.first(std::min(left.size(), kChunkBytes));
        std::this_thread::sleep_until(reserve(chunk.size()));
        connection.send_bytes(chunk);
        left = left.subspan(chunk.size());
      }
    } catch (ModelError const& error) {
      connection.send(control::Failed{.kind = control::FailureKind::model, .reason = error.what()});
    } catch (FileError const& error) {
      connection.send(control::Failed{.kind = control::FailureKind::model, .reason = error.what()});
    }
  }

  // When so many bytes may go out.
  Clock::time_point reserve(std::size_t bytes) {
    std::lock_guard lock(mutex_);
    Clock::time_point const begin = std::max(Clock::now(), next_free_);
    next_free_ = begin + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(
                             static_cast<double>(bytes) / static_cast<double>(options_.bytes_per_second)));
    return begin;
  }

  WeightSource const& source_;
  Options const options_;
  boost::asio::io_context io_;
  tcp::acceptor acceptor_;
  std::string address_;
  std::mutex mutex_;
  std::list<Served> served_;  // guarded by mutex_, like the next two
  Clock::time_point next_free_{};
  bool stopping_ = false;
  std::thread thread_;
};

WeightServer::WeightServer(WeightSource const& source, Options options)
    : impl_(std::make_unique<Impl>(source, std::move(options))) {}
WeightServer::~WeightServer() = default;
std::string WeightServer::address() const {
  return impl_->address();
}

}  // namespace expertmesh
