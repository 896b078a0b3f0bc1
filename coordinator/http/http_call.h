// One HTTP/1.1 request to another server, over a connection of its own, and the answer as it comes. Knows no JSON.
#pragma once
#include <boost/asio/io_context.hpp>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "coordinator/http/http_server.h"

namespace expertmesh {

struct HttpAddress {
  std::string host;  // name or address
  std::string port;
  [[nodiscard]] std::string text() const { return host + ":" + port; }
};

// Called on the io_context's thread.
struct HttpCallHandlers {
  // The answer without its body, and that one's bytes where the server says them.
  std::function<void(HttpResponse head, std::optional<std::uint64_t> length)> on_head;
  std::function<void(std::string piece)> on_piece;         // of the body; the next one comes after next()
  std::function<void(std::string const& failure)> on_end;  // the last call; empty: the answer is complete
};

class HttpCall {
 public:
  virtual ~HttpCall() = default;
  // On the io_context's thread, of which there must be one.
  virtual void next() = 0;
  virtual void cancel() = 0;  // closes the connection; no handler is called any more
};

// time_limit: of the whole call; none: only connecting has one. The answer's headers of one connection (its length and
// coding, and what a server sets by itself) are left out.
std::shared_ptr<HttpCall> start_http_call(boost::asio::io_context& io, HttpAddress const& address, HttpRequest request,
                                          std::optional<std::chrono::milliseconds> time_limit,
                                          HttpCallHandlers handlers);

}  // namespace expertmesh
