#include "common/protocol/blocking_connection.h"

#include <sys/socket.h>
#include <sys/time.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>

#include "common/base/error.h"
#include "common/protocol/control_connection.h"
#include "common/protocol/framing.h"

namespace expertmesh {

BlockingConnection::BlockingConnection(std::string const& address)
    : io_(std::make_unique<boost::asio::io_context>()), peer_(address), socket_(connect_to(*io_, address)) {}

BlockingConnection::BlockingConnection(boost::asio::ip::tcp::socket socket, std::string peer)
    : peer_(std::move(peer)), socket_(std::move(socket)) {}

void BlockingConnection::fail(char const* call, int code, std::string const& text) const {
  throw NetworkError(call, code, text, peer_);
}

void BlockingConnection::set_timeout(std::chrono::milliseconds timeout) {
  timeval const value{.tv_sec = timeout.count() / 1000, .tv_usec = timeout.count() % 1000 * 1000};
  for (int const option : {SO_RCVTIMEO, SO_SNDTIMEO})
    if (setsockopt(socket_.native_handle(), SOL_SOCKET, option, &value, sizeof value) != 0)
      fail("setsockopt", errno, std::strerror(errno));
}

void BlockingConnection::send(control::Message const& message) {
  std::string const frame = encode_frame(control::encode(message));
  send_bytes(std::as_bytes(std::span(frame)));
}

control::Message BlockingConnection::receive(std::size_t max_frame_bytes) {
  std::array<std::byte, kLengthBytes> head{};
  receive_bytes(head);
  std::size_t size = 0;
  for (std::size_t i = kLengthBytes; i-- > 0;) size = size << 8 | std::to_integer<std::size_t>(head[i]);
  if (size > max_frame_bytes) fail("receive", 0, "a message of " + std::to_string(size) + " bytes");
  std::string text(size, '\0');
  receive_bytes(std::as_writable_bytes(std::span(text)));
  try {
    return control::decode(text);
  } catch (control::MessageError const& error) {
    fail("receive", 0, error.what());
  }
}

void BlockingConnection::send_bytes(std::span<std::byte const> bytes) {
  while (!bytes.empty()) {
    ssize_t const sent = ::send(socket_.native_handle(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) fail("send", errno, std::strerror(errno));
    bytes = bytes.subspan(static_cast<std::size_t>(sent));
  }
}

void BlockingConnection::receive_bytes(std::span<std::byte> bytes) {
  while (!bytes.empty()) {
    ssize_t const received = ::recv(socket_.native_handle(), bytes.data(), bytes.size(), 0);
    if (received < 0 && errno == EINTR) continue;
    if (received < 0) fail("receive", errno, std::strerror(errno));
    if (received == 0) fail("receive", 0, "the connection was closed");
    bytes = bytes.subspan(static_cast<std::size_t>(received));
  }
}

void BlockingConnection::shut_down() {
  ::shutdown(socket_.native_handle(), SHUT_RDWR);
}

}  // namespace expertmesh
