#include "coordinator/http/text_endpoints.h"

#include <nlohmann/json.hpp>

#include "coordinator/http/api_json.h"
#include "coordinator/http/request_parsing.h"
#include "coordinator/text/json_text.h"

namespace expertmesh {
namespace {

using Json = nlohmann::ordered_json;

HttpResponse json_response(Json const& json) {
  return {.body = dumped(json), .headers = {}};
}

}  // namespace

Result<std::vector<TokenId>> encode_prompt(RunContext const& context, std::string const& text, bool add_special_tokens,
                                           std::string const& field) {
  auto ids = context.tokenizer->encode(text, add_special_tokens);
  if (ids.empty())
    return ApiError{.message = "'" + field + "': encodes to no token", .param = field, .code = {}, .retry_after_s = {}};
  for (TokenId id : ids)
    if (static_cast<std::size_t>(id) >= context.model.vocab_size)
      return ApiError{.message = "'" + field + "': token " + std::to_string(id) +
                                 " of the tokenizer is not in the model's vocabulary",
                      .param = field,
                      .code = {},
                      .retry_after_s = {}};
  return ids;
}

Result<std::string> render_prompt(RunContext const& context, std::string const& template_request) {
  auto rendered = context.templates->render(template_request);
  if (rendered) return rendered;
  ApiError error = rendered.error();
  error.message = "chat template: " + error.message;
  return error;
}

HttpResponse tokenize(RunContext const& context, std::string const& body) {
  auto const parsed = parse_tokenize(body, context.model);
  if (!parsed) return error_response(parsed.error());
  TokenizeRequest const& request = parsed.value();
  for (auto const& field : request.unknown_fields) context.metrics.count_unknown_field(field);
  std::string text = request.prompt;
  if (!request.template_request.empty()) {
    auto rendered = render_prompt(context, request.template_request);
    if (!rendered) return error_response(rendered.error());
    text = std::move(rendered.value());
  }
  auto const ids = context.tokenizer->encode(text, request.add_special_tokens);
  Json json = {{"count", ids.size()}, {"max_model_len", context.model.max_model_len}, {"tokens", ids}};
  if (request.return_token_strings) {
    json["token_strs"] = Json::array();
    for (TokenId id : ids) json["token_strs"].push_back(context.tokenizer->token_text(id));
  }
  return json_response(json);
}

HttpResponse detokenize(RunContext const& context, std::string const& body) {
  auto const parsed = parse_detokenize(body, context.model);
  if (!parsed) return error_response(parsed.error());
  for (auto const& field : parsed.value().unknown_fields) context.metrics.count_unknown_field(field);
  return json_response(
      {{"prompt", context.tokenizer->decode(parsed.value().tokens, parsed.value().skip_special_tokens)}});
}

}  // namespace expertmesh
