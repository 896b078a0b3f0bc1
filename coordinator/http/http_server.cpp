#include "coordinator/http/http_server.h"

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <thread>

#include "common/base/error.h"
#include "common/base/log.h"
#include "coordinator/http/http_session.h"

namespace expertmesh {
namespace {

namespace asio = boost::asio;
using tcp = asio::ip::tcp;
using boost::system::error_code;

constexpr std::chrono::milliseconds kAcceptPause{100};  // after a failure such as no free file descriptor

}  // namespace

struct HttpServer::Impl {
  asio::io_context io;
  asio::strand<asio::io_context::executor_type> strand = asio::make_strand(io);  // of the acceptor and what follows
  tcp::acceptor acceptor{strand};
  asio::steady_timer pause{strand};
  bool accepting = false;
  std::shared_ptr<HttpSessions> sessions = std::make_shared<HttpSessions>();
  std::uint16_t port = 0;
  std::vector<std::thread> threads;

  void listen(std::string const& host, std::uint16_t wanted_port) {
    std::string const place = host + ":" + std::to_string(wanted_port);
    error_code error;
    auto const check = [&](char const* call) {
      if (error) throw NetworkError(call, error.value(), error.message(), place);
    };
    auto const address = asio::ip::make_address(host == "localhost" ? "127.0.0.1" : host, error);
    if (error) throw NetworkError("listen", error.value(), "'" + host + "' is not an IP address", place);
    tcp::endpoint const endpoint(address, wanted_port);
    acceptor.open(endpoint.protocol(), error);
    check("socket");
    acceptor.set_option(tcp::acceptor::reuse_address(true), error);
    check("setsockopt");
    acceptor.bind(endpoint, error);
    check("bind");
    acceptor.listen(asio::socket_base::max_listen_connections, error);
    check("listen");
    port = acceptor.local_endpoint().port();
  }

  // On the strand: accepts as long as there is room.
  void accept() {
    {
      std::lock_guard lock(sessions->mutex);
      if (sessions->stopping || accepting || sessions->open.size() >= sessions->options.max_connections) return;
    }
    accepting = true;
    acceptor.async_accept(asio::make_strand(io), [this](error_code error, tcp::socket socket) {
      accepting = false;
      if (error == asio::error::operation_aborted) return;
      if (error) {
        spdlog::warn("accept: {}", error.message());
        pause.expires_after(kAcceptPause);
        pause.async_wait([this](error_code) { accept(); });
        return;
      }
      error_code ignored;
      socket.set_option(tcp::no_delay(true), ignored);
      start_http_session(std::move(socket), sessions);
      accept();
    });
  }

  template <class Action>
  void for_each_session(Action action) {
    std::lock_guard lock(sessions->mutex);
    for (auto const& session : sessions->open) action(*session);
  }
};

HttpServer::HttpServer(HttpServerOptions options, Handler handler, ErrorBody error_body)
    : impl_(std::make_unique<Impl>()) {
  Impl& s = *impl_;
  s.listen(options.host, options.port);
  s.sessions->options = std::move(options);
  s.sessions->handler = std::move(handler);
  s.sessions->error_body = std::move(error_body);
  s.sessions->on_close = [&s] { asio::post(s.strand, [&s] { s.accept(); }); };
  asio::post(s.strand, [&s] { s.accept(); });
  for (std::size_t i = 0; i < s.sessions->options.threads; ++i)
    s.threads.emplace_back([&s, guard = asio::make_work_guard(s.io)] { s.io.run(); });
}

HttpServer::~HttpServer() {
  stop(std::chrono::steady_clock::now());
}

std::uint16_t HttpServer::port() const {
  return impl_->port;
}

void HttpServer::stop(std::chrono::steady_clock::time_point deadline) {
  Impl& s = *impl_;
  if (s.threads.empty()) return;
  {
    std::lock_guard lock(s.sessions->mutex);
    s.sessions->stopping = true;
    s.sessions->on_close = nullptr;
  }
  asio::post(s.strand, [&s] {
    error_code ignored;
    s.acceptor.close(ignored);
    s.pause.cancel();
  });
  s.for_each_session([](HttpSession& session) { session.shut_down(); });
  {
    std::unique_lock lock(s.sessions->mutex);
    s.sessions->changed.wait_until(lock, deadline, [&] { return s.sessions->open.empty(); });
  }
  s.for_each_session([](HttpSession& session) { session.abort(); });
  {
    std::unique_lock lock(s.sessions->mutex);
    s.sessions->changed.wait(lock, [&] { return s.sessions->open.empty(); });
  }
  s.io.stop();
  for (auto& thread : s.threads) thread.join();
  s.threads.clear();
}

}  // namespace expertmesh
