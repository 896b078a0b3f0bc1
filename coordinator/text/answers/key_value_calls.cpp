// <tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value>…</tool_call>, as GLM-4.5 writes calls.
#include "coordinator/text/answers/call_format.h"

namespace expertmesh {
namespace {

class KeyValueCalls final : public CallFormat {
 public:
  [[nodiscard]] std::vector<std::string_view> marks(CallPlace) const override { return {"<tool_call>"}; }

  [[nodiscard]] std::vector<ToolCall> read(CallReader& in, ToolSet const& tools) const override {
    in.literal("<tool_call>");
    in.space();
    auto const name = in.name();
    std::vector<std::pair<std::string_view, std::string_view>> arguments;
    for (;;) {
      in.space();
      if (in.one_of({"<arg_key>", "</tool_call>"}) != 0) break;
      auto const key = in.until("</arg_key>");
      in.space();
      in.literal("<arg_value>");
      arguments.emplace_back(key, in.until("</arg_value>"));
    }
    if (!in.good()) return {};
    return {{.name = std::string(name), .arguments = tools.typed_arguments(name, arguments)}};
  }
};

}  // namespace

std::unique_ptr<CallFormat> key_value_calls() {
  return std::make_unique<KeyValueCalls>();
}

}  // namespace expertmesh
