#include "coordinator/http/answer_builder.h"

#include <nlohmann/json.hpp>

namespace expertmesh {
namespace {

using Json = nlohmann::ordered_json;

std::string dumped(Json const& json) {
  return json.dump(-1, ' ', true, Json::error_handler_t::replace);
}

std::size_t code_points(std::string const& text) {
  std::size_t count = 0;
  for (char c : text) count += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  return count;
}

// Of JSON numbers only finite ones exist; a token that cannot come has no better figure than this.
double finite(float logprob) {
  return logprob < -9999.0F || logprob != logprob ? -9999.0 : static_cast<double>(logprob);
}

// A token with what is shown of it.
struct ShownToken {
  TokenId id;
  std::optional<TokenLogprobs> logprobs;
  std::size_t text_offset;  // code points before it
};

}  // namespace

struct AnswerBuilder::Impl {
  ApiRequest request;
  ApiModel model;
  Tokenizer const* tokenizer;
  std::string id;
  std::int64_t created;
  std::vector<TokenId> prompt_ids;
  std::string prompt_text;

  std::optional<StreamDetokenizer> detokenizer;
  StopMatcher matcher;
  std::string text;                // given out so far, echo included
  std::size_t offset = 0;          // code points of all token texts so far
  std::vector<ShownToken> tokens;  // with echo and logprobs the prompt's first
  std::vector<TokenId> new_ids;
  bool role_sent = false;
  bool chunk_sent = false;
  bool any_token = false;
  std::size_t text_sent = 0;  // bytes of text, tokens and new ids that are in chunks already
  std::size_t tokens_sent = 0;
  std::size_t ids_sent = 0;
  std::optional<std::string> finish_reason;
  bool final_sent = false;
  std::size_t completion_tokens = 0;
  Json routed_experts;

  [[nodiscard]] std::string shown(TokenId token) const {
    return request.tokens_as_ids || !tokenizer ? "token_id:" + std::to_string(token) : tokenizer->token_text(token);
  }
  [[nodiscard]] std::string raw_bytes(TokenId token) const {
    return tokenizer ? tokenizer->token_bytes(token) : shown(token);
  }

  void add_text(std::string const& piece) {
    text += piece;
    any_token = true;
  }

  [[nodiscard]] Json completion_logprobs(std::size_t begin, std::size_t end) const {
    Json tokens_json = Json::array();
    Json values = Json::array();
    Json tops = Json::array();
    Json offsets = Json::array();
    for (std::size_t i = begin; i < end; ++i) {
      ShownToken const& t = tokens[i];
      tokens_json.push_back(shown(t.id));
      offsets.push_back(t.text_offset);
      if (!t.logprobs) {
        values.push_back(nullptr);
        tops.push_back(nullptr);
        continue;
      }
      values.push_back(finite(t.logprobs->chosen.logprob));
      Json top = Json::object();
      for (auto const& entry : t.logprobs->top)
        if (std::string const key = shown(entry.token); !top.contains(key)) top[key] = finite(entry.logprob);
      if (std::string const key = shown(t.id); !top.contains(key)) top[key] = finite(t.logprobs->chosen.logprob);
      tops.push_back(std::move(top));
    }
    return {{"tokens", tokens_json}, {"token_logprobs", values}, {"top_logprobs", tops}, {"text_offset", offsets}};
  }

  [[nodiscard]] Json chat_entry(TokenLogprob const& t) const {
    Json bytes = Json::array();
    for (char c : raw_bytes(t.token)) bytes.push_back(static_cast<unsigned char>(c));
    return {{"token", shown(t.token)}, {"logprob", finite(t.logprob)}, {"bytes", bytes}};
  }
  [[nodiscard]] Json chat_logprobs(std::size_t begin, std::size_t end) const {
    Json content = Json::array();
    for (std::size_t i = begin; i < end; ++i) {
      if (!tokens[i].logprobs) continue;
      Json entry = chat_entry(tokens[i].logprobs->chosen);
      entry["top_logprobs"] = Json::array();
      for (auto const& top : tokens[i].logprobs->top) entry["top_logprobs"].push_back(chat_entry(top));
      content.push_back(std::move(entry));
    }
    return {{"content", content}};
  }
  [[nodiscard]] Json logprobs(std::size_t begin, std::size_t end) const {
    if (!request.logprobs) return nullptr;
    return request.chat ? chat_logprobs(begin, end) : completion_logprobs(begin, end);
  }

  [[nodiscard]] Json head(char const* object) const {
    return {{"id", id}, {"object", object}, {"created", created}, {"model", model.name}};
  }
  [[nodiscard]] Json usage() const {
    return {{"prompt_tokens", prompt_ids.size()},
            {"completion_tokens", completion_tokens},
            {"total_tokens", prompt_ids.size() + completion_tokens}};
  }
  void add_finish(Json& choice) const {
    choice["finish_reason"] = finish_reason ? Json(*finish_reason) : Json(nullptr);
    if (finish_reason) choice["stop_reason"] = matcher.stopped() ? Json(*matcher.stopped()) : Json(nullptr);
  }

  // A chunk with the text and tokens since the last one.
  [[nodiscard]] Json chunk(Json delta_or_text) {
    Json choice = {{"index", 0}};
    choice[request.chat ? "delta" : "text"] = std::move(delta_or_text);
    choice["logprobs"] = tokens.size() > tokens_sent ? logprobs(tokens_sent, tokens.size()) : Json(nullptr);
    if (request.return_token_ids) {
      if (!chunk_sent) choice["prompt_token_ids"] = prompt_ids;
      choice["token_ids"] =
          std::vector<TokenId>(new_ids.begin() + static_cast<std::ptrdiff_t>(ids_sent), new_ids.end());
    }
    tokens_sent = tokens.size();
    ids_sent = new_ids.size();
    chunk_sent = true;
    choice["finish_reason"] = nullptr;
    Json json = head(request.chat ? "chat.completion.chunk" : "text_completion");
    json["choices"] = Json::array({std::move(choice)});
    return json;
  }
};

AnswerBuilder::AnswerBuilder(ApiRequest const& request, ApiModel const& model, Tokenizer const* tokenizer,
                             std::string id, std::int64_t created, std::vector<TokenId> prompt_ids,
                             std::string prompt_text)
    : impl_(new Impl{.request = request,
                     .model = model,
                     .tokenizer = tokenizer,
                     .id = std::move(id),
                     .created = created,
                     .prompt_ids = std::move(prompt_ids),
                     .prompt_text = std::move(prompt_text),
                     .detokenizer = {},
                     .matcher = StopMatcher(request.stops, request.include_stop),
                     .text = {},
                     .tokens = {},
                     .new_ids = {},
                     .finish_reason = {},
                     .routed_experts = {}}) {
  if (tokenizer) impl_->detokenizer.emplace(*tokenizer, request.skip_special_tokens);
  if (!request.echo) return;
  impl_->text = impl_->prompt_text;
  impl_->offset = code_points(impl_->text);
}
AnswerBuilder::~AnswerBuilder() = default;

void AnswerBuilder::prompt_done(PromptDoneEvent const& event) {
  Impl& a = *impl_;
  if (!a.request.echo) return;
  std::optional<StreamDetokenizer> prompt_stream;
  if (a.tokenizer) prompt_stream.emplace(*a.tokenizer, a.request.skip_special_tokens);
  for (std::size_t i = 0, offset = 0; i < event.logprobs.size(); ++i) {
    TokenId const token = a.prompt_ids[i];
    a.tokens.push_back({token, event.logprobs[i], offset});
    offset += code_points(prompt_stream ? prompt_stream->push(token) : (i > 0 ? " " : "") + a.shown(token));
  }
}

void AnswerBuilder::token(TokenEvent const& event) {
  Impl& a = *impl_;
  if (a.matcher.stopped()) return;  // came while the engine was being told
  ++a.completion_tokens;
  a.new_ids.push_back(event.token);
  std::string const piece = a.detokenizer ? a.detokenizer->push(event.token)
                                          : (a.new_ids.size() > 1 || !a.text.empty() ? " " : "") + a.shown(event.token);
  a.tokens.push_back({event.token, event.logprobs, a.offset});
  a.offset += code_points(piece);
  a.add_text(a.matcher.push(piece));
}

bool AnswerBuilder::stopped() const {
  return impl_->matcher.stopped().has_value();
}

void AnswerBuilder::finish_at_stop_string() {
  impl_->finish_reason = "stop";
}

void AnswerBuilder::finish(FinishEvent const& event) {
  Impl& a = *impl_;
  a.completion_tokens = event.completion_tokens;
  a.routed_experts = event.routed_experts;
  if (a.detokenizer) a.text += a.matcher.push(a.detokenizer->finish());
  if (!a.matcher.stopped()) a.text += a.matcher.finish();
  a.finish_reason = event.reason == FinishReason::length && !a.matcher.stopped() ? "length" : "stop";
}

std::string sse_event(std::string const& json) {
  return "data: " + json + "\n\n";
}

std::string AnswerBuilder::take_events() {
  Impl& a = *impl_;
  std::string events;
  bool const finished = a.finish_reason.has_value();
  std::string const fresh = a.text.substr(a.text_sent);
  // Without text a chunk only says which tokens came; nobody waits for that unless they asked.
  bool const tokens_wanted = (a.request.logprobs && a.tokens.size() > a.tokens_sent) ||
                             (a.request.return_token_ids && a.new_ids.size() > a.ids_sent);
  if (a.request.chat && !a.role_sent && (a.any_token || finished)) {
    a.role_sent = true;
    Json json = a.head("chat.completion.chunk");
    json["choices"] = Json::array({{{"index", 0},
                                    {"delta", {{"role", "assistant"}, {"content", ""}}},
                                    {"logprobs", nullptr},
                                    {"finish_reason", nullptr}}});
    events += sse_event(dumped(json));
  }
  if (!fresh.empty() || tokens_wanted) {
    a.text_sent = a.text.size();
    events += sse_event(dumped(a.chunk(a.request.chat ? Json{{"content", fresh}} : Json(fresh))));
  }
  if (finished && !a.final_sent) {
    a.final_sent = true;
    Json last = a.chunk(a.request.chat ? Json::object() : Json(""));
    a.add_finish(last["choices"][0]);
    events += sse_event(dumped(last));
    if (a.request.include_usage) {
      Json json = a.head(a.request.chat ? "chat.completion.chunk" : "text_completion");
      json["choices"] = Json::array();
      json["usage"] = a.usage();
      events += sse_event(dumped(json));
    }
  }
  return events;
}

std::string AnswerBuilder::body() const {
  Impl const& a = *impl_;
  Json choice = {{"index", 0}};
  if (a.request.chat)
    choice["message"] = {{"role", "assistant"}, {"content", a.text}};
  else
    choice["text"] = a.text;
  choice["logprobs"] = a.logprobs(0, a.tokens.size());
  a.add_finish(choice);
  if (a.request.return_token_ids) {
    choice["prompt_token_ids"] = a.prompt_ids;
    choice["token_ids"] = a.new_ids;
  }
  if (a.request.return_routed_experts) choice["routed_experts"] = a.routed_experts;
  Json json = a.head(a.request.chat ? "chat.completion" : "text_completion");
  json["choices"] = Json::array({std::move(choice)});
  json["usage"] = a.usage();
  return dumped(json);
}

}  // namespace expertmesh
