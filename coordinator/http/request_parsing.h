// JSON bodies -> ApiRequest, or a 4xx that names the field. Pure.
#pragma once
#include <string>
#include <vector>

#include "common/base/error.h"
#include "coordinator/http/api_types.h"

namespace expertmesh {

Result<ApiRequest> parse_completion(std::string const& body, ApiModel const& model);
Result<ApiRequest> parse_chat(std::string const& body, ApiModel const& model);

struct TokenizeRequest {
  std::string prompt;
  std::string template_request;  // of messages, where given: then there is no prompt
  bool add_special_tokens = true;
  bool return_token_strings = false;
  std::vector<std::string> unknown_fields;
};
Result<TokenizeRequest> parse_tokenize(std::string const& body, ApiModel const& model);

struct DetokenizeRequest {
  std::vector<TokenId> tokens;
  bool skip_special_tokens = false;
  std::vector<std::string> unknown_fields;
};
Result<DetokenizeRequest> parse_detokenize(std::string const& body, ApiModel const& model);

}  // namespace expertmesh
