// Any row, and any body of a chat that is taken, is rendered or refused by a harmless template, and the child that does
// it lives on.
#include <cstdlib>

#include "common/base/check.h"
#include "coordinator/http/request_parsing.h"
#include "coordinator/text/chat_template.h"

namespace expertmesh {
namespace {

std::string const kTemplate = R"({% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if m.reasoning_content %}
<think>{{ m.reasoning_content }}</think>{% endif %}{% for c in m.tool_calls or [] %}{{ c.function.name + ' ' }}{{
c.function.arguments | tojson(indent=2) }}{% endfor %}{% endfor %}{{ tools | tojson }}{{ documents | tojson }}{{
strftime_now('%Y') }}{% if add_generation_prompt %}<|assistant|>{% endif %})";

// 400 is the row's fault; all else, and a dead child, would be ours.
void check(ChatTemplates& templates, std::string const& row) {
  auto const child = templates.child_pids();
  auto const result = templates.render(row);
  if (!result) {
    EM_CHECK(result.error().status == 400 && !result.error().message.empty(), result.error().message);
    EM_CHECK(result.error().message.find("took more than") == std::string::npos, row);
  }
  EM_CHECK(templates.child_pids() == child, "the child died of " << row);
}

ChatTemplates& templates_for(bool api) {
  static auto const make = [](bool of_api) {
    return ChatTemplates({.templates = {{"default", kTemplate}}, .variables = {{"bos_token", "<s>"}}},
                         {.script = EM_SOURCE_DIR "/coordinator/text/render_chat_template.py",
                          .processes = 1,
                          .deadline = std::chrono::seconds(30),
                          .messages_of_api = of_api});
  };
  static ChatTemplates rows = make(false);
  static ChatTemplates chats = make(true);
  return api ? chats : rows;
}

}  // namespace
}  // namespace expertmesh

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  using namespace expertmesh;
  std::string const text(reinterpret_cast<char const*>(data), size);
  check(templates_for(false), text);
  ApiModel const model{.name = "m",
                       .max_model_len = 64,
                       .vocab_size = 100,
                       .has_tokenizer = true,
                       .has_chat_template = true,
                       .answer_formats = {.tool_calls = "hermes", .reasoning = "none"}};
  if (auto const chat = parse_chat(text, model)) check(templates_for(true), chat.value().template_request);
  return 0;
}
