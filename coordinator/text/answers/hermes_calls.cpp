// <tool_call>{"name": …, "arguments": {…}}</tool_call>, as Hermes and Qwen models write calls.
#include "coordinator/text/answers/call_format.h"

namespace expertmesh {
namespace {

class HermesCalls final : public CallFormat {
 public:
  [[nodiscard]] std::vector<std::string_view> marks(CallPlace) const override { return {"<tool_call>"}; }

  [[nodiscard]] std::vector<ToolCall> read(CallReader& in, ToolSet const&) const override {
    in.literal("<tool_call>");
    in.space();
    auto const json = in.json();
    in.space();
    in.literal("</tool_call>");
    if (!in.good()) return {};
    if (auto call = call_of_json(json)) return {std::move(*call)};
    in.fail();
    return {};
  }
};

}  // namespace

std::unique_ptr<CallFormat> hermes_calls() {
  return std::make_unique<HermesCalls>();
}

}  // namespace expertmesh
