// What the API server needs to know, and what a parsed request is. Plain data.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "coordinator/engine/generate_request.h"
#include "coordinator/text/answer_parser.h"

namespace expertmesh {

struct ApiModel {
  std::string name;               // as served
  std::size_t max_model_len = 0;  // tokens
  bool has_encoder = false;       // prompts go to it: prompt and answer have that length each
  bool prefix_cache = false;      // the usage says how many tokens of the prompt were there already
  std::size_t vocab_size = 0;     // of the model: token ids must lie below
  std::size_t max_logprobs = 20;
  std::size_t max_choices = 256;       // answers of one request: prompts x best_of
  bool return_routed_experts = false;  // may requests ask for it
  bool has_tokenizer = false;
  bool has_chat_template = false;
  AnswerFormats answer_formats{};           // of chats
  std::vector<TokenId> answer_marks{};      // tokens that its parsers must see
  std::vector<TokenId> marks_with_calls{};  // the same where a request has tools
  float default_temperature = 1.0F;
  float default_top_p = 1.0F;
  float default_min_p = 0.0F;
  float default_repetition_penalty = 1.0F;
  std::size_t default_top_k = 0;  // 0: all
  std::int64_t created = 0;       // seconds since 1970, when the server started
};

// A prompt of /v1/completions: text to be encoded, or token ids.
using ApiPrompt = std::variant<std::string, std::vector<TokenId>>;

// A request whose fields are known to be good; prompts may still be text.
struct ApiRequest {
  bool chat = false;
  std::vector<ApiPrompt> prompts;   // completions
  std::string template_request;     // chat: JSON for ChatTemplates::render
  std::string tools;                // chat: JSON of those that may be called; empty: none
  bool parallel_tool_calls = true;  // else the answer ends with its first call
  bool continues_message = false;   // chat: the answer goes on with the last message
  bool include_reasoning = true;
  bool add_special_tokens = true;
  std::size_t n = 1;        // answers shown for each prompt
  std::size_t best_of = 1;  // answers generated for each, at least n

  std::optional<std::size_t> max_tokens;  // none: the default (16; chat: what is left of the context)
  SamplingParams sampling;
  bool seed_given = false;
  bool ignore_eos = false;
  std::optional<std::size_t> logprobs;
  bool echo = false;
  std::vector<std::string> stops;
  bool include_stop = false;
  bool skip_special_tokens = true;
  bool stream = false;
  bool include_usage = false;
  bool continuous_usage = false;  // the usage so far in every chunk
  bool tokens_as_ids = false;     // return_tokens_as_token_ids
  bool return_token_ids = false;
  bool return_routed_experts = false;
  std::vector<std::string> unknown_fields;
};

}  // namespace expertmesh
