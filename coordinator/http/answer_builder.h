// The answer to one request: its choices in one envelope, whole or as server-sent events. Used from one thread at a
// time.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "coordinator/http/choice_builder.h"

namespace expertmesh {

class AnswerBuilder {
 public:
  // Each prompt is answered request.best_of times, of which n are shown: choice p * best_of + c is the c-th answer to
  // prompts[p]. tokenizer may be null; else it must outlive the builder.
  AnswerBuilder(ApiRequest request, ApiModel const& model, Tokenizer const* tokenizer, std::string id,
                std::int64_t created, std::vector<AnsweredPrompt> prompts);

  [[nodiscard]] std::size_t num_choices() const { return choices_.size(); }
  [[nodiscard]] ChoiceBuilder& choice(std::size_t index) { return *choices_.at(index); }
  [[nodiscard]] bool finished() const;  // every choice

  // Streaming: all since the last call, empty if there is nothing to say; when all have finished also the usage, where
  // asked for. Each is a complete server-sent event.
  std::string take_events();
  // Whole: the body. Of each prompt's answers the n with the highest mean log-probability a token.
  [[nodiscard]] std::string body() const;

 private:
  using Json = ChoiceBuilder::Json;
  [[nodiscard]] Json head(char const* object) const;
  [[nodiscard]] Json usage() const;

  AnswerContext context_;
  std::string id_;
  std::int64_t created_;
  std::vector<AnsweredPrompt> prompts_;
  std::vector<std::unique_ptr<ChoiceBuilder>> choices_;
  std::string event_head_;  // of each event's JSON, up to its choices; empty before the first
  bool usage_sent_ = false;
};

// One server-sent event; the JSON has no raw newline.
std::string sse_event(std::string const& json);
constexpr char const* kSseDone = "data: [DONE]\n\n";

}  // namespace expertmesh
