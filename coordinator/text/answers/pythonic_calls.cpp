// [NAME(KEY=VALUE, …), …], at the start of an answer or between <|python_start|> and <|python_end|>, as Llama 4 writes
// calls; it also writes the JSON of Llama 3 there.
#include "coordinator/text/answers/bare_json_calls.h"
#include "coordinator/text/answers/python_value.h"

namespace expertmesh {
namespace {

constexpr std::string_view kPythonStart = "<|python_start|>";

class PythonicCalls final : public CallFormat {
 public:
  explicit PythonicCalls(bool json_too) : json_too_(json_too) {}

  [[nodiscard]] std::vector<std::string_view> marks(CallPlace place) const override {
    if (place == CallPlace::middle) return {kPythonStart};
    std::vector<std::string_view> marks{kPythonStart, "["};
    if (json_too_) marks.emplace_back("{");
    if (json_too_ && place == CallPlace::after_call) marks.emplace_back(";");
    return marks;
  }

  [[nodiscard]] std::vector<ToolCall> read(CallReader& in, ToolSet const& tools) const override {
    if (json_too_ && in.optional(";")) in.space();
    bool const opened = in.optional(kPythonStart);
    if (opened) in.space();
    auto calls = json_too_ && in.peek() == '{' ? read_bare_json(in, tools) : read_pythonic(in, tools);
    if (opened) {
      in.space();
      in.literal("<|python_end|>");
    }
    return calls;
  }

 private:
  bool json_too_;
};

}  // namespace

std::vector<ToolCall> read_pythonic(CallReader& in, ToolSet const& tools) {
  std::vector<ToolCall> calls;
  in.literal("[");
  do {
    in.space();
    ToolCall call{.name = std::string(in.name()), .arguments = "{"};
    if (in.good() && !tools.has(call.name)) in.fail();
    in.literal("(");
    in.space();
    while (in.good() && in.peek() != ')') {
      if (call.arguments.size() > 1) {
        in.literal(",");
        in.space();
        if (in.peek() == ')') break;
        call.arguments += ", ";
      }
      auto const key = in.name();
      in.space();
      in.literal("=");
      in.space();
      call.arguments += json_string(key) + ": " + read_python_value(in);
      in.space();
    }
    in.literal(")");
    in.space();
    call.arguments += "}";
    calls.push_back(std::move(call));
  } while (in.one_of({",", "]"}) == 0);
  return calls;
}

std::unique_ptr<CallFormat> pythonic_calls() {
  return std::make_unique<PythonicCalls>(false);
}

std::unique_ptr<CallFormat> bare_json_or_pythonic_calls() {
  return std::make_unique<PythonicCalls>(true);
}

}  // namespace expertmesh
