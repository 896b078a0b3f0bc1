#include "common/protocol/control_connection.h"

#include <boost/asio/buffer.hpp>
#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/write.hpp>
#include <utility>

#include "common/base/error.h"

namespace expertmesh {

namespace {

using boost::asio::ip::tcp;

template <class... Protocol>
tcp::resolver::results_type resolve(boost::asio::io_context& io, std::string const& address, Protocol... protocol) {
  std::size_t const colon = address.rfind(':');
  if (colon == std::string::npos) throw NetworkError("connect", 0, "not HOST:PORT", address);
  boost::system::error_code error;
  auto endpoints = tcp::resolver(io).resolve(protocol..., address.substr(0, colon), address.substr(colon + 1), error);
  if (error) throw NetworkError("resolve", error.value(), error.message(), address);
  return endpoints;
}

}  // namespace

std::string resolve_address(std::string const& address) {
  boost::asio::io_context io;
  tcp::endpoint const first = *resolve(io, address, tcp::v4()).begin();
  return first.address().to_string() + ":" + std::to_string(first.port());
}

tcp::socket connect_to(boost::asio::io_context& io, std::string const& address) {
  auto const endpoints = resolve(io, address);
  tcp::socket socket(io);
  boost::system::error_code error;
  boost::asio::connect(socket, endpoints, error);
  if (error) throw NetworkError("connect", error.value(), error.message(), address);
  return socket;
}

ControlConnection::ControlConnection(boost::asio::ip::tcp::socket socket) : socket_(std::move(socket)) {
  boost::system::error_code ignored;  // a connection that is gone already says so at the first read
  socket_.set_option(boost::asio::ip::tcp::no_delay(true), ignored);
}

void ControlConnection::start(Handlers handlers, std::size_t max_frame_bytes) {
  hand_over(std::move(handlers), max_frame_bytes);
  read_some();
}

void ControlConnection::hand_over(Handlers handlers, std::size_t max_frame_bytes) {
  handlers_ = std::move(handlers);
  decoder_.set_max_frame_bytes(max_frame_bytes);
}

void ControlConnection::read_some() {
  socket_.async_read_some(boost::asio::buffer(incoming_),
                          [self = shared_from_this()](boost::system::error_code const& error, std::size_t bytes) {
                            if (error == boost::asio::error::operation_aborted) return;
                            if (error == boost::asio::error::eof) return self->fail("connection closed");
                            if (error) return self->fail(error.message());
                            self->decoder_.feed({self->incoming_.data(), bytes});
                            self->deliver();
                          });
}

void ControlConnection::deliver() {
  try {
    while (auto payload = decoder_.next()) {
      control::Message message = control::decode(*payload);
      if (!handlers_.on_message) return;             // closed by the message before
      auto const on_message = handlers_.on_message;  // close() inside the handler drops the handlers
      on_message(std::move(message));
    }
  } catch (FramingError const& error) {
    return fail(error.what());
  } catch (control::MessageError const& error) {
    return fail(error.what());
  }
  if (socket_.is_open()) read_some();
}

void ControlConnection::send(control::Message const& message) {
  post(message, Then::go_on);
}

void ControlConnection::close_after_sending(control::Message const& message) {
  post(message, Then::close);
}

void ControlConnection::post(control::Message const& message, Then then) {
  boost::asio::post(socket_.get_executor(), [self = shared_from_this(), frame = encode_frame(control::encode(message)),
                                             then]() mutable { self->enqueue(std::move(frame), then); });
}

void ControlConnection::enqueue(std::string frame, Then then) {
  if (!socket_.is_open() || closing_) return;
  closing_ = then == Then::close;
  outgoing_.push_back(std::move(frame));
  if (outgoing_.size() == 1) write_front();
}

void ControlConnection::write_front() {
  boost::asio::async_write(socket_, boost::asio::buffer(outgoing_.front()),
                           [self = shared_from_this()](boost::system::error_code const& error, std::size_t) {
                             if (error) {  // the read that is under way hears the peer's last words, then the end
                               self->closing_ = true;
                               return;
                             }
                             self->outgoing_.pop_front();
                             if (!self->outgoing_.empty()) return self->write_front();
                             if (self->closing_) self->close();
                           });
}

void ControlConnection::close() {
  handlers_ = {};
  boost::system::error_code ignored;  // the other end may be gone
  socket_.shutdown(boost::asio::ip::tcp::socket::shutdown_both, ignored);
  socket_.close(ignored);
}

void ControlConnection::fail(std::string const& reason) {
  auto const on_closed = std::move(handlers_.on_closed);
  close();
  if (on_closed) on_closed(reason);
}

}  // namespace expertmesh
