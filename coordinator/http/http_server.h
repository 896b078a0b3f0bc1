// HTTP/1.1 over TCP: bytes in, HttpRequest out; answers whole or streamed. Knows no JSON and no model.
#pragma once
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace expertmesh {

struct HttpRequest {
  std::string method;  // "GET", "POST", …
  std::string target;  // path and query as sent
  std::string body;
  std::string request_id;       // the client's x-request-id or one made here; the answer carries it
  std::string authorization{};  // the header's value
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers;  // further ones
};

// The way back to one request's client. Thread-safe; calls after the client has gone, or the server, do nothing. Either
// respond() once, or begin_stream(), send() as often as wanted, end_stream().
class HttpResponder {
 public:
  virtual ~HttpResponder() = default;
  virtual void respond(HttpResponse response) = 0;
  virtual void begin_stream(HttpResponse head) = 0;  // its body is ignored
  virtual void send(std::string data) = 0;
  virtual void end_stream() = 0;
  // Calls once, on a server thread, when the client has taken what was sent so far; not at all if it goes away first.
  virtual void when_sent(std::function<void()> callback) = 0;
  // Ends the connection within the answer, so that the client sees that it is not complete.
  virtual void abort() = 0;
  // To be called before the answer. The callback is called at most once, on any thread, when the client goes away (a
  // half-closed connection counts) before the answer is complete, or is too slow to take it; at once if that has
  // happened already.
  virtual void on_disconnect(std::function<void()> callback) = 0;
};

struct HttpServerOptions {
  std::string host = "127.0.0.1";
  std::uint16_t port = 0;  // 0: any free one
  std::size_t threads = 2;
  std::size_t max_connections = 1024;  // further ones wait to be accepted
  std::size_t max_body_bytes = std::size_t{8} << 20;
  std::size_t max_header_bytes = std::size_t{32} << 10;
  std::size_t max_unsent_bytes = std::size_t{4} << 20;         // of a stream; a slower reader is cut off
  std::vector<std::pair<std::string, std::string>> headers{};  // of every answer
  std::chrono::seconds read_timeout{60};                       // for a whole request, and between requests
  std::chrono::seconds write_timeout{60};                      // for a client to take what was sent
};

class HttpServer {
 public:
  // Called on a server thread for each request; must not block. What it throws is answered with a 500.
  using Handler = std::function<void(HttpRequest, std::shared_ptr<HttpResponder>)>;
  // What the server itself answers with: 400, 413, 431, 500.
  using ErrorBody = std::function<HttpResponse(int status, std::string const& message)>;

  // Listens at once; throws NetworkError naming the address.
  HttpServer(HttpServerOptions options, Handler handler, ErrorBody error_body);
  ~HttpServer();  // stop()
  [[nodiscard]] std::uint16_t port() const;
  // Accepts nothing more, lets answers under way end until the deadline, then closes every connection.
  void stop(std::chrono::steady_clock::time_point deadline);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace expertmesh
