// /tokenize and /detokenize, and the encoding of prompts. Private to coordinator/http.
#pragma once
#include <string>
#include <vector>

#include "coordinator/http/generation_run.h"

namespace expertmesh {

// Token ids of a text, at least one, each in the model's vocabulary; the error names `field`.
Result<std::vector<TokenId>> encode_prompt(RunContext const& context, std::string const& text, bool add_special_tokens,
                                           std::string const& field);

// The prompt of a chat, by the model's template: ChatTemplates::render, with an error that says where it comes from.
Result<std::string> render_prompt(RunContext const& context, std::string const& template_request);

// {"prompt": text} or {"messages": […]} -> {"tokens": […], "count", "max_model_len"}, and back. Encoding takes long for
// long texts: not for server threads.
HttpResponse tokenize(RunContext const& context, std::string const& body);
HttpResponse detokenize(RunContext const& context, std::string const& body);

}  // namespace expertmesh
