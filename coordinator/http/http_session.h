// One HTTP/1.1 connection: reads a request, hands it on, writes the answer, reads the next. Private to
// coordinator/http.
#pragma once
#include <boost/asio/ip/tcp.hpp>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <set>

#include "coordinator/http/http_server.h"

namespace expertmesh {

class HttpSession {
 public:
  virtual ~HttpSession() = default;
  // Thread-safe; return at once.
  virtual void shut_down() = 0;  // ends an idle connection now, a busy one after its answer
  virtual void abort() = 0;      // now, whatever it does
};

// The open connections of one server and what they share.
struct HttpSessions {
  HttpServerOptions options;
  HttpServer::Handler handler;
  HttpServer::ErrorBody error_body;
  std::function<void()> on_close;  // there is room for another connection; called on a server thread

  std::mutex mutex;
  std::condition_variable changed;
  std::set<std::shared_ptr<HttpSession>> open;
  bool stopping = false;  // connections that still come are dropped
};

// The session is one of sessions->open until it closes. The socket's executor must be a strand.
void start_http_session(boost::asio::ip::tcp::socket socket, std::shared_ptr<HttpSessions> const& sessions);

}  // namespace expertmesh
