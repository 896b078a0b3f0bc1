#include "coordinator/http/generation_run.h"

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/strand.hpp>
#include <random>

#include "common/base/log.h"
#include "coordinator/http/answer_builder.h"
#include "coordinator/http/api_json.h"
#include "coordinator/http/request_parsing.h"

namespace expertmesh {
namespace {

constexpr std::size_t kDefaultCompletionTokens = 16;

std::uint64_t random_seed() {
  static thread_local std::mt19937_64 engine{std::random_device{}()};
  return engine();
}

class Run final : public std::enable_shared_from_this<Run> {
 public:
  Run(RunContext const& context, boost::asio::thread_pool& threads, std::shared_ptr<HttpResponder> responder)
      : work_(boost::asio::make_work_guard(threads)),
        context_(context),
        strand_(boost::asio::make_strand(threads)),
        responder_(std::move(responder)) {}
  ~Run() {
    if (!done_ && !*client_gone_) fail(unfinished());
  }

  void post_start(bool chat, HttpRequest http) {
    boost::asio::post(strand_, [self = shared_from_this(), chat, http = std::move(http)] {
      self->guarded([&] { self->start(chat, http); });
    });
  }

 private:
  // Nobody told the end: the generator let go of the request without a word, as it does with those it cancels.
  static ApiError unfinished() {
    return {.status = 503,
            .message = "the request was cancelled",
            .type = "service_unavailable",
            .param = {},
            .code = {},
            .retry_after_s = 5};
  }

  template <class Step>
  void guarded(Step step) {
    try {
      step();
    } catch (std::exception const& failure) {
      spdlog::error("request {}: {}", id_, failure.what());
      if (submitted_) context_.generator.abort(sequence_, Generator::AbortReason::cancelled);
      if (!done_)
        fail({.status = 500,
              .message = "internal error",
              .type = "internal_error",
              .param = {},
              .code = {},
              .retry_after_s = {}});
    }
  }

  void start(bool chat, HttpRequest const& http) {
    id_ = (chat ? "chatcmpl-" : "cmpl-") + http.request_id;
    auto parsed = chat ? parse_chat(http.body, context_.model) : parse_completion(http.body, context_.model);
    if (!parsed) return refuse(parsed.error());
    request_ = std::move(parsed.value());
    for (auto const& field : request_.unknown_fields) context_.metrics.count_unknown_field(field);
    auto ids = prompt_ids();
    if (!ids) return refuse(ids.error());
    auto generate = generate_request(std::move(ids.value()));
    if (!generate) return refuse(generate.error());

    generate.value().request_id = id_;
    auto const created =
        std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
    builder_.emplace(request_, context_.model, context_.tokenizer, id_, created, generate.value().prompt,
                     echoed_prompt(generate.value().prompt));

    auto submitted =
        context_.generator.submit(std::move(generate.value()), [self = shared_from_this()](GenerateEvent event) {
          boost::asio::post(self->strand_, [self, e = std::move(event)] { self->guarded([&] { self->on_event(e); }); });
        });
    if (!submitted) return refuse(submitted.error());
    sequence_ = submitted.value();
    submitted_ = true;
    responder_->on_disconnect([&generator = context_.generator, sequence = sequence_, gone = client_gone_] {
      *gone = true;
      generator.abort(sequence, Generator::AbortReason::cancelled);
    });
  }

  void refuse(ApiError const& error) {
    done_ = true;
    context_.metrics.count_http(error.status);
    responder_->respond(error_response(error));
  }

  Result<std::vector<TokenId>> prompt_ids() {
    if (!request_.chat && !request_.prompt_text) return request_.prompt_ids;
    std::string text;
    if (request_.chat) {
      auto rendered = context_.templates->render(request_.template_request);
      if (!rendered) return rendered.error();
      text = std::move(rendered.value());
    } else {
      text = *request_.prompt_text;
    }
    auto ids = context_.tokenizer->encode(text, request_.add_special_tokens);
    std::string const field = request_.chat ? "messages" : "prompt";
    if (ids.empty())
      return ApiError{
          .message = "'" + field + "': encodes to no token", .param = field, .code = {}, .retry_after_s = {}};
    for (TokenId id : ids)
      if (static_cast<std::size_t>(id) >= context_.model.vocab_size)
        return ApiError{.message = "'" + field + "': token " + std::to_string(id) +
                                   " of the tokenizer is not in the model's vocabulary",
                        .param = field,
                        .code = {},
                        .retry_after_s = {}};
    return ids;
  }

  Result<GenerateRequest> generate_request(std::vector<TokenId> prompt) {
    std::size_t const length = prompt.size();
    std::size_t const context = context_.model.max_model_len;
    std::size_t const least = request_.max_tokens == 0 ? 0 : 1;
    if (length + std::max(least, request_.max_tokens.value_or(1)) > context)
      return ApiError{.message = "this model's context is " + std::to_string(context) + " tokens; the prompt has " +
                                 std::to_string(length) +
                                 (request_.max_tokens ? " and max_tokens is " + std::to_string(*request_.max_tokens)
                                                      : " and leaves no room for an answer"),
                      .param = length + least > context ? (request_.chat ? "messages" : "prompt") : "max_tokens",
                      .code = "context_length_exceeded",
                      .retry_after_s = {}};
    std::size_t const room = context - length;
    GenerateRequest generate;
    generate.max_tokens = request_.max_tokens.value_or(request_.chat ? room : std::min(kDefaultCompletionTokens, room));
    generate.sampling = request_.sampling;
    if (!request_.seed_given) generate.sampling.seed = random_seed();
    generate.ignore_eos = request_.ignore_eos;
    generate.logprobs = request_.logprobs;
    if (request_.echo) generate.prompt_logprobs = request_.logprobs;
    generate.return_routed_experts = request_.return_routed_experts;
    generate.prompt = std::move(prompt);
    return generate;
  }

  [[nodiscard]] std::string echoed_prompt(std::vector<TokenId> const& ids) const {
    if (!request_.echo) return {};
    if (request_.prompt_text) return *request_.prompt_text;
    if (context_.tokenizer) return context_.tokenizer->decode(ids, request_.skip_special_tokens);
    std::string text;
    for (TokenId id : ids) text += (text.empty() ? "token_id:" : " token_id:") + std::to_string(id);
    return text;
  }

  void on_event(GenerateEvent const& event) {
    if (done_) return;  // came while the generator was being told
    if (auto const* prompt = std::get_if<PromptDoneEvent>(&event)) builder_->prompt_done(*prompt);
    if (auto const* token = std::get_if<TokenEvent>(&event)) {
      builder_->token(*token);
      if (builder_->stopped()) {
        context_.generator.abort(sequence_, Generator::AbortReason::stop_string);
        builder_->finish_at_stop_string();
        done_ = true;
      }
    }
    if (auto const* finish = std::get_if<FinishEvent>(&event)) {
      builder_->finish(*finish);
      done_ = true;
    }
    if (auto const* error = std::get_if<ErrorEvent>(&event)) return fail(error->error);
    if (request_.stream) {
      send(builder_->take_events());
      if (done_) end_stream();
    } else if (done_) {
      context_.metrics.count_http(200);
      responder_->respond({.body = builder_->body(), .headers = {}});
    }
  }

  void send(std::string const& events) {
    if (events.empty()) return;
    begin_stream();
    responder_->send(events);
  }
  void begin_stream() {
    if (streaming_) return;
    streaming_ = true;
    context_.metrics.count_http(200);
    responder_->begin_stream(
        {.content_type = "text/event-stream; charset=utf-8", .body = {}, .headers = {{"Cache-Control", "no-cache"}}});
  }
  void end_stream() {
    begin_stream();
    responder_->send(kSseDone);
    responder_->end_stream();
  }
  void fail(ApiError const& error) {
    if (!streaming_) return refuse(error);  // nothing is on its way yet: a plain error says more
    done_ = true;
    responder_->send(sse_event(error_body(error)));
    end_stream();
  }

  // Let go of last: until then the threads are there.
  boost::asio::executor_work_guard<boost::asio::thread_pool::executor_type> work_;
  RunContext const& context_;
  boost::asio::strand<boost::asio::thread_pool::executor_type> strand_;
  std::shared_ptr<HttpResponder> responder_;
  ApiRequest request_;
  std::string id_;
  SequenceId sequence_;
  std::optional<AnswerBuilder> builder_;
  std::shared_ptr<std::atomic<bool>> client_gone_ = std::make_shared<std::atomic<bool>>(false);
  bool submitted_ = false;
  bool streaming_ = false;
  bool done_ = false;
};

}  // namespace

void start_generation(RunContext const& context, boost::asio::thread_pool& threads, bool chat, HttpRequest request,
                      std::shared_ptr<HttpResponder> responder) {
  std::make_shared<Run>(context, threads, std::move(responder))->post_start(chat, std::move(request));
}

}  // namespace expertmesh
