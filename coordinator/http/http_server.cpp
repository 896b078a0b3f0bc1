#include "coordinator/http/http_server.h"

#include <sys/socket.h>

#include <boost/asio.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <set>
#include <thread>

#include "common/base/error.h"
#include "common/base/log.h"

namespace expertmesh {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using tcp = asio::ip::tcp;
using boost::system::error_code;

class Session;

// What sessions share. Outlives them: each holds it.
struct Shared {
  HttpServerOptions options;
  HttpServer::Handler handler;
  HttpServer::ErrorBody error_body;

  std::mutex mutex;
  std::condition_variable changed;
  std::set<Session*> sessions;
  bool stopping = false;
  std::function<void()> on_close;  // a place for a new connection
};

// One connection: reads a request, hands it on, writes the answer, reads the next. All members but the public ones run
// on the connection's strand.
class Session final : public HttpResponder, public std::enable_shared_from_this<Session> {
 public:
  Session(tcp::socket socket, std::shared_ptr<Shared> shared) : stream_(std::move(socket)), shared_(std::move(shared)) {
    std::lock_guard lock(shared_->mutex);
    shared_->sessions.insert(this);
  }
  ~Session() override {
    std::function<void()> on_close;
    {
      std::lock_guard lock(shared_->mutex);
      shared_->sessions.erase(this);
      on_close = shared_->on_close;
      shared_->changed.notify_all();
    }
    if (on_close) on_close();
  }

  void start() {
    asio::dispatch(stream_.get_executor(), [self = shared_from_this()] { self->read_request(); });
  }
  // Ends an idle connection now, a busy one after its answer.
  void shut_down() {
    asio::post(stream_.get_executor(), [self = shared_from_this()] {
      self->keep_alive_ = false;
      if (!self->busy_) self->close();
    });
  }
  void abort() {
    asio::post(stream_.get_executor(), [self = shared_from_this()] { self->lose(); });
  }

  void respond(HttpResponse response) override {
    asio::post(stream_.get_executor(),
               [self = shared_from_this(), r = std::move(response)]() mutable { self->write_whole(std::move(r)); });
  }
  void begin_stream(HttpResponse head) override {
    asio::post(stream_.get_executor(), [self = shared_from_this(), h = std::move(head)] { self->write_head(h); });
  }
  void send(std::string data) override {
    asio::post(stream_.get_executor(), [self = shared_from_this(), d = std::move(data)] {
      if (!self->lost_ && !d.empty()) self->enqueue(self->chunked_ ? self->chunk(d) : d);
    });
  }
  void end_stream() override {
    asio::post(stream_.get_executor(), [self = shared_from_this()] {
      if (self->lost_) return;
      self->finishing_ = true;
      self->enqueue(self->chunked_ ? "0\r\n\r\n" : "");
    });
  }
  void on_disconnect(std::function<void()> callback) override {
    asio::post(stream_.get_executor(), [self = shared_from_this(), c = std::move(callback)]() mutable {
      if (self->lost_)
        c();
      else
        self->on_disconnect_ = std::move(c);
    });
  }

 private:
  static std::string chunk(std::string const& data) {
    std::ostringstream out;
    out << std::hex << data.size() << "\r\n" << data << "\r\n";
    return out.str();
  }

  void read_request() {
    parser_.emplace();
    parser_->body_limit(shared_->options.max_body_bytes);
    parser_->header_limit(static_cast<std::uint32_t>(shared_->options.max_header_bytes));
    stream_.expires_after(shared_->options.read_timeout);
    http::async_read_header(stream_, buffer_, *parser_,
                            [self = shared_from_this()](error_code error, std::size_t) { self->on_header(error); });
  }

  void on_header(error_code error) {
    if (error) return on_read_error(error);
    auto const& request = parser_->get();
    keep_alive_ = request.keep_alive();
    http_1_0_ = request.version() < 11;
    head_only_ = request.method() == http::verb::head;
    if (auto const length = parser_->content_length(); length && *length > shared_->options.max_body_bytes)
      return on_read_error(http::error::body_limit);
    if (beast::iequals(request[http::field::expect], "100-continue")) {
      auto const text = std::make_shared<std::string>("HTTP/1.1 100 Continue\r\n\r\n");
      asio::async_write(stream_, asio::buffer(*text), [self = shared_from_this(), text](error_code e, std::size_t) {
        if (!e) self->read_body();
      });
      return;
    }
    read_body();
  }

  void read_body() {
    http::async_read(stream_, buffer_, *parser_,
                     [self = shared_from_this()](error_code error, std::size_t) { self->on_request(error); });
  }

  void on_read_error(error_code error) {
    int status = 0;
    if (error == http::error::body_limit)
      status = 413;
    else if (error == http::error::header_limit || error == http::error::buffer_overflow)
      status = 431;
    else if (error.category() == make_error_code(http::error::bad_method).category() &&
             error != http::error::end_of_stream && error != http::error::partial_message)
      status = 400;
    if (status == 0) return close();
    busy_ = true;
    keep_alive_ = false;  // what follows in the stream cannot be told apart
    std::string const message =
        status == 413 ? "the request body is larger than " + std::to_string(shared_->options.max_body_bytes) + " bytes"
        : status == 431
            ? "the request header is larger than " + std::to_string(shared_->options.max_header_bytes) + " bytes"
            : "not a valid HTTP request: " + error.message();
    write_whole(shared_->error_body(status, message));
  }

  void on_request(error_code error) {
    if (error) return on_read_error(error);
    stream_.expires_never();
    auto request = parser_->release();
    busy_ = true;
    answered_ = chunked_ = finishing_ = streaming_ = false;
    HttpRequest plain{.method = std::string(request.method_string()),
                      .target = std::string(request.target()),
                      .body = std::move(request.body()),
                      .request_id = std::string(request["x-request-id"])};
    watch();
    shared_->handler(std::move(plain), shared_from_this());
  }

  // Notices a client that goes away while its answer is being made. Bytes that arrive meanwhile are a pipelined
  // request: they stay where they are, and the watch ends.
  void watch() {
    stream_.socket().async_wait(tcp::socket::wait_read, [self = shared_from_this()](error_code error) {
      if (error || !self->busy_) return;
      char byte = 0;
      ssize_t const n = recv(self->stream_.socket().native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
      if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) self->lose();
    });
  }

  template <class Body>
  void set_head(http::response<Body>& message, HttpResponse const& response) const {
    message.version(http_1_0_ ? 10 : 11);
    message.result(static_cast<unsigned>(response.status));
    message.set(http::field::server, "expertmesh");
    message.set(http::field::content_type, response.content_type);
    for (auto const& [name, value] : response.headers) message.set(name, value);
    message.keep_alive(keep_alive_);
  }

  void write_whole(HttpResponse response) {
    if (lost_ || answered_) return;
    answered_ = true;
    auto message = std::make_shared<http::response<http::string_body>>();
    set_head(*message, response);
    message->body() = std::move(response.body);
    message->prepare_payload();
    if (head_only_) message->body().clear();  // the length stays
    auto serializer = std::make_shared<http::response_serializer<http::string_body>>(*message);
    stream_.expires_after(shared_->options.write_timeout);
    auto const done = [self = shared_from_this(), message, serializer](error_code error, std::size_t) {
      self->on_answered(error);
    };
    if (head_only_)
      http::async_write_header(stream_, *serializer, done);
    else
      http::async_write(stream_, *serializer, done);
  }

  void write_head(HttpResponse const& head) {
    if (lost_ || answered_) return;
    answered_ = streaming_ = true;
    chunked_ = !http_1_0_;
    if (http_1_0_) keep_alive_ = false;  // the end of the connection is the end of the stream
    http::response<http::empty_body> message;
    set_head(message, head);
    if (chunked_) message.set(http::field::transfer_encoding, "chunked");
    std::ostringstream text;
    text << message.base();
    enqueue(text.str());
  }

  void enqueue(std::string data) {
    unsent_bytes_ += data.size();
    unsent_.push_back(std::move(data));
    if (unsent_bytes_ > shared_->options.max_unsent_bytes) return lose();  // reads too slowly
    if (unsent_.size() == 1) write_next();
  }

  void write_next() {
    stream_.expires_after(shared_->options.write_timeout);
    asio::async_write(stream_, asio::buffer(unsent_.front()),
                      [self = shared_from_this()](error_code error, std::size_t) {
                        if (self->lost_) return;
                        if (error) return self->lose();
                        self->unsent_bytes_ -= self->unsent_.front().size();
                        self->unsent_.pop_front();
                        if (!self->unsent_.empty()) return self->write_next();
                        self->stream_.expires_never();
                        if (self->finishing_) self->on_answered({});
                      });
  }

  void on_answered(error_code error) {
    busy_ = false;
    on_disconnect_ = nullptr;
    if (error || !keep_alive_ || lost_) return close();
    error_code ignored;
    stream_.socket().cancel(ignored);  // the watch
    read_request();
  }

  void lose() {
    if (lost_) return;
    lost_ = true;
    busy_ = false;
    if (auto const callback = std::exchange(on_disconnect_, nullptr)) callback();
    close();
  }

  void close() {
    error_code ignored;
    stream_.socket().shutdown(tcp::socket::shutdown_both, ignored);
    stream_.socket().close(ignored);
  }

  beast::tcp_stream stream_;
  std::shared_ptr<Shared> shared_;
  beast::flat_buffer buffer_{std::size_t{1} << 16};
  std::optional<http::request_parser<http::string_body>> parser_;
  std::deque<std::string> unsent_;
  std::size_t unsent_bytes_ = 0;
  std::function<void()> on_disconnect_;
  bool keep_alive_ = false;
  bool http_1_0_ = false;
  bool head_only_ = false;
  bool busy_ = false;  // between a request and the end of its answer
  bool answered_ = false;
  bool streaming_ = false;
  bool chunked_ = false;
  bool finishing_ = false;  // nothing comes behind what is queued
  bool lost_ = false;
};

}  // namespace

struct HttpServer::Impl {
  asio::io_context io;
  tcp::acceptor acceptor{io};
  std::shared_ptr<Shared> shared = std::make_shared<Shared>();
  std::vector<std::thread> threads;
  std::uint16_t port = 0;
  bool accepting = false;  // on the acceptor's thread: under shared->mutex

  void accept() {
    {
      std::lock_guard lock(shared->mutex);
      if (shared->stopping || accepting || shared->sessions.size() >= shared->options.max_connections) return;
      accepting = true;
    }
    acceptor.async_accept(asio::make_strand(io), [this](error_code error, tcp::socket socket) {
      {
        std::lock_guard lock(shared->mutex);
        accepting = false;
        if (shared->stopping) return;
      }
      if (!error) {
        error_code ignored;
        socket.set_option(tcp::no_delay(true), ignored);
        std::make_shared<Session>(std::move(socket), shared)->start();
      } else if (error != asio::error::operation_aborted) {
        spdlog::warn("accept: {}", error.message());
      }
      accept();
    });
  }
};

HttpServer::HttpServer(HttpServerOptions options, Handler handler, ErrorBody error_body)
    : impl_(std::make_unique<Impl>()) {
  impl_->shared->options = options;
  impl_->shared->handler = std::move(handler);
  impl_->shared->error_body = std::move(error_body);
  impl_->shared->on_close = [impl = impl_.get()] { asio::post(impl->io, [impl] { impl->accept(); }); };
  std::string const place = options.host + ":" + std::to_string(options.port);
  error_code error;
  auto const address = asio::ip::make_address(options.host == "localhost" ? "127.0.0.1" : options.host, error);
  if (error) throw NetworkError("listen", error.value(), "'" + options.host + "' is not an IP address", place);
  tcp::endpoint const endpoint(address, options.port);
  auto const check = [&](char const* call) {
    if (error) throw NetworkError(call, error.value(), error.message(), place);
  };
  impl_->acceptor.open(endpoint.protocol(), error);
  check("socket");
  impl_->acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  check("setsockopt");
  impl_->acceptor.bind(endpoint, error);
  check("bind");
  impl_->acceptor.listen(asio::socket_base::max_listen_connections, error);
  check("listen");
  impl_->port = impl_->acceptor.local_endpoint().port();
  impl_->accept();
  for (std::size_t i = 0; i < options.threads; ++i)
    impl_->threads.emplace_back([io = &impl_->io, guard = asio::make_work_guard(impl_->io)] { io->run(); });
}

HttpServer::~HttpServer() {
  stop(std::chrono::steady_clock::now());
}

std::uint16_t HttpServer::port() const {
  return impl_->port;
}

void HttpServer::stop(std::chrono::steady_clock::time_point deadline) {
  if (impl_->threads.empty()) return;
  auto const each_session = [&](auto action) {  // under the mutex a session in the set cannot be gone
    std::vector<std::shared_ptr<Session>> alive;
    std::lock_guard lock(impl_->shared->mutex);
    for (Session* session : impl_->shared->sessions)
      if (auto s = session->weak_from_this().lock()) alive.push_back(std::move(s));
    for (auto const& s : alive) action(*s);
    return alive;  // so that none ends while the mutex is held
  };
  {
    std::lock_guard lock(impl_->shared->mutex);
    impl_->shared->stopping = true;
    impl_->shared->on_close = nullptr;
  }
  asio::post(impl_->io, [impl = impl_.get()] {
    error_code ignored;
    impl->acceptor.close(ignored);
  });
  each_session([](Session& s) { s.shut_down(); });
  {
    std::unique_lock lock(impl_->shared->mutex);
    impl_->shared->changed.wait_until(lock, deadline, [&] { return impl_->shared->sessions.empty(); });
  }
  each_session([](Session& s) { s.abort(); });
  impl_->io.stop();
  for (auto& thread : impl_->threads) thread.join();
  impl_->threads.clear();
}

}  // namespace expertmesh
