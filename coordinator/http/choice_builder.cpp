#include "coordinator/http/choice_builder.h"

#include <limits>

namespace expertmesh {
namespace {

std::size_t code_points(std::string const& text) {
  std::size_t count = 0;
  for (char c : text) count += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  return count;
}

// Of JSON numbers only finite ones exist; a token that cannot come has no better figure than this.
double finite(float logprob) {
  return logprob < -9999.0F || logprob != logprob ? -9999.0 : static_cast<double>(logprob);
}

}  // namespace

ChoiceBuilder::ChoiceBuilder(AnswerContext const& context, AnsweredPrompt const& prompt)
    : context_(context), prompt_(prompt), matcher_(context.request.stops, context.request.include_stop) {
  if (context.tokenizer) detokenizer_.emplace(*context.tokenizer, context.request.skip_special_tokens);
  if (!context.request.echo) return;
  text_ = prompt.text;
  offset_ = code_points(text_);
}

std::string ChoiceBuilder::shown(TokenId token) const {
  return context_.request.tokens_as_ids || !context_.tokenizer ? "token_id:" + std::to_string(token)
                                                               : context_.tokenizer->token_text(token);
}
std::string ChoiceBuilder::raw_bytes(TokenId token) const {
  return context_.tokenizer ? context_.tokenizer->token_bytes(token) : shown(token);
}

void ChoiceBuilder::prompt_done(PromptDoneEvent const& event) {
  if (!context_.request.echo) return;
  std::optional<StreamDetokenizer> prompt_stream;
  if (context_.tokenizer) prompt_stream.emplace(*context_.tokenizer, context_.request.skip_special_tokens);
  for (std::size_t i = 0, offset = 0; i < event.logprobs.size(); ++i) {
    TokenId const token = prompt_.ids[i];
    tokens_.push_back({token, event.logprobs[i], offset});
    offset += code_points(prompt_stream ? prompt_stream->push(token) : (i > 0 ? " " : "") + shown(token));
  }
}

void ChoiceBuilder::token(TokenEvent const& event) {
  if (stopped()) return;  // came while the engine was being told
  ++completion_tokens_;
  new_ids_.push_back(event.token);
  if (event.logprobs) sum_logprobs_ += static_cast<double>(event.logprobs->chosen.logprob);
  std::string const piece = detokenizer_ ? detokenizer_->push(event.token)
                                         : (new_ids_.size() > 1 || !text_.empty() ? " " : "") + shown(event.token);
  tokens_.push_back({event.token, event.logprobs, offset_});
  offset_ += code_points(piece);
  text_ += matcher_.push(piece);
  any_token_ = true;
}

void ChoiceBuilder::finish_at_stop_string() {
  finish_reason_ = "stop";
}

void ChoiceBuilder::finish(FinishEvent const& event) {
  completion_tokens_ = event.completion_tokens;
  routed_experts_ = event.routed_experts;
  stop_token_ = event.stop_token;
  if (detokenizer_) text_ += matcher_.push(detokenizer_->finish());
  if (!stopped()) text_ += matcher_.finish();
  finish_reason_ = event.reason == FinishReason::length && !stopped() ? "length" : "stop";
}

double ChoiceBuilder::mean_logprob() const {
  return new_ids_.empty() ? std::numeric_limits<double>::lowest()
                          : sum_logprobs_ / static_cast<double>(new_ids_.size());
}

// ---- JSON

ChoiceBuilder::Json ChoiceBuilder::completion_logprobs(std::size_t begin, std::size_t end) const {
  Json tokens = Json::array();
  Json values = Json::array();
  Json tops = Json::array();
  Json offsets = Json::array();
  for (std::size_t i = begin; i < end; ++i) {
    ShownToken const& t = tokens_[i];
    tokens.push_back(shown(t.id));
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
  return {{"tokens", tokens}, {"token_logprobs", values}, {"top_logprobs", tops}, {"text_offset", offsets}};
}

ChoiceBuilder::Json ChoiceBuilder::chat_entry(TokenLogprob const& t) const {
  Json bytes = Json::array();
  for (char c : raw_bytes(t.token)) bytes.push_back(static_cast<unsigned char>(c));
  return {{"token", shown(t.token)}, {"logprob", finite(t.logprob)}, {"bytes", bytes}};
}

ChoiceBuilder::Json ChoiceBuilder::chat_logprobs(std::size_t begin, std::size_t end) const {
  Json content = Json::array();
  for (std::size_t i = begin; i < end; ++i) {
    if (!tokens_[i].logprobs) continue;
    Json entry = chat_entry(tokens_[i].logprobs->chosen);
    entry["top_logprobs"] = Json::array();
    for (auto const& top : tokens_[i].logprobs->top) entry["top_logprobs"].push_back(chat_entry(top));
    content.push_back(std::move(entry));
  }
  return {{"content", content}};
}

ChoiceBuilder::Json ChoiceBuilder::logprobs(std::size_t begin, std::size_t end) const {
  if (!context_.request.logprobs) return nullptr;
  return context_.request.chat ? chat_logprobs(begin, end) : completion_logprobs(begin, end);
}

void ChoiceBuilder::add_finish(Json& choice) const {
  choice["finish_reason"] = finish_reason_ ? Json(*finish_reason_) : Json(nullptr);
  if (!finish_reason_) return;
  if (matcher_.stopped())
    choice["stop_reason"] = *matcher_.stopped();
  else
    choice["stop_reason"] = stop_token_ ? Json(*stop_token_) : Json(nullptr);
}

// With the text and tokens since the last one.
ChoiceBuilder::Json ChoiceBuilder::chunk(std::size_t index, Json delta_or_text) {
  Json choice = {{"index", index}};
  choice[context_.request.chat ? "delta" : "text"] = std::move(delta_or_text);
  choice["logprobs"] = tokens_.size() > tokens_sent_ ? logprobs(tokens_sent_, tokens_.size()) : Json(nullptr);
  if (context_.request.return_token_ids) {
    if (!chunk_sent_) choice["prompt_token_ids"] = prompt_.ids;
    choice["token_ids"] =
        std::vector<TokenId>(new_ids_.begin() + static_cast<std::ptrdiff_t>(ids_sent_), new_ids_.end());
  }
  tokens_sent_ = tokens_.size();
  ids_sent_ = new_ids_.size();
  chunk_sent_ = true;
  choice["finish_reason"] = nullptr;
  return choice;
}

std::vector<ChoiceBuilder::Json> ChoiceBuilder::take_chunks(std::size_t index) {
  ApiRequest const& request = context_.request;
  std::vector<Json> chunks;
  if (request.chat && !role_sent_ && (any_token_ || finished())) {
    role_sent_ = true;
    chunks.push_back({{"index", index},
                      {"delta", {{"role", "assistant"}, {"content", ""}}},
                      {"logprobs", nullptr},
                      {"finish_reason", nullptr}});
  }
  std::string const fresh = text_.substr(text_sent_);
  // Without text a chunk only says which tokens came; nobody waits for that unless they asked.
  bool const tokens_wanted =
      (request.logprobs && tokens_.size() > tokens_sent_) || (request.return_token_ids && new_ids_.size() > ids_sent_);
  if (!fresh.empty() || tokens_wanted) {
    text_sent_ = text_.size();
    chunks.push_back(chunk(index, request.chat ? Json{{"content", fresh}} : Json(fresh)));
  }
  if (finished() && !final_sent_) {
    final_sent_ = true;
    chunks.push_back(chunk(index, request.chat ? Json::object() : Json("")));
    add_finish(chunks.back());
  }
  return chunks;
}

ChoiceBuilder::Json ChoiceBuilder::whole(std::size_t index) const {
  ApiRequest const& request = context_.request;
  Json choice = {{"index", index}};
  if (request.chat)
    choice["message"] = {{"role", "assistant"}, {"content", text_}};
  else
    choice["text"] = text_;
  choice["logprobs"] = logprobs(0, tokens_.size());
  add_finish(choice);
  if (request.return_token_ids) {
    choice["prompt_token_ids"] = prompt_.ids;
    choice["token_ids"] = new_ids_;
  }
  if (request.return_routed_experts) choice["routed_experts"] = routed_experts_;
  return choice;
}

}  // namespace expertmesh
