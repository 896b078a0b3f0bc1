// <tool_call><function=NAME><parameter=KEY>VALUE</parameter>…</function></tool_call>, as Qwen3-Coder writes calls; it
// leaves the outer mark out at times. One newline on either side of a value is not part of it.
#include "coordinator/text/answers/call_format.h"

namespace expertmesh {
namespace {

constexpr std::string_view kOpen = "<tool_call>";
constexpr std::string_view kFunction = "<function=";

std::string_view without_outer_newlines(std::string_view value) {
  if (value.starts_with('\n')) value.remove_prefix(1);
  if (value.ends_with('\n')) value.remove_suffix(1);
  return value;
}

class XmlCalls final : public CallFormat {
 public:
  [[nodiscard]] std::vector<std::string_view> marks(CallPlace) const override { return {kOpen, kFunction}; }

  [[nodiscard]] std::vector<ToolCall> read(CallReader& in, ToolSet const& tools) const override {
    bool const opened = in.optional(kOpen);
    in.space();
    in.literal(kFunction);
    auto const name = in.name();
    in.literal(">");
    std::vector<std::pair<std::string_view, std::string_view>> arguments;
    for (;;) {
      in.space();
      if (in.one_of({"<parameter=", "</function>"}) != 0) break;
      auto const key = in.name();
      in.literal(">");
      auto const value = in.until("</parameter>");
      arguments.emplace_back(key, without_outer_newlines(value));
    }
    if (opened) {
      in.space();
      in.literal("</tool_call>");
    }
    if (!in.good()) return {};
    return {{.name = std::string(name), .arguments = tools.typed_arguments(name, arguments)}};
  }
};

}  // namespace

std::unique_ptr<CallFormat> xml_calls() {
  return std::make_unique<XmlCalls>();
}

}  // namespace expertmesh
