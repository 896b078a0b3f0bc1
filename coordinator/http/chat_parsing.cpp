#include "coordinator/http/chat_parsing.h"

#include "coordinator/text/json_text.h"

namespace expertmesh {
namespace {

std::string at(std::string const& list, std::size_t index) {
  return list + "[" + std::to_string(index) + "]";
}

void check_object(ApiJson const& value, std::string const& where) {
  if (!value.is_object()) refuse_field(where, "must be an object");
}
void check_list(ApiJson const& value, std::string const& where) {
  if (!value.is_array()) refuse_field(where, "must be a list");
}

// A field that is there is text; one that must be there is not empty.
void check_text(ApiJson const& object, char const* field, std::string const& where, bool required) {
  auto const value = object.find(field);
  bool const missing = value == object.end() || value->is_null();
  if (missing ? required : !value->is_string()) refuse_field(where + "." + field, "must be a string");
  if (required && value->get_ref<std::string const&>().empty()) refuse_field(where + "." + field, "must not be empty");
}

void check_type_function(ApiJson const& object, std::string const& where, bool required) {
  auto const type = object.find("type");
  if (type == object.end() ? required : *type != "function") refuse_field(where + ".type", "must be \"function\"");
}

ApiJson const& function_of(ApiJson const& object, std::string const& where) {
  auto const function = object.find("function");
  if (function == object.end()) refuse_field(where + ".function", "is required");
  check_object(*function, where + ".function");
  check_text(*function, "name", where + ".function", true);
  return *function;
}

bool is_text_part(ApiJson const& part) {
  return part.is_object() && part.contains("type") && part["type"] == "text" && part.contains("text") &&
         part["text"].is_string();
}

// A string stays, text parts are joined (most templates know strings only), null stays.
void read_content(ApiJson& content, std::string const& where) {
  if (content.is_null() || content.is_string()) return;
  if (!content.is_array()) refuse_field(where, "must be a string or a list of parts");
  std::string text;
  for (char const* separator = ""; auto const& part : content) {
    if (!is_text_part(part)) refuse_field(where, "parts must be {\"type\": \"text\", \"text\": \"...\"}");
    text += separator + part["text"].get<std::string>();
    separator = "\n";
  }
  content = text;
}

// Arguments become the text of a JSON object, whatever form of it they came in.
void read_calls(ApiJson& calls, std::string const& where) {
  if (calls.is_null()) return;
  check_list(calls, where);
  for (std::size_t i = 0; i < calls.size(); ++i) {
    std::string const call = at(where, i);
    check_object(calls[i], call);
    check_text(calls[i], "id", call, false);
    check_type_function(calls[i], call, false);
    function_of(calls[i], call);
    ApiJson& arguments = calls[i]["function"]["arguments"];
    if (arguments.is_null() || arguments == "") arguments = "{}";
    if (arguments.is_object()) arguments = dumped(arguments);
    std::string const field = call + ".function.arguments";
    if (!arguments.is_string()) refuse_field(field, "must be a string");
    try {
      (void)parse_body(arguments.get_ref<std::string const&>());
    } catch (BadRequest const&) {
      refuse_field(field, "must hold a JSON object");
    }
  }
}

ApiJson read_messages(BodyReader& body) {
  auto const* given = body.find("messages");
  if (!given) refuse_field("messages", "is required");
  if (!given->is_array() || given->empty()) refuse_field("messages", "must be a list with at least one message");
  ApiJson messages = *given;
  for (std::size_t i = 0; i < messages.size(); ++i) {
    std::string const where = at("messages", i);
    ApiJson& message = messages[i];
    check_object(message, where);
    check_text(message, "role", where, true);
    if (message.contains("content")) read_content(message["content"], where + ".content");
    for (char const* field : {"name", "tool_call_id", "reasoning_content"}) check_text(message, field, where, false);
    if (message["role"] == "assistant" && message.contains("tool_calls"))
      read_calls(message["tool_calls"], where + ".tool_calls");
  }
  return messages;
}

// Null if there are none.
ApiJson read_tools(BodyReader& body) {
  auto const* tools = body.find("tools");
  if (!tools) return nullptr;
  check_list(*tools, "tools");
  for (std::size_t i = 0; i < tools->size(); ++i) {
    std::string const where = at("tools", i);
    ApiJson const& tool = (*tools)[i];
    check_object(tool, where);
    check_type_function(tool, where, true);
    ApiJson const& function = function_of(tool, where);
    check_text(function, "description", where + ".function", false);
    if (function.contains("parameters") && !function["parameters"].is_null())
      check_object(function["parameters"], where + ".function.parameters");
  }
  return tools->empty() ? ApiJson() : *tools;
}

// Whether the model may call tools. That it must is a promise nobody could keep without constrained decoding.
bool read_tool_choice(BodyReader& body, ApiJson const& tools) {
  auto const* choice = body.find("tool_choice");
  if (!choice || *choice == "auto") return true;
  if (*choice == "none") return false;
  if (choice->is_object()) {
    check_type_function(*choice, "tool_choice", true);
    std::string const name = function_of(*choice, "tool_choice")["name"];
    bool known = false;
    for (auto const& tool : tools) known = known || tool["function"]["name"] == name;
    if (!known) refuse_field("tool_choice", "there is no tool '" + name.substr(0, 64) + "'");
  } else if (*choice != "required") {
    refuse_field("tool_choice", "must be \"none\", \"auto\", \"required\", or an object that names a function");
  }
  refuse_field("tool_choice",
               "this server cannot force a call (it has no constrained decoding): only \"auto\" and \"none\" are "
               "supported");
}

void check_documents(ApiJson const& documents) {
  check_list(documents, "documents");
  for (std::size_t i = 0; i < documents.size(); ++i) check_object(documents[i], at("documents", i));
}

}  // namespace

ChatInput read_chat(BodyReader& body, ApiModel const& model) {
  if (!model.has_tokenizer) refuse_field("messages", "this model has no tokenizer: use /v1/completions with token ids");
  if (!model.has_chat_template) refuse_field("messages", "this model has no chat template: use /v1/completions");
  ApiJson row = {{"messages", read_messages(body)}};

  bool const add_prompt = body.flag("add_generation_prompt").value_or(true);
  bool const go_on = body.flag("continue_final_message").value_or(false);
  if (go_on && add_prompt && body.find("add_generation_prompt"))
    refuse_field("continue_final_message", "cannot be combined with add_generation_prompt");
  row["add_generation_prompt"] = add_prompt && !go_on;
  row["continue_final_message"] = go_on;
  row["chat_template_kwargs"] = ApiJson::object();
  if (auto const* kwargs = body.find("chat_template_kwargs")) {
    check_object(*kwargs, "chat_template_kwargs");
    row["chat_template_kwargs"] = *kwargs;
  }
  if (auto const* documents = body.find("documents")) {
    check_documents(*documents);
    if (!documents->empty()) row["documents"] = *documents;
  }
  if (auto const effort = body.text("reasoning_effort")) row["reasoning_effort"] = *effort;

  // Tools that must not be called are not shown either: a model that does not see them cannot try.
  ApiJson tools = read_tools(body);
  bool const may_call = read_tool_choice(body, tools);
  bool const parallel = body.flag("parallel_tool_calls").value_or(true);
  ChatInput input{.template_request = {}, .parallel_tool_calls = parallel, .continues_message = go_on};
  if (may_call && !tools.is_null()) {
    input.callable_tools = dumped(tools);
    row["tools"] = std::move(tools);
    if (body.find("tool_choice")) row["tool_choice"] = "auto";
    if (body.find("parallel_tool_calls")) row["parallel_tool_calls"] = parallel;
  }
  input.template_request = dumped(row);
  return input;
}

}  // namespace expertmesh
