// [TOOL_CALLS][{"name": …, "arguments": {…}, "id": …}, …], or, of later tokenizers, for each call
// [TOOL_CALLS]NAME[CALL_ID]ID[ARGS]{…}, the middle one optional, as Mistral's models write calls.
#include "coordinator/text/answers/call_format.h"

namespace expertmesh {
namespace {

class MistralCalls final : public CallFormat {
 public:
  [[nodiscard]] std::vector<std::string_view> marks(CallPlace) const override { return {"[TOOL_CALLS]"}; }

  [[nodiscard]] std::vector<ToolCall> read(CallReader& in, ToolSet const&) const override {
    in.literal("[TOOL_CALLS]");
    in.space();
    char const next = in.peek();
    return next == '[' || next == '{' ? read_list(in) : read_named(in);
  }

 private:
  static std::vector<ToolCall> read_list(CallReader& in) {
    auto const json = in.json();
    if (!in.good()) return {};
    if (json.starts_with('{')) {
      if (auto call = call_of_json(json)) return {std::move(*call)};
    } else if (auto calls = calls_of_json(json); !calls.empty()) {
      return calls;
    }
    in.fail();
    return {};
  }

  static std::vector<ToolCall> read_named(CallReader& in) {
    ToolCall call{.name = std::string(in.name()), .arguments = {}};
    if (in.optional("[CALL_ID]")) call.id = in.name();
    in.optional("[ARGS]");
    in.space();
    auto const json = in.json();
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

std::unique_ptr<CallFormat> mistral_calls() {
  return std::make_unique<MistralCalls>();
}

}  // namespace expertmesh
