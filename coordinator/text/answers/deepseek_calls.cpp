// DeepSeek's calls: between <｜tool▁calls▁begin｜> and <｜tool▁calls▁end｜>, each between <｜tool▁call▁begin｜> and
// <｜tool▁call▁end｜>. V3 and R1: function<｜tool▁sep｜>NAME, a newline, and the arguments in a ```json fence. V3.1:
// NAME<｜tool▁sep｜>ARGUMENTS.
#include "coordinator/text/answers/call_format.h"

namespace expertmesh {
namespace {

constexpr std::string_view kBegin = "<｜tool▁calls▁begin｜>";
constexpr std::string_view kEnd = "<｜tool▁calls▁end｜>";
constexpr std::string_view kCall = "<｜tool▁call▁begin｜>";

class DeepSeekCalls final : public CallFormat {
 public:
  [[nodiscard]] std::vector<std::string_view> marks(CallPlace place) const override {
    if (place == CallPlace::after_call) return {kBegin, kCall, kEnd};
    return {kBegin, kCall};
  }

  [[nodiscard]] std::vector<ToolCall> read(CallReader& in, ToolSet const&) const override {
    if (in.optional(kEnd)) return {};
    if (in.optional(kBegin)) in.space();
    in.literal(kCall);
    in.space();
    ToolCall call{.name = std::string(in.name()), .arguments = {}};
    in.literal("<｜tool▁sep｜>");
    in.space();
    bool const fenced = in.peek() != '{';
    if (fenced) {
      call.name = in.name();
      in.space();
      in.literal("```json");
      in.space();
    }
    auto const json = in.json();
    in.space();
    if (fenced) in.literal("```");
    in.space();
    in.literal("<｜tool▁call▁end｜>");
    if (!in.good()) return {};
    if (auto arguments = object_text(json)) {
      call.arguments = std::move(*arguments);
      return {std::move(call)};
    }
    in.fail();
    return {};
  }
};

}  // namespace

std::unique_ptr<CallFormat> deepseek_calls() {
  return std::make_unique<DeepSeekCalls>();
}

}  // namespace expertmesh
