#include "coordinator/http/request_parsing.h"

#include "coordinator/http/body_reader.h"

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
  reader.only("continuous_usage_stats", {false});
  out.unknown_fields = reader.unknown();
}

// Any integer of 64 bits, signed or not.
void read_seed(BodyReader& body, ApiRequest& out) {
  auto const* v = body.find("seed");
  if (!v) return;
  if (!v->is_number_integer()) refuse_field("seed", "must be a whole number of at most 64 bits");
  out.sampling.seed =
      v->is_number_unsigned() ? v->get<std::uint64_t>() : static_cast<std::uint64_t>(v->get<std::int64_t>());
  out.seed_given = true;
}

// Fields both endpoints have.
void read_common(BodyReader& body, ApiModel const& model, ApiRequest& out) {
  check_model(body, model);
  out.sampling.temperature =
      static_cast<float>(body.number("temperature", 0, 2).value_or(static_cast<double>(model.default_temperature)));
  out.sampling.top_p =
      static_cast<float>(body.number("top_p", 0, 1).value_or(static_cast<double>(model.default_top_p)));
  if (out.sampling.top_p <= 0) refuse_field("top_p", "must be greater than 0");
  read_seed(body, out);
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
  body.only("n", {1});
  body.only("best_of", {1});
  for (char const* field : {"presence_penalty", "frequency_penalty", "min_p", "min_tokens"}) body.only(field, {0, 0.0});
  body.only("repetition_penalty", {1, 1.0});
  body.only("length_penalty", {1, 1.0});
  body.only("top_k", {-1, 0});
  body.only("logit_bias", {ApiJson::object()});
  body.only("use_beam_search", {false});
  for (char const* field : {"stop_token_ids", "bad_words", "logits_processors"}) body.only(field, {ApiJson::array()});
  body.only("response_format", {ApiJson{{"type", "text"}}});
  for (char const* field : {"guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs",
                            "truncate_prompt_tokens", "prompt_logprobs", "logprobs_mode"})
    body.only(field, {});
  // Known, without a meaning here.
  body.ignore({"user", "metadata", "store", "service_tier", "priority", "request_id", "spaces_between_special_tokens",
               "safety_identifier", "prompt_cache_key", "cache_salt"});
}

std::size_t read_logprob_count(BodyReader& body, char const* field, ApiModel const& model) {
  return static_cast<std::size_t>(body.whole(field, 0, static_cast<std::int64_t>(model.max_logprobs)).value_or(0));
}

std::vector<TokenId> read_ids(ApiJson const& list, ApiModel const& model) {
  std::vector<TokenId> ids;
  for (auto const& item : list) {
    if (!item.is_number_integer() || (item.is_number_unsigned() ? item.get<std::uint64_t>() >= model.vocab_size : true))
      refuse_field("prompt", "a token id must be a whole number from 0 to " + std::to_string(model.vocab_size - 1) +
                                 ", got " + item.dump().substr(0, 40));
    ids.push_back(item.get<TokenId>());
  }
  return ids;
}

void read_prompt(BodyReader& body, ApiModel const& model, ApiRequest& out) {
  auto const* prompt = body.find("prompt");
  if (!prompt) refuse_field("prompt", "is required");
  // A batch of one is that one.
  if (prompt->is_array() && !prompt->empty() && !prompt->front().is_number()) {
    if (prompt->size() > 1) refuse_field("prompt", "several prompts in one request are not supported");
    prompt = &prompt->front();
  }
  if (prompt->is_string()) {
    if (!model.has_tokenizer) refuse_field("prompt", "this model has no tokenizer: send a list of token ids");
    out.prompt_text = prompt->get<std::string>();
    if (out.prompt_text->empty()) refuse_field("prompt", "must not be empty");
  } else if (prompt->is_array()) {
    if (prompt->empty()) refuse_field("prompt", "must not be empty");
    out.prompt_ids = read_ids(*prompt, model);
  } else {
    refuse_field("prompt", "must be a string or a list of token ids");
  }
}

bool is_text_part(ApiJson const& part) {
  return part.is_object() && part.contains("type") && part["type"] == "text" && part.contains("text") &&
         part["text"].is_string();
}

void check_messages(ApiJson const& messages) {
  if (!messages.is_array() || messages.empty()) refuse_field("messages", "must be a list with at least one message");
  for (std::size_t i = 0; i < messages.size(); ++i) {
    std::string const where = "messages[" + std::to_string(i) + "]";
    auto const& message = messages[i];
    if (!message.is_object()) refuse_field(where, "must be an object");
    if (!message.contains("role") || !message["role"].is_string()) refuse_field(where + ".role", "must be a string");
    if (!message.contains("content") || message["content"].is_null() || message["content"].is_string()) continue;
    if (!message["content"].is_array()) refuse_field(where + ".content", "must be a string or a list of parts");
    for (auto const& part : message["content"])
      if (!is_text_part(part))
        refuse_field(where + ".content", "parts must be {\"type\": \"text\", \"text\": \"...\"}");
  }
}

// Text parts joined: most templates know strings only.
ApiJson with_joined_parts(ApiJson messages) {
  for (auto& message : messages) {
    if (!message.contains("content") || !message["content"].is_array()) continue;
    std::string text;
    for (char const* separator = ""; auto const& part : message["content"]) {
      text += separator + part["text"].get<std::string>();
      separator = "\n";
    }
    message["content"] = text;
  }
  return messages;
}

template <class Parse>
Result<ApiRequest> parsed(std::string const& text, Parse parse) {
  try {
    ApiJson const json = parse_body(text);
    BodyReader body(json);
    ApiRequest out;
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
  return parsed(text, [&](BodyReader& body, ApiRequest& out) {
    read_common(body, model, out);
    read_prompt(body, model, out);
    out.echo = body.flag("echo").value_or(false);
    if (body.find("logprobs")) out.logprobs = read_logprob_count(body, "logprobs", model);
    out.add_special_tokens = body.flag("add_special_tokens").value_or(true);
    if (auto const most = body.whole("max_tokens", 0, INT32_MAX)) out.max_tokens = static_cast<std::size_t>(*most);
    if (out.max_tokens == 0 && !out.echo) refuse_field("max_tokens", "0 is only for \"echo\": true");
    body.only("suffix", {""});
  });
}

Result<ApiRequest> parse_chat(std::string const& text, ApiModel const& model) {
  return parsed(text, [&](BodyReader& body, ApiRequest& out) {
    out.chat = true;
    read_common(body, model, out);
    if (!model.has_tokenizer)
      refuse_field("messages", "this model has no tokenizer: use /v1/completions with token ids");
    if (!model.has_chat_template) refuse_field("messages", "this model has no chat template: use /v1/completions");
    auto const* messages = body.find("messages");
    if (!messages) refuse_field("messages", "is required");
    check_messages(*messages);

    std::size_t const num_top = read_logprob_count(body, "top_logprobs", model);
    if (body.flag("logprobs").value_or(false))
      out.logprobs = num_top;
    else if (num_top > 0)
      refuse_field("top_logprobs", "needs \"logprobs\": true");
    auto const most = body.whole("max_completion_tokens", 1, INT32_MAX);
    auto const older = body.whole("max_tokens", 1, INT32_MAX);
    if (most || older) out.max_tokens = static_cast<std::size_t>(most.value_or(older.value_or(0)));
    out.add_special_tokens = body.flag("add_special_tokens").value_or(false);

    bool const add_prompt = body.flag("add_generation_prompt").value_or(true);
    bool const go_on = body.flag("continue_final_message").value_or(false);
    if (go_on && add_prompt && body.find("add_generation_prompt"))
      refuse_field("continue_final_message", "cannot be combined with add_generation_prompt");
    ApiJson kwargs = ApiJson::object();
    if (auto const* v = body.find("chat_template_kwargs")) {
      if (!v->is_object()) refuse_field("chat_template_kwargs", "must be an object");
      kwargs = *v;
    }
    ApiJson const request = {{"messages", with_joined_parts(*messages)},
                             {"add_generation_prompt", add_prompt && !go_on},
                             {"continue_final_message", go_on},
                             {"kwargs", kwargs}};
    out.template_request = request.dump(-1, ' ', true, ApiJson::error_handler_t::replace);
    body.only("chat_template", {});
    body.only("echo", {false});
    body.only("tools", {ApiJson::array()});
    body.only("documents", {ApiJson::array()});
    body.only("tool_choice", {"none", "auto"});
    body.only("functions", {ApiJson::array()});
    body.only("modalities", {ApiJson::array({"text"})});
    body.only("audio", {});
    body.ignore({"parallel_tool_calls", "reasoning_effort", "verbosity"});
  });
}

}  // namespace expertmesh
