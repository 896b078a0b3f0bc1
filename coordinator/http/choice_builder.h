// Tokens of one choice of an answer -> its text, log-probabilities and JSON, whole or chunk by chunk. Used from one
// thread at a time. Private to coordinator/http.
#pragma once
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/http/api_types.h"
#include "coordinator/text/answer_parser.h"
#include "coordinator/text/detokenizer.h"
#include "coordinator/text/stop_matcher.h"
#include "coordinator/text/tokenizer.h"

namespace expertmesh {

// What all choices of an answer share.
struct AnswerContext {
  ApiRequest request;
  ApiModel model;
  Tokenizer const* tokenizer = nullptr;  // null: tokens are shown as "token_id:N", parted by spaces
};

// A prompt as it was sent to the engine, and as echo shows it.
struct AnsweredPrompt {
  std::vector<TokenId> ids;
  std::string text;
};

class ChoiceBuilder {
 public:
  using Json = nlohmann::ordered_json;

  // Both must outlive the builder.
  ChoiceBuilder(AnswerContext const& context, AnsweredPrompt const& prompt);

  void prompt_done(PromptDoneEvent const& event);
  void token(TokenEvent const& event);
  // No token comes any more.
  void finish(FinishEvent const& event);
  void finish_early();  // once stopped()

  // All that is wanted has come: at a stop string, or with the one call that may be.
  [[nodiscard]] bool stopped() const { return matcher_.stopped().has_value() || has_its_call(); }
  [[nodiscard]] bool finished() const { return finish_reason_.has_value(); }
  [[nodiscard]] std::size_t completion_tokens() const { return completion_tokens_; }
  [[nodiscard]] std::size_t cached_tokens() const { return cached_tokens_; }
  // Of the new tokens; the least there is without them.
  [[nodiscard]] double mean_logprob() const;

  // What has come since the last call, as members of "choices" in chunks to come, in order.
  std::vector<Json> take_chunks(std::size_t index);
  [[nodiscard]] Json whole(std::size_t index) const;

 private:
  // A token with what is shown of it.
  struct ShownToken {
    TokenId id;
    std::optional<TokenLogprobs> logprobs;
    std::size_t text_offset;  // code points before it
  };

  [[nodiscard]] bool has_its_call() const { return !context_.request.parallel_tool_calls && !calls_.empty(); }
  void take(std::vector<AnswerPiece> pieces);
  [[nodiscard]] std::vector<Json> deltas(AnswerPiece const& piece);
  [[nodiscard]] Json message() const;
  [[nodiscard]] std::string shown(TokenId token) const;
  [[nodiscard]] std::string raw_bytes(TokenId token) const;
  [[nodiscard]] Json logprobs(std::size_t begin, std::size_t end) const;
  [[nodiscard]] Json completion_logprobs(std::size_t begin, std::size_t end) const;
  [[nodiscard]] Json chat_entry(TokenLogprob const& logprob) const;
  [[nodiscard]] Json chat_logprobs(std::size_t begin, std::size_t end) const;
  void add_finish(Json& choice) const;
  Json chunk(std::size_t index, Json delta_or_text);

  AnswerContext const& context_;
  AnsweredPrompt const& prompt_;
  std::optional<StreamDetokenizer> detokenizer_;
  StopMatcher matcher_;
  std::unique_ptr<AnswerParser> parser_;
  std::string text_;  // given out so far, echo included; of a chat the content
  std::string reasoning_;
  std::vector<ToolCall> calls_;
  std::vector<AnswerPiece> fresh_;  // what is in no chunk yet, neighbours of one kind joined
  std::size_t offset_ = 0;          // code points of all token texts so far
  std::vector<ShownToken> tokens_;  // with echo and logprobs the prompt's first
  std::vector<TokenId> new_ids_;
  double sum_logprobs_ = 0;
  bool role_sent_ = false;
  bool chunk_sent_ = false;
  bool any_token_ = false;
  std::size_t calls_sent_ = 0;  // calls, tokens and new ids that are in chunks already
  std::size_t tokens_sent_ = 0;
  std::size_t ids_sent_ = 0;
  std::optional<std::string> finish_reason_;
  std::optional<TokenId> stop_token_;
  bool final_sent_ = false;
  std::size_t completion_tokens_ = 0;
  std::size_t cached_tokens_ = 0;
  Json routed_experts_;
};

}  // namespace expertmesh
