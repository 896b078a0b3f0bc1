// The part of a body that goes through the chat template: messages, tools, documents. Included by .cpp files of this
// folder only.
#pragma once
#include <string>

#include "coordinator/http/api_types.h"
#include "coordinator/http/body_reader.h"

namespace expertmesh {

struct ChatInput {
  std::string template_request;  // as ChatTemplates::render takes it
  std::string callable_tools{};  // JSON; empty if the model may call none
  bool parallel_tool_calls = true;
  bool continues_message = false;
};

// Checks every message and tool; throws BadRequest that names the field, such as
// messages[2].tool_calls[0].function.name.
ChatInput read_chat(BodyReader& body, ApiModel const& model);

}  // namespace expertmesh
