// One end of a control-plane connection: typed messages over a TCP socket, driven by the io_context of its owner.
#pragma once
#include <array>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <deque>
#include <functional>
#include <memory>
#include <string>

#include "common/protocol/control_messages.h"
#include "common/protocol/framing.h"

namespace expertmesh {

// "HOST:PORT" with the host's first IPv4 address in place of its name. Throws NetworkError.
std::string resolve_address(std::string const& address);

// "HOST:PORT". Throws NetworkError.
boost::asio::ip::tcp::socket connect_to(boost::asio::io_context& io, std::string const& address);

// Lives as long as its io_context has work for it. Every member but send() and close_after_sending() is called on the
// io_context's thread.
class ControlConnection : public std::enable_shared_from_this<ControlConnection> {
 public:
  struct Handlers {
    std::function<void(control::Message)> on_message;
    // Once, when nothing more will come: end of file, an error, or bytes that are no message. Not after close().
    std::function<void(std::string const& reason)> on_closed;
  };

  explicit ControlConnection(boost::asio::ip::tcp::socket socket);

  // Starts reading. The handlers are dropped when the connection has closed. max_frame_bytes: of incoming messages.
  void start(Handlers handlers, std::size_t max_frame_bytes);
  // Whoever the peer turned out to be, these take over with the next message.
  void hand_over(Handlers handlers, std::size_t max_frame_bytes);

  void send(control::Message const& message);                 // any thread; dropped once the connection has closed
  void close_after_sending(control::Message const& message);  // any thread
  void close();

 private:
  void read_some();
  void deliver();
  enum class Then : bool { go_on, close };
  void post(control::Message const& message, Then then);
  void enqueue(std::string frame, Then then);
  void write_front();
  void fail(std::string const& reason);

  boost::asio::ip::tcp::socket socket_;
  FrameDecoder decoder_{kMaxHelloBytes};
  Handlers handlers_;
  std::array<char, 16384> incoming_{};
  std::deque<std::string> outgoing_;
  bool closing_ = false;  // takes no more messages; closes when outgoing_ is sent
};

}  // namespace expertmesh
