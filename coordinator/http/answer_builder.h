// Tokens of one request -> text, log-probabilities and the JSON of its answer, whole or chunk by chunk. Used from one
// thread at a time.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/http/api_types.h"
#include "coordinator/text/detokenizer.h"
#include "coordinator/text/stop_matcher.h"
#include "coordinator/text/tokenizer.h"

namespace expertmesh {

// A model without a tokenizer answers with "token_id:N" strings, parted by spaces.
class AnswerBuilder {
 public:
  // prompt_ids: as sent to the engine; prompt_text: what echo shows. tokenizer may be null.
  AnswerBuilder(ApiRequest const& request, ApiModel const& model, Tokenizer const* tokenizer, std::string id,
                std::int64_t created, std::vector<TokenId> prompt_ids, std::string prompt_text);
  ~AnswerBuilder();

  void prompt_done(PromptDoneEvent const& event);
  void token(TokenEvent const& event);
  // No token comes any more. reason: "stop" or "length". A stop string that was met is told by itself.
  void finish(FinishEvent const& event);
  void finish_at_stop_string();

  // A stop string was met: the engine need not go on.
  [[nodiscard]] bool stopped() const;

  // Streaming: the chunk of all since the last call, empty if there is nothing to say; after finish() also the final
  // one and the usage. Each is a complete server-sent event.
  std::string take_events();
  // Whole: the body.
  [[nodiscard]] std::string body() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// One server-sent event; the JSON has no raw newline.
std::string sse_event(std::string const& json);
constexpr char const* kSseDone = "data: [DONE]\n\n";

}  // namespace expertmesh
