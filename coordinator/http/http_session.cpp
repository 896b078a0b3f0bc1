#include "coordinator/http/http_session.h"

#include <array>
#include <boost/asio/write.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <charconv>
#include <deque>
#include <optional>
#include <sstream>

#include "common/base/log.h"
#include "coordinator/http/request_id.h"

namespace expertmesh {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using tcp = asio::ip::tcp;
using boost::system::error_code;

constexpr std::size_t kReadBufferBytes = std::size_t{64} << 10;  // what is read ahead of the parser at most
constexpr std::size_t kReadAheadBytes = kReadBufferBytes / 2;    // of pipelined requests, while an answer is made
constexpr std::chrono::seconds kLingerTime{5};

bool is_parse_error(error_code error) {
  return error.category() == make_error_code(http::error::bad_method).category() &&
         error != http::error::end_of_stream && error != http::error::partial_message;
}

std::string as_chunk(std::string const& data) {
  std::array<char, 2 * sizeof(std::size_t)> size;  // NOLINT(cppcoreguidelines-pro-type-member-init): filled by to_chars
  auto const end = std::to_chars(size.begin(), size.end(), data.size(), 16).ptr;
  std::string chunk;
  chunk.reserve(data.size() + size.size() + 4);
  return chunk.append(size.begin(), end).append("\r\n").append(data).append("\r\n");
}

// All but the public members runs on the connection's strand.
class Session final : public HttpSession, public std::enable_shared_from_this<Session> {
 public:
  Session(tcp::socket socket, std::shared_ptr<HttpSessions> sessions)
      : stream_(std::move(socket)), sessions_(std::move(sessions)) {
    error_code ignored;
    stream_.socket().non_blocking(true, ignored);
  }

  void start() {
    on_strand([](Session& s) { s.read_request(); });
  }
  void shut_down() override {
    on_strand([](Session& s) {
      s.keep_alive_ = false;
      if (!s.busy_) s.close();
    });
  }
  void abort() override {
    on_strand([](Session& s) { s.lose(); });
  }

 private:
  // The way back for one request: after its answer, or the end of the connection, calls do nothing.
  class Responder final : public HttpResponder {
   public:
    Responder(std::weak_ptr<Session> session, std::uint64_t request)
        : session_(std::move(session)), request_(request) {}

    void respond(HttpResponse response) override {
      if_current([r = std::move(response)](Session& s) mutable { s.write_whole(std::move(r)); });
    }
    void begin_stream(HttpResponse head) override {
      if_current([h = std::move(head)](Session& s) { s.write_head(h); });
    }
    void send(std::string data) override {
      if_current([d = std::move(data)](Session& s) mutable {
        if (s.streaming_ && !d.empty()) s.enqueue(s.chunked_ ? as_chunk(d) : std::move(d));
      });
    }
    void end_stream() override {
      if_current([](Session& s) { s.finish_stream(); });
    }
    void when_sent(std::function<void()> callback) override {
      if_current([c = std::move(callback)](Session& s) mutable {
        if (s.unsent_.empty()) return c();
        s.on_sent_ = std::move(c);
      });
    }
    void abort() override {
      if_current([](Session& s) { s.lose(); });
    }
    void on_disconnect(std::function<void()> callback) override {
      auto const session = session_.lock();
      if (!session) return callback();
      session->on_strand([request = request_, c = std::move(callback)](Session& s) mutable {
        if (s.request_ != request) return;
        if (s.lost_) return c();
        if (!s.busy_) return;
        s.on_disconnect_ = std::move(c);
        s.watch();
      });
    }

   private:
    template <class Action>
    void if_current(Action action) {
      if (auto const session = session_.lock())
        session->on_strand([request = request_, a = std::move(action)](Session& s) mutable {
          if (s.busy_ && s.request_ == request) a(s);
        });
    }
    std::weak_ptr<Session> session_;
    std::uint64_t request_;
  };

  template <class Action>
  void on_strand(Action action) {
    asio::post(stream_.get_executor(), [self = shared_from_this(), a = std::move(action)]() mutable { a(*self); });
  }

  // ---- reading

  void read_request() {
    if (closed_) return;
    parser_.emplace();
    parser_->body_limit(sessions_->options.max_body_bytes);
    parser_->header_limit(static_cast<std::uint32_t>(sessions_->options.max_header_bytes));
    request_id_.clear();
    stream_.expires_after(sessions_->options.read_timeout);
    http::async_read_header(stream_, buffer_, *parser_,
                            [self = shared_from_this()](error_code error, std::size_t) { self->on_header(error); });
  }

  void on_header(error_code error) {
    if (error) return on_read_error(error);
    auto const& request = parser_->get();
    keep_alive_ = request.keep_alive();
    http_1_0_ = request.version() < 11;
    head_only_ = request.method() == http::verb::head;
    request_id_ = std::string(request["x-request-id"]);
    if (!beast::iequals(request[http::field::expect], "100-continue")) return read_body();
    static constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
    asio::async_write(stream_, asio::buffer(kContinue), [self = shared_from_this()](error_code e, std::size_t) {
      e ? self->close() : self->read_body();
    });
  }

  void read_body() {
    http::async_read(stream_, buffer_, *parser_,
                     [self = shared_from_this()](error_code error, std::size_t) { self->on_request(error); });
  }

  void on_read_error(error_code error) {
    auto const& options = sessions_->options;
    if (error == http::error::body_limit)
      return reject(413, "the request body is larger than " + std::to_string(options.max_body_bytes) + " bytes");
    if (error == http::error::header_limit || error == http::error::buffer_overflow)
      return reject(431, "the request header is larger than " + std::to_string(options.max_header_bytes) + " bytes");
    if (is_parse_error(error)) return reject(400, "not a valid HTTP request: " + error.message());
    close();  // gone, or too slow
  }

  // Answers a request that cannot be read; what follows it in the stream cannot be told apart.
  void reject(int status, std::string const& message) {
    begin_answer();
    keep_alive_ = false;
    input_left_ = true;
    write_whole(sessions_->error_body(status, message));
  }

  void on_request(error_code error) {
    if (error) return on_read_error(error);
    begin_answer();
    auto request = parser_->release();
    HttpRequest plain{.method = std::string(request.method_string()),
                      .target = std::string(request.target()),
                      .body = std::move(request.body()),
                      .request_id = request_id_,
                      .authorization = std::string(request[http::field::authorization])};
    try {
      sessions_->handler(std::move(plain), std::make_shared<Responder>(weak_from_this(), request_));
    } catch (std::exception const& failure) {
      spdlog::error("{} {}: {}", std::string(request.method_string()), std::string(request.target()), failure.what());
      write_whole(sessions_->error_body(500, "internal error"));
    }
  }

  void begin_answer() {
    stream_.expires_never();
    ++request_;
    request_id_ = request_id_for(request_id_);
    busy_ = true;
    answered_ = streaming_ = chunked_ = finishing_ = false;
  }

  // Reads on while an answer is made, to notice a client that goes away. What comes is a pipelined request: it is kept
  // for later, and after too much of it nothing more is read.
  void watch() {
    if (watching_ || buffer_.size() >= kReadAheadBytes) return;
    watching_ = true;
    stream_.socket().async_read_some(buffer_.prepare(kReadAheadBytes - buffer_.size()),
                                     [self = shared_from_this()](error_code error, std::size_t bytes) {
                                       self->watching_ = false;
                                       self->buffer_.commit(bytes);
                                       if (!self->busy_) return self->read_request();  // which waited for this
                                       if (error) return self->lose();
                                       self->watch();
                                     });
  }

  // ---- writing

  void set_head(auto& message, HttpResponse const& response) const {
    message.version(http_1_0_ ? 10 : 11);
    message.result(static_cast<unsigned>(response.status));
    message.set(http::field::server, "expertmesh");
    message.set(http::field::content_type, response.content_type);
    message.set("x-request-id", request_id_);
    for (auto const& [name, value] : sessions_->options.headers) message.set(name, value);
    for (auto const& [name, value] : response.headers) message.set(name, value);
    message.keep_alive(keep_alive_);
  }

  void write_whole(HttpResponse response) {
    if (answered_ || closed_) return;
    answered_ = true;
    auto const message = std::make_shared<http::response<http::string_body>>();
    set_head(*message, response);
    message->body() = std::move(response.body);
    message->prepare_payload();
    if (head_only_) message->body().clear();  // the length stays
    auto const serializer = std::make_shared<http::response_serializer<http::string_body>>(*message);
    auto const done = [self = shared_from_this(), message, serializer](error_code error, std::size_t) {
      error ? self->lose() : self->on_answered();
    };
    stream_.expires_after(sessions_->options.write_timeout);
    if (head_only_)
      http::async_write_header(stream_, *serializer, done);
    else
      http::async_write(stream_, *serializer, done);
  }

  void write_head(HttpResponse const& head) {
    if (answered_ || closed_) return;
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

  void finish_stream() {
    if (!streaming_ || finishing_) return;
    finishing_ = true;
    if (chunked_) return enqueue("0\r\n\r\n");
    if (unsent_.empty()) on_answered();
  }

  void enqueue(std::string data) {
    if (unsent_.empty()) {
      if (!write_what_fits(data)) return lose();
      if (data.empty()) return on_all_written();
    }
    unsent_bytes_ += data.size();
    unsent_.push_back(std::move(data));
    if (unsent_bytes_ > sessions_->options.max_unsent_bytes) return lose();  // reads too slowly
    if (unsent_.size() == 1) write_next();
  }

  // Takes off what the system takes at once, all of it but for a client that reads slowly: an asynchronous write, its
  // deadline and its end cost more than the call itself. false: the connection has ended.
  bool write_what_fits(std::string& data) {
    if (closed_ || !stream_.socket().non_blocking()) return !closed_;
    error_code error;
    std::size_t const written = stream_.socket().write_some(asio::buffer(data), error);
    if (error && error != asio::error::would_block && error != asio::error::interrupted) return false;
    data.erase(0, error ? 0 : written);
    return true;
  }

  void write_next() {
    stream_.expires_after(sessions_->options.write_timeout);
    asio::async_write(stream_, asio::buffer(unsent_.front()),
                      [self = shared_from_this()](error_code error, std::size_t) { self->on_written(error); });
  }

  void on_written(error_code error) {
    if (closed_) return;
    if (error) return lose();
    unsent_bytes_ -= unsent_.front().size();
    unsent_.pop_front();
    if (!unsent_.empty()) return write_next();
    stream_.expires_never();
    on_all_written();
  }

  void on_all_written() {
    if (finishing_) return on_answered();
    if (auto const callback = std::exchange(on_sent_, nullptr)) callback();
  }

  void on_answered() {
    busy_ = false;
    on_disconnect_ = nullptr;
    if (closed_) return;
    if (!keep_alive_) return input_left_ ? linger() : close();
    if (!watching_) return read_request();
    error_code ignored;
    stream_.socket().cancel(ignored);  // the watch, whose end reads on
  }

  // A connection that is closed with input unread is reset, and the answer may be lost with it.
  void linger() {
    error_code ignored;
    stream_.socket().shutdown(tcp::socket::shutdown_send, ignored);
    stream_.expires_after(kLingerTime);
    discard_input();
  }
  void discard_input() {
    buffer_.clear();
    stream_.async_read_some(
        buffer_.prepare(kReadBufferBytes),
        [self = shared_from_this()](error_code error, std::size_t) { error ? self->close() : self->discard_input(); });
  }

  // ---- ending

  void lose() {
    if (closed_) return;
    lost_ = busy_;
    busy_ = false;
    if (auto const callback = std::exchange(on_disconnect_, nullptr)) callback();
    close();
  }

  void close() {
    if (std::exchange(closed_, true)) return;
    on_sent_ = nullptr;
    error_code ignored;
    stream_.socket().shutdown(tcp::socket::shutdown_both, ignored);
    stream_.close();
    std::function<void()> on_close;
    {
      std::lock_guard lock(sessions_->mutex);
      sessions_->open.erase(shared_from_this());
      on_close = sessions_->on_close;
      sessions_->changed.notify_all();
    }
    if (on_close) on_close();
  }

  beast::tcp_stream stream_;
  std::shared_ptr<HttpSessions> sessions_;
  beast::flat_buffer buffer_{kReadBufferBytes};
  std::optional<http::request_parser<http::string_body>> parser_;
  std::uint64_t request_ = 0;  // counts the requests of this connection
  std::string request_id_;
  std::deque<std::string> unsent_;
  std::size_t unsent_bytes_ = 0;
  std::function<void()> on_disconnect_;
  std::function<void()> on_sent_;
  bool keep_alive_ = false;
  bool http_1_0_ = false;
  bool head_only_ = false;
  bool busy_ = false;  // between a request and the end of its answer
  bool watching_ = false;
  bool answered_ = false;  // its head is on the way
  bool streaming_ = false;
  bool chunked_ = false;
  bool finishing_ = false;   // nothing comes behind what is queued
  bool input_left_ = false;  // of a request that was not read to its end
  bool lost_ = false;        // the connection ended within an answer
  bool closed_ = false;
};

}  // namespace

void start_http_session(tcp::socket socket, std::shared_ptr<HttpSessions> const& sessions) {
  auto const session = std::make_shared<Session>(std::move(socket), sessions);
  std::lock_guard lock(sessions->mutex);
  if (sessions->stopping) return;
  sessions->open.insert(session);
  session->start();
}

}  // namespace expertmesh
