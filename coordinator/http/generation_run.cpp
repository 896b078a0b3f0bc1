#include "coordinator/http/generation_run.h"

#include <boost/asio/dispatch.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/strand.hpp>
#include <random>

#include "common/base/log.h"
#include "coordinator/http/answer_builder.h"
#include "coordinator/http/api_json.h"
#include "coordinator/http/request_parsing.h"
#include "coordinator/http/text_endpoints.h"

namespace expertmesh {
namespace {

constexpr std::size_t kDefaultCompletionTokens = 16;

std::uint64_t random_seed() {
  static thread_local std::mt19937_64 engine{std::random_device{}()};
  return engine();
}

class Run final : public std::enable_shared_from_this<Run> {
 public:
  Run(RunContext const& context, RunThreads& threads, std::shared_ptr<HttpResponder> responder)
      : work_(boost::asio::make_work_guard(threads.text)),
        context_(context),
        strand_(boost::asio::make_strand(threads.text)),
        responder_(std::move(responder)) {}
  ~Run() {
    if (!done_ && !*client_gone_) fail(unfinished());
  }

  void post_start(RunThreads& threads, bool chat, HttpRequest http) {
    auto read = [self = shared_from_this(), chat, http = std::move(http)] {
      self->guarded([&] {
        if (self->read(chat, http))
          boost::asio::dispatch(self->strand_, [self] { self->guarded([&] { self->submit(); }); });
      });
    };
    if (chat)
      boost::asio::post(threads.templates, std::move(read));
    else
      boost::asio::post(strand_, std::move(read));
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
      abort_all();
      if (!done_)
        fail({.status = 500,
              .message = "internal error",
              .type = "internal_error",
              .param = {},
              .code = {},
              .retry_after_s = {}});
    }
  }

  // The request, with the text of a chat; false: it was refused.
  bool read(bool chat, HttpRequest const& http) {
    id_ = (chat ? "chatcmpl-" : "cmpl-") + http.request_id;
    auto parsed = chat ? parse_chat(http.body, context_.model) : parse_completion(http.body, context_.model);
    if (!parsed) {
      refuse(parsed.error());
      return false;
    }
    request_ = std::move(parsed.value());
    if (!request_.seed_given) request_.sampling.seed = random_seed();
    for (auto const& field : request_.unknown_fields) context_.metrics.count_unknown_field(field);
    if (!chat) return true;
    auto rendered = render_prompt(context_, request_.template_request);
    if (rendered)
      request_.prompts.emplace_back(std::move(rendered.value()));
    else
      refuse(rendered.error());
    return static_cast<bool>(rendered);
  }

  void submit() {
    auto prompts = encoded_prompts();
    if (!prompts) return refuse(prompts.error());
    std::vector<GenerateRequest> requests;
    for (auto const& prompt : prompts.value()) {
      auto request = generate_request(prompt.ids);
      if (!request) return refuse(request.error());
      for (std::uint32_t c = 0; c < request_.best_of; ++c) {
        requests.push_back(request.value());
        requests.back().sampling.choice = c;
      }
    }
    auto const created =
        std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
    builder_.emplace(request_, context_.model, context_.tokenizer, id_, created, std::move(prompts.value()));

    std::vector<Generator::Submission> submissions;
    for (std::size_t i = 0; i < requests.size(); ++i)
      submissions.push_back({std::move(requests[i]), [self = shared_from_this(), i](GenerateEvent event) {
                               boost::asio::post(self->strand_, [self, i, e = std::move(event)] {
                                 self->guarded([&] { self->on_event(i, e); });
                               });
                             }});
    auto submitted = context_.generator.submit(std::move(submissions));
    if (!submitted) return refuse(submitted.error());
    sequences_ = std::move(submitted.value());
    responder_->on_disconnect([&generator = context_.generator, sequences = sequences_, gone = client_gone_] {
      *gone = true;
      for (SequenceId sequence : sequences) generator.abort(sequence, Generator::AbortReason::cancelled);
    });
  }

  // Those that have ended already take no notice.
  void abort_all() {
    for (SequenceId sequence : sequences_) context_.generator.abort(sequence, Generator::AbortReason::cancelled);
  }

  void refuse(ApiError const& error) {
    done_ = true;
    context_.metrics.count_http(error.status);
    responder_->respond(error_response(error));
  }

  Result<std::vector<AnsweredPrompt>> encoded_prompts() {
    std::vector<AnsweredPrompt> prompts;
    for (auto& prompt : request_.prompts) {
      auto& [ids, text] = prompts.emplace_back();
      if (auto* given = std::get_if<std::vector<TokenId>>(&prompt)) {
        ids = std::move(*given);
        if (request_.echo) text = shown(ids);
        continue;
      }
      text = std::move(std::get<std::string>(prompt));
      auto encoded = encode_prompt(context_, text, request_.add_special_tokens, request_.chat ? "messages" : "prompt");
      if (!encoded) return encoded.error();
      ids = std::move(encoded.value());
    }
    request_.prompts.clear();
    return prompts;
  }

  Result<GenerateRequest> generate_request(std::vector<TokenId> const& prompt) {
    if (context_.model.has_encoder && prompt.size() > context_.model.max_model_len)
      return ApiError{.message = "this model takes prompts of " + std::to_string(context_.model.max_model_len) +
                                 " tokens; this one has " + std::to_string(prompt.size()),
                      .param = request_.chat ? "messages" : "prompt",
                      .code = "context_length_exceeded",
                      .retry_after_s = {}};
    // What the answer shares its context with: the prompt, or the token that starts a decoder.
    std::size_t const length = context_.model.has_encoder ? 1 : prompt.size();
    std::size_t const context = context_.model.max_model_len;
    std::size_t const least = request_.max_tokens == 0 ? 0 : 1;
    if (length + std::max(least, request_.max_tokens.value_or(1)) > context)
      return ApiError{.message = "this model's context is " + std::to_string(context) + " tokens; " +
                                 (context_.model.has_encoder ? "its answers begin with one of their own"
                                                             : "the prompt has " + std::to_string(length)) +
                                 (request_.max_tokens ? " and max_tokens is " + std::to_string(*request_.max_tokens)
                                                      : " and leaves no room for an answer"),
                      .param = length + least > context ? (request_.chat ? "messages" : "prompt") : "max_tokens",
                      .code = "context_length_exceeded",
                      .retry_after_s = {}};
    std::size_t const room = context - length;
    GenerateRequest generate;
    generate.max_tokens = request_.max_tokens.value_or(request_.chat ? room : std::min(kDefaultCompletionTokens, room));
    if (request_.sampling.min_tokens > generate.max_tokens)
      return ApiError{.message = "'min_tokens': is more than the " + std::to_string(generate.max_tokens) +
                                 " tokens of this answer (max_tokens)",
                      .param = "min_tokens",
                      .code = {},
                      .retry_after_s = {}};
    generate.request_id = id_;
    generate.sampling = request_.sampling;
    generate.ignore_eos = request_.ignore_eos;
    generate.logprobs = request_.logprobs;
    if (request_.best_of > request_.n && !generate.logprobs) generate.logprobs = 0;  // what tells the best
    if (request_.echo) generate.prompt_logprobs = request_.logprobs;
    generate.return_routed_experts = request_.return_routed_experts;
    generate.prompt = prompt;
    return generate;
  }

  // What echo shows of a prompt given as ids.
  [[nodiscard]] std::string shown(std::vector<TokenId> const& ids) const {
    if (context_.tokenizer) return context_.tokenizer->decode(ids, request_.skip_special_tokens);
    std::string text;
    for (TokenId id : ids) text += (text.empty() ? "token_id:" : " token_id:") + std::to_string(id);
    return text;
  }

  void on_event(std::size_t index, GenerateEvent const& event) {
    if (done_) return;  // came while the generator was being told
    ChoiceBuilder& choice = builder_->choice(index);
    if (choice.finished()) return;
    if (auto const* prompt = std::get_if<PromptDoneEvent>(&event)) choice.prompt_done(*prompt);
    if (auto const* token = std::get_if<TokenEvent>(&event)) {
      choice.token(*token);
      if (choice.stopped()) {
        context_.generator.abort(sequences_[index], Generator::AbortReason::stop_string);
        choice.finish_early();
      }
    }
    if (auto const* finish = std::get_if<FinishEvent>(&event)) choice.finish(*finish);
    if (auto const* error = std::get_if<ErrorEvent>(&event)) {
      abort_all();  // the other choices
      return fail(error->error);
    }
    done_ = builder_->finished();
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
  std::vector<SequenceId> sequences_;  // of each choice
  std::optional<AnswerBuilder> builder_;
  std::shared_ptr<std::atomic<bool>> client_gone_ = std::make_shared<std::atomic<bool>>(false);
  bool streaming_ = false;
  bool done_ = false;
};

}  // namespace

void start_generation(RunContext const& context, RunThreads& threads, bool chat, HttpRequest request,
                      std::shared_ptr<HttpResponder> responder) {
  std::make_shared<Run>(context, threads, std::move(responder))->post_start(threads, chat, std::move(request));
}

}  // namespace expertmesh
