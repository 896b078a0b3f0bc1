#include "coordinator/http/choice_builder.h"

#include <limits>

#include "coordinator/http/request_id.h"

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

std::unique_ptr<AnswerParser> parser_for(AnswerContext const& context, AnsweredPrompt const& prompt) {
  ApiRequest const& request = context.request;
  return make_answer_parser({.formats = request.chat ? context.model.answer_formats : AnswerFormats{},
                             .tools = request.tools,
                             .prompt = prompt.text,
                             .continues_message = request.continues_message});
}

// Nine letters and digits are what some models' templates ask for; none asks for another length.
std::string new_call_id() {
  return request_id_for("").substr(0, 9);
}

// To the last of the pieces if that is of the same kind.
void append(std::vector<AnswerPiece>& pieces, AnswerPiece piece) {
  if (!pieces.empty()) {
    if (auto* last = std::get_if<ContentPiece>(&pieces.back()), *more = std::get_if<ContentPiece>(&piece);
        last && more) {
      last->text += more->text;
      return;
    }
    if (auto* last = std::get_if<ReasoningPiece>(&pieces.back()), *more = std::get_if<ReasoningPiece>(&piece);
        last && more) {
      last->text += more->text;
      return;
    }
  }
  pieces.push_back(std::move(piece));
}

}  // namespace

ChoiceBuilder::ChoiceBuilder(AnswerContext const& context, AnsweredPrompt const& prompt)
    : context_(context),
      prompt_(prompt),
      matcher_(context.request.stops, context.request.include_stop),
      parser_(parser_for(context, prompt)) {
  ApiRequest const& request = context.request;
  if (context.tokenizer) {
    std::span<TokenId const> marks;
    if (request.chat) marks = request.tools.empty() ? context.model.answer_marks : context.model.marks_with_calls;
    detokenizer_.emplace(*context.tokenizer, request.skip_special_tokens, marks);
  }
  if (!request.echo) return;
  take({ContentPiece{prompt.text}});
  offset_ = code_points(text_);
}

void ChoiceBuilder::take(std::vector<AnswerPiece> pieces) {
  for (auto& piece : pieces) {
    if (has_its_call()) return;
    if (auto const* content = std::get_if<ContentPiece>(&piece)) text_ += content->text;
    if (auto const* reasoning = std::get_if<ReasoningPiece>(&piece)) {
      if (!context_.request.include_reasoning) continue;
      reasoning_ += reasoning->text;
    }
    if (auto* call = std::get_if<ToolCall>(&piece)) {
      if (call->id.empty()) call->id = new_call_id();
      calls_.push_back(*call);
    }
    append(fresh_, std::move(piece));
  }
}

std::string ChoiceBuilder::shown(TokenId token) const {
  return context_.request.tokens_as_ids || !context_.tokenizer ? "token_id:" + std::to_string(token)
                                                               : context_.tokenizer->token_text(token);
}
std::string ChoiceBuilder::raw_bytes(TokenId token) const {
  return context_.tokenizer ? context_.tokenizer->token_bytes(token) : shown(token);
}

void ChoiceBuilder::prompt_done(PromptDoneEvent const& event) {
  cached_tokens_ = event.cached_tokens;
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
  take(parser_->push(matcher_.push(piece)));
  any_token_ = true;
}

void ChoiceBuilder::finish_early() {
  take(parser_->finish());
  finish_reason_ = calls_.empty() ? "stop" : "tool_calls";
}

void ChoiceBuilder::finish(FinishEvent const& event) {
  completion_tokens_ = event.completion_tokens;
  routed_experts_ = event.routed_experts;
  stop_token_ = event.stop_token;
  if (detokenizer_) take(parser_->push(matcher_.push(detokenizer_->finish())));
  if (!matcher_.stopped()) take(parser_->push(matcher_.finish()));
  take(parser_->finish());
  bool const cut_off = event.reason == FinishReason::length && !stopped();
  finish_reason_ = cut_off ? "length" : calls_.empty() ? "stop" : "tool_calls";
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

// A piece as the deltas of chunks; of a completion as text. A call's head comes before its arguments.
std::vector<ChoiceBuilder::Json> ChoiceBuilder::deltas(AnswerPiece const& piece) {
  if (auto const* content = std::get_if<ContentPiece>(&piece))
    return {context_.request.chat ? Json{{"content", content->text}} : Json(content->text)};
  if (auto const* reasoning = std::get_if<ReasoningPiece>(&piece))
    return {Json{{"reasoning_content", reasoning->text}}};
  auto const& call = std::get<ToolCall>(piece);
  std::size_t const number = calls_sent_++;
  Json const head = {
      {"index", number}, {"id", call.id}, {"type", "function"}, {"function", {{"name", call.name}, {"arguments", ""}}}};
  Json const rest = {{"index", number}, {"function", {{"arguments", call.arguments}}}};
  return {Json{{"tool_calls", Json::array({head})}}, Json{{"tool_calls", Json::array({rest})}}};
}

// Content is null where there is only something else.
ChoiceBuilder::Json ChoiceBuilder::message() const {
  Json message = {{"role", "assistant"}, {"content", text_}};
  if (text_.empty() && !(calls_.empty() && reasoning_.empty())) message["content"] = nullptr;
  if (!reasoning_.empty()) message["reasoning_content"] = reasoning_;
  for (auto const& call : calls_)
    message["tool_calls"].push_back(
        {{"id", call.id}, {"type", "function"}, {"function", {{"name", call.name}, {"arguments", call.arguments}}}});
  return message;
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
  for (auto const& piece : std::exchange(fresh_, {}))
    for (Json& delta : deltas(piece)) chunks.push_back(chunk(index, std::move(delta)));
  // Without text a chunk only says which tokens came; nobody waits for that unless they asked.
  bool const tokens_wanted =
      (request.logprobs && tokens_.size() > tokens_sent_) || (request.return_token_ids && new_ids_.size() > ids_sent_);
  if (tokens_wanted) chunks.push_back(chunk(index, request.chat ? Json{{"content", ""}} : Json("")));
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
    choice["message"] = message();
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
