#include "coordinator/http/request_parsing.h"

#include <charconv>
#include <cmath>

#include "coordinator/http/body_reader.h"
#include "coordinator/http/chat_parsing.h"

namespace expertmesh {
namespace {

constexpr std::size_t kMaxStops = 16;
constexpr std::size_t kMaxStopBytes = 1024;

void check_model(BodyReader& body, ApiModel const& model) {
  auto const name = body.text("model");
  if (name && *name != model.name)
    refuse_field("model", "the model '" + *name + "' does not exist (served: '" + model.name + "')", "model_not_found",
                 404);
}

std::vector<std::string> read_stops(BodyReader& body, ApiModel const& model) {
  std::vector<std::string> stops;
  auto const* v = body.find("stop");
  if (!v) return stops;
  auto const add = [&](ApiJson const& item) {
    if (!item.is_string()) refuse_field("stop", "must be a string or a list of strings");
    auto const text = item.get<std::string>();
    if (text.empty()) refuse_field("stop", "must not hold an empty string");
    if (text.size() > kMaxStopBytes)
      refuse_field("stop", "a string is longer than " + std::to_string(kMaxStopBytes) + " bytes");
    stops.push_back(text);
  };
  if (v->is_array())
    for (auto const& item : *v) add(item);
  else
    add(*v);
  if (stops.size() > kMaxStops) refuse_field("stop", "holds more than " + std::to_string(kMaxStops) + " strings");
  if (!stops.empty() && !model.has_tokenizer)
    refuse_field("stop", "this model has no tokenizer, so there is no text to stop at");
  return stops;
}

void read_stream(BodyReader& body, ApiRequest& out) {
  out.stream = body.flag("stream").value_or(false);
  auto const* options = body.find("stream_options");
  if (!options) return;
  if (!options->is_object()) refuse_field("stream_options", "must be an object");
  if (!out.stream) refuse_field("stream_options", "is only for \"stream\": true");
  BodyReader reader(*options, "stream_options.");
  out.include_usage = reader.flag("include_usage").value_or(false);
  out.continuous_usage = reader.flag("continuous_usage_stats").value_or(false);
  out.unknown_fields = reader.unknown();
}

// Any integer of 64 bits, signed or not.
void read_seed(BodyReader& body, ApiRequest& out) {
  auto const* v = body.find("seed");
  if (!v) return;
  auto const positive = whole_number<std::uint64_t>(*v);
  auto const any = whole_number<std::int64_t>(*v);
  if (!positive && !any) refuse_field("seed", "must be a whole number of at most 64 bits");
  out.sampling.seed = positive ? *positive : static_cast<std::uint64_t>(*any);
  out.seed_given = true;
}

TokenId token_id_of(ApiJson const& value, std::string const& field, ApiModel const& model) {
  auto const id = whole_number<TokenId>(value);
  if (!id || *id < 0 || static_cast<std::size_t>(*id) >= model.vocab_size)
    refuse_field(field, "a token id must be a whole number from 0 to " + std::to_string(model.vocab_size - 1) +
                            ", got " + value.dump().substr(0, 40));
  return *id;
}

std::vector<TokenId> read_ids(ApiJson const& list, std::string const& field, ApiModel const& model) {
  std::vector<TokenId> ids;
  for (auto const& item : list) ids.push_back(token_id_of(item, field, model));
  return ids;
}

// {"123": -5, …}: token ids as strings, as JSON has it.
void read_logit_bias(BodyReader& body, ApiModel const& model, SamplingParams& sampling) {
  auto const* v = body.find("logit_bias");
  if (!v) return;
  if (!v->is_object()) refuse_field("logit_bias", "must be an object of token ids and numbers");
  std::set<TokenId> seen;
  for (auto const& [key, bias] : v->items()) {
    std::uint64_t id = 0;
    auto const [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc{} || end != key.data() + key.size() || id >= model.vocab_size)
      refuse_field("logit_bias",
                   "'" + key.substr(0, 40) + "' is not a token id from 0 to " + std::to_string(model.vocab_size - 1));
    if (!bias.is_number() || !(std::abs(bias.get<double>()) <= 100))
      refuse_field("logit_bias", "the bias of token " + key + " must be a number from -100 to 100");
    auto const token = static_cast<TokenId>(id);
    if (!seen.insert(token).second) refuse_field("logit_bias", "token " + std::to_string(id) + " is there twice");
    sampling.logit_bias.emplace_back(token, bias.get<float>());
  }
}

void read_sampling(BodyReader& body, ApiModel const& model, ApiRequest& out) {
  SamplingParams& s = out.sampling;
  auto const number = [&](char const* field, double least, double most, float fallback) {
    return static_cast<float>(body.number(field, least, most).value_or(static_cast<double>(fallback)));
  };
  s.temperature = number("temperature", 0, 2, model.default_temperature);
  s.top_p = number("top_p", 0, 1, model.default_top_p);
  if (s.top_p <= 0) refuse_field("top_p", "must be greater than 0");
  auto const top_k = body.whole("top_k", -1, INT32_MAX);
  s.top_k = top_k ? static_cast<std::size_t>(std::max<std::int64_t>(*top_k, 0)) : model.default_top_k;
  s.min_p = number("min_p", 0, 1, model.default_min_p);
  s.presence_penalty = number("presence_penalty", -2, 2, 0);
  s.frequency_penalty = number("frequency_penalty", -2, 2, 0);
  s.repetition_penalty = number("repetition_penalty", 0, 100, model.default_repetition_penalty);
  if (s.repetition_penalty <= 0) refuse_field("repetition_penalty", "must be greater than 0");
  s.min_tokens = static_cast<std::size_t>(body.whole("min_tokens", 0, INT32_MAX).value_or(0));
  if (auto const* ids = body.find("stop_token_ids")) {
    if (!ids->is_array()) refuse_field("stop_token_ids", "must be a list of token ids");
    if (ids->size() > kMaxStops)
      refuse_field("stop_token_ids", "holds more than " + std::to_string(kMaxStops) + " token ids");
    s.stop_token_ids = read_ids(*ids, "stop_token_ids", model);
  }
  if (auto const* id = body.find("forced_bos_token_id")) {
    if (!model.has_encoder) refuse_field("forced_bos_token_id", "is for models with an encoder");
    s.forced_first = token_id_of(*id, "forced_bos_token_id", model);
  }
  read_logit_bias(body, model, s);
  read_seed(body, out);
}

// How many answers, once the prompts are known.
void read_choices(BodyReader& body, ApiModel const& model, ApiRequest& out) {
  std::size_t const num_prompts = std::max<std::size_t>(out.prompts.size(), 1);
  if (num_prompts > model.max_choices)
    refuse_field("prompt", "holds " + std::to_string(num_prompts) + " prompts, more than the " +
                               std::to_string(model.max_choices) + " this server takes at once");
  auto const most = static_cast<std::int64_t>(model.max_choices / num_prompts);
  out.n = static_cast<std::size_t>(body.whole("n", 1, most).value_or(1));
  if (out.chat) {
    body.only("best_of", {1});
    out.best_of = out.n;
    return;
  }
  out.best_of = static_cast<std::size_t>(body.whole("best_of", 1, most).value_or(static_cast<std::int64_t>(out.n)));
  if (out.best_of < out.n) refuse_field("best_of", "must be at least n");
  if (out.best_of > out.n && out.stream)
    refuse_field("best_of", "cannot be streamed: the best are known at the end only");
}

void check_min_tokens(ApiRequest const& request) {
  if (request.max_tokens && request.sampling.min_tokens > *request.max_tokens)
    refuse_field("min_tokens", "is more than max_tokens");
}

// Fields both endpoints have.
void read_common(BodyReader& body, ApiModel const& model, ApiRequest& out) {
  check_model(body, model);
  read_sampling(body, model, out);
  out.stops = read_stops(body, model);
  read_stream(body, out);
  out.ignore_eos = body.flag("ignore_eos").value_or(false);
  out.include_stop = body.flag("include_stop_str_in_output").value_or(false);
  out.skip_special_tokens = body.flag("skip_special_tokens").value_or(true);
  out.tokens_as_ids = body.flag("return_tokens_as_token_ids").value_or(false);
  out.return_token_ids = body.flag("return_token_ids").value_or(false);
  out.return_routed_experts = body.flag("return_routed_experts").value_or(false);
  if (out.return_routed_experts && !model.return_routed_experts)
    refuse_field("return_routed_experts", "the server was started without --enable-return-routed-experts");
  if (out.return_routed_experts && out.stream) refuse_field("return_routed_experts", "is not given in a stream");

  // Known, not built: the neutral value only.
  body.only("length_penalty", {1, 1.0});
  body.only("use_beam_search", {false});
  for (char const* field : {"bad_words", "logits_processors"}) body.only(field, {ApiJson::array()});
  body.only("response_format", {ApiJson{{"type", "text"}}});
  for (char const* field : {"guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs",
                            "structural_tag", "grammar", "json_schema", "regex", "ebnf", "allowed_token_ids",
                            "truncate_prompt_tokens", "prompt_logprobs", "logprobs_mode"})
    body.only(field, {});
  // Known, without a meaning here.
  body.ignore({"user", "metadata", "store", "service_tier", "priority", "request_id", "spaces_between_special_tokens",
               "safety_identifier", "prompt_cache_key", "cache_salt"});
}

std::size_t read_logprob_count(BodyReader& body, char const* field, ApiModel const& model) {
  return static_cast<std::size_t>(body.whole(field, 0, static_cast<std::int64_t>(model.max_logprobs)).value_or(0));
}

ApiPrompt read_one_prompt(ApiJson const& prompt, ApiModel const& model) {
  if (prompt.is_string()) {
    if (!model.has_tokenizer) refuse_field("prompt", "this model has no tokenizer: send a list of token ids");
    auto text = prompt.get<std::string>();
    if (text.empty()) refuse_field("prompt", "must not be empty");
    return text;
  }
  if (!prompt.is_array()) refuse_field("prompt", "must be a string, a list of token ids, or a list of such");
  if (prompt.empty()) refuse_field("prompt", "must not be empty");
  return read_ids(prompt, "prompt", model);
}

void read_prompts(BodyReader& body, ApiModel const& model, ApiRequest& out) {
  auto const* prompt = body.find("prompt");
  if (!prompt) refuse_field("prompt", "is required");
  bool const batch =
      prompt->is_array() && !prompt->empty() && (prompt->front().is_string() || prompt->front().is_array());
  if (!batch) return out.prompts.push_back(read_one_prompt(*prompt, model));
  for (auto const& one : *prompt) out.prompts.push_back(read_one_prompt(one, model));
}

template <class Request, class Parse>
Result<Request> parsed(std::string const& text, Parse parse) {
  try {
    ApiJson const json = parse_body(text);
    BodyReader body(json);
    Request out;
    parse(body, out);
    auto const unknown = body.unknown();
    out.unknown_fields.insert(out.unknown_fields.end(), unknown.begin(), unknown.end());
    return out;
  } catch (BadRequest const& bad) {
    return bad.error;
  }
}

}  // namespace

Result<ApiRequest> parse_completion(std::string const& text, ApiModel const& model) {
  return parsed<ApiRequest>(text, [&](BodyReader& body, ApiRequest& out) {
    read_common(body, model, out);
    read_prompts(body, model, out);
    read_choices(body, model, out);
    out.echo = body.flag("echo").value_or(false);
    if (out.echo && model.has_encoder)
      refuse_field("echo", "the prompt goes to this model's encoder, not into its answer");
    if (body.find("logprobs")) out.logprobs = read_logprob_count(body, "logprobs", model);
    out.add_special_tokens = body.flag("add_special_tokens").value_or(true);
    if (auto const most = body.whole("max_tokens", 0, INT32_MAX)) out.max_tokens = static_cast<std::size_t>(*most);
    if (out.max_tokens == 0 && !out.echo) refuse_field("max_tokens", "0 is only for \"echo\": true");
    check_min_tokens(out);
    body.only("suffix", {""});
  });
}

Result<ApiRequest> parse_chat(std::string const& text, ApiModel const& model) {
  return parsed<ApiRequest>(text, [&](BodyReader& body, ApiRequest& out) {
    out.chat = true;
    read_common(body, model, out);
    read_choices(body, model, out);
    ChatInput chat = read_chat(body, model);
    if (!chat.callable_tools.empty() && model.answer_formats.tool_calls == "none")
      refuse_field("tools",
                   "how this model writes calls is not known (--tool-call-parser), so there would be none; "
                   "\"tool_choice\": \"none\" lets it answer without them");
    out.template_request = std::move(chat.template_request);
    out.tools = std::move(chat.callable_tools);
    out.parallel_tool_calls = chat.parallel_tool_calls;
    out.continues_message = chat.continues_message;
    out.include_reasoning = body.flag("include_reasoning").value_or(true);

    std::size_t const num_top = read_logprob_count(body, "top_logprobs", model);
    if (body.flag("logprobs").value_or(false))
      out.logprobs = num_top;
    else if (num_top > 0)
      refuse_field("top_logprobs", "needs \"logprobs\": true");
    auto const most = body.whole("max_completion_tokens", 1, INT32_MAX);
    auto const older = body.whole("max_tokens", 1, INT32_MAX);
    if (most || older) out.max_tokens = static_cast<std::size_t>(most.value_or(older.value_or(0)));
    check_min_tokens(out);
    out.add_special_tokens = body.flag("add_special_tokens").value_or(false);

    body.only("chat_template", {});
    body.only("echo", {false});
    body.only("functions", {ApiJson::array()});
    body.only("modalities", {ApiJson::array({"text"})});
    body.only("audio", {});
    body.ignore({"verbosity"});
  });
}

Result<TokenizeRequest> parse_tokenize(std::string const& text, ApiModel const& model) {
  return parsed<TokenizeRequest>(text, [&](BodyReader& body, TokenizeRequest& out) {
    check_model(body, model);
    out.return_token_strings = body.flag("return_token_strs").value_or(false);
    bool const chat = body.find("messages") != nullptr;
    out.add_special_tokens = body.flag("add_special_tokens").value_or(!chat);
    if (chat && body.find("prompt")) refuse_field("prompt", "cannot be combined with messages");
    if (chat) {
      out.template_request = read_chat(body, model).template_request;
      return;
    }
    if (!model.has_tokenizer) refuse_field("prompt", "this model has no tokenizer");
    auto prompt = body.text("prompt");
    if (!prompt) refuse_field("prompt", "is required");
    out.prompt = std::move(*prompt);
  });
}

Result<DetokenizeRequest> parse_detokenize(std::string const& text, ApiModel const& model) {
  return parsed<DetokenizeRequest>(text, [&](BodyReader& body, DetokenizeRequest& out) {
    check_model(body, model);
    if (!model.has_tokenizer) refuse_field("tokens", "this model has no tokenizer");
    auto const* tokens = body.find("tokens");
    if (!tokens) refuse_field("tokens", "is required");
    if (!tokens->is_array()) refuse_field("tokens", "must be a list of token ids");
    out.tokens = read_ids(*tokens, "tokens", model);
    out.skip_special_tokens = body.flag("skip_special_tokens").value_or(false);
  });
}

}  // namespace expertmesh
