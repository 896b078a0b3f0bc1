#include "coordinator/http/http_call.h"

#include <algorithm>
#include <array>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <limits>
#include <utility>
#include <vector>

namespace expertmesh {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using tcp = asio::ip::tcp;
using boost::system::error_code;

constexpr std::chrono::seconds kConnectTime{5};
constexpr std::size_t kPieceBytes = std::size_t{64} << 10;

bool is_of_connection(http::field name, beast::string_view text) {
  constexpr std::array kNames = {http::field::connection,     http::field::keep_alive,   http::field::transfer_encoding,
                                 http::field::content_length, http::field::content_type, http::field::server};
  return std::ranges::find(kNames, name) != kNames.end() || beast::iequals(text, "x-request-id");
}

class Call final : public HttpCall, public std::enable_shared_from_this<Call> {
 public:
  Call(asio::io_context& io, HttpAddress const& address, HttpRequest request,
       std::optional<std::chrono::milliseconds> time_limit, HttpCallHandlers handlers)
      : resolver_(io), stream_(io), time_limit_(time_limit), handlers_(std::move(handlers)) {
    request_.method_string(request.method);
    request_.target(request.target);
    request_.version(11);
    request_.keep_alive(false);
    request_.set(http::field::host, address.text());
    request_.set("x-request-id", request.request_id);
    if (!request.authorization.empty()) request_.set(http::field::authorization, request.authorization);
    if (!request.body.empty()) request_.set(http::field::content_type, "application/json");
    request_.body() = std::move(request.body);
    request_.prepare_payload();
    parser_.body_limit(
        std::numeric_limits<std::uint64_t>::max());  // Beast 1.74 takes none for 0 where a length is sent
  }

  void start(HttpAddress const& address) {
    resolver_.async_resolve(address.host, address.port,
                            [self = shared_from_this()](error_code error, tcp::resolver::results_type const& found) {
                              self->if_open(error, [&] { self->connect(found); });
                            });
  }

  void next() override {
    if (closed_ || parser_.is_done()) return;
    parser_.get().body().data = piece_.data();
    parser_.get().body().size = piece_.size();
    http::async_read_some(stream_, buffer_, parser_, [self = shared_from_this()](error_code error, std::size_t) {
      if (error == http::error::need_buffer) error = {};  // the piece is full
      self->if_open(error, [&] { self->hand_on(); });
    });
  }

  void cancel() override {
    closed_ = true;
    handlers_ = {};
    resolver_.cancel();
    stream_.close();
  }

 private:
  template <class Step>
  void if_open(error_code error, Step step) {
    if (closed_) return;
    if (error) return end(error.message());
    step();
  }

  void connect(tcp::resolver::results_type const& found) {
    stream_.expires_after(time_limit_.value_or(kConnectTime));
    stream_.async_connect(found, [self = shared_from_this()](error_code error, tcp::endpoint const&) {
      self->if_open(error, [&] { self->write(); });
    });
  }

  void write() {
    if (!time_limit_) stream_.expires_never();
    error_code ignored;
    stream_.socket().set_option(tcp::no_delay(true), ignored);
    stream_.socket().set_option(asio::socket_base::keep_alive(true), ignored);
    // An error here is one that reading meets as well, unless there is an answer that came before all was sent.
    http::async_write(stream_, request_, [self = shared_from_this()](error_code, std::size_t) {
      self->if_open({}, [&] { self->read_head(); });
    });
  }

  void read_head() {
    http::async_read_header(stream_, buffer_, parser_, [self = shared_from_this()](error_code error, std::size_t) {
      self->if_open(error, [&] { self->on_header(); });
    });
  }

  void on_header() {
    auto const& message = parser_.get();
    HttpResponse head{.status = static_cast<int>(message.result_int()),
                      .content_type = std::string(message[http::field::content_type]),
                      .body = {},
                      .headers = {}};
    for (auto const& field : message)
      if (!is_of_connection(field.name(), field.name_string()))
        head.headers.emplace_back(std::string(field.name_string()), std::string(field.value()));
    auto const length = parser_.content_length();
    auto const self = shared_from_this();  // the handler may let go of both
    auto const on_head = handlers_.on_head;
    on_head(std::move(head), length ? std::optional<std::uint64_t>(*length) : std::nullopt);
    if (closed_) return;
    parser_.is_done() ? end("") : next();
  }

  void hand_on() {
    std::size_t const bytes = piece_.size() - parser_.get().body().size;
    if (bytes == 0) return parser_.is_done() ? end("") : next();
    auto const self = shared_from_this();
    auto const on_piece = handlers_.on_piece;
    on_piece(std::string(piece_.data(), bytes));
    if (!closed_ && parser_.is_done()) end("");
  }

  void end(std::string const& failure) {
    auto const handlers = std::exchange(handlers_, {});
    cancel();
    handlers.on_end(failure);
  }

  tcp::resolver resolver_;
  beast::tcp_stream stream_;
  std::optional<std::chrono::milliseconds> time_limit_;
  HttpCallHandlers handlers_;
  http::request<http::string_body> request_;
  beast::flat_buffer buffer_;
  http::response_parser<http::buffer_body> parser_;
  std::vector<char> piece_ = std::vector<char>(kPieceBytes);
  bool closed_ = false;
};

}  // namespace

std::shared_ptr<HttpCall> start_http_call(asio::io_context& io, HttpAddress const& address, HttpRequest request,
                                          std::optional<std::chrono::milliseconds> time_limit,
                                          HttpCallHandlers handlers) {
  auto const call = std::make_shared<Call>(io, address, std::move(request), time_limit, std::move(handlers));
  call->start(address);
  return call;
}

}  // namespace expertmesh
