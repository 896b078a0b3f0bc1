// {"name": …, "parameters": {…}}, several parted by ";", after <|python_tag|> or at the start of an answer with no mark
// at all, as Llama 3 writes calls. Without a mark only the request's own functions tell a call from an answer in JSON.
#include "coordinator/text/answers/bare_json_calls.h"

namespace expertmesh {
namespace {

constexpr std::string_view kTag = "<|python_tag|>";

class BareJsonCalls final : public CallFormat {
 public:
  [[nodiscard]] std::vector<std::string_view> marks(CallPlace place) const override {
    if (place == CallPlace::middle) return {kTag};
    if (place == CallPlace::start) return {kTag, "{"};
    return {kTag, "{", ";"};
  }

  [[nodiscard]] std::vector<ToolCall> read(CallReader& in, ToolSet const& tools) const override {
    if (in.optional(";")) in.space();
    if (in.optional(kTag)) in.space();
    return read_bare_json(in, tools);
  }
};

}  // namespace

std::vector<ToolCall> read_bare_json(CallReader& in, ToolSet const& tools) {
  auto const json = in.json();
  if (!in.good()) return {};
  auto call = call_of_json(json);
  if (call && tools.has(call->name)) return {std::move(*call)};
  in.fail();
  return {};
}

std::unique_ptr<CallFormat> bare_json_calls() {
  return std::make_unique<BareJsonCalls>();
}

}  // namespace expertmesh
