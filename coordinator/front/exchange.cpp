#include "coordinator/front/exchange.h"

#include <algorithm>
#include <boost/asio/post.hpp>

#include "common/base/log.h"
#include "coordinator/http/answer_builder.h"
#include "coordinator/http/api_json.h"

namespace expertmesh {
namespace {

constexpr std::size_t kWholeBytes = std::size_t{256} << 10;   // answers that are passed on when they are complete
constexpr std::size_t kMaxEventBytes = std::size_t{1} << 20;  // longer ones are passed on in parts
constexpr int kRetryAfterS = 5;

ApiError unavailable(std::string const& message) {
  return {.status = 503,
          .message = message,
          .type = "service_unavailable",
          .param = {},
          .code = "no_coordinator",
          .retry_after_s = kRetryAfterS};
}

}  // namespace

Exchange::Exchange(Context context, HttpRequest request, std::shared_ptr<HttpResponder> responder, ExchangeRoute route)
    : context_(std::move(context)),
      request_(std::move(request)),
      responder_(std::move(responder)),
      route_(std::move(route)),
      tried_(context_.backends.size()) {}

void Exchange::start() {
  responder_->on_disconnect([&io = context_.io, weak = weak_from_this()] {
    boost::asio::post(io, [weak] {
      if (auto const self = weak.lock()) self->cancel();
    });
  });
  if (request_.method == "HEAD") request_.method = "GET";  // the server leaves the body out
  send_to_next();
}

void Exchange::send_to_next() {
  if (route_.coordinator && !context_.backends.is_up(*route_.coordinator))
    return answer_unavailable("coordinator " + std::to_string(*route_.coordinator) + " is not ready");
  backend_ = route_.coordinator ? (tried_[*route_.coordinator] ? std::nullopt : route_.coordinator)
             : route_.prompt    ? context_.backends.choose(*route_.prompt, tried_)
                                : context_.backends.first(tried_);
  if (!backend_) return answer_unavailable("no coordinator is ready");
  tried_[*backend_] = true;
  call_ = start_http_call(
      context_.io, context_.backends.address(*backend_), request_, {},
      {.on_head = [self = shared_from_this()](HttpResponse const& head, auto length) { self->on_head(head, length); },
       .on_piece = [self = shared_from_this()](std::string const& piece) { self->on_piece(piece); },
       .on_end = [self = shared_from_this()](std::string const& failure) { self->on_end(failure); }});
}

bool Exchange::has_more_to_try() const {
  if (route_.coordinator || !route_.repeatable) return false;
  for (std::size_t b = 0; b < tried_.size(); ++b)
    if (!tried_[b] && context_.backends.is_up(b)) return true;
  return false;
}

void Exchange::on_head(HttpResponse head, std::optional<std::uint64_t> length) {
  head_ = std::move(head);
  head_.headers.emplace_back("x-expertmesh-coordinator", std::to_string(*backend_));
  events_ = head_.content_type.starts_with("text/event-stream");
  bool const has_no_body = head_.status == 204 || head_.status == 304;
  whole_ = has_no_body || (length && *length <= kWholeBytes);
}

void Exchange::on_piece(std::string const& piece) {
  if (whole_) {
    head_.body += piece;
    return call_->next();
  }
  if (!events_) return send(piece);
  // Whole events, so that an error can follow them.
  event_ += piece;
  std::size_t const end = event_.rfind("\n\n");
  std::size_t const bytes = event_.size() > kMaxEventBytes ? event_.size() : end == std::string::npos ? 0 : end + 2;
  if (bytes == 0) return call_->next();
  std::string const rest = event_.substr(bytes);
  event_.resize(bytes);
  send(std::exchange(event_, rest));
}

// The next piece is read when the client has taken this one.
void Exchange::send(std::string data) {
  begin();
  responder_->send(std::move(data));
  responder_->when_sent([&io = context_.io, call = call_] { boost::asio::post(io, [call] { call->next(); }); });
}

void Exchange::begin() {
  if (std::exchange(begun_, true)) return;
  responder_->begin_stream(head_);
}

void Exchange::on_end(std::string const& failure) {
  std::size_t const backend = *backend_;
  leave_backend();
  if (!failure.empty()) {
    if (begun_) return break_off(backend, failure);
    spdlog::warn("request {}: coordinator {}: {}", request_.request_id, backend, failure);
    context_.backends.failed(backend, failure);
  } else if (head_.status == 503 && whole_ && has_more_to_try()) {
    refusal_ = std::move(head_);
  } else {
    return whole_ ? answer(std::move(head_)) : end_stream();
  }
  if (!has_more_to_try()) return answer_unavailable("no coordinator could answer");
  ++context_.counts.retries;
  send_to_next();
}

void Exchange::end_stream() {
  begin();
  if (!event_.empty()) responder_->send(std::move(event_));
  responder_->end_stream();
  finish();
}

void Exchange::break_off(std::size_t backend, std::string const& failure) {
  spdlog::error("request {}: coordinator {} broke off its answer: {}", request_.request_id, backend, failure);
  ++context_.counts.broken;
  context_.backends.look_again(backend);
  if (!events_) {
    responder_->abort();
    return finish();
  }
  event_ = sse_event(error_body(unavailable("the coordinator ended before its answer was complete"))) + kSseDone;
  end_stream();
}

void Exchange::answer(HttpResponse response) {
  responder_->respond(std::move(response));
  finish();
}

void Exchange::answer_unavailable(std::string const& why) {
  if (refusal_) return answer(std::move(*refusal_));
  HttpResponse response = error_response(unavailable(why));
  response.headers.insert(response.headers.end(), context_.own_headers.begin(), context_.own_headers.end());
  answer(std::move(response));
}

void Exchange::leave_backend() {
  if (backend_ && route_.prompt && !route_.coordinator) context_.backends.finish(*backend_, *route_.prompt);
  backend_.reset();
  call_ = nullptr;
}

void Exchange::on_unresponsive(std::size_t backend) {
  if (done_ || begun_ || backend_ != backend || (!has_more_to_try() && !route_.coordinator)) return;
  call_->cancel();
  leave_backend();
  if (route_.coordinator) return answer_unavailable("coordinator " + std::to_string(backend) + " does not answer");
  ++context_.counts.retries;
  send_to_next();
}

void Exchange::cancel() {
  if (done_) return;
  if (call_) call_->cancel();
  leave_backend();
  finish();
}

void Exchange::finish() {
  done_ = true;
  context_.on_done(*this);
}

}  // namespace expertmesh
