// One request through a front: sent to a coordinator, and to another one while nothing of an answer has gone to the
// client; the answer is passed on as it comes. Used on the io_context's thread, of which there is one.
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/front/backends.h"

namespace expertmesh {

// What goes where.
struct ExchangeRoute {
  std::optional<PromptSummary> prompt{};     // set: by the balancer
  std::optional<std::size_t> coordinator{};  // set: this one and no other
  bool repeatable = true;                    // may be asked of another one, when it is not known what the first one did
};

struct ExchangeCounts {
  std::uint64_t retries = 0;
  std::uint64_t broken = 0;  // answers that ended with an error after they had begun
};

class Exchange : public std::enable_shared_from_this<Exchange> {
 public:
  struct Context {
    boost::asio::io_context& io;
    Backends& backends;
    ExchangeCounts& counts;
    std::vector<std::pair<std::string, std::string>> const& own_headers;  // of answers that no coordinator gave
    std::function<void(Exchange&)> on_done;                               // called once, last
  };
  Exchange(Context context, HttpRequest request, std::shared_ptr<HttpResponder> responder, ExchangeRoute route);
  void start();
  // The coordinator does not answer any more: if it has this request, and nothing of an answer is there, another one
  // gets it.
  void on_unresponsive(std::size_t backend);

 private:
  void send_to_next();
  void on_head(HttpResponse head, std::optional<std::uint64_t> length);
  void on_piece(std::string const& piece);
  void on_end(std::string const& failure);
  void send(std::string data);
  void begin();
  void end_stream();
  void break_off(std::size_t backend, std::string const& failure);
  void answer(HttpResponse response);
  void answer_unavailable(std::string const& why);
  void leave_backend();
  void cancel();  // the client has gone
  void finish();
  [[nodiscard]] bool has_more_to_try() const;

  Context context_;
  HttpRequest request_;
  std::shared_ptr<HttpResponder> responder_;
  ExchangeRoute route_;
  std::vector<bool> tried_;             // [backends]
  std::optional<std::size_t> backend_;  // that has it
  std::shared_ptr<HttpCall> call_;
  HttpResponse head_;                    // of its answer; the body where that is kept until it is whole
  std::optional<HttpResponse> refusal_;  // of one that cannot take it now: what the client hears if nobody can
  std::string event_;                    // of a stream, of which the end has not come
  bool whole_ = false;
  bool events_ = false;
  bool begun_ = false;
  bool done_ = false;
};

}  // namespace expertmesh
