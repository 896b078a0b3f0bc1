// Any body is a request whose fields keep their bounds, or an error with a status and a message.
#include <cstdlib>

#include "common/base/check.h"
#include "coordinator/http/request_parsing.h"

namespace expertmesh {
namespace {

ApiModel const model{.name = "m",
                     .max_model_len = 64,
                     .vocab_size = 100,
                     .max_choices = 8,
                     .return_routed_experts = true,
                     .has_tokenizer = true,
                     .has_chat_template = true};

template <class Request>
Request const* request_of(Result<Request> const& result) {
  if (result) return &result.value();
  ApiError const& error = result.error();
  EM_CHECK(error.status == 400 || error.status == 404, "status " << error.status);
  EM_CHECK(!error.message.empty() && !error.type.empty(), "an error without a word");
  return nullptr;
}

void check(ApiRequest const* request) {
  if (!request) return;
  SamplingParams const& s = request->sampling;
  EM_CHECK(s.temperature >= 0 && s.temperature <= 2, s.temperature);
  EM_CHECK(s.top_p > 0 && s.top_p <= 1, s.top_p);
  EM_CHECK(s.min_p >= 0 && s.min_p <= 1, s.min_p);
  EM_CHECK(s.repetition_penalty > 0, s.repetition_penalty);
  EM_CHECK(request->n >= 1 && request->best_of >= request->n, request->n << " of " << request->best_of);
  EM_CHECK(std::max<std::size_t>(request->prompts.size(), 1) * request->best_of <= model.max_choices, "too many");
  for (auto const& [token, bias] : s.logit_bias) EM_CHECK(token >= 0 && token < 100, token);
  for (auto const& prompt : request->prompts)
    if (auto const* ids = std::get_if<std::vector<TokenId>>(&prompt))
      for (TokenId id : *ids) EM_CHECK(id >= 0 && id < 100, id);
}

}  // namespace
}  // namespace expertmesh

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  using namespace expertmesh;
  std::string const body(reinterpret_cast<char const*>(data), size);
  check(request_of(parse_completion(body, model)));
  check(request_of(parse_chat(body, model)));
  (void)request_of(parse_tokenize(body, model));
  (void)request_of(parse_detokenize(body, model));
  return 0;
}
