// A TCP connection for one thread that has nothing else to do: messages as on the control plane, and raw bytes between
// them. Every call throws NetworkError when the peer is gone, late or talks nonsense.
#pragma once
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <chrono>
#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "common/protocol/control_messages.h"
#include "common/protocol/framing.h"

namespace expertmesh {

class BlockingConnection {
 public:
  // "HOST:PORT".
  explicit BlockingConnection(std::string const& address);
  // Takes an accepted socket over; the io_context must outlive it.
  BlockingConnection(boost::asio::ip::tcp::socket socket, std::string peer);

  // Of every following read and write; 0: none.
  void set_timeout(std::chrono::milliseconds timeout);
  void send(control::Message const& message);
  control::Message receive(std::size_t max_frame_bytes);
  void send_bytes(std::span<std::byte const> bytes);
  void receive_bytes(std::span<std::byte> bytes);
  void shut_down();  // any thread: whoever waits gets an error
  [[nodiscard]] std::string const& peer() const { return peer_; }

 private:
  [[noreturn]] void fail(char const* call, int code, std::string const& text) const;

  std::unique_ptr<boost::asio::io_context> io_;  // of a connection that was made here
  std::string peer_;
  boost::asio::ip::tcp::socket socket_;
};

}  // namespace expertmesh
